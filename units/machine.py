"""The machine under a benchmark: its limits, measured once a run, and times that wait for the device."""

import gc
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch.nn import functional

MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of the product that gives the matrix rate
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # of the copy that gives the bandwidth
REPEATS = 7


class Machine:
    """A device with its measured matrix rates and bandwidth: the limits that a speed is compared with."""

    def __init__(self, device: str | torch.device, quick: bool = False) -> None:
        """`quick` measures the limits on small sizes, for tests: the figures mean nothing."""
        self.device = torch.device(device)
        self._quick = quick
        self.matrix_flops = cache(self._matrix_flops)
        self.bandwidth = cache(self._bandwidth)

    @property
    def kind(self) -> str:
        """cpu or cuda."""
        return self.device.type

    @property
    def name(self) -> str:
        if self.kind == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{torch.get_num_threads()} threads of {_processor()}"

    def synchronize(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize(self.device)

    def forget(self) -> None:
        """Gives back what nothing refers to any more, so that the next figure has all of the memory."""
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def _matrix_flops(self, dtype: torch.dtype = torch.float32) -> float:
        """FLOP/s of a large product of random matrices; on CUDA float32 without TF32.

        On a CPU the same product as a convolution too, and the faster counts: the plain one is MKL's, which
        may be slow on other makers' processors.
        """
        size = 256 if self._quick else MATRIX[self.kind]
        left, right = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = seconds_of(lambda: torch.mm(left, right, out=out), self, REPEATS)
        if self.kind == "cpu":
            places = left[None, :, :, None].contiguous(memory_format=torch.channels_last)  # 1 C M 1
            kernels = right[:, :, None, None].contiguous(memory_format=torch.channels_last)
            with torch.inference_mode():
                seconds = min(seconds, seconds_of(lambda: functional.conv2d(places, kernels), self, REPEATS))
        return 2 * size**3 / seconds

    def _bandwidth(self) -> float:
        """Bytes/s of a large copy, read and written bytes counted."""
        count = (1 << 20) if self._quick else COPY_BYTES[self.kind]
        source = torch.empty(count, dtype=torch.uint8, device=self.device).random_()
        target = torch.empty_like(source)
        return 2 * count / seconds_of(lambda: target.copy_(source), self, REPEATS)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds_of(function: Callable[[], object], machine: Machine, repeats: int = 5, warmup: int = 2) -> float:
    """Median wall seconds of a call, the device's work included."""
    return alternate([function], machine, repeats, warmup)[0]


def alternate(
    functions: Sequence[Callable[[], object]], machine: Machine, repeats: int = 5, warmup: int = 1
) -> list[float]:
    """Median wall seconds of each function, called in turns, so that a drift of the machine hits all."""
    for function in functions:
        for _ in range(warmup):
            function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for own, function in zip(times, functions, strict=True):
            machine.synchronize()
            started = time.perf_counter()
            function()
            machine.synchronize()
            own.append(time.perf_counter() - started)
    return [median(own) for own in times]
