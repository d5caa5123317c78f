"""The passes between the generator's convolutions in training: PyTorch's own, or on a GPU the kernels'."""

import os

import torch
from torch import Tensor
from torch.nn import functional as F

from speechgpt.vocoder.training_grid import Grid

KERNELS = bool(os.environ.get("TRITON_INTERPRET"))  # on the CPU too


def on_kernels(x: Tensor) -> bool:
    """Whether x is worked on by the kernels."""
    return x.is_cuda or KERNELS


def join(
    y: Tensor,
    y_grid: Grid,
    bias: Tensor,
    plain: Grid,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    scale: float = 1.0,
    keep: bool = False,
    slope: float = 1.0,
    grid: Grid | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """x = scale * (y + bias + residual + total), if `keep`, and leaky x in the order `grid`, if given.

    y (B, S, C) lies in the order `y_grid`; residual, total and x in `plain`, that of time; bias (C,) float32.
    """
    if on_kernels(y):
        from speechgpt.vocoder import training_kernels

        return training_kernels.join(
            y, y_grid, bias, plain, residual, total, scale, keep, slope, grid
        )  # B S C, B S C
    x = y_grid.read(y) + bias.to(y.dtype)  # B T C
    for more in (residual, total):
        x = x if more is None else x + plain.read(more)
    x = x * scale
    return plain.lay(x) if keep else None, None if grid is None else grid.lay(F.leaky_relu(x, slope))


def split(
    grad: Tensor,
    active: Tensor,
    grid: Grid,
    plain: Grid,
    out_grid: Grid,
    residual: Tensor | None = None,
    total: Tensor | None = None,
    scale: float = 1.0,
    slope: float = 1.0,
    longest: int = 0,
) -> tuple[Tensor, Tensor]:
    """`join` backwards: scale * (the gradient of what went into leaky ReLU) + residual + total.

    grad and active, what came out of it, (B, S, C) in the order `grid`; residual and total in `plain`.
    Returns (B, S, C) in the order `out_grid` and partial sums (P, C) float32 over its positions: a bias's
    gradient. P is the same for all calls with the same `longest`, if that is as long as any of their orders.
    """
    if on_kernels(grad):
        from speechgpt.vocoder import training_kernels

        return training_kernels.split(
            grad, active, grid, plain, out_grid, residual, total, scale, slope, longest
        )  # B S C, P C
    g = grid.read(grad) * scale  # B T C
    g = torch.where(grid.read(active) > 0, g, g * slope)
    for more in (residual, total):
        g = g if more is None else g + plain.read(more)
    return out_grid.lay(g), g.float().sum(1)  # B S C, B C


def last(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """x (B, T, C), weight (k, C), bias (1,) -> (B, T) float32: tanh of the convolution of leaky x."""
    if on_kernels(x):
        from speechgpt.vocoder.triton_kernels import last_convolution

        frames = torch.full((len(x),), x.shape[1], dtype=torch.int32, device=x.device)  # B
        return last_convolution(x, weight, bias, frames, 1, slope)  # B T
    x = F.leaky_relu(x.float(), slope).transpose(1, 2)  # B C T
    return torch.tanh(F.conv1d(x, weight.t()[None], bias, padding=len(weight) // 2)).squeeze(1)  # B T


def last_gradient(
    grad: Tensor, sound: Tensor, x: Tensor, weight: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `last`'s x, weight and bias; `sound` is what it returned, grad (B, T) float32."""
    if on_kernels(x):
        from speechgpt.vocoder import training_kernels

        return training_kernels.last_gradient(grad, sound, x, weight, slope)
    inputs = [v.detach().requires_grad_(True) for v in (x, weight, weight.new_zeros(1))]
    with torch.enable_grad():
        z = F.leaky_relu(inputs[0].float(), slope).transpose(1, 2)  # B C T
        z = F.conv1d(z, inputs[1].t()[None], inputs[2], padding=len(weight) // 2).squeeze(1)  # B T
    return torch.autograd.grad(z, inputs, grad * (1 - sound * sound))
