"""Faults of row files, each with its line: of lines alone, and between lines, files and splits.

Rows are remembered by 8-byte hashes (two different rows among 9 million share one with a chance of 2 in a
million), so that memory grows by some 40 bytes a row, whatever the rows hold.
"""

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from speechgpt.data.dialogue_rows import CHAIN_KINDS, INSTRUCT_KINDS
from speechgpt.data.files import LONGEST_LINE, bounded_lines
from speechgpt.data.lint_rows import Found, printable, read_line, short
from speechgpt.data.published import PREFIX
from speechgpt.data.rows import SPLITS
from speechgpt.data.splits import text_key

KINDS = {
    "broken": "no readable row: not UTF-8, not JSON, too long",
    "fields": "a row of this package with missing, unknown or wrong fields",
    "template": "drifts from the published template",
    "injection": "a text holds a unit or marker, which readers take for structure",
    "range": "a unit is not below the codebook's size",
    "truncated": "longer than --max-length: its answer would be cut",
    "marker": "a marker of the rows is no single token of --model",
    "duplicate": "the same row, or the same id in a file, a second time",
    "leak-text": "the same text in another split",
    "leak-units": "the same units in another split",
}
DIALOGUES = (*INSTRUCT_KINDS, *CHAIN_KINDS)  # rows that have an answer
# A file's first line, when its rows are the elements of one array. A text may start with a bracket, too.
IN_AN_ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*(\{.*|\]\s*)?", re.DOTALL)
ARRAY = "a JSON array; expected one row a line, as `jq -c '.[]'` writes them"
IN_NAMES = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "test": "test"}

Measure = Callable[[Found], tuple[int, int]]  # tokens (before the answer, in all)


@dataclass(frozen=True)
class Finding:
    file: str
    line: int
    kind: str  # one of KINDS
    what: str

    def __str__(self) -> str:
        return printable(f"{self.file}:{self.line}: {self.kind}: {self.what}")


@dataclass
class LintOptions:
    num_units: int = 0  # K; 0: any unit will do
    max_length: int = 0  # tokens; 0: any length will do
    measure: Measure | None = None  # None: `least_tokens`, which says a row is too long only if it surely is
    markers: dict[str, int] = field(default_factory=dict)  # marker -> its tokens, where it is not one
    model: str = ""  # named beside `markers`
    ignore: frozenset[str] = frozenset()  # kinds that are not looked for


class _Keys:
    """(hash, number of the row) of one kind of key."""

    def __init__(self) -> None:
        self.hashes, self.rows = array("Q"), array("I")

    def add(self, key: str, row: int) -> None:
        digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self.hashes.append(int.from_bytes(digest, "little"))
        self.rows.append(row)

    def groups(self) -> Iterator[np.ndarray]:
        """Row numbers (n,) of each key that stands in several rows, in order."""
        hashes, rows = np.array(self.hashes, dtype=np.uint64), np.array(self.rows, dtype=np.uint32)
        order = np.argsort(hashes, kind="stable")
        hashes, rows = hashes[order], rows[order]
        starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]]) if len(hashes) else np.zeros(0, int)
        ends = np.r_[starts[1:], len(hashes)]
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            yield rows[start:end]


