"""The published SpeechInstruct files, read and written byte for byte.

Stage 1 has one `<sosp>...<eosp>` a line. The other two have JSON lines {"prefix", "plain_text"} whose prefix
never changes. The published plain texts (D description, T text, U units, Q question, A answer; ␠ a space):

    asr            [Human]: D This is input: U<eoh> [SpeechGPT]: T<eoa>␠
    tts            [Human]: D This is input: T<eoh> [SpeechGPT]: U<eoa>␠
    speech-speech  [Human]: U<eoh>. [SpeechGPT]: Q; [ta] A; [ua] U<eoa>.

The published data also has plain chats and three more kinds of chain, spelled we know not how. Ours:

    chat           [Human]: Q<eoh> [SpeechGPT]: A<eoa>␠
    speech-text    [Human]: U<eoh>. [SpeechGPT]: Q; [ta] A<eoa>.
    text-speech    [Human]: Q<eoh>. [SpeechGPT]: [ta] A; [ua] U<eoa>.
    text-text      [Human]: Q<eoh>. [SpeechGPT]: [ta] A<eoa>.

Only what stands where units stand is units: `<12>` inside an answer is text, and comes back as text. A text
that would be read back as something else (one that holds `; [ta] `, say) is refused when written.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from speechgpt.data.dialogue_rows import ChainRow, InstructRow, read_chain, read_instruct
from speechgpt.data.dialogue_rows import write_chain as write_chain_rows
from speechgpt.data.dialogue_rows import write_instruct as write_instruct_rows
from speechgpt.data.files import atomic_path, one_line, read_jsonl, text_lines
from speechgpt.data.rejects import Rejects
from speechgpt.data.unit_text import text_to_units, units_to_text

# "a intrinsic" and the two spaces are upstream's: the published checkpoints were trained on them.
PREFIX = (
    "You are an AI assistant whose name is SpeechGPT.\n"
    "- SpeechGPT is a intrinsic cross-modal conversational language model "
    "that is developed by Fudan University.  "
    "SpeechGPT can understand and communicate fluently with human "
    "through speech or text chosen by the user.\n"
    "- It can perceive cross-modal inputs and generate cross-modal outputs.\n"
)
INPUT = " This is input: "
RowType = type[InstructRow] | type[ChainRow]
MOST_SIGNS = 8  # times that a row may hold a part of a template: the patterns try each with each
UNITS = r"<sosp>(?:<\d+>)+<eosp>"

# Tried in order. Texts may hold line breaks, hence DOTALL.
_TASK = rf"\[Human\]: (?P<description>.+?){INPUT}"
_REPLY = r"<eoh> \[SpeechGPT\]: "
INSTRUCT_PATTERNS = {
    "asr": rf"{_TASK}(?P<units>{UNITS}){_REPLY}(?P<text>.+)<eoa> ",
    "tts": rf"{_TASK}(?P<text>.+){_REPLY}(?P<units>{UNITS})<eoa> ",
    "chat": rf"\[Human\]: (?P<question>.+?){_REPLY}(?P<answer>.+)<eoa> ",
}
_TURN = r"<eoh>\. \[SpeechGPT\]: "
_HEARD = rf"\[Human\]: (?P<question_units>{UNITS}){_TURN}(?P<question>.+?); \[ta\] (?P<answer>.+)"
_TYPED = rf"\[Human\]: (?P<question>.+?){_TURN}\[ta\] (?P<answer>.+)"
_SPOKEN = rf"; \[ua\] (?P<answer_units>{UNITS})<eoa>\."
CHAIN_PATTERNS = {
    "speech-speech": _HEARD + _SPOKEN,
    "speech-text": _HEARD + r"<eoa>\.",
    "text-speech": _TYPED + _SPOKEN,
    "text-text": _TYPED + r"<eoa>\.",
}
# In a text, each of these is a sign that the line is another, or a damaged, template.
INSTRUCT_DRIFT = (INPUT, "<sosp>", "<eosp>", "<eoh>", "<eoa>")
CHAIN_DRIFT = ("; [ta] ", "; [ua] ", "<sosp>", "<eosp>", "<eoh>", "<eoa>")


def plain_text(row: InstructRow | ChainRow) -> str:
    """The row in its template. Raises ValueError when the text would be read back as something else."""
    row.check()
    spelled = _spell_instruct(row) if isinstance(row, InstructRow) else _spell_chain(row)
    kind = type(row)
    try:
        back = parse(spelled, kind, row.id, row.split)
    except ValueError as error:
        raise ValueError(f"row {row.id}: cannot be written as published: {error}") from error
    if back != row:
        raise ValueError(
            f"row {row.id}: cannot be written as published: it would be read as {back.kind}, changed"
        )
    return spelled


def _spell_instruct(row: InstructRow) -> str:
    if row.kind == "chat":
        return f"[Human]: {row.question}<eoh> [SpeechGPT]: {row.answer}<eoa> "
    units = units_to_text(row.units)
    given, wanted = (units, row.text) if row.kind == "asr" else (row.text, units)
    return f"[Human]: {row.description}{INPUT}{given}<eoh> [SpeechGPT]: {wanted}<eoa> "


def _spell_chain(row: ChainRow) -> str:
    asked = units_to_text(row.question_units) if row.speech_in else row.question
    heard = f"{row.question}; " if row.speech_in else ""
    said = f"; [ua] {units_to_text(row.answer_units)}" if row.speech_out else ""
    return f"[Human]: {asked}<eoh>. [SpeechGPT]: {heard}[ta] {row.answer}{said}<eoa>."


def parse(plain: str, kind: RowType, name: str, split: str = "train") -> InstructRow | ChainRow:
    """A plain text back to a row with id `name`. Raises ValueError for any drift from the templates."""
    instruct = kind is InstructRow
    patterns, drift = (INSTRUCT_PATTERNS, INSTRUCT_DRIFT) if instruct else (CHAIN_PATTERNS, CHAIN_DRIFT)
    if found := next((sign for sign in ("[SpeechGPT]: ", *drift) if plain.count(sign) > MOST_SIGNS), None):
        raise ValueError(f"holds {found!r} {plain.count(found)} times: {_short(plain)}")
    for label, pattern in patterns.items():
        if not (match := re.fullmatch(pattern, plain, re.DOTALL)):
            continue
        parts = match.groupdict()
        for part, value in parts.items():
            if part.endswith("units"):
                parts[part] = text_to_units(value)
            elif found := next((sign for sign in drift if sign in value), None):
                raise ValueError(f"{part} of this {label} row holds {found!r}: {_short(value)}")
        row = kind(id=name, kind=label, split=split, **parts)
        if _spelled(row) != plain:  # e.g. a unit written as <007>
            raise ValueError(f"would be written back otherwise: {_short(plain)}")
        return row
    expected = "[Human]: ...<eoh> [SpeechGPT]: ...<eoa> and a space"
    if kind is ChainRow:
        expected = "[Human]: ...<eoh>. [SpeechGPT]: ...; [ta] ...; [ua] <sosp>...<eosp><eoa>."
    raise ValueError(f"not a published {kind.__name__}: {_short(plain)}; expected {expected}")


def _spelled(row: InstructRow | ChainRow) -> str:
    return _spell_instruct(row) if isinstance(row, InstructRow) else _spell_chain(row)


def _short(text: str) -> str:
    return repr(text if len(text) <= 90 else f"{text[:40]} ... {text[-45:]}")


def write_published(path: str | Path, rows: Iterable[InstructRow | ChainRow], ascii: bool = True) -> int:
    """JSON lines {"prefix", "plain_text"}, atomically. `ascii`: é is written \\u00e9, as json.dumps does."""
    count = 0
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="\n") as out:
        for count, row in enumerate(rows, 1):  # noqa: B007
            out.write(_line(plain_text(row), ascii) + "\n")
    return count


def _line(plain: str, ascii: bool) -> str:
    return json.dumps({"prefix": PREFIX, "plain_text": plain}, ensure_ascii=ascii)


def read_published(path: str | Path, kind: RowType, rejects: Rejects | None = None) -> list:
    """Rows with ids `{file name}-{line}`. Raises ValueError naming `path:line` for whatever drifts.

    With `rejects`, what drifts goes there, as far as its tolerance allows.
    """
    rows, seen = [], 0
    with open(path, "rb") as raw:
        for number, found in read_jsonl(path):
            line = next(islice(raw, number - seen - 1, None)).rstrip(b"\n")
            seen = number
            try:
                rows.append(_row(found, line, kind, f"{Path(path).stem}-{number:07d}"))
            except ValueError as error:
                if rejects is None:
                    raise ValueError(f"{path}:{number}: {one_line(error)}") from error
                rejects.add(f"{path}:{number}", one_line(error))
    return rows


def _row(found: dict, line: bytes, kind: RowType, name: str) -> InstructRow | ChainRow:
    if list(found) != ["prefix", "plain_text"]:
        raise ValueError(f"fields {', '.join(found)}; expected prefix, plain_text")
    prefix, plain = found["prefix"], found["plain_text"]
    for field, value in found.items():
        if not isinstance(value, str):
            raise ValueError(f"{field} is {type(value).__name__}; expected text")
    if prefix != PREFIX:
        raise ValueError(f"the prefix is not the published one: {_short(prefix)}")
    row = parse(plain, kind, name)
    if line not in (_line(plain, ascii).encode() for ascii in (True, False)):
        raise ValueError("the JSON is not spelled as json.dumps spells it, so it could not be written back")
    return row


def write_unit_lines(path: str | Path, rows: Iterable[list[int]]) -> int:
    """Stage 1's text file: one `<sosp>...<eosp>` a line, atomically."""
    count = 0
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="\n") as out:
        for count, units in enumerate(rows, 1):  # noqa: B007
            out.write(units_to_text(units) + "\n")
    return count


