"""The generator as a CUDA graph: a short window is hundreds of small kernels, and a replay launches none."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from speechgpt.units.devices import on_device

WARMUPS = 3  # before a capture: cuDNN measures its kernels, the allocator finds its sizes
CANDIDATES = 4  # kernels of a convolution that cuDNN measures: its own best guesses come first

logger = logging.getLogger(__name__)


@contextmanager
def measured_kernels(candidates: int = CANDIDATES) -> Iterator[None]:
    """Within it cuDNN measures a few kernels of every new shape and keeps the fastest.

    Its settings are set one by one: `torch.backends.cudnn.flags` asks for the old TF32 setting as well, and
    fails where `cudnn.conv.fp32_precision`, the new one, was used.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.benchmark_limit
    cudnn.benchmark, cudnn.benchmark_limit = True, candidates
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.benchmark_limit = before


class Replay:
    """A function of embedded frames (1, D, N), captured for the lengths N that `prepare` was told of.

    Other lengths, and batches, run as they are. The next call overwrites what a captured length returned.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]):
        self.function = function
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self.pool = None
        self.refused = False  # a capture failed: everything runs as it is

    def prepare(self, example: Tensor) -> None:
        """Captures the function for inputs of the example's shape (1, D, N), once."""
        length = example.shape[-1]
        if length in self.captured or self.refused or example.device.type != "cuda":
            return
        # cuDNN keeps the fastest kernel of those it measured in the warm-up; the capture then finds it known.
        with measured_kernels(), on_device(example.device):
            try:
                self.captured[length] = self._capture(example.clone())
            except RuntimeError as error:
                self.refused = True
                torch.cuda.synchronize()
                reason = " ".join(str(error).split())[:300]
                logger.warning("CUDA graph capture failed, speech is made without: %s", reason)

    def _capture(self, static: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARMUPS):
                self.function(static)
        current.wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=side):
            out = self.function(static)
        self.pool = self.pool or graph.pool()
        return graph, static, out

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, D, N) -> what the function makes of it."""
        known = self.captured.get(x.shape[-1]) if len(x) == 1 else None
        if known is None:
            return self.function(x)
        graph, static, out = known
        static.copy_(x)
        graph.replay()
        return out
