"""How extraction grows with hours of audio: time and memory, measured."""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from speechgpt.data.measurement import Growth
from speechgpt.units.encode import encode_manifest
from speechgpt.units.machine import Machine
from speechgpt.units.made_up_encoder import base_encoder, fitted
from speechgpt.units.made_up_speech import speech, write_corpus
from speechgpt.units.precision import HALF
from speechgpt.units.unit_encoder import UnitEncoder


@contextmanager
def peak_memory(machine: Machine) -> Iterator[Callable[[], float]]:
    """Bytes that this process (and the device) took at most inside, on top of what they had before."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    machine.forget()
    before, most, over = resident(), 0, threading.Event()
    if machine.kind == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
        allocated = torch.cuda.memory_allocated(machine.device)

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()

    def peak() -> float:
        device = torch.cuda.max_memory_allocated(machine.device) - allocated if machine.kind == "cuda" else 0
        return max(0, most - before, resident() - before) + device  # the watcher may not have had its turn

    try:
        yield peak
    finally:
        over.set()
        thread.join()


def extraction_growth(machine: Machine, quick: bool) -> Iterator[Growth]:
    """Time and memory of extraction against hours of audio; on a CPU with toy widths."""
    cuda = machine.kind == "cuda"
    encoder, layer = base_encoder(machine, quick or not cuda)
    codebook = fitted(encoder, layer, speech(30), 16)
    units = UnitEncoder(encoder, codebook, layer, HALF if cuda else "float32")
    counts = (4, 8) if quick else (300, 1000, 3000) if cuda else (75, 150, 300, 600)
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate((counts[0], *counts)):
            manifest, seconds = write_corpus(Path(folder), min(40, counts[0]), rows)
            with peak_memory(machine) as peak:
                started = time.perf_counter()
                encode_manifest(units, manifest, Path(folder) / "units.jsonl", part_seconds=900.0)
                taken, most = time.perf_counter() - started, peak()
            if number:  # the first run of all takes what only the first one takes
                yield Growth("speech to units", "hours of audio", seconds / 3600, taken, most)
