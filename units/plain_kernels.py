"""The parts of half-precision HuBERT that torch has no fast kernel for, in plain torch: for devices without
Triton, and as what units/triton_kernels.py is compared with."""

import torch
from torch import Tensor
from torch.nn import functional


def first_convolution(
    waveform: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    row_of_slot: Tensor,
    stride: int,
    gelu: bool,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Samples (slots * hop + taps,) float32 to (slots * hop / stride, C) in `dtype`.

    weight (taps, C), scale and shift (B, C) float32, of the row that a slot belongs to (slots,) int64. With
    `eps` what was convolved, with its bias (C,), first goes through a layer norm over the channels.
    """
    taps, slots = len(weight), len(row_of_slot)
    windows = (len(waveform) - taps) // stride
    hidden = waveform.as_strided((windows, taps), (stride, 1)) @ weight
    if eps is not None:
        hidden = hidden if bias is None else hidden + bias
        hidden = functional.layer_norm(hidden, hidden.shape[1:], eps=eps)
    hidden = hidden.unflatten(0, (slots, -1))
    hidden = hidden * scale[row_of_slot][:, None] + shift[row_of_slot][:, None]  # slots M C
    return (functional.gelu(hidden) if gelu else hidden).flatten(0, 1).to(dtype)


def convolution(rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int, gelu: bool) -> Tensor:
    """(M, C) to (M', C'); weight (kernel * C, C')."""
    width = rows.shape[1]
    made = (len(rows) - len(weight) // width) // stride + 1
    windows = rows.as_strided((made, len(weight)), (stride * width, 1))
    hidden = windows @ weight if bias is None else torch.addmm(bias, windows, weight)
    return functional.gelu(hidden) if gelu else hidden


def library_convolution(rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int, gelu: bool) -> Tensor:
    """The same by cuDNN, channels last."""
    width = rows.shape[1]
    kernel = weight.view(-1, width, weight.shape[1]).permute(2, 1, 0)[:, :, None]  # C' C 1 kernel
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    hidden = functional.conv2d(rows.T[None, :, None], kernel, bias, (1, stride))[0, :, 0].T
    return functional.gelu(hidden) if gelu else hidden


def norm(
    rows: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, gelu: bool = False
) -> Tensor:
    """Layer norm of (R, D), after `added` (R, D) if there is any, in float32."""
    total = rows.float() if added is None else rows.float() + added.float()
    total = functional.layer_norm(total, weight.shape, weight.float(), bias.float(), eps)
    return (functional.gelu(total) if gelu else total).to(rows.dtype)
