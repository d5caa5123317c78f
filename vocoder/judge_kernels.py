"""What stands between two convolutions of a discriminator, and its weights, in one pass over memory each.

A tensor between layers is (N lanes, rows, groups * samples * channels): a row holds some neighbouring samples
of every group. Two layers cut their rows differently, so the pass that adds the bias and applies the leaky
ReLU also moves every number to where the next convolution reads it. `TRITON_INTERPRET=1` runs the same code
on a CPU.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from speechgpt.vocoder.judge_shapes import SLOPE, ConvForm

RUN = 8  # numbers of half precision that one load takes
LINES, COLUMNS = 32, 128  # of the tile of one program
PLAIN, WEIGHT_NORM, SPECTRAL_NORM = 0, 1, 2


@triton.jit
def _seen(begin, column, p, channels: tl.constexpr, q: tl.constexpr, c: tl.constexpr):
    """Where the next convolution reads position p."""
    return begin + (p // q) * (channels * q) + column + (p % q) * c


@triton.jit(do_not_specialize=["lines", "rows_z", "rows_y", "length", "share"])
def _place(
    y, bias, z, against, parts, lines, rows_z, rows_y, length, share,
    channels: tl.constexpr, r: tl.constexpr, o: tl.constexpr, q: tl.constexpr, c: tl.constexpr,
    half: tl.constexpr, reflect: tl.constexpr, compare: tl.constexpr, slope: tl.constexpr,
    run: tl.constexpr, block_l: tl.constexpr, block_w: tl.constexpr,
):  # fmt: skip
    """One program fills `block_l` rows times `block_w` columns of what the next convolution reads."""
    line = tl.program_id(0) * block_l + tl.arange(0, block_l)
    w = tl.program_id(1) * block_w + tl.arange(0, block_w)
    inside = (line < lines)[:, None] & (w < channels * q)[None, :]
    # Counted in runs: of single channels the compiler does not see that neighbours lie together.
    u = w // run
    u = u // (q * c // run) * (c // run) + u % (c // run)
    t = ((line % rows_z) * q)[:, None] + ((w // c) % q)[None, :] - half
    here = inside & (t >= 0) & (t < length)
    place = t
    if reflect:
        here = inside & (t >= -half) & (t < length + half)
        place = tl.where(t < 0, -t, tl.where(t >= length, 2 * (length - 1) - t, t))
    begin = (line // rows_z).to(tl.int64) * rows_y * (channels * r)
    column = (u // (o // run) * (r * o) + u % (o // run) * run + w % run)[None, :] + (place % r) * o
    value = tl.load(y + begin[:, None] + (place // r) * (channels * r) + column, mask=here, other=0.0)
    value = (
        value.to(tl.float32) + tl.load(bias + u * run + w % run, mask=w < channels * q, other=0.0)[None, :]
    )
    value = tl.where(value > 0, value, value * slope)
    value = tl.where(here, value, 0.0).to(z.dtype.element_ty)
    target = line.to(tl.int64)[:, None] * (channels * q) + w[None, :]
    tl.store(z + target, value, mask=inside)
    if compare:
        counted = inside & (t >= 0) & (t < length)
        other = tl.load(against + target, mask=counted, other=0.0).to(tl.float32)
        distance = tl.where(counted, tl.abs(value.to(tl.float32) - other), 0.0)
        number = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
        tl.store(parts + number, tl.sum(tl.sum(distance, 1), 0) * share)


@triton.jit(
    do_not_specialize=["lines", "rows_z", "rows_y", "length", "share"],
    do_not_specialize_on_alignment=["gdistance"],  # one of many numbers side by side
)
def _place_back(
    gz, y, bias, against, gdistance, gy, sums, lines, rows_z, rows_y, length, share,
    channels: tl.constexpr, r: tl.constexpr, o: tl.constexpr, q: tl.constexpr, c: tl.constexpr,
    half: tl.constexpr, reflect: tl.constexpr, compare: tl.constexpr, learns: tl.constexpr,
    slope: tl.constexpr, run: tl.constexpr, block_l: tl.constexpr, block_w: tl.constexpr,
):  # fmt: skip
    """One program fills `block_l` rows times `block_w` columns of y's gradient; their sums are the bias's."""
    line = tl.program_id(0) * block_l + tl.arange(0, block_l)
    w = tl.program_id(1) * block_w + tl.arange(0, block_w)
    inside = (line < lines)[:, None] & (w < channels * r)[None, :]
    u = w // run
    u = u // (r * o // run) * (o // run) + u % (o // run)
    t = ((line % rows_y) * r)[:, None] + ((w // o) % r)[None, :]
    here = inside & (t < length)
    begin = ((line // rows_y).to(tl.int64) * rows_z * (channels * q))[:, None]
    column = (u // (c // run) * (q * c) + u % (c // run) * run + w % run)[None, :]
    where = _seen(begin, column, t + half, channels, q, c)
    total = tl.load(gz + where, mask=here, other=0.0).to(tl.float32)
    if reflect:
        before = here & (t >= 1) & (t <= half)
        mirrored = _seen(begin, column, half - t, channels, q, c)
        total += tl.load(gz + mirrored, mask=before, other=0.0).to(tl.float32)
        # What no window reaches is not held.
        p = half + 2 * (length - 1) - t
        after = here & (t >= length - 1 - half) & (t <= length - 2) & (p < rows_z * q)
        mirrored = _seen(begin, column, p, channels, q, c)
        total += tl.load(gz + mirrored, mask=after, other=0.0).to(tl.float32)
    source = line.to(tl.int64)[:, None] * (channels * r) + w[None, :]
    value = tl.load(y + source, mask=here, other=0.0).to(tl.float32)
    value += tl.load(bias + u * run + w % run, mask=w < channels * r, other=0.0)[None, :]
    if compare:
        mine = tl.where(value > 0, value, value * slope).to(gy.dtype.element_ty).to(tl.float32)
        other = tl.load(against + where, mask=here, other=0.0).to(tl.float32)
        weight = tl.load(gdistance) * share
        total += tl.where(mine > other, weight, tl.where(mine < other, -weight, 0.0))
    total = tl.where(here, tl.where(value > 0, total, total * slope), 0.0)
    tl.store(gy + source, total.to(gy.dtype.element_ty), mask=inside)
    if learns:
        tl.store(sums + tl.program_id(0) * (channels * r) + w, tl.sum(total, 0), mask=w < channels * r)


def _run(source: ConvForm, target: ConvForm) -> int:
    return gcd(source.outputs, target.inputs, RUN)


class Place(torch.autograd.Function):
    """(y, bias, against) -> z, or (z, distance) where `against` is given. See `judge_layers.place`."""

    @staticmethod
    def forward(ctx, y: Tensor, bias: Tensor, against: Tensor | None, source: ConvForm, target: ConvForm,
                length: int, reflect: bool):  # fmt: skip
        (lanes, rows_y, _), rows_z, channels = y.shape, target.rows_in(length), source.channels_out
        z = y.new_empty(lanes, rows_z, channels * target.samples)
        grid = (triton.cdiv(lanes * rows_z, LINES), triton.cdiv(z.shape[2], COLUMNS))
        compare = against is not None
        parts = y.new_empty(grid[0] * grid[1], dtype=torch.float32) if compare else z
        share = 1 / (lanes * length * channels)
        shape = (channels, source.block, source.outputs, target.samples, target.inputs, target.half, reflect)
        _place[grid](
            y, bias, z, against if compare else z, parts, lanes * rows_z, rows_z, rows_y, length, share,
            *shape, compare, SLOPE, _run(source, target), LINES, COLUMNS, num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(y, bias, against)
        ctx.plan = rows_z, length, share, shape, _run(source, target)
        return (z, parts.sum()) if compare else z

    @staticmethod
    def backward(ctx, gz: Tensor, gdistance: Tensor | None = None):
        y, bias, against = ctx.saved_tensors
        rows_z, length, share, shape, run = ctx.plan
        gz, gy, (lanes, rows_y, width) = gz.contiguous(), torch.empty_like(y), y.shape
        grid = (triton.cdiv(lanes * rows_y, LINES), triton.cdiv(width, COLUMNS))
        learns, compare = ctx.needs_input_grad[1], against is not None
        sums = y.new_empty(grid[0], width, dtype=torch.float32) if learns else gy
        _place_back[grid](
            gz, y, bias, against if compare else gz, gdistance if compare else bias, gy, sums,
            lanes * rows_y, rows_z, rows_y, length, share,
            *shape, compare, learns, SLOPE, run, LINES, COLUMNS, num_warps=4,
        )  # fmt: skip
        _, r, o, *_ = shape
        gbias = sums.view(grid[0], -1, r, o).sum((0, 2)).reshape(-1) if learns else None
        return gy, gbias, None, None, None, None, None


@triton.jit
def _weight(v, g, o, elements, block: tl.constexpr, kind: tl.constexpr, inputs: tl.constexpr, so, si, sk):
    """A row of the weight, its place, and what it is to be multiplied by; 1 / norm where there is one."""
    n = tl.arange(0, block)
    inner = o.to(tl.int64) * so + (n % inputs) * si + (n // inputs) * sk
    row = tl.load(v + inner, mask=n < elements, other=0.0).to(tl.float32)
    scale, inverse = 1.0, 1.0
    if kind == 1:
        inverse = 1.0 / tl.sqrt(tl.sum(row * row, 0))
        scale = tl.load(g + o) * inverse
    if kind == 2:
        scale = 1.0 / tl.load(g)
    return row, inner, scale, inverse


@triton.jit(do_not_specialize=["taps", "stride", "window"])
def _widen(
    v, g, wide, taps, stride, window, so, si, sk, inputs: tl.constexpr, outputs: tl.constexpr,
    r: tl.constexpr, kind: tl.constexpr, block: tl.constexpr, block_wide: tl.constexpr,
):  # fmt: skip
    """One program makes the `r` rows of one output channel."""
    o = tl.program_id(0)
    _, _, scale, _ = _weight(v, g, o, taps * inputs, block, kind, inputs, so, si, sk)
    n = tl.arange(0, block_wide)
    i = n % inputs
    for shift in tl.static_range(r):
        k = n // inputs - shift * stride
        here = (n < window * inputs) & (k >= 0) & (k < taps)
        value = tl.load(v + o.to(tl.int64) * so + i * si + k * sk, mask=here, other=0.0).to(tl.float32)
        row = ((o // outputs) * r + shift) * outputs + o % outputs
        target = wide + row.to(tl.int64) * (window * inputs) + n
        tl.store(target, (value * scale).to(wide.dtype.element_ty), mask=n < window * inputs)


@triton.jit(do_not_specialize=["taps", "stride", "window"])
def _narrow(
    gwide, v, g, gv, gg, taps, stride, window, so, si, sk, inputs: tl.constexpr, outputs: tl.constexpr,
    r: tl.constexpr, kind: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program makes the gradients of one output channel's weights."""
    o = tl.program_id(0)
    v_row, inner, scale, inverse = _weight(v, g, o, taps * inputs, block, kind, inputs, so, si, sk)
    n = tl.arange(0, block)
    total = tl.zeros((block,), tl.float32)
    for shift in tl.static_range(r):
        row = ((o // outputs) * r + shift) * outputs + o % outputs
        source = gwide + row.to(tl.int64) * (window * inputs) + n + shift * stride * inputs
        total += tl.load(source, mask=n < taps * inputs, other=0.0).to(tl.float32)
    dot = tl.sum(total * v_row, 0)
    if kind == 1:
        tl.store(gg + o, dot * inverse)
        total = total - v_row * (dot * inverse * inverse)
    if kind == 2:  # of 1 / sigma, row by row
        tl.store(gg + o, dot * scale * scale)
    tl.store(gv + inner, total * scale, mask=n < taps * inputs)


class Widen(torch.autograd.Function):
    """(v, g) -> the weight that is computed with. See `judge_weights.widen`.

    g: weight norm's (O, 1, ...), spectral norm's sigma (), or None. `singular`: its u (O,), v (I * k,).
    """

    @staticmethod
    def forward(ctx, v: Tensor, g: Tensor | None, singular: tuple[Tensor, Tensor] | None, form: ConvForm,
                dtype: torch.dtype):  # fmt: skip
        kind = PLAIN if g is None else WEIGHT_NORM if g.dim() else SPECTRAL_NORM
        wide = v.new_empty(form.channels_out * form.block, form.window * form.inputs, dtype=dtype)
        strides = v.stride()[:3]  # a 2-d kernel is 1 wide
        shape = (form.inputs, form.outputs, form.block, kind)
        block = triton.next_power_of_2(v[0].numel())
        _widen[(len(v),)](
            v, v if g is None else g, wide, form.kernel, form.stride, form.window, *strides,
            *shape, block, triton.next_power_of_2(wide.shape[1]), num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(v, g)
        ctx.plan, ctx.singular = (form, strides, shape, block), singular
        return wide

    @staticmethod
    def backward(ctx, gwide: Tensor):
        v, g = ctx.saved_tensors
        form, strides, shape, block = ctx.plan
        gv = torch.empty_like(v)
        gg = torch.empty(len(v), dtype=v.dtype, device=v.device)
        _narrow[(len(v),)](
            gwide.contiguous(), v, v if g is None else g, gv, gg, form.kernel, form.stride, form.window,
            *strides, *shape, block, num_warps=8,
        )  # fmt: skip
        if ctx.singular is not None:  # sigma = u W v moves with the weight
            left, right = ctx.singular
            gv.view(len(v), -1).addr_(left * -gg.sum(), right)
            return gv, None, None, None, None
        return gv, None if g is None else gg.view_as(g), None, None, None


@torch.enable_grad()
def probe(device: torch.device) -> None:
    """Compiles and runs the kernels on small tensors: raises what a machine without a compiler raises."""
    form, length = ConvForm(RUN, RUN, 1, 3, 1), 4
    v = torch.ones(RUN, RUN, 3, device=device, requires_grad=True)
    wide = Widen.apply(v, None, None, form, torch.bfloat16)
    y = torch.ones(1, length, RUN, dtype=torch.bfloat16, device=device, requires_grad=True)
    other = torch.zeros(1, form.rows_in(length), RUN, dtype=torch.bfloat16, device=device)
    z, distance = Place.apply(y, torch.zeros(RUN, device=device), other, form, form, length, False)
    torch.autograd.grad(wide.sum() + z.sum() + distance, [v, y])
