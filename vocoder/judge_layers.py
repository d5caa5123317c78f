"""The layers of a discriminator over rows: between them no number is moved but by the pass that activates it.

A tensor between layers is (N lanes, rows, groups * samples * channels), as `judge_shapes` says. On a GPU the
convolutions are the libraries', what stands between them in half precision is `judge_kernels`'. The same by
PyTorch is what the kernels are held to; where they do not run, `discriminators.Stack` computes without rows.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from speechgpt.vocoder.judge_shapes import SLOPE, ConvForm, on_kernels

ALIGNED = 8  # columns of a product that tensor cores take


def first(lanes: Tensor, wide: Tensor, form: ConvForm, reflect: bool) -> Tensor:
    """The convolution of one channel (N, T), as a matrix product over windows -> (N, rows, block * O)."""
    samples, half = lanes.shape[1], form.half
    rows = form.rows_in(samples)
    if reflect:
        lanes = F.pad(lanes, (half, half), "reflect")
    else:
        lanes = F.pad(lanes, (half, half))
    lanes = F.pad(lanes, (0, max(0, rows * form.samples - lanes.shape[1])))[:, : rows * form.samples]
    lanes = lanes.unflatten(1, (rows, form.samples)).to(wide.dtype)  # N rows q
    made = rows - form.taps + 1
    windows = torch.cat([lanes[:, tap : tap + made] for tap in range(form.taps)], 2)  # N made window
    return torch.matmul(windows.flatten(0, 1), wide.t()).unflatten(0, (len(lanes), made))


def convolve(z: Tensor, wide: Tensor, form: ConvForm) -> Tensor:
    """z (N, rows, G * q * I) -> (N, rows, G * block * O), neither padded nor with a bias."""
    x = z.unsqueeze(2).permute(0, 3, 1, 2)  # N C rows 1, channels innermost
    weight = wide.unflatten(1, (form.taps, 1, -1)).permute(0, 3, 1, 2)  # block*O q*I taps 1
    y = F.conv2d(x, weight, None, (form.step, 1), groups=form.groups)
    return y.permute(0, 2, 3, 1).flatten(2)  # N rows C


def place(
    y: Tensor, bias: Tensor, source: ConvForm, target: ConvForm,
    length: int, reflect: bool, against: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Leaky ReLU of y + bias, laid out for the next convolution, padded: zeros, or `reflect`.

    y (N, rows, G * block * O) of `source`, of which `length` samples count; bias (C,) float32. Returns z
    (N, rows, G' * q' * I') for `target`, and the mean distance () float32 to `against`, another such z.
    """
    if reflect:
        check_height(length, target.half)
    if on_kernels(y, y.dtype):
        from speechgpt.vocoder.judge_kernels import Place

        found = Place.apply(y.contiguous(), bias, against, source, target, length, reflect)
        return found if against is not None else (found, None)
    return _placed(y, bias, source, target, length, reflect, against)


def check_height(height: int, half: int) -> None:
    """Raises ValueError where `height` samples are too few to be reflected by `half`."""
    if height <= half:
        raise ValueError(f"a height of {height} cannot be reflected by {half}: use longer segments")


def _placed(
    y: Tensor, bias: Tensor, source: ConvForm, target: ConvForm,
    length: int, reflect: bool, against: Tensor | None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The same by PyTorch, on any device."""
    y = y.unflatten(2, (source.groups, source.block, source.outputs)).transpose(2, 3)  # N rows block G O
    y = y.flatten(3).flatten(1, 2)[:, :length]  # N T C
    x = F.leaky_relu(y.float() + bias, SLOPE).to(y.dtype)
    distance = None
    if against is not None:
        distance = (x.float() - inner(against, target, length).float()).abs().mean()
    half = target.half
    before = x[:, 1 : half + 1].flip(1) if reflect else x.new_zeros(len(x), half, x.shape[2])
    after = [x[:, -half - 1 : -1].flip(1)] if reflect and half else []
    x = torch.cat([before, x, *after], 1)
    size = target.rows_in(length) * target.samples
    x = F.pad(x, (0, 0, 0, max(0, size - x.shape[1])))[:, :size]
    x = x.unflatten(2, (target.groups, target.inputs)).unflatten(1, (-1, target.samples))  # N rows q G I
    return x.transpose(2, 3).flatten(2), distance  # N rows G*q*I


def inner(z: Tensor, form: ConvForm, length: int) -> Tensor:
    """What counts in z (N, rows, G * q * I): (N, T, C), a view where rows have one group or one sample."""
    z = z.unflatten(2, (form.groups, form.samples, form.inputs)).transpose(2, 3)  # N rows q G I
    return z.flatten(3).flatten(1, 2)[:, form.half : form.half + length]


def score(z: Tensor, wide: Tensor, bias: Tensor) -> Tensor:
    """The convolution to one channel, over rows of one sample: z (N, T + taps - 1, C) -> (N, T) float32."""
    taps = wide.numel() // z.shape[2]
    weight = F.pad(wide.view(taps, -1), (0, 0, 0, ALIGNED - taps))
    each = torch.matmul(z.flatten(0, 1), weight.t()).unflatten(0, z.shape[:2])  # N T+taps-1 8
    return Diagonals.apply(each, taps) + bias


class Diagonals(torch.autograd.Function):
    """(N, T + taps - 1, 8) -> (N, T) float32: the sum of [t, 0], [t + 1, 1], ..."""

    @staticmethod
    def forward(ctx, each: Tensor, taps: int) -> Tensor:
        ctx.plan = each.shape, each.dtype, taps
        return _diagonals(each, taps).sum(2, dtype=torch.float32)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        shape, dtype, taps = ctx.plan
        each = torch.zeros(shape, dtype=dtype, device=gradient.device)
        _diagonals(each, taps).copy_(gradient.unsqueeze(2))
        return each, None


def _diagonals(each: Tensor, taps: int) -> Tensor:
    lanes, rows, width = each.shape
    return each.as_strided((lanes, rows - taps + 1, taps), (rows * width, width, width + 1))
