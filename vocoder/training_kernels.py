"""What stands between the generator's convolutions in training, forward and backward, one pass each.

Activations are (B, S, C): S positions of a row, in the order of a `Grid`. A pass reads in one order, writes
in another, and zeroes what is stored beyond a row's end, so that a dilated convolution becomes a dense one
without a copy of its own. Sums are float32 in registers. `TRITON_INTERPRET=1` runs the same code on a CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechgpt.vocoder.training_grid import Grid

TILE = 4096  # numbers of one program
LAST_TILE = 128  # samples of a program of the last convolution's gradient
ROW_STEP = 1024  # numbers of a weight's row at once


@triton.jit
def _place(t, dilation, rows: tl.constexpr):
    """Where position t is stored: blocks of rows * dilation, within one the residues of dilation outside."""
    block = t // (rows * dilation)
    rest = t - block * (rows * dilation)
    return (block * dilation + rest % dilation) * rows + rest // dilation


@triton.jit
def _positions(
    length, stored, dilation, plain_stored,
    channels: tl.constexpr, rows: tl.constexpr, block_t: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    """A program's row, positions and channels, which of them there are, and where both grids have them."""
    row = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * block_t + tl.arange(0, block_t)
    c = tl.arange(0, block_c)
    real = (c < channels)[None, :]
    inside = (t < length)[:, None] & real
    source = row * stored * channels + _place(t, dilation, rows)[:, None] * channels + c[None, :]
    plain = row * plain_stored * channels + t[:, None] * channels + c[None, :]
    return row, t, c, real, inside, source, plain


