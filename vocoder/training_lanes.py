"""A stage's residual blocks beside each other: their kernels are too small to fill a GPU alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Lanes:
    """One stream a block while a CUDA graph is captured; else, and with `count` 0, everything in turn.

    What a lane has allocated goes back to it alone, and no lane works again before it has waited for the
    stream that gathered it: so nothing is overwritten while another stream reads it. Eager steps run in turn,
    for cuDNN measures its kernels in them.
    """

    def __init__(self, count: int = 0):
        self.streams = [torch.cuda.Stream() for _ in range(count)]

    @property
    def open(self) -> bool:
        return bool(self.streams) and torch.cuda.is_current_stream_capturing()

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        """What runs within comes after all that the current stream did before."""
        if not self.open:
            yield
            return
        stream = self.streams[number]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield

    def after(self, number: int) -> None:
        """Within a lane: what follows waits for all that lane `number` was given."""
        if self.open:
            torch.cuda.current_stream().wait_stream(self.streams[number])

    def gather(self) -> None:
        """Outside: what follows waits for every lane."""
        if self.open:
            for stream in self.streams:
                torch.cuda.current_stream().wait_stream(stream)
