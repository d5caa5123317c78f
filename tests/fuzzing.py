"""How a mutated file may end: read, or refused in one short line that names it; soon, in little memory."""

import os
import resource
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

COUNT = int(os.environ.get("FUZZ", 200))
SLOWEST = 2.0  # seconds of processor time a file; most take thousandths
MESSAGE = 2000  # characters


class Watch:
    """Calls readers on one path and counts what they refuse; `worst` and `peak` are over all calls."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.path, self.most_bytes = path, most_bytes
        self.refused = self.peak = 0
        self.worst = 0.0  # seconds
        self._resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB

    def __enter__(self) -> "Watch":
        tracemalloc.start()
        return self

    def __exit__(self, *_) -> None:
        tracemalloc.stop()

    def refuses(self, read: Callable[[], object], what: str) -> bool:
        """Whether `read` refuses the file; fails on any other error, on much time and on much memory."""
        tracemalloc.reset_peak()
        before, started = tracemalloc.get_traced_memory()[0], time.process_time()
        try:
            read()
            refused = False
        except (ValueError, OSError) as error:
            refused, said = True, str(error)
            assert str(self.path) in said, f"{what}: {type(error).__name__} names no file: {said[:MESSAGE]}"
            assert said.isprintable() and len(said) < MESSAGE, f"{what}: {said[:MESSAGE]!r}"
        seconds, taken = time.process_time() - started, tracemalloc.get_traced_memory()[1] - before
        assert seconds < SLOWEST, f"{what}: {seconds:.1f} s"
        assert taken < self.most_bytes, f"{what}: {taken >> 20} MiB"
        self.worst, self.peak = max(self.worst, seconds), max(self.peak, taken)
        self.refused += refused
        return refused

    def grown(self) -> int:
        """Bytes by which the process's largest resident size has grown: what libraries in C take as well."""
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self._resident) << 10

    def __str__(self) -> str:
        return (
            f"{COUNT} files, {self.refused} refused, slowest {self.worst:.2f} s, peak {self.peak >> 20} MiB, "
            f"process grown by {self.grown() >> 20} MiB"
        )


def with_bytes_changed(data: bytes, random: np.random.Generator, span: int) -> bytes:
    """Up to six bytes changed among the first `span`; sometimes some put in, or the end cut off."""
    broken = bytearray(data)
    for place in random.integers(0, min(span, len(broken)), 1 + random.integers(6)):
        broken[place] = random.integers(256)
    kind, place = random.integers(4), int(random.integers(1, len(broken)))
    if kind == 0:
        broken[place % span : place % span] = random.bytes(1 + int(random.integers(8)))
    return bytes(broken[:place] if kind == 1 else broken)
