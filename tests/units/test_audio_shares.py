"""Pools are what the files hold and the same for any number of processes; nothing is left behind."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt.data.audio import read_audio
from speechgpt.data.rows import Utterance, read_manifest
from speechgpt.units import audio_shares as module
from speechgpt.units.audio_pool import AudioPool
from speechgpt.units.audio_shares import load_pools

from .conftest import ALONE, pool_of


@dataclass
class Threads:
    """Threads in the place of a World's processes."""

    size: int
    met: threading.Barrier = None
    said: list[float] = field(default_factory=list)  # by the first, in turn

    def __post_init__(self) -> None:
        self.met = threading.Barrier(self.size, timeout=60)

    def member(self, rank: int) -> "Member":
        return Member(self, rank)


@dataclass
class Member:
    threads: Threads
    rank: int

    @property
    def size(self) -> int:
        return self.threads.size

    @property
    def first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        self.threads.met.wait()

    @contextmanager
    def together(self):
        yield
        self.barrier()

    def agree(self, value: float) -> float:
        if self.first:
            self.threads.said.append(value)
        self.barrier()
        return self.threads.said[-1]


def in_threads(size: int, splits: list[list[Utterance]], manifest: Path, folder: Path, max_bad: int = 0):
    """What each of `size` processes gets: its pools, or the error that it raises."""
    folder.mkdir(exist_ok=True)
    threads = Threads(size)

    def load(rank: int) -> list[AudioPool] | Exception:
        try:
            return load_pools(splits, manifest, 16_000, folder, threads.member(rank), max_bad, workers=1)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(load, range(size)))


def same(one: AudioPool, other: AudioPool) -> bool:
    tensors = [(p.samples, p.starts, p.lengths) for p in (one, other)]
    return one.rows == other.rows and all(map(torch.equal, *tensors))


def test_the_pool_holds_what_the_files_hold(corpus):
    rows = read_manifest(corpus)
    pool = pool_of(rows, corpus)
    assert pool.rows == rows
    for index in (0, 13):
        expected = read_audio(rows[index].audio(corpus))
        np.testing.assert_allclose(pool.waveform(index).numpy(), expected, atol=1 / 32_768)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_pools_are_the_same_for_any_number_of_processes(corpus, tmp_path, monkeypatch, size):
    rows = read_manifest(corpus)
    splits = [rows[:12], rows[12:]]
    expected = [pool_of(split, corpus) for split in splits]
    monkeypatch.setattr(module, "CHUNK_SECONDS", 2.0)  # several files of samples a split
    for found in in_threads(size, splits, corpus, tmp_path / "run"):
        assert all(map(same, found, expected))
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("size", [1, 2])
def test_unreadable_files_are_counted_over_all_processes(corpus, tmp_path, monkeypatch, size):
    monkeypatch.setattr(module, "CHUNK_SECONDS", 0.5)  # a file a chunk
    rows = read_manifest(corpus)
    gone = [Utterance(name, f"{name}.wav", 1.0) for name in ("gone", "lost")]
    mixed = [*rows[:3], gone[0], *rows[3:8], gone[1], *rows[8:]]
    for found in in_threads(size, [rows, mixed], corpus, tmp_path / "run", max_bad=1):
        assert isinstance(found, ValueError)
        assert "2 files cannot be read, max_bad is 1: " in str(found)
        assert str(found).index("gone.wav") < str(found).index("lost.wav")
    assert not list((tmp_path / "run").iterdir())
    for found in in_threads(size, [rows, mixed], corpus, tmp_path / "run", max_bad=2):
        assert same(found[0], found[1]) and found[1].rows == rows
    assert all("no rows" in str(found) for found in in_threads(size, [gone], corpus, tmp_path / "run", 2))


def test_files_of_a_killed_start_are_neither_used_nor_kept(corpus, tmp_path, monkeypatch):
    rows, run = read_manifest(corpus), tmp_path / "run"
    decode = module._decode

    def killed(work, *more):
        decode(work, *more)
        raise KeyboardInterrupt

    run.mkdir()
    monkeypatch.setattr(module, "_decode", killed)
    with pytest.raises(KeyboardInterrupt):
        load_pools([rows], corpus, 16_000, run, ALONE)
    assert not list(run.iterdir())  # interrupted, it clears up
    monkeypatch.setattr(module, "_decode", decode)
    for name in ("decoded-123-0.pcm", ".decoded-123-1.77.part.pcm"):
        (run / name).write_bytes(b'{"lengths": [1], "bad": []}\n12')
    (run / "encoder.json").write_text("{}")
    assert same(load_pools([rows], corpus, 16_000, run, ALONE)[0], pool_of(rows, corpus))
    assert [path.name for path in run.iterdir()] == ["encoder.json"]


def test_decoding_in_several_processes_is_the_same(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_SECONDS", 2.0)
    rows = read_manifest(corpus)
    (found,) = load_pools([rows], corpus, 16_000, tmp_path, ALONE, workers=2)
    (expected,) = load_pools([rows], corpus, 16_000, tmp_path, ALONE, workers=1)
    assert same(found, expected)
