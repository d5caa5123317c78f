"""The parts of half-precision HuBERT that torch has no fast kernel for, each in one pass over its data.

Signatures and meanings are those of units/plain_kernels.py.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 8  # tiles down that are made side by side
SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))


@triton.jit
def _first_convolution(
    waveform,
    weight,
    scale,
    shift,
    row_of_slot,
    bias,
    out,
    channels,
    eps,
    stride: tl.constexpr,
    taps: tl.constexpr,
    per_slot: tl.constexpr,
    gelu: tl.constexpr,
    has_bias: tl.constexpr,
    has_norm: tl.constexpr,
    block_m: tl.constexpr,
    block_c: tl.constexpr,
):
    """One program makes `block_m` windows, all of one row, times `block_c` channels."""
    first = tl.program_id(0) * block_m
    row = tl.load(row_of_slot + first // per_slot)
    m = first + tl.arange(0, block_m)
    c = tl.program_id(1) * block_c + tl.arange(0, block_c)
    inside = c < channels
    total = tl.zeros((block_m, block_c), tl.float32)
    for tap in tl.static_range(taps):
        x = tl.load(waveform + m * stride + tap)
        w = tl.load(weight + tap * channels + c, mask=inside, other=0.0)
        total += x[:, None] * w[None, :]
    if has_norm:  # then one program has all channels
        if has_bias:
            total += tl.load(bias + c, mask=inside, other=0.0)[None, :]
        total = tl.where(inside[None, :], total - (tl.sum(total, 1) / channels)[:, None], 0.0)
        total *= tl.rsqrt(tl.sum(total * total, 1) / channels + eps)[:, None]
    a = tl.load(scale + row * channels + c, mask=inside, other=0.0)
    b = tl.load(shift + row * channels + c, mask=inside, other=0.0)
    total = total * a[None, :] + b[None, :]
    if gelu:
        total = _gelu(total)
    place = m.to(tl.int64)[:, None] * channels + c[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside[None, :])


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
    (taps, channels), slots = weight.shape, len(row_of_slot)
    windows = (len(waveform) - taps) // stride
    per_slot = windows // slots
    out = torch.empty(windows, channels, dtype=dtype, device=waveform.device)
    block_c = 128 if eps is None else triton.next_power_of_2(channels)
    # A power of 2 that divides a slot, so that no block has two rows.
    block_m = min(32 if block_c <= 128 else 8, per_slot & -per_slot)
    grid = (windows // block_m, triton.cdiv(channels, block_c))
    _first_convolution[grid](
        waveform,
        weight,
        scale,
        shift,
        row_of_slot,
        waveform if bias is None else bias,
        out,
        channels,
        eps or 0.0,
        stride,
        taps,
        per_slot,
        gelu,
        bias is not None,
        eps is not None,
        block_m,
        block_c,
        num_warps=4,
    )
    return out


# What one program of a product makes: rows, columns, depth of a step, steps in flight, warps.
TILES = ((128, 256, 64, 3, 8), (128, 128, 64, 4, 8), (256, 128, 64, 3, 8), (128, 128, 64, 3, 4))


# A count that 16 divides would be compiled apart: a second's pause at some batch of a long run.
@triton.jit(do_not_specialize=["count"])
def _product(
    rows,
    weight,
    bias,
    out,
    count,
    columns: tl.constexpr,
    inner: tl.constexpr,
    pitch: tl.constexpr,
    has_bias: tl.constexpr,
    gelu: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group: tl.constexpr,
):
    """(count, inner) x (inner, columns); row i begins at i * pitch, so rows may overlap."""
    across, down = tl.cdiv(count, block_m), tl.cdiv(columns, block_n)
    # Neighbouring programs share rows and columns, which stay in the cache.
    number = tl.program_id(0)
    band = number // (group * down)
    height = min(across - band * group, group)
    m = (band * group + (number % (group * down)) % height) * block_m + tl.arange(0, block_m)
    n = ((number % (group * down)) // height) * block_n + tl.arange(0, block_n)
    k = tl.arange(0, block_k)
    # Past the end, rows and columns are read again from the start and never written.
    left = rows + (m % count).to(tl.int64)[:, None] * pitch + k[None, :]
    right = weight + k[:, None] * columns + (n % columns)[None, :]
    total = tl.zeros((block_m, block_n), tl.float32)
    for step in range(0, tl.cdiv(inner, block_k)):
        if inner % block_k == 0:
            total = tl.dot(tl.load(left), tl.load(right), total)
        else:
            here = step * block_k + k < inner
            a = tl.load(left, mask=here[None, :], other=0.0)
            b = tl.load(right, mask=here[:, None], other=0.0)
            total = tl.dot(a, b, total)
        left += block_k
        right += block_k * columns
    if has_bias:
        total += tl.load(bias + n % columns).to(tl.float32)[None, :]
    if gelu:
        total = _gelu(total)
    place = m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(m < count)[:, None] & (n < columns)[None, :])


def convolution(
    rows: Tensor, weight: Tensor, bias: Tensor | None, stride: int, gelu: bool, tile: tuple = TILES[0]
) -> Tensor:
    width, (inner, columns) = rows.shape[1], weight.shape
    count = (len(rows) - inner // width) // stride + 1
    out = torch.empty(count, columns, dtype=rows.dtype, device=rows.device)
    block_m, block_n, block_k, stages, warps = tile
    grid = triton.cdiv(count, block_m) * triton.cdiv(columns, block_n)
    _product[(grid,)](
        rows,
        weight,
        rows if bias is None else bias,
        out,
        count,
        columns,
        inner,
        stride * width,
        bias is not None,
        gelu,
        block_m,
        block_n,
        block_k,
        GROUP,
        num_stages=stages,
        num_warps=warps,
    )
    return out


@triton.jit
def _norm(
    rows,
    added,
    weight,
    bias,
    out,
    width,
    eps,
    has_added: tl.constexpr,
    gelu: tl.constexpr,
    block: tl.constexpr,
):
    """One program norms one row."""
    start = tl.program_id(0).to(tl.int64) * width
    c = tl.arange(0, block)
    inside = c < width
    x = tl.load(rows + start + c, mask=inside, other=0.0).to(tl.float32)
    if has_added:
        x += tl.load(added + start + c, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    w = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    x = x * w + b
    if gelu:
        x = _gelu(x)
    tl.store(out + start + c, x.to(out.dtype.element_ty), mask=inside)


def norm(
    rows: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float, gelu: bool = False
) -> Tensor:
    rows, width = rows.contiguous(), rows.shape[1]
    out = torch.empty_like(rows)
    block = triton.next_power_of_2(width)
    _norm[(len(rows),)](
        rows,
        rows if added is None else added.contiguous(),
        weight,
        bias,
        out,
        width,
        eps,
        added is not None,
        gelu,
        block,
        num_warps=max(1, min(8, block // 256)),
    )
    return out


def probe(device: torch.device) -> None:
    """Compiles and runs each kernel in HuBERT's sizes: raises TritonError where the device lacks the memory
    that a tile takes or Triton cannot translate, else what a machine without a compiler raises."""
    zeros = partial(torch.zeros, device=device)
    scale, owner = zeros(1, 512), zeros(1, dtype=torch.int64)
    rows = first_convolution(zeros(330), zeros(10, 512), scale, scale, owner, 5, True, torch.float16)  # 64 C
    convolution(rows, zeros(1536, 512, dtype=torch.float16), None, 2, True)
    norm(rows, None, scale[0], scale[0], 1e-5)
