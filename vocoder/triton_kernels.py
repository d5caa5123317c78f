"""The generator's convolutions in half precision, each with all that stands around it in one pass.

Over (B, T, C) a convolution is one matrix product: a row of its left side holds the taps of one position, C
neighbouring numbers each, which are gathered as they are needed. The leaky ReLUs, the bias, the residual and
the sum over blocks are done where their numbers are in registers anyway. `TRITON_INTERPRET=1` runs the same
code on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

DEPTH = 64  # of one step of the product: taps times channels
LEAST_PROGRAMS = 132  # below it tiles are made smaller: a GPU has about so many processors
LAST_BLOCK = 256  # samples of a program of the last convolution


@triton.jit(do_not_specialize=["length", "taps", "dilation", "left", "rate", "residual_given", "total_given"])
def _convolution(
    x, weight, bias, residual, total, frames, out, length, taps, dilation, left, rate,
    slope_out, scale, residual_given, total_given, channels: tl.constexpr, columns: tl.constexpr,
    activate: tl.constexpr, slope: tl.constexpr,
    block_t: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """One program makes `block_t` positions of one row times `block_n` columns."""
    row = tl.program_id(2)
    t = tl.program_id(0) * block_t + tl.arange(0, block_t)
    n = tl.program_id(1) * block_n + tl.arange(0, block_n)
    begin = row.to(tl.int64) * length
    x += begin * channels
    inner = taps * channels
    sums = tl.zeros((block_t, block_n), tl.float32)
    for step in range(0, tl.cdiv(inner, block_k)):
        k = step * block_k + tl.arange(0, block_k)
        place = t[:, None] + ((k // channels) * dilation - left)[None, :]
        here = (k < inner)[None, :] & (place >= 0) & (place < length)
        a = tl.load(x + place * channels + (k % channels)[None, :], mask=here, other=0.0)
        if activate:
            b = a.to(tl.float32)
            a = tl.where(b >= 0, b, b * slope).to(a.dtype)
        w = tl.load(
            weight + k[:, None] * columns + n[None, :],
            mask=(k < inner)[:, None] & (n < columns)[None, :],
            other=0.0,
        )
        sums = tl.dot(a, w, sums, input_precision="ieee")
    sums += tl.load(bias + n, mask=n < columns, other=0.0)[None, :]
    inside = (t < length)[:, None] & (n < columns)[None, :]
    where = begin * columns + t[:, None] * columns + n[None, :]
    sums = tl.where(sums >= 0, sums, sums * slope_out)
    sums += tl.load(residual + where, mask=inside & (residual_given != 0), other=0.0).to(tl.float32)
    sums += tl.load(total + where, mask=inside & (total_given != 0), other=0.0).to(tl.float32)
    # Beyond a row's end stand zeros, as where the row is alone.
    sums = tl.where((t < tl.load(frames + row) * rate)[:, None], sums * scale, 0.0)
    tl.store(out + where, sums.to(out.dtype.element_ty), mask=inside)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    frames: Tensor,
    rate: int,
    taps: int,
    left: int,
    dilation: int = 1,
    slope: float | None = None,
    slope_out: float = 1.0,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """x (B, T, C) -> (B, T, O): scale * (leaky(sums + bias) + residual + total), 0 from `frames` * `rate` on.

    weight (taps * C, O), tap by tap; position t sees t - left, t - left + dilation, ... with zeros around;
    `slope`: of a leaky ReLU on what is read; `slope_out`: of one on the sums. Bias float32, frames
    (B,) int32. `out` may be `residual` or `total`, never x.
    """
    (rows, length, channels), columns = x.shape, weight.shape[1]
    if out is None:
        out = torch.empty(rows, length, columns, dtype=x.dtype, device=x.device)  # B T O
    block_t, block_n, warps = _tile(rows, length, columns)
    grid = (triton.cdiv(length, block_t), triton.cdiv(columns, block_n), rows)
    _convolution[grid](
        x, weight, bias, x if residual is None else residual, x if total is None else total, frames, out,
        length, taps, dilation, left, rate, float(slope_out), float(scale),
        int(residual is not None), int(total is not None), channels, columns,
        slope is not None, slope or 0.0, block_t, block_n, DEPTH, num_warps=warps, num_stages=3,
    )  # fmt: skip
    return out


def _tile(rows: int, length: int, columns: int) -> tuple[int, int, int]:
    """Positions and columns of one program, and its warps."""
    block_t, block_n, warps = 128, min(128, max(16, triton.next_power_of_2(columns))), 4
    if rows * triton.cdiv(length, block_t) * triton.cdiv(columns, block_n) < LEAST_PROGRAMS:
        return 32, min(32, block_n), warps
    return block_t, block_n, 8 if block_n == 128 else warps


@triton.jit(do_not_specialize=["length", "taps", "rate"])
def _last(
    x, weight, bias, frames, out, length, taps, rate, slope,
    channels: tl.constexpr, block_c: tl.constexpr, block_t: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1)
    t = tl.program_id(0) * block_t + tl.arange(0, block_t)
    c = tl.arange(0, block_c)
    begin = row.to(tl.int64) * length
    sums = tl.zeros((block_t,), tl.float32)
    for tap in range(0, taps):
        place = t + tap - taps // 2
        here = ((place >= 0) & (place < length))[:, None] & (c < channels)[None, :]
        a = tl.load(x + (begin + place)[:, None] * channels + c[None, :], mask=here, other=0.0).to(tl.float32)
        w = tl.load(weight + tap * channels + c, mask=c < channels, other=0.0)
        sums += tl.sum(tl.where(a >= 0, a, a * slope) * w[None, :], 1)
    sums += tl.load(bias)
    # tanh that does not overflow: exp of what is not positive alone.
    small = tl.exp(-2.0 * tl.abs(sums))
    sound = (1.0 - small) / (1.0 + small)
    sound = tl.where(sums >= 0, sound, -sound)
    sound = tl.where(t < tl.load(frames + row) * rate, sound, 0.0)
    tl.store(out + begin + t, sound, mask=t < length)


def last_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, frames: Tensor, rate: int, slope: float
) -> Tensor:
    """x (B, T, C) -> (B, T) float32: tanh of the convolution of leaky x to one channel; weight (taps, C)."""
    rows, length, channels = x.shape
    out = torch.empty(rows, length, dtype=torch.float32, device=x.device)  # B T
    _last[(triton.cdiv(length, LAST_BLOCK), rows)](
        x, weight, bias, frames, out, length, len(weight), rate, slope,
        channels, triton.next_power_of_2(channels), LAST_BLOCK, num_warps=4,
    )  # fmt: skip
    return out


def probe(device: torch.device) -> None:
    """Compiles and runs the smallest kernel: raises what a machine without a compiler raises."""
    x, weight = (torch.zeros(shape, device=device) for shape in ((1, 8, 16), (7, 16)))
    last_convolution(x, weight, weight[0, :1], torch.full((1,), 8, dtype=torch.int32, device=device), 1, 0.1)
