"""Whole manifests to unit rows, in parts that a killed run goes on from."""

import argparse
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from speechgpt.data.files import write_json, write_jsonl
from speechgpt.data.hashes import file_hash, text_hash
from speechgpt.data.rows import UnitRow, Utterance, compact
from speechgpt.units.dedup import deduplicate
from speechgpt.units.extraction import OVERFLOWED, encode_rows
from speechgpt.units.manifest_parts import count_rows, join_files, manifest_parts
from speechgpt.units.precision import HALF
from speechgpt.units.unit_encoder import UnitEncoder

logger = logging.getLogger(__name__)

# Audio between two files on disk: what a kill can lose. On a GPU it is seconds of work, so that the start and
# the end of a part cost little.
PART_SECONDS = {"cpu": 1200.0, "cuda": 36_000.0}
# Beside a part file: rows that could not be read, and rows that half precision did not hold.
REJECTS_SUFFIX, OVERFLOWED_SUFFIX = ".rejects", ".overflowed"
PRECISIONS = ("auto", "float32", "float16", "bfloat16", "int8")


def encode_manifest(
    units: UnitEncoder,
    manifest: str | Path,
    out: str | Path,
    shard: tuple[int, int] = (0, 1),
    batch_seconds: float | None = None,
    part_seconds: float | None = None,
    max_bad: int = 0,
    workers: int | None = None,
) -> int:
    """Writes the unit rows of a manifest, in its order, to `out`; returns how many.

    Part files beside `out` hold what is done: after a kill the same call goes on with the next part, once the
    parts with files that could not be read were tried again. Such files go to `out`.rejects.jsonl with the
    reason; more than `max_bad` of them are an error.
    What made the units stands in `out` with the suffix .provenance.json, and how many rows half precision did
    not hold, which are in float32. Memory does not grow with the hours.
    """
    part_seconds = part_seconds or PART_SECONDS[units.encoder.device.type]
    index, shards = shard
    count = count_rows(manifest)
    chosen = index * count // shards, (index + 1) * count // shards
    key = _key(units, manifest, shard, part_seconds)
    folder = Path(f"{out}.parts") / key
    folder.mkdir(parents=True, exist_ok=True)
    _forget_rejected(folder)
    bad = 0
    for number, part in enumerate(manifest_parts(manifest, chosen, part_seconds)):
        path = folder / f"{number:06d}.jsonl"
        rejects = path.with_suffix(REJECTS_SUFFIX)
        if not path.exists():
            label = f"units {number + 1}: "
            write_jsonl(path, _encode_part(units, manifest, part, batch_seconds, workers, label, path))
        if rejects.exists():
            bad += len(rejects.read_bytes().splitlines())
        if bad > max_bad:
            _write_rejects(folder, out)
            _forget_rejected(folder)
            raise ValueError(
                f"{bad} files of {manifest} cannot be read, max_bad is {max_bad}; "
                f"reasons in {out}.rejects.jsonl"
            )
    written = join_files(sorted(folder.glob("*.jsonl")), out)
    _write_rejects(folder, out)
    overflowed = sum(len(p.read_bytes().splitlines()) for p in folder.glob(f"*{OVERFLOWED_SUFFIX}"))
    if overflowed:
        logger.warning("%s: %d of %d rows were %s", out, overflowed, written, OVERFLOWED)
    counts = {"rows": written, "rows_redone_in_float32": overflowed, "key": key}
    write_json(Path(out).with_suffix(".provenance.json"), _provenance(units) | counts)
    shutil.rmtree(folder.parent)
    return written


def _key(units: UnitEncoder, manifest: str | Path, shard: tuple[int, int], part_seconds: float) -> str:
    """A hash of all that decides what the parts hold, so that a changed run starts afresh."""
    centroids = units.codebook.centroids.cpu().numpy().tobytes().hex()
    return text_hash(
        units.encoder.fingerprint,
        centroids,
        units.layer,
        file_hash(manifest),
        shard,
        part_seconds,
        units.computed_in,
        units.window_seconds,
        "rows in order",
    )


