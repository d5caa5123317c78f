"""Typed rows, one JSON object a line: utterances (manifests) and unit rows."""

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from speechgpt.data.files import read_jsonl, write_jsonl


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
        if any(d < 1 for d in self.durations):
            raise ValueError(f"row {self.id}: a duration under one frame")
        if any(a == b for a, b in zip(self.units, self.units[1:], strict=False)):
            raise ValueError(f"row {self.id}: neighbouring units are equal, expected deduplicated units")


def _read(kind: type, path: str | Path) -> Iterator:
    known = {f.name for f in fields(kind)}
    needed = {f.name for f in fields(kind) if _required(f)}
    for number, row in read_jsonl(path):
        if missing := needed - row.keys():
            raise ValueError(f"{path}:{number}: missing {', '.join(sorted(missing))}; found {', '.join(row)}")
        if unknown := row.keys() - known:
            raise ValueError(f"{path}:{number}: unknown field {', '.join(sorted(unknown))}")
        yield kind(**row)


def _required(f) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _write(path: str | Path, rows: Iterable) -> int:
    def compact(row) -> dict:
        blank = {f.name for f in fields(row) if not _required(f)}
        return {k: v for k, v in asdict(row).items() if k not in blank or v not in ("", [], "train")}

    return write_jsonl(path, (compact(row) for row in rows))


def read_manifest(path: str | Path) -> list[Utterance]:
    """All rows of a manifest. Raises ValueError for a broken row (with its line) or a repeated id."""
    rows = list(_read(Utterance, path))
    _unique(rows, path)
    return rows


def write_manifest(path: str | Path, rows: Iterable[Utterance]) -> int:
    return _write(path, rows)


def read_units(path: str | Path) -> list[UnitRow]:
    """All unit rows of a file, checked. Raises ValueError naming the row."""
    rows = list(_read(UnitRow, path))
    for row in rows:
        row.check()
    _unique(rows, path)
    return rows


def write_units(path: str | Path, rows: Iterable[UnitRow]) -> int:
    return _write(path, rows)


def _unique(rows: list, path: str | Path) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ValueError(f"{path}: id {row.id!r} appears twice")
        seen.add(row.id)
