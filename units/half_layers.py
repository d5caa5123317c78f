"""The modules of half-precision HuBERT over rows laid end to end, with their weights as they are used."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from speechgpt.units.half_kernels import Kernels
from speechgpt.units.hubert import TransformerLayer

POSITION_BLOCK = 8  # frames that the positional convolution makes at a time: 6 % more work, wide products


def norm_of(norm: torch.nn.LayerNorm | None) -> tuple[Tensor, Tensor, float] | None:
    return None if norm is None else (norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)


def linear_of(dtype: torch.dtype, *layers: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    weights, biases = ([getattr(m, name).detach() for m in layers] for name in ("weight", "bias"))
    return torch.cat(weights).to(dtype), torch.cat(biases).to(dtype)


class HalfConvolution:
    def __init__(self, layer: torch.nn.Module, dtype: torch.dtype) -> None:
        weight, bias = layer.conv.weight.detach(), layer.conv.bias
        self.weight = weight.permute(2, 1, 0).flatten(0, 1).to(dtype).contiguous()  # kernel * C, C'
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.stride = layer.conv.stride[0]
        self.norm = norm_of(getattr(layer, "layer_norm", None))


class HalfPositions:
    """The positional convolution as wide products: a band of its weight makes `POSITION_BLOCK` frames."""

    def __init__(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        if hasattr(module, "batch_norm"):
            raise ValueError("conv_pos_batch_norm: encoders of this kind run in float32 (--dtype float32)")
        conv = module.conv
        weight = conv.weight.detach().float()  # D D/groups kernel
        self.groups, self.kernel, self.activation = conv.groups, conv.kernel_size[0], module.activation
        self.bias = conv.bias.detach().to(dtype)
        weight = weight.unflatten(0, (self.groups, -1)).permute(0, 3, 2, 1)  # groups kernel in out
        groups, kernel, given, made = weight.shape
        self.seen = kernel + POSITION_BLOCK - 1  # frames
        band = weight.new_zeros(groups, self.seen, given, POSITION_BLOCK, made)
        for frame in range(POSITION_BLOCK):
            band[:, frame : frame + kernel, :, frame] = weight
        self.band = band.flatten(3).flatten(1, 2).to(dtype)  # groups, seen * in, block * out

    def __call__(self, hidden: Tensor, spaced: int, index: Tensor) -> Tensor:
        """(sum of N, D) to the same. index: where each frame lies among `spaced` with gaps between rows."""
        width = hidden.shape[1] // self.groups
        half = self.kernel // 2
        padded = hidden.new_zeros(spaced + self.kernel, hidden.shape[1])
        padded.index_copy_(0, index + half, hidden)
        padded = padded.view(-1, self.groups, width).transpose(0, 1).contiguous()  # groups, rows, width
        blocks = spaced // POSITION_BLOCK
        seen = padded.as_strided(
            (self.groups, blocks, self.seen * width), (padded.stride(0), POSITION_BLOCK * width, 1)
        )
        made = torch.bmm(seen.contiguous(), self.band)  # groups, blocks, block * width
        made = made.view(self.groups, spaced, width).transpose(0, 1).flatten(1)  # spaced D
        return self.activation(made.index_select(0, index) + self.bias)


class HalfLayer:
    """One transformer layer over rows laid end to end."""

    def __init__(self, layer: TransformerLayer, dtype: torch.dtype, kernels: Kernels) -> None:
        attention, forward = layer.attention, layer.feed_forward
        self.stable, self.heads, self.activation = layer.stable, attention.heads, forward.activation
        self.norm = kernels.norm.norm
        self.first_norm, self.last_norm = norm_of(layer.layer_norm), norm_of(layer.final_layer_norm)
        self.attend = linear_of(dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = linear_of(dtype, attention.out_proj)
        self.up, self.down = (
            linear_of(dtype, forward.intermediate_dense),
            linear_of(dtype, forward.output_dense),
        )
        self.product = None
        if kernels.fused and self.activation is functional.gelu:
            self.product, self.up = kernels.convolution, (self.up[0].T.contiguous(), self.up[1])  # D F, F

    def __call__(self, hidden: Tensor, edges: Tensor, longest: int) -> Tensor:
        """(sum of N, D) to the same; row i is from edges[i] to edges[i + 1]."""
        if self.stable:
            hidden = hidden + self._attention(self.norm(hidden, None, *self.first_norm), edges, longest)
            return hidden + self._forward(self.norm(hidden, None, *self.last_norm))
        hidden = self.norm(hidden, self._attention(hidden, edges, longest), *self.first_norm)
        return self.norm(hidden, self._forward(hidden), *self.last_norm)

    def _forward(self, hidden: Tensor) -> Tensor:
        if self.product is not None:  # a convolution over one row at a time
            hidden = self.product(hidden, *self.up, 1, True)
        else:
            hidden = self.activation(functional.linear(hidden, *self.up))
        return functional.linear(hidden, *self.down)

    def _attention(self, hidden: Tensor, edges: Tensor, longest: int) -> Tensor:
        projected = functional.linear(hidden, *self.attend).unflatten(-1, (3, self.heads, -1))
        query, key, value = projected.unbind(1)  # sum(N) H D/H each
        if hidden.is_cuda and query.shape[-1] % 8 == 0:  # what the library's kernel takes
            found = varlen_attn(query, key, value, edges, edges, longest, longest)
        else:
            found = torch.cat([_alone(*rows) for rows in _split(edges, query, key, value)])
        return functional.linear(found.flatten(1), *self.out)


def _split(edges: Tensor, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    sizes = edges.diff().tolist()
    return list(zip(*(t.split(sizes) for t in tensors), strict=True))


def _alone(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(N, H, D/H) each to the same."""
    query, key, value = (t.transpose(0, 1)[None] for t in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