def _provenance(units: UnitEncoder) -> dict:
    return {
        "encoder": units.encoder.fingerprint,
        "layer": units.layer,
        "codebook_size": units.num_units,
        "codebook": text_hash(units.codebook.centroids.cpu().numpy().tobytes().hex()),
        "computed_in": units.computed_in,
    }


def _encode_part(
    units: UnitEncoder,
    manifest: str | Path,
    rows: list[Utterance],
    batch_seconds: float | None,
    workers: int | None,
    label: str,
    path: Path,
) -> Iterator[dict]:
    """Yields the part's unit rows, for `path`; when it ends, files beside it hold those that cannot be read
    and those that half precision did not hold."""
    bad, overflowed = [], []
    for row, frames, note in encode_rows(
        units.encoder,
        manifest,
        rows,
        units.layer,
        units.start,
        batch_seconds,
        workers,
        label,
        units.precision,
    ):
        if frames is None:
            bad.append({"id": row.id, "path": row.path, "reason": note})
            continue
        if note == OVERFLOWED:
            overflowed.append({"id": row.id})
        yield compact(unit_row(row, frames))
    for suffix, noted in ((REJECTS_SUFFIX, bad), (OVERFLOWED_SUFFIX, overflowed)):
        if noted:
            write_jsonl(path.with_suffix(suffix), noted)
        else:
            path.with_suffix(suffix).unlink(missing_ok=True)


def unit_row(row: Utterance, frames: np.ndarray) -> UnitRow:
    """The unit row of one utterance, from its frames (N,)."""
    found, durations = deduplicate(frames)
    return UnitRow(
        row.id, found.tolist(), durations.tolist(), row.speaker, row.corpus, row.text, row.split, row.slots
    )


def _write_rejects(folder: Path, out: str | Path) -> None:
    path = Path(f"{out}.rejects.jsonl")
    if rejects := sorted(folder.glob(f"*{REJECTS_SUFFIX}")):
        join_files(rejects, path)
    else:
        path.unlink(missing_ok=True)


def _forget_rejected(folder: Path) -> None:
    """Unlinks every part with files that could not be read: a repaired file is tried again."""
    for rejects in folder.glob(f"*{REJECTS_SUFFIX}"):
        rejects.with_suffix(".jsonl").unlink(missing_ok=True)
        rejects.unlink()


def parse_shard(text: str) -> tuple[int, int]:
    """The text 2/8 to (2, 8): the third of eight, counting from 0."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/4")
    return int(index), int(count)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt units", description=__doc__)
    parser.add_argument("--encoder", required=True, help="encoder folder")
    parser.add_argument("--codebook", required=True, help="codebook.safetensors")
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--out", required=True, help="units.jsonl")
    parser.add_argument("--layer", type=int, help="default: the codebook's")
    parser.add_argument(
        "--shard", default="0/1", help="i/n from 0: this run's rows; joined in order they are all"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="auto", help=f"auto: {HALF} on a GPU that can, else float32"
    )
    parser.add_argument(
        "--batch-seconds",
        type=float,
        help="audio a batch, with its padding where it is padded (60 on a CPU, 640 on a GPU)",
    )
    parser.add_argument("--part-seconds", type=float, help="audio between two part files")
    parser.add_argument("--max-bad", type=int, default=0, help="unreadable files tolerated")
    parser.add_argument("--workers", type=int, help="threads that decode ahead (all cores but one)")
    options = parser.parse_args(argv)
    units = UnitEncoder.load(
        options.encoder, options.codebook, options.layer, options.device, precision=options.dtype
    )
    written = encode_manifest(
        units,
        options.manifest,
        options.out,
        parse_shard(options.shard),
        options.batch_seconds,
        options.part_seconds,
        options.max_bad,
        options.workers,
    )
    print(f"{options.out}: {written} rows", file=sys.stderr)
    return 0
