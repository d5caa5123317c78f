"""Audio files into pools, decoded by all processes of a run: each its share, and all read all shares."""

import json
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechgpt.data.audio import read_audio
from speechgpt.data.files import atomic_path
from speechgpt.data.parallel import cores, in_processes
from speechgpt.data.rows import Utterance
from speechgpt.units.audio_pool import FULL_SCALE, AudioPool
from speechgpt.units.extraction import budget_batches
from speechgpt.units.processes import World

# Threads would take turns at Python's lock, which is held for half of the time that a short file takes.
DECODERS = 32  # processes at most
READERS = 8  # threads: a read of megabytes holds no lock
CHUNK_SECONDS = 300.0  # of audio in one file of decoded samples: 10 MB at 16 kHz
PREFIX, SUFFIX = "decoded-", ".pcm"


def load_pools(
    splits: Sequence[Sequence[Utterance]],
    manifest: str | Path,
    sample_rate: int,
    folder: str | Path,
    world: World,
    max_bad: int = 0,
    workers: int = 0,
) -> list[AudioPool]:
    """Decodes every row's file once; one pool a split, bit-equal for any number of processes.

    folder: seen by all processes. Decoded samples lie there, 115 MB for an hour at 16 kHz, until all have
    read them; what a killed start has left is removed. workers: of each process; 0: its part of the cores.
    Raises ValueError, in every process the same and naming the first, when more than `max_bad` files of a
    split cannot be read; fewer are left out.
    """
    folder = Path(folder)
    if world.first:
        for leftover in folder.glob(f"*{PREFIX}*{SUFFIX}"):
            leftover.unlink()
    # No other start has this number. The others learn it when the folder holds no leftovers any more.
    start = int(world.agree(float(secrets.randbits(52))))
    chunks = [list(budget_batches(rows, CHUNK_SECONDS)) for rows in splits]
    numbers = iter(range(sum(map(len, chunks))))
    paths = [[folder / f"{PREFIX}{start}-{next(numbers)}{SUFFIX}" for _ in split] for split in chunks]
    work = [
        (path, [row.audio(manifest) for row in rows])
        for files, split in zip(paths, chunks, strict=True)
        for path, rows in zip(files, split, strict=True)
    ][world.rank :: world.size]
    try:
        with world.together():
            _decode(work, sample_rate, workers or _workers(world), world)
        heads = [[_head(path) for path in files] for files in paths]
        refused = [issue for split in heads if (issue := _refusal(split, manifest, max_bad))]
        pools = [
            _joined(rows, found, files, sample_rate)
            for rows, found, files in zip(splits, heads, paths, strict=True)
            if not refused
        ]
        world.barrier()
    finally:
        for path, _ in work:
            path.unlink(missing_ok=True)
    if refused:
        raise ValueError(refused[0])
    return pools


def _workers(world: World) -> int:
    return min(DECODERS, max(1, cores() // world.size))


def _decode(work: list[tuple[Path, list[Path]]], sample_rate: int, workers: int, world: World) -> None:
    total = sum(len(sources) for _, sources in work)
    with tqdm(total=total, desc="decoding", unit="file", disable=None if world.first else True) as bar:
        for count in in_processes(partial(_decode_chunk, sample_rate=sample_rate), work, workers):
            bar.update(count)


def _decode_chunk(work: tuple[Path, list[Path]], sample_rate: int) -> int:
    """Writes the files' lengths and why some cannot be read, one line of JSON, and then their samples, int16.

    Returns how many files it was given; the length of one that cannot be read is 0.
    """
    out, sources = work
    found, lengths, bad = [], [], []
    for source in sources:
        try:
            waveform = read_audio(source, sample_rate)
        except (ValueError, OSError) as error:
            bad.append(str(error))
            lengths.append(0)
            continue
        found.append(np.clip(np.rint(waveform * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16))
        lengths.append(len(waveform))
    with atomic_path(out) as part, open(part, "wb") as file:
        file.write(json.dumps({"lengths": lengths, "bad": bad}).encode() + b"\n")
        for samples in found:
            file.write(samples)
    return len(sources)


def _head(path: Path) -> dict:
    with open(path, "rb") as file:
        return json.loads(file.readline())


def _refusal(heads: list[dict], manifest: str | Path, max_bad: int) -> str:
    """Why a split cannot be used; empty where it can."""
    bad = [reason for head in heads for reason in head["bad"]]
    if len(bad) > max_bad:
        return f"{len(bad)} files cannot be read, max_bad is {max_bad}: " + "; ".join(bad[:3])
    if len(bad) == sum(len(head["lengths"]) for head in heads):
        return f"{manifest}: no rows to train on"
    return ""


def _joined(rows: Sequence[Utterance], heads: list[dict], paths: list[Path], sample_rate: int) -> AudioPool:
    """The rows that could be decoded, in their order."""
    lengths = [length for head in heads for length in head["lengths"]]
    kept = [row for row, length in zip(rows, lengths, strict=True) if length]
    samples = torch.empty(sum(lengths), dtype=torch.int16)
    with ThreadPoolExecutor(READERS) as threads:
        list(threads.map(_read_samples, paths, _parts(samples.numpy(), heads)))
    lengths = torch.tensor([length for length in lengths if length])
    return AudioPool(kept, samples, lengths.cumsum(0) - lengths, lengths, sample_rate)


def _parts(samples: np.ndarray, heads: list[dict]) -> Iterator[np.ndarray]:
    """Where each file's samples go."""
    reach = 0
    for head in heads:
        size = sum(head["lengths"])
        yield samples[reach : reach + size]
        reach += size


def _read_samples(path: Path, out: np.ndarray) -> None:
    with open(path, "rb") as file:
        file.readline()
        if (found := file.readinto(out)) != out.nbytes:
            raise ValueError(f"{path}: {found} bytes of samples, expected {out.nbytes}; start the run again")
