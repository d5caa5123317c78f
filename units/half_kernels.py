"""Which kernels half-precision HuBERT runs on: Triton's and cuDNN's on a GPU, plain torch elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch

from speechgpt.units import plain_kernels
from speechgpt.units.triton_works import triton_refusal


def half_refusal(device: torch.device, batch_norm: bool = False) -> str:
    """Why a CUDA device cannot run half-precision HuBERT; empty when it can. Runs each kernel once.

    batch_norm: the encoder has `conv_pos_batch_norm`, for which there is no half precision.
    """
    if batch_norm:
        return "the encoder has conv_pos_batch_norm"
    return triton_refusal(_probe, device)


def _probe(device: torch.device) -> None:
    from torch.nn.attention import varlen  # noqa: F401  # newer than the rest of what is used of torch

    gpu_kernels().probe(device)


def gpu_kernels() -> ModuleType:
    from speechgpt.units import triton_kernels  # where there is no GPU, Triton need not be there either

    return triton_kernels


@dataclass
class Kernels:
    """Who does what; the variants that `speechgpt.units.benchmark` compares."""

    first: ModuleType = plain_kernels
    norm: ModuleType = plain_kernels
    convolution: Callable = field(default=plain_kernels.convolution)
    fused: bool = False  # `convolution` also makes the layers' wider product with its GELU

    @classmethod
    def of(cls, device: torch.device, convolution: str = "triton") -> "Kernels":
        """convolution: triton, triton0 to triton3 (other tiles), fused, cudnn, plain; none: all in plain
        torch."""
        if device.type != "cuda" or convolution == "none":
            return cls()
        found = gpu_kernels()
        ways = {
            "triton": found.convolution,
            "cudnn": plain_kernels.library_convolution,
            "plain": plain_kernels.convolution,
        }
        for number, tile in enumerate(found.TILES):
            ways[f"triton{number}"] = partial(found.convolution, tile=tile)
        if convolution == "fused":
            return cls(found, found, ways["triton"], fused=True)
        return cls(found, found, ways[convolution])
