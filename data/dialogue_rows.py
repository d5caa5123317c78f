"""Rows for the language model, one JSON object a line: instructions (stage 2), modality chains (stage 3)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt.data.rows import check_split, check_units, read_rows, write_rows

INSTRUCT_KINDS = ("asr", "tts", "chat")
CHAIN_KINDS = ("speech-speech", "speech-text", "text-speech", "text-text")  # question-answer


@dataclass
class InstructRow:
    """asr: `units` -> `text`; tts: `text` -> `units`; chat: `question` -> `answer`. The rest stays empty."""

    id: str
    kind: str  # one of INSTRUCT_KINDS
    description: str = ""  # of the task, asr and tts; ends with its own full stop
    text: str = ""
    units: list[int] = field(default_factory=list)  # U, deduplicated
    question: str = ""
    answer: str = ""
    split: str = "train"

    def check(self) -> None:
        """Raises ValueError when a part that the kind needs is missing, or another part is filled."""
        if self.kind not in INSTRUCT_KINDS:
            raise ValueError(f"row {self.id}: kind is {self.kind!r}; expected {', '.join(INSTRUCT_KINDS)}")
        chat = self.kind == "chat"
        _check_parts(self, {"description": not chat, "text": not chat, "units": not chat})
        _check_parts(self, {"question": chat, "answer": chat})
        check_split(self)


@dataclass
class ChainRow:
    """A question and its answer, each with its text; in speech as well where the kind says so."""

    id: str
    kind: str  # one of CHAIN_KINDS
    question: str  # the question's text, in the speech kinds the transcript of `question_units`
    answer: str
    question_units: list[int] = field(default_factory=list)  # U, deduplicated
    answer_units: list[int] = field(default_factory=list)  # U, deduplicated
    split: str = "train"

    @property
    def speech_in(self) -> bool:
        return self.kind.startswith("speech-")

    @property
    def speech_out(self) -> bool:
        return self.kind.endswith("-speech")

    def check(self) -> None:
        """Raises ValueError when a part that the kind needs is missing, or another part is filled."""
        if self.kind not in CHAIN_KINDS:
            raise ValueError(f"row {self.id}: kind is {self.kind!r}; expected {', '.join(CHAIN_KINDS)}")
        _check_parts(self, {"question": True, "answer": True})
        _check_parts(self, {"question_units": self.speech_in, "answer_units": self.speech_out})
        check_split(self)


def _check_parts(row: InstructRow | ChainRow, needed: dict[str, bool]) -> None:
    for name, wanted in needed.items():
        value = getattr(row, name)
        if wanted and not (value.strip() if isinstance(value, str) else value):
            raise ValueError(f"row {row.id}: {row.kind} needs {name}, which is empty")
        if value and not wanted:
            raise ValueError(f"row {row.id}: {row.kind} has no use for {name}, which is filled")
        if isinstance(value, list):
            check_units(row, name)


def read_instruct(path: str | Path) -> list[InstructRow]:
    """All rows, checked. Raises ValueError naming `path:line`."""
    return list(read_rows(InstructRow, path))


def read_chain(path: str | Path) -> list[ChainRow]:
    """All rows, checked. Raises ValueError naming `path:line`."""
    return list(read_rows(ChainRow, path))


def write_instruct(path: str | Path, rows: Iterable[InstructRow]) -> int:
    return write_rows(path, _checked(rows))


def write_chain(path: str | Path, rows: Iterable[ChainRow]) -> int:
    return write_rows(path, _checked(rows))


def _checked(rows: Iterable) -> Iterable:
    for row in rows:
        row.check()
        yield row
