"""Files of rows, whatever kind a stage may hold, as one stream of lines."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechgpt.data.dialogue_rows import (
    CHAIN_KINDS,
    INSTRUCT_KINDS,
    ChainRow,
    InstructRow,
    read_chain,
    read_instruct,
)
from speechgpt.data.files import one_line, read_jsonl, text_lines
from speechgpt.data.published import read_published
from speechgpt.data.rows import read_units
from speechgpt.data.unit_text import text_to_units
from speechgpt.text_tokenizer import TEXT_FIELDS

KINDS = ("units", "text", *INSTRUCT_KINDS, *CHAIN_KINDS)


@dataclass(frozen=True)
class Line:
    """One row of any file, before rendering."""

    id: str  # of the row, or file:line
    split: str
    kind: str  # asr, tts, chat, one of CHAIN_KINDS, units or text
    row: InstructRow | ChainRow | list[int] | str  # a row, units, or plain text


def read_lines(path: str | Path) -> Iterator[Line]:
    """Yields the rows of a JSON lines file (unit, instruction, chain or published rows), or of a text file.

    In a text file a line `<sosp>…<eosp>` holds units and any other line is plain text; of other JSON lines
    (a manifest, questions and answers) the texts are taken.
    """
    path = Path(path)
    first = next((line for _, line in text_lines(path) if line.strip()), "")
    if not first:
        raise ValueError(f"{path}: holds no rows")
    if not first.lstrip().startswith("{"):
        yield from _text_lines(path)
        return
    _, keys = next(read_jsonl(path))
    if "durations" in keys:
        yield from (Line(row.id, row.split, "units", row.units) for row in read_units(path))
    elif "plain_text" in keys:
        chain = any(f" {marker} " in str(keys["plain_text"]) for marker in ("[ta]", "[ua]"))
        rows = read_published(path, ChainRow if chain else InstructRow)
        yield from (Line(row.id, row.split, row.kind, row) for row in rows)
    elif keys.get("kind") not in KINDS and not keys.keys() & {"units", "question_units", "answer_units"}:
        yield from _json_texts(path)
    else:
        read = read_chain if keys.get("kind") in CHAIN_KINDS else read_instruct
        yield from (Line(row.id, row.split, row.kind, row) for row in read(path))


def _json_texts(path: Path) -> Iterator[Line]:
    """The texts of a manifest or of a question-answer file."""
    for number, row in read_jsonl(path):
        texts = [row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str) and row[name].strip()]
        if not texts:
            raise ValueError(f"{path}:{number}: no row of a stage, and no text in {', '.join(TEXT_FIELDS)}")
        for text in texts:
            yield Line(f"{path.name}:{number}", str(row.get("split", "train")), "text", text)


def _text_lines(path: Path) -> Iterator[Line]:
    for number, line in text_lines(path):
        where, line = f"{path.name}:{number}", line.strip()
        if line.startswith("<sosp>"):
            try:
                yield Line(where, "train", "units", text_to_units(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {one_line(error)}") from error
        elif line:
            yield Line(where, "train", "text", line)
