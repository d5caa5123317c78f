"""Weight norm for training, and the memory layout of convolution weights."""

import torch
from torch import Tensor, nn


class WeightNorm(nn.Module):
    """PyTorch's weight norm over dimension 0 under the same names (original0 = g, original1 = v).

    PyTorch's own kernel always returns a contiguous weight; this one keeps v's memory layout.
    """

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())))  # O
        # Through one flat dimension: a fused optimizer wants g's gradient to have g's very strides.
        scale = g.reshape(-1) / norm  # O
        return v * scale.view(-1, *[1] * (v.dim() - 1))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())))  # O
        return norm.view(-1, *[1] * (weight.dim() - 1)).contiguous(), weight


def to_channels_last(module: nn.Module) -> nn.Module:
    """Lays convolutions' weights out channel-innermost, in place; spectral norm's stay, being matrices."""
    for name, weight in module.named_parameters():
        if name.endswith("weight_orig") or weight.dim() < 3 or weight[0].numel() == 1:
            continue
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        elif weight.dim() == 3:
            weight.data = weight.data.transpose(1, 2).contiguous().transpose(1, 2)
    return module
