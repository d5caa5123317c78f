"""English prose as short pieces of plain words: what is spoken, and what only the language model reads.

Read are plain `.txt` books (UTF-8) and the `data.*` files of WordNet, whose glosses quote example sentences.
A long sentence is cut where its clauses end. What cannot be said as it is written is dropped, not repaired.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from speechgpt.data.files import read_text
from speechgpt.data.text_normal import normalise

SHORTEST, LONGEST = 3, 14  # words of a piece
WORDS_FOR_ONE_UNKNOWN = 10  # a piece may hold one unknown word for each so many of its words
CONTAINED = 5  # words from which a text that stands inside another one counts as the same
WORDNET = {f"data.{kind}" for kind in ("noun", "verb", "adj", "adv")}

_PLAIN = str.maketrans(
    {**dict.fromkeys("“”„", '"'), **dict.fromkeys("‘’`", "'"), "—": " -- ", "–": "-", "_": "", "…": "..."}
)
_TITLES = re.compile(r"\b(Mr|Mrs|Messrs|Dr|Ms)\.")
_SPOKEN_TITLES = {"Messrs": "Messieurs", "Dr": "Doctor"}
_SENTENCE_END = re.compile(r"""(?<=[.!?])(?<!\b[A-HJ-Z]\.)["')]*\s+(?=["'(]*[A-Z0-9])""")  # not after J.
_STRANGE = re.compile(r"""[^A-Za-z0-9 .,;:!?'"()-]""")
_UNSAYABLE = re.compile(
    r"""
    \d{4} | \d[.:'-]\d | \d[A-Za-z(]  # years, verses and measures: read in many ways
    | [A-Za-z0-9]\.(?!["')\s]*$)  # a full stop inside the sentence ends an abbreviation
    | \b(?![IAO]\b)[A-Z](?![A-Za-z'])  # a letter alone
    | \b[A-Z]{2,}\b  # headings, initials, roman numerals
    | \b(?:esq|etc|viz|capt|col|gen|vol|rev|hon|lieut|jun|sen|fig|chap|ch|co|inc|ltd|vs|cf|ibid|st|ave|oz)
      \.["')\s]*$
    | \b(?:[Cc]hapter|[Ss]ection|[Vv]olume)\s+\d
    """,
    re.VERBOSE,
)
_MARKER = re.compile(r"\*\*\* ?(START|END) OF")
_STRONG = re.compile(r"""[;:()"]+|\s--+\s?|--|(?<=[.!?])\s""")
_COMMA = re.compile(r",(?!\d)")
_JOINED = re.compile(r"\s(?=(?:and|but)\s)")
_DANGLING = set(  # a piece that ends so was cut in the middle
    "the a an and or nor but which who whom whose if as than because while although unless my our your their "
    "every upon into".split()
)
KEPT_AND = 0.3  # share of the clauses that keep the "and" or "or" before them


def prose_files(paths: Sequence[Path]) -> list[Path]:
    """The readable files among `paths` and in these folders. Raises FileNotFoundError if there are none."""
    found = []
    for path in paths:
        if path.is_dir():
            walk = os.walk(path, followlinks=True)
            files = [Path(folder) / name for folder, _, names in walk for name in names]
        elif path.is_file():
            files = [path]
        else:
            raise FileNotFoundError(f"{path}: no such file or folder of prose")
        files = sorted(f for f in files if f.suffix == ".txt" or f.name in WORDNET)
        if not files:
            raise FileNotFoundError(f"{path}: holds no prose; expected .txt files or WordNet's data.noun ...")
        found += files
    return list(dict.fromkeys(found))


def read_prose(paths: Sequence[Path]) -> dict[Path, str]:
    """{file: its text} of all that `prose_files` finds, in its order.

    Raises FileNotFoundError as `prose_files` does, and ValueError for a file that is not UTF-8.
    """
    return {path: read_text(path) for path in prose_files(paths)}


def sentences_of(path: Path, text: str) -> Iterator[str]:
    """The sentences of one file's text, one line each, in plain quotation marks; of WordNet its examples."""
    if path.name in WORDNET:
        for example in re.findall(r'(?<= )"([^"]+)"', text):
            yield from _sentences(example)
    else:
        for paragraph in re.split(r"\n\s*\n", _body(text)):
            # A paragraph that no full stop ends is a heading, a table, a signature or a verse.
            if re.search(r"""[.!?,;:—-]["'”’)_]*$""", paragraph.strip()):
                yield from _sentences(paragraph)


def _body(text: str) -> str:
    """What stands between Project Gutenberg's two markers, or everything."""
    inside, lines = True, text.splitlines()
    if any(m[1] == "START" for line in lines if (m := _MARKER.match(line))):
        inside = False
    kept = []
    for line in lines:
        if marker := _MARKER.match(line):
            inside = marker[1] == "START"
        elif inside:
            kept.append(line)
    return "\n".join(kept)


def _sentences(text: str) -> list[str]:
    text = " ".join(text.translate(_PLAIN).split())
    text = _TITLES.sub(lambda m: _SPOKEN_TITLES.get(m[1], m[1]), text)
    return _SENTENCE_END.split(text)


def sayable(sentence: str) -> bool:
    """Whether its letters, numbers and stops are read out in one way only."""
    return not (_STRANGE.search(sentence) or _UNSAYABLE.search(sentence))


def cut(sentence: str, target: int = LONGEST) -> list[str]:
    """A sentence of up to 14 words as it is; the clauses of a longer one, joined up to about `target` words.

    A clause that is still longer than 14 words is left out.
    """
    pieces = [sentence]
    for boundary in (_STRONG, _COMMA, _JOINED):
        pieces = [part for piece in pieces for part in _split(piece, boundary, target)]
    return [piece for piece in pieces if len(piece.split()) <= LONGEST]


def _split(piece: str, boundary: re.Pattern, target: int) -> Iterator[str]:
    if len(piece.split()) <= LONGEST:
        yield piece
        return
    held = ""
    for clause in boundary.split(piece):
        if held and (boundary is _STRONG or len(f"{held} {clause}".split()) > target):
            yield held
            held = clause
        else:
            held = f"{held} {clause}"
    yield held


def prose_pieces(files: Mapping[Path, str], seed: int) -> dict[Path, list[str]]:
    """Every piece of 3 to 14 plain words of the different sentences, by the folder whose files say it.

    files: {file: its text}, as `read_prose` gives them.
    """
    rng, seen = random.Random(f"{seed} prose"), set()
    pieces: dict[Path, list[str]] = {}
    for path, text in files.items():
        found = pieces.setdefault(path.parent, [])
        for sentence in sentences_of(path, text):
            if sentence in seen or not sayable(sentence):
                continue
            seen.add(sentence)
            for number, piece in enumerate(cut(sentence, rng.randint(LONGEST // 2, LONGEST))):
                words = normalise(piece).split()
                if number and words[:1] in (["and"], ["or"]) and rng.random() >= KEPT_AND:
                    words = words[1:]
                if SHORTEST <= len(words) <= LONGEST and words[-1] not in _DANGLING:
                    found.append(" ".join(words))
    return pieces


class HeldOut:
    """Texts of one side, dev and test or train, that a piece of the other must not say: see `says`.

    Pieces of fewer than five words are the same only where all their words are: as part of another text, such
    a piece may stand on both sides.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = {normalise(text) for text in texts} - {""}
        self.runs: dict[tuple[str, ...], list[str]] = {}  # five words in a row -> the texts that say them
        for text in self.texts:
            for run in _runs(text):
                self.runs.setdefault(run, []).append(text)

    def says(self, text: str) -> bool:
        """Whether `text`, of plain words, is one of them, or one stands inside the other (five words on)."""
        if text in self.texts:
            return True
        near = {other for run in _runs(text) for other in self.runs.get(run, ())}
        return any(f" {a} " in f" {b} " for other in near for a, b in ((text, other), (other, text)))


def _runs(text: str) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[start:] for start in range(CONTAINED)), strict=False)


def choose_pieces(
    pieces: Mapping[Path, Iterable[str]],
    count: int,
    known: Collection[str],
    times: int,
    held_out: HeldOut,
    seed: int,
) -> list[str]:
    """`count` different pieces of words in `known` or said `times` times in `pieces`; letters are no words.

    None says what is in `held_out`. Nothing keeps two pieces from saying each other.

    They come at random from each folder in turn, as long as it lasts. Raises ValueError when there are fewer.
    """
    said = Counter(word for texts in pieces.values() for text in texts for word in text.split())
    vocabulary = {word for word, n in said.items() if n >= times} | set(known)
    fit: list[list[str]] = []
    seen: set[str] = set()
    for texts in pieces.values():
        own = [t for t in dict.fromkeys(texts) if t not in seen and _understood(t, vocabulary)]
        seen.update(own)
        fit.append([text for text in own if not held_out.says(text)])
        random.Random(f"{seed} pieces").shuffle(fit[-1])
    chosen = [text for turn in zip_longest(*fit) for text in turn if text is not None]
    if len(chosen) < count:
        found = sum(map(len, pieces.values()))
        raise ValueError(
            f"--prose: {len(chosen)} pieces of {found} can be used, prose and prose_text ask for {count}; "
            "give more text, or ask for less"
        )
    return chosen[:count]


def _understood(text: str, vocabulary: Collection[str]) -> bool:
    words = text.split()
    unknown = sum(word not in vocabulary for word in words)
    letters = any(len(word) == 1 and word not in "ai" for word in words)
    return not letters and unknown <= len(words) // WORDS_FOR_ONE_UNKNOWN