@triton.jit(
    do_not_specialize=[
        "length", "y_stored", "y_dilation", "stored", "active_stored", "active_dilation",
        "residual_given", "total_given", "out_wanted", "active_wanted",
    ]
)  # fmt: skip
def _join(
    y, bias, residual, total, out, active, length, y_stored, y_dilation, stored, active_stored,
    active_dilation, scale, slope, residual_given, total_given, out_wanted, active_wanted,
    channels: tl.constexpr, rows: tl.constexpr, block_t: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    row, t, c, real, inside, source, plain = _positions(
        length, y_stored, y_dilation, stored, channels, rows, block_t, block_c
    )
    sums = tl.load(y + source, mask=inside, other=0.0).to(tl.float32)
    sums += tl.load(bias + c, mask=c < channels, other=0.0)[None, :]
    sums += tl.load(residual + plain, mask=inside & (residual_given != 0), other=0.0).to(tl.float32)
    sums += tl.load(total + plain, mask=inside & (total_given != 0), other=0.0).to(tl.float32)
    sums = tl.where(inside, sums * scale, 0.0)
    tl.store(
        out + plain, sums.to(out.dtype.element_ty), mask=(t < stored)[:, None] & real & (out_wanted != 0)
    )
    target = (
        row * active_stored * channels + _place(t, active_dilation, rows)[:, None] * channels + c[None, :]
    )
    sums = tl.where(sums >= 0, sums, sums * slope)
    tl.store(
        active + target,
        sums.to(active.dtype.element_ty),
        mask=(t < active_stored)[:, None] & real & (active_wanted != 0),
    )


@triton.jit(
    do_not_specialize=[
        "length", "in_stored", "in_dilation", "stored", "out_stored", "out_dilation",
        "residual_given", "total_given",
    ]
)  # fmt: skip
def _split(
    grad, active, residual, total, out, sums, length, in_stored, in_dilation, stored, out_stored,
    out_dilation, scale, slope, residual_given, total_given,
    channels: tl.constexpr, rows: tl.constexpr, block_t: tl.constexpr, block_c: tl.constexpr,
):  # fmt: skip
    row, t, c, real, inside, source, plain = _positions(
        length, in_stored, in_dilation, stored, channels, rows, block_t, block_c
    )
    g = tl.load(grad + source, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(active + source, mask=inside, other=0.0).to(tl.float32)
    g = tl.where(a > 0, g, g * slope) * scale
    g += tl.load(residual + plain, mask=inside & (residual_given != 0), other=0.0).to(tl.float32)
    g += tl.load(total + plain, mask=inside & (total_given != 0), other=0.0).to(tl.float32)
    target = row * out_stored * channels + _place(t, out_dilation, rows)[:, None] * channels + c[None, :]
    tl.store(out + target, g.to(out.dtype.element_ty), mask=(t < out_stored)[:, None] & real)
    part = row * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + part * channels + c, tl.sum(g, 0), mask=c < channels)


@triton.jit(do_not_specialize=["length", "taps"])
def _last_gradient(
    grad, sound, x, weight, grad_x, sums, length, taps, slope,
    channels: tl.constexpr, block_c: tl.constexpr, block_t: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Through tanh and the last convolution; `sums` gets a program's (block_k, C), behind it the bias's."""
    row = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * block_t + tl.arange(0, block_t)
    c = tl.arange(0, block_c)
    inside = (t < length)[:, None] & (c < channels)[None, :]
    begin = row * length
    at = begin * channels + t[:, None] * channels + c[None, :]
    a = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    leaky = tl.where(a >= 0, a, a * slope)
    part = (row * tl.num_programs(0) + tl.program_id(0)) * (block_k + 1) * channels
    found = tl.zeros((block_t, block_c), tl.float32)
    for tap in range(0, taps):
        # Sample s hears position s + tap - taps // 2.
        s = t - tap + taps // 2
        here = (s >= 0) & (s < length)
        y = tl.load(sound + begin + s, mask=here, other=0.0)
        g = tl.load(grad + begin + s, mask=here, other=0.0) * (1.0 - y * y)
        w = tl.load(weight + tap * channels + c, mask=c < channels, other=0.0)
        found += g[:, None] * w[None, :]
        tl.store(sums + part + tap * channels + c, tl.sum(g[:, None] * leaky, 0), mask=c < channels)
    y = tl.load(sound + begin + t, mask=t < length, other=0.0)
    g = tl.load(grad + begin + t, mask=t < length, other=0.0) * (1.0 - y * y)
    tl.store(
        sums + part + block_k * channels + c,
        tl.sum(g, 0) + tl.zeros((block_c,), tl.float32),
        mask=c < channels,
    )
    tl.store(grad_x + at, tl.where(a > 0, found, found * slope).to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def _weigh(values, gains, table, out, fields: tl.constexpr, step: tl.constexpr):
    """One program writes one row of one weight: gain * value / norm, `copies` times."""
    row = tl.program_id(0)
    entry = table + row * fields
    start, size, taps = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    copies, apart, target = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 5)
    squares = tl.zeros((step,), tl.float32)
    for begin in range(0, size, step):
        n = begin + tl.arange(0, step)
        v = tl.load(values + start + n, mask=n < size, other=0.0)
        squares += v * v
    scale = tl.load(gains + row) / tl.sqrt(tl.sum(squares, 0))
    columns = size // taps
    for begin in range(0, size, step):
        n = begin + tl.arange(0, step)  # in the order that is written: tap by tap
        v = tl.load(values + start + (n % columns) * taps + n // columns, mask=n < size, other=0.0)
        v = (v * scale).to(out.dtype.element_ty)
        for copy in range(0, copies):
            tl.store(out + target + copy * apart + n, v, mask=n < size)


@triton.jit
def _summed(grad, target, n, size, taps, columns, copies, apart, step: tl.constexpr):
    """The gradient of a row's numbers n, summed over the copies that were written tap by tap."""
    place = (n % taps) * columns + n // taps
    total = tl.zeros((step,), tl.float32)
    for copy in range(0, copies):
        total += tl.load(grad + target + copy * apart + place, mask=n < size, other=0.0).to(tl.float32)
    return total


@triton.jit
def _weigh_gradient(
    values, gains, table, grad, grad_values, grad_gains, fields: tl.constexpr, step: tl.constexpr
):
    row = tl.program_id(0)
    entry = table + row * fields
    start, size, taps = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    copies, apart, target = tl.load(entry + 3), tl.load(entry + 4), tl.load(entry + 6)
    columns = size // taps
    squares = tl.zeros((step,), tl.float32)
    products = tl.zeros((step,), tl.float32)
    for begin in range(0, size, step):
        n = begin + tl.arange(0, step)
        v = tl.load(values + start + n, mask=n < size, other=0.0)
        g = _summed(grad, target, n, size, taps, columns, copies, apart, step)
        squares += v * v
        products += v * g
    square, product = tl.sum(squares, 0), tl.sum(products, 0)
    norm = tl.sqrt(square)
    scale = tl.load(gains + row) / norm
    tl.store(grad_gains + row, product / norm)
    for begin in range(0, size, step):
        n = begin + tl.arange(0, step)
        v = tl.load(values + start + n, mask=n < size, other=0.0)
        g = _summed(grad, target, n, size, taps, columns, copies, apart, step)
        tl.store(grad_values + start + n, scale * (g - v * (product / square)), mask=n < size)


def _tiles(channels: int) -> tuple[int, int]:
    """Positions and channels of one program."""
    block_c = triton.next_power_of_2(channels)
    return max(1, TILE // block_c), block_c


def join(
    y: Tensor, y_grid: Grid, bias: Tensor, plain: Grid, residual: Tensor | None, total: Tensor | None,
    scale: float, keep: bool, slope: float, grid: Grid | None,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """As `training_passes.join`."""
    batch, channels = y.shape[0], y.shape[2]
    block_t, block_c = _tiles(channels)
    out = y.new_empty(batch, plain.stored, channels) if keep else None  # B S C
    active = None if grid is None else y.new_empty(batch, grid.stored, channels)  # B S C
    longest = max(plain.stored, grid.stored if grid else 0)
    _join[(triton.cdiv(longest, block_t), batch)](
        y, bias, y if residual is None else residual, y if total is None else total,
        y if out is None else out, y if active is None else active,
        plain.length, y_grid.stored, y_grid.dilation, plain.stored,
        grid.stored if grid else 0, grid.dilation if grid else 1, float(scale), float(slope),
        int(residual is not None), int(total is not None), int(keep), int(grid is not None),
        channels, plain.rows, block_t, block_c, num_warps=4,
    )  # fmt: skip
    return out, active


def split(
    grad: Tensor, active: Tensor, grid: Grid, plain: Grid, out_grid: Grid,
    residual: Tensor | None, total: Tensor | None, scale: float, slope: float, longest: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `training_passes.split`."""
    batch, channels = grad.shape[0], grad.shape[2]
    block_t, block_c = _tiles(channels)
    tiles = triton.cdiv(max(plain.stored, out_grid.stored, longest), block_t)
    out = grad.new_empty(batch, out_grid.stored, channels)  # B S C
    sums = grad.new_empty(batch * tiles, channels, dtype=torch.float32)
    _split[(tiles, batch)](
        grad, active, grad if residual is None else residual, grad if total is None else total, out, sums,
        plain.length, grid.stored, grid.dilation, plain.stored, out_grid.stored, out_grid.dilation,
        float(scale), float(slope), int(residual is not None), int(total is not None),
        channels, plain.rows, block_t, block_c, num_warps=4,
    )  # fmt: skip
    return out, sums


def last_gradient(
    grad: Tensor, sound: Tensor, x: Tensor, weight: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `training_passes.last_gradient`."""
    (batch, length, channels), taps = x.shape, len(weight)
    grad_x, tiles = torch.empty_like(x), triton.cdiv(length, LAST_TILE)
    sums = torch.empty(batch * tiles, taps + 1, channels, dtype=torch.float32, device=x.device)
    _last_gradient[(tiles, batch)](
        grad, sound, x, weight, grad_x, sums, length, taps, float(slope),
        channels, triton.next_power_of_2(channels), LAST_TILE, taps, num_warps=4,
    )  # fmt: skip
    whole = sums.sum(0)  # k+1 C
    return grad_x, whole[:-1], whole[-1, :1]


def weigh(values: Tensor, gains: Tensor, table: Tensor, total: int, dtype: torch.dtype) -> Tensor:
    """values (V,), gains (R,) float32, table (R, fields) -> `total` numbers, zero where no row is written."""
    out = torch.zeros(total, dtype=dtype, device=values.device)
    _weigh[(len(table),)](values, gains, table, out, table.shape[1], ROW_STEP, num_warps=4)
    return out


def weigh_gradient(values: Tensor, gains: Tensor, table: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `values` and `gains` from that of what `weigh` wrote, packed without gaps."""
    grad_values, grad_gains = torch.empty_like(values), torch.empty_like(gains)
    _weigh_gradient[(len(table),)](
        values, gains, table, grad, grad_values, grad_gains, table.shape[1], ROW_STEP, num_warps=4
    )
    return grad_values, grad_gains
