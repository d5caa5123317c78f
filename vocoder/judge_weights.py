"""The weights of a discriminator's convolutions as they are computed with: normed, widened, rounded."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechgpt.vocoder.judge_shapes import ConvForm, on_kernels


def weight_of(conv: nn.Module, form: ConvForm, dtype: torch.dtype) -> Tensor:
    """(block * O, window * I) in `dtype`, with its graph: see `widen`.

    In training mode spectral norm does its power iteration, as PyTorch's own does at each forward pass.
    """
    if hasattr(conv, "weight_orig"):
        v = conv.weight_orig
        sigma, singular = _largest_singular_value(conv)
        return widen(v, sigma, singular, form, dtype)
    if hasattr(conv, "parametrizations"):
        norms = conv.parametrizations.weight
        return widen(norms.original1, norms.original0, None, form, dtype)
    return widen(conv.weight, None, None, form, dtype)


def normed(conv: nn.Module) -> Tensor:
    """(O, I, k) float32, with its graph: as PyTorch makes it at each forward pass."""
    if not hasattr(conv, "weight_orig"):
        return conv.weight.flatten(2)
    _, (left, right) = _largest_singular_value(conv)
    return conv.weight_orig / torch.dot(left, torch.mv(conv.weight_orig.flatten(1), right))


@torch.no_grad()
def _largest_singular_value(conv: nn.Module) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """sigma () and its vectors u (O,), v (I * k,), by PyTorch's names and rule."""
    matrix = conv.weight_orig.detach().flatten(1)  # O I*k
    if conv.training:
        F.normalize(torch.mv(matrix.t(), conv.weight_u), dim=0, eps=1e-12, out=conv.weight_v)
        F.normalize(torch.mv(matrix, conv.weight_v), dim=0, eps=1e-12, out=conv.weight_u)
    # Copies: the next pass overwrites them, perhaps before this one's gradient.
    left, right = conv.weight_u.clone(), conv.weight_v.clone()
    return torch.dot(left, torch.mv(matrix, right)), (left, right)


def widen(
    v: Tensor, g: Tensor | None, singular: tuple[Tensor, Tensor] | None, form: ConvForm, dtype: torch.dtype
) -> Tensor:
    """The weight v (O, I, k) or (O, I, k, 1), normed, as (groups * block * outputs, window * inputs).

    Row (group, shift, output) holds that output's kernel `shift` strides on, taps before channels. g: weight
    norm's (O, 1, ...), or spectral norm's sigma () of the vectors `singular`, or None.
    """
    if on_kernels(v, dtype):
        from speechgpt.vocoder.judge_kernels import Widen

        return Widen.apply(v, g, singular, form, dtype)
    if singular is not None:
        g = torch.dot(singular[0], torch.mv(v.flatten(1), singular[1]))  # with its graph
    weight = v.flatten(2)  # O I k
    if g is not None:
        flat = g.reshape(-1, 1, 1)
        weight = weight * (flat / weight.norm(dim=(1, 2), keepdim=True)) if g.dim() else weight / flat
    room = form.window - form.kernel
    shifted = [F.pad(weight, (n * form.stride, room - n * form.stride)) for n in range(form.block)]
    wide = torch.stack([part.unflatten(0, (form.groups, -1)) for part in shifted], 1)  # G block o I window
    return wide.transpose(-1, -2).reshape(form.channels_out * form.block, -1).to(dtype)