class Linter:
    """`for finding in Linter(options).run(files)`; afterwards `rows` and `findings` hold the counts."""

    def __init__(self, options: LintOptions | None = None) -> None:
        self.options = options or LintOptions()
        self.rows: Counter[str] = Counter()  # kind of row -> rows
        self.findings: Counter[str] = Counter()  # kind of finding -> findings
        self._files: list[str] = []
        self._starts: list[int] = []  # number of each file's first row
        self._lines, self._splits = array("I"), array("I")  # of each row
        self._split_numbers = {name: number for number, name in enumerate(SPLITS)}
        self._keys = {name: _Keys() for name in ("row", "id", "text", "units")}
        self._valid = {str(unit) for unit in range(self.options.num_units)}

    def run(self, files: list[str | Path]) -> Iterator[Finding]:
        """Raises FileNotFoundError before anything is read; a broken line stops nothing."""
        for path in files:
            if not Path(path).is_file():
                raise FileNotFoundError(f"{path}: no such file of rows")
        for path in files:
            yield from self._counted(self._file(Path(path)))
        yield from self._counted(self._duplicates())
        for kind in ("text", "units"):
            yield from self._counted(self._leaks(kind))

    def _counted(self, findings: Iterator[Finding]) -> Iterator[Finding]:
        for finding in findings:
            if finding.kind not in self.options.ignore:
                self.findings[finding.kind] += 1
                yield finding

    def _file(self, path: Path) -> Iterator[Finding]:
        name = str(path)
        self._files.append(name)
        self._starts.append(len(self._lines))
        of_file = self._split_number(split_of_name(path))
        is_json: bool | None = None
        spelled: dict[str, list[int]] = {
            marker: [0, 0] for marker in self.options.markers
        }  # first line, rows
        for number, line in bounded_lines(path):
            if line is None:
                yield Finding(name, number, "broken", f"a line of more than {LONGEST_LINE >> 20} MB")
                continue
            if not line.strip():
                continue
            if is_json is None and IN_AN_ARRAY.fullmatch(line):
                self.rows["unreadable"] += 1
                yield Finding(name, number, "broken", ARRAY)
                break
            if is_json is None:
                is_json = line.lstrip().startswith((b"{", b"\xef\xbb\xbf{"))
            found = read_line(line, is_json)
            for kind, what in found.problems:
                yield Finding(name, number, kind, what)
            if not found.kind:
                self.rows["unreadable"] += 1
                continue
            self.rows[found.kind] += 1
            for marker, seen in spelled.items():
                if marker in (found.plain or _spelling(found.kind)):
                    seen[0], seen[1] = seen[0] or number, seen[1] + 1
            yield from (Finding(name, number, kind, what) for kind, what in self._values(found))
            self._remember(found, number, of_file)
        for marker, (first, count) in spelled.items():
            if count:
                what = f"{marker} is {self.options.markers[marker]} tokens in {self.options.model}, here and "
                yield Finding(name, first, "marker", f"{what}in {count - 1} more rows of this file")

    def _values(self, found: Found) -> Iterator[tuple[str, str]]:
        """What the options say of a row: units out of range, answers that would be cut."""
        if self._valid:
            for name, spelled in found.units:
                units = spelled[7:-7].split("><")
                if not self._valid.issuperset(units):
                    wrong = [unit for unit in units if unit not in self._valid]
                    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
                    yield "range", f"{name} holds unit {wrong[0][:20]}{more}; K is {self.options.num_units}"
        if self.options.max_length and found.kind in DIALOGUES:
            before, tokens, exact = self._length(found)
            if tokens > self.options.max_length:
                least = "" if exact else "at least "
                lost = "all of its answer" if before >= self.options.max_length else "its answer's end"
                yield (
                    "truncated",
                    f"{least}{tokens} tokens, {self.options.max_length} fit: {lost} would be lost",
                )

    def _length(self, found: Found) -> tuple[int, int, bool]:
        """(tokens before the answer, in all, whether they are counted and not the fewest there can be)."""
        try:
            if self.options.measure:
                return *self.options.measure(found), True
        except (
            ValueError,
            TypeError,
        ):  # a text that this model cannot take: reported as template or injection
            pass
        return *least_tokens(found), False

    def _remember(self, found: Found, number: int, of_file: int) -> None:
        row = len(self._lines)
        self._lines.append(number)
        self._splits.append(self._split_number(found.split) if found.split else of_file)
        keys = self._keys
        keys["row"].add(found.content, row)
        if found.id:
            keys["id"].add(f"{len(self._files)} {found.id}", row)
        if found.heard and (key := text_key(found.heard)):
            keys["text"].add(key, row)
        if found.heard_units:
            keys["units"].add(found.heard_units, row)

    def _split_number(self, name: str) -> int:
        return self._split_numbers.setdefault(name, len(self._split_numbers))

    def _where(self, row: int) -> tuple[str, int]:
        return self._files[bisect_right(self._starts, row) - 1], self._lines[row]

    def _duplicates(self) -> Iterator[Finding]:
        for name, what in (("row", "the same row as"), ("id", "the same id as")):
            for group in self._keys[name].groups():
                first = "{}:{}".format(*self._where(int(group[0])))
                for row in group[1:].tolist():
                    yield Finding(*self._where(row), "duplicate", f"{what} {first}")

    def _leaks(self, kind: str) -> Iterator[Finding]:
        splits, names = np.array(self._splits), [short(name, 80) for name in self._split_numbers]
        if len(np.unique(splits)) < 2:
            return
        for group in self._keys[kind].groups():
            held = splits[group]
            if (held == held.min()).all():
                continue
            first = group[held == held.min()][0]
            shown = "{}:{} ({})".format(*self._where(int(first)), names[splits[first]])
            for row in group[held != held.min()].tolist():
                own = names[splits[row]]
                yield Finding(*self._where(row), f"leak-{kind}", f"the same {kind} as {shown}, here in {own}")


def _spelling(kind: str) -> str:
    """The markers of an own row, when it is spelled for a model."""
    if kind not in DIALOGUES:
        return "<sosp> <eosp>" if kind == "units" else ""
    answer = f"[ta]{' [ua]' if kind.endswith('-speech') else ''}" if kind in CHAIN_KINDS else ""
    units = "" if kind in ("chat", "text-text") else "<sosp> <eosp>"
    return f"[Human] [SpeechGPT] <eoh> <eoa> {answer} {units}"


def split_of_name(path: Path) -> str:
    """A file's split by the words of its name (train, dev, valid, validation, test); else the name itself."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    return next((IN_NAMES[word] for word in words if word in IN_NAMES), str(path))


def least_tokens(found: Found) -> tuple[int, int]:
    """Tokens (before the answer, in all) that a row has at least, whatever the tokenizer.

    One for each unit, each marker and each word of text (no tokenizer in use joins words), `<s>` and `</s>`.
    """
    texts = {name: len(text.split()) for name, text in found.texts}
    units = {name: spelled.count("<") for name, spelled in found.units}  # with <sosp> and <eosp>
    prefix = _PREFIX_WORDS if found.plain else 0
    answer = texts.get("answer", 0) + units.get("answer_units", 0)
    if found.kind == "asr":
        answer = texts["text"]
    elif found.kind == "tts":
        answer = units["units"]
    elif found.kind.startswith("speech-"):
        answer += texts["question"]
    structure = 4  # <s> [Human] <eoh> [SpeechGPT]
    in_all = prefix + sum(texts.values()) + sum(units.values()) + structure
    return in_all - answer, in_all + 2  # <eoa> </s>


_PREFIX_WORDS = len(PREFIX.split())
