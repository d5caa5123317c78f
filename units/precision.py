"""How features may be computed, and what float32 means for them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# How `Encoder.frames_of` may compute, by device.
PRECISIONS = {"cpu": ("float32", "int8"), "cuda": ("float32", "float16", "bfloat16")}
HALF = "float16"  # which half of the two: its features lie eight times nearer to float32's


def check_precision(precision: str, where: str) -> None:
    """Raises ValueError when `Encoder.frames_of` cannot compute so on a device of the type `where`."""
    if where not in PRECISIONS:
        raise ValueError(f"the encoder is on {where}: expected one of {', '.join(PRECISIONS)}")
    if precision not in PRECISIONS[where]:
        raise ValueError(f"precision {precision} on {where}: expected one of {', '.join(PRECISIONS[where])}")


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """cuDNN rounds float32 convolutions to TF32 unless told not to, which changes units."""
    setting = torch.backends.cudnn.conv
    before = setting.fp32_precision
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = before