def read_unit_lines(path: str | Path, codebook_size: int | None = None) -> Iterator[list[int]]:
    """Yields the units (U) of each line. Raises ValueError naming `path:line`."""
    for number, line in text_lines(path):
        try:
            yield text_to_units(line, codebook_size)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {one_line(error)}") from error


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="speechgpt published", description="Rows to published JSON lines, or back with --read."
    )
    parser.add_argument("file", type=Path, help="rows of `instruct` or `chain`; with --read a published file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", choices=("instruct", "chain"), required=True)
    parser.add_argument("--read", action="store_true", help="FILE is published JSON lines, OUT becomes rows")
    parser.add_argument("--utf8", action="store_true", help="write é as é and not as \\u00e9")
    parser.add_argument("--max-bad", type=int, default=0, help="published lines that may drift (default 0)")
    args = parser.parse_args(argv)
    chain = args.kind == "chain"
    if args.read:
        with Rejects.beside(args.out, args.max_bad) as rejects:
            rows = read_published(args.file, ChainRow if chain else InstructRow, rejects)
            count = (write_chain_rows if chain else write_instruct_rows)(args.out, rows)
        print(f"{args.out}: {count} rows{rejects}")
    else:
        rows = (read_chain if chain else read_instruct)(args.file)
        count = write_published(args.out, rows, ascii=not args.utf8)
        print(f"{args.out}: {count} published rows")
    return 0
