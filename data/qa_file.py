"""Question-answer files: JSON lines that say what is asked and what is to be answered, both as text."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from speechgpt.data.files import one_line, read_jsonl
from speechgpt.data.rows import SPLITS


@dataclass
class QuestionAnswer:
    """One row. Further fields in the file are left alone: corpus makers keep their own notes there."""

    id: str
    question: str
    answer: str
    split: str = ""  # empty: that of the recording of the question, else train
    question_id: str = ""  # which recordings ask it; empty: the row's id
    answer_id: str = ""  # which recordings say its answer (questions may share one); empty: the row's id


def answer_id(answer: str) -> str:
    """An id that is the same for equal answers, so that each is spoken once."""
    return "answer." + hashlib.blake2b(answer.encode(), digest_size=6).hexdigest()


def read_questions(path: str | Path) -> list[QuestionAnswer]:
    """All rows. Raises ValueError naming `path:line`. Rows without an id get `{file name}-{line}`."""
    rows, seen = [], set()
    for number, found in read_jsonl(path):
        try:
            row = _question(found, f"{Path(path).stem}-{number:06d}")
            if row.id in seen:
                raise ValueError(f"id {row.id!r} appears twice")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {one_line(error)}") from error
        seen.add(row.id)
        rows.append(row)
    if not rows:
        raise ValueError(f'{path}: no rows; expected lines of {{"id", "question", "answer"}}')
    return rows


def _question(found: dict, name: str) -> QuestionAnswer:
    given = {f.name: found[f.name] for f in fields(QuestionAnswer) if f.name in found}
    for field, value in given.items():
        if not isinstance(value, str):
            shown = type(value).__name__ if isinstance(value, list | dict) else repr(value)
            raise ValueError(f"{field} is {shown}; expected text")
    row = QuestionAnswer(**{"id": name, "question": "", "answer": "", **given})
    for field in ("id", "question", "answer"):
        if not getattr(row, field).strip():
            raise ValueError(f"{field} is missing or blank; found {', '.join(found)}")
    if row.split and row.split not in SPLITS:
        raise ValueError(f"split is {row.split!r}; expected {', '.join(SPLITS)}")
    return row
