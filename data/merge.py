"""Joins files of rows of one kind: manifests (their paths are rewritten), unit, instruction or chain rows."""

import argparse
from collections import Counter
from pathlib import Path

from speechgpt.data.dialogue_rows import ChainRow, InstructRow
from speechgpt.data.files import read_jsonl
from speechgpt.data.rows import UnitRow, Utterance, path_from, read_rows, write_rows

# A field that only this kind of row has.
KINDS = {"path": Utterance, "durations": UnitRow, "kind": InstructRow}


def kind_of(path: str | Path) -> type:
    """The kind of rows in a file, by its first row. Raises ValueError for an unknown kind or no rows."""
    first = next((row for _, row in read_jsonl(path)), None)
    if first is None:
        raise ValueError(f"{path}: no rows")
    kind = next((kind for name, kind in KINDS.items() if name in first), None)
    if kind is None:
        raise ValueError(
            f"{path}: neither a manifest nor unit, instruction or chain rows: {', '.join(first)}"
        )
    return ChainRow if kind is InstructRow and "-" in str(first["kind"]) else kind


def merge(paths: list[Path], out: Path, prefix_ids: bool = False, first: bool = False) -> Counter:
    """Writes all rows, in order, to `out`; returns the count of each split.

    Raises ValueError when the files differ in kind, or two rows have one id (`prefix_ids`: every id gets its
    corpus, or else its file's name, in front; `first`: of rows of several files with one id, the first
    file's is kept). Two rows of one file with one id are an error in any case.
    """
    kinds = {path: kind_of(path) for path in paths}
    if len(set(kinds.values())) > 1:
        found = ", ".join(f"{path} has {kind.__name__}" for path, kind in kinds.items())
        raise ValueError(f"rows of one kind can be joined; {found}")
    rows, seen = [], {}
    for path, kind in kinds.items():
        for row in read_rows(kind, path):
            if prefix_ids:
                row.id = f"{getattr(row, 'corpus', '') or path.stem}-{row.id}"
            if row.id in seen:
                if first and seen[row.id] != path:
                    continue
                hint = "" if prefix_ids else "; --prefix-ids puts the corpus in front"
                raise ValueError(f"id {row.id!r} is in {seen[row.id]} and in {path}{hint}")
            seen[row.id] = path
            if kind is Utterance:
                row.path = path_from(out, row.audio(path))
            rows.append(row)
    write_rows(out, rows)
    return Counter(row.split for row in rows)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt merge", description="Join files of rows of one kind.")
    parser.add_argument("files", type=Path, nargs="+", help="manifests, or unit, instruction or chain rows")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prefix-ids", action="store_true", help="put each row's corpus in front of its id")
    parser.add_argument(
        "--first", action="store_true", help="of rows with one id, keep that of the first file that has it"
    )
    args = parser.parse_args(argv)
    counts = merge(args.files, args.out, args.prefix_ids, args.first)
    print(f"{args.out}: {counts.total()} rows, " + ", ".join(f"{n} {split}" for split, n in counts.items()))
    return 0
