"""A manifest of any length in parts of consecutive rows: what is in memory does not grow with its hours."""

import shutil
from array import array
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path

import numpy as np

from speechgpt.data.files import atomic_path
from speechgpt.data.rows import Utterance, read_manifest, read_rows

COPY_BYTES = 1 << 20


def count_rows(manifest: str | Path) -> int:
    """How many rows a manifest has; all are checked, as by `read_manifest`, before anything is computed.

    Eight bytes a row are remembered meanwhile (2.4 MB for 1,000 h of LibriSpeech), to find repeated ids.
    """
    seen = array("q")
    for row in read_rows(Utterance, manifest):
        seen.append(int.from_bytes(blake2b(row.id.encode(), digest_size=8).digest(), "big", signed=True))
    hashes = np.sort(np.frombuffer(seen, np.int64)) if seen else np.zeros(0, np.int64)
    if (hashes[1:] == hashes[:-1]).any():
        read_manifest(manifest)  # names the id; two ids of one hash are fine
    return len(seen)


def manifest_parts(
    manifest: str | Path, rows: tuple[int, int], part_seconds: float
) -> Iterator[list[Utterance]]:
    """Rows from the first number to before the second in parts of about `part_seconds` of audio; the same
    parts whenever they are made."""
    part: list[Utterance] = []
    filled = 0.0
    for row in islice(read_rows(Utterance, manifest), *rows):
        part.append(row)
        filled += row.seconds
        if filled >= part_seconds:
            yield part
            part, filled = [], 0.0
    if part:
        yield part


def join_files(parts: Iterator[Path], out: str | Path) -> int:
    """Writes what the files hold, one after another, to `out`, atomically; returns the number of lines."""
    lines = 0
    with atomic_path(out) as whole, open(whole, "wb") as joined:
        for path in parts:
            with open(path, "rb") as part:
                lines += sum(block.count(b"\n") for block in iter(lambda: part.read(COPY_BYTES), b""))
                part.seek(0)
                shutil.copyfileobj(part, joined, COPY_BYTES)
    return lines
