"""Typed rows, one JSON object a line: utterances (manifests) and unit rows."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path

from speechgpt.data.files import one_line, read_jsonl, write_jsonl

SPLITS = ("train", "dev", "test")
MOST_SECONDS = 1e9  # 32 years: no recording is longer, and no arithmetic on it overflows
MOST_UNIT = 1 << 31  # units and durations in frames are below; arrays of int64 and int32 hold them


@dataclass
class Utterance:
    """One row of a manifest. Fields at their default are left out of the file."""

    id: str
    path: str  # audio file; relative paths count from the manifest's folder
    seconds: float
    speaker: str = ""
    corpus: str = ""
    text: str = ""  # what is said, as the corpus spells it
    split: str = "train"  # train | dev | test
    slots: str = ""  # "name=value; name=value", for corpora that label meaning and not words
    phones: list = field(default_factory=list)  # [[phone, end in seconds], ...] in order

    def audio(self, manifest: str | Path) -> Path:
        """The audio file's path, given the manifest that holds this row."""
        return Path(manifest).parent / self.path

    def check(self) -> None:
        if not 0 < self.seconds < MOST_SECONDS:
            raise ValueError(f"row {self.id}: {self.seconds} seconds of audio")
        if not all(_is_phone(phone) for phone in self.phones):
            raise ValueError(f"row {self.id}: phones are not [[phone, end in seconds], ...]")
        check_split(self)


@dataclass
class UnitRow:
    """Deduplicated units of one utterance: `units` (U) and how many frames each lasts, `durations` (U)."""

    id: str
    units: list[int]
    durations: list[int]
    speaker: str = ""
    corpus: str = ""
    text: str = ""
    split: str = "train"
    slots: str = ""

    def check(self) -> None:
        if len(self.units) != len(self.durations):
            raise ValueError(f"row {self.id}: {len(self.units)} units but {len(self.durations)} durations")
        if self.durations and min(self.durations) < 1:
            raise ValueError(f"row {self.id}: a duration under one frame")
        check_units(self, "units")
        check_units(self, "durations")
        if any(a == b for a, b in zip(self.units, self.units[1:], strict=False)):
            raise ValueError(f"row {self.id}: neighbouring units are equal, expected deduplicated units")
        check_split(self)


def check_split(row) -> None:
    if row.split not in SPLITS:
        raise ValueError(f"row {row.id}: split is {row.split!r}; expected {', '.join(SPLITS)}")


def check_units(row, name: str) -> None:
    """Raises ValueError when the list `name` of `row` holds what is no unit of any codebook."""
    if (values := getattr(row, name)) and min(values) < 0:
        raise ValueError(f"row {row.id}: {name} holds the negative unit {min(values)}")
    if values and max(values) >= MOST_UNIT:
        raise ValueError(
            f"row {row.id}: {name} holds {one_line(max(values), 40)}; expected less than {MOST_UNIT}"
        )


def row_of(kind: type, values: dict):
    """One `kind` (a dataclass) from a JSON object, checked. Raises ValueError that says what is wrong."""
    known, needed = _fields_of(kind)
    if missing := needed - values.keys():
        raise ValueError(f"missing {', '.join(sorted(missing))}; found {', '.join(values)}")
    if unknown := values.keys() - known:
        raise ValueError(f"unknown field {', '.join(sorted(unknown))}")
    for name, value in values.items():
        if not _is_a(known[name], value):
            wanted = getattr(known[name], "__name__", known[name])
            shown = (
                f"a {type(value).__name__} of {len(value)}" if isinstance(value, list | dict) else repr(value)
            )
            raise ValueError(f"{name} is {one_line(shown, 60)}; expected {wanted}")
    item = kind(**values)
    item.check()
    return item


@cache
def _fields_of(kind: type) -> tuple[dict[str, type], set[str]]:
    """({field: its type}, the fields without a default)."""
    return {f.name: f.type for f in fields(kind)}, {f.name for f in fields(kind) if _required(f)}


def read_rows(kind: type, path: str | Path) -> Iterator:
    """Yields one `kind` (a dataclass) a line. Raises ValueError naming `path:line` for a broken row."""
    for number, row in read_jsonl(path):
        try:
            yield row_of(kind, row)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {one_line(error)}") from error


def write_rows(path: str | Path, rows: Iterable) -> int:
    """Writes one row a line, atomically, without the fields at their default; returns the number of rows."""
    return write_jsonl(path, (compact(row) for row in rows))


def compact(row) -> dict:
    """The JSON object of a row: the fields that are not at their default."""
    values = ((f, getattr(row, f.name)) for f in fields(row))
    return {f.name: value for f, value in values if _required(f) or value != _default(f)}


def _is_a(wanted: type, value) -> bool:
    if wanted == list[int]:
        return isinstance(value, list) and all(type(u) is int for u in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, wanted)


def _is_phone(value) -> bool:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return _is_a(float, value[1]) and 0 <= value[1] < MOST_SECONDS


def _required(f: Field) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _default(f: Field):
    return f.default if f.default_factory is MISSING else f.default_factory()


def read_manifest(path: str | Path) -> list[Utterance]:
    """All rows of a manifest. Raises ValueError for a broken row (with its line) or a repeated id."""
    rows = list(read_rows(Utterance, path))
    _unique(rows, path)
    return rows


def path_from(manifest: str | Path, audio: str | Path) -> str:
    """The inverse of `Utterance.audio`: `audio` as a path relative to the folder of `manifest`."""
    # The folder is resolved, because the system follows links before it applies "..".
    return os.path.relpath(os.path.abspath(audio), os.path.realpath(Path(manifest).parent))


def write_manifest(path: str | Path, rows: Iterable[Utterance]) -> int:
    return write_rows(path, rows)


def read_units(path: str | Path) -> list[UnitRow]:
    """All unit rows of a file, checked. Raises ValueError naming the row."""
    rows = list(read_rows(UnitRow, path))
    _unique(rows, path)
    return rows


def write_units(path: str | Path, rows: Iterable[UnitRow]) -> int:
    return write_rows(path, rows)


def _unique(rows: list, path: str | Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ValueError(f"{path}: id {one_line(row.id)!r} appears twice")
        seen.add(row.id)
