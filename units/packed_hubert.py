"""HuBERT for inference over rows laid end to end: no padding, no masks, each weight as it is used.

The same features as `Encoder.forward`, up to rounding:

- The mean and variance of the first group norm are quadratic forms of the waveform's own 10 x 10 covariance,
  because the convolution before it is linear: its output is written once, already normed and activated.
- A strided convolution over rows (M, C) is a matrix product with the rows seen `kernel` at a time.
- Attention runs within each row, so no row is padded to another's length.
- The positional convolution makes several frames at a time from one banded weight.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.units.encoder import Encoder
from speechgpt.units.hubert import TransformerLayer
from speechgpt.units.packed_linear import PackedLinear, convolve_rows
from speechgpt.units.waveforms import normalised

BLOCK_FRAMES = 100  # convolved at a time on a CPU, where what a block makes stays in its caches


class PackedHubert:
    """The part of an encoder up to `layer`, on its device: waveforms to float32 features."""

    def __init__(self, encoder: Encoder, layer: int, quantized: bool = False) -> None:
        """quantized: the layers' matrices as int8, for `--dtype int8`."""
        encoder.check_layer(layer)
        self.encoder, self.layer = encoder, layer
        self.config, model = encoder.config, encoder.model
        self.act_convolution = model.feature_extractor.conv_layers[0].activation
        self.convolutions = [_Convolution(layer.conv, layer) for layer in model.feature_extractor.conv_layers]
        self.projection = PackedLinear(model.feature_projection.projection)
        self.positional = model.encoder.pos_conv_embed
        self.positional_weight = self.positional.conv.weight.detach().clone()  # the weight norm is folded
        self.layers = [_Layer(layer, quantized) for layer in model.encoder.layers[:layer]]

    def __call__(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, list[int]]:
        """Waveforms (T,) float32 to features (sum of N, D) and each row's N."""
        rows = [torch.from_numpy(np.ascontiguousarray(w)) for w in waveforms]
        if self.encoder.normalize:
            rows = [normalised(row) for row in rows]
        return self.levelled(rows)

    @torch.no_grad()
    def levelled(
        self, rows: Sequence[Tensor], statistics: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, list[int]]:
        """Waveforms (T,) that are normalised where `normalize` says so, as `__call__`. statistics: mean and
        variance (C,) of the first group norm, for windows of one long file."""
        frames = [int(self.encoder.frames(len(row))) for row in rows]
        hidden = torch.cat([self._convolve(row, n, statistics) for row, n in zip(rows, frames, strict=True)])
        edges = np.concatenate([[0], np.cumsum(frames)]).tolist()
        if hasattr(norm := self.encoder.model.feature_projection, "layer_norm"):
            hidden = norm.layer_norm(hidden)
        hidden = self.projection(hidden)  # sum(N) D
        transformer = self.encoder.model.encoder
        spans = zip(edges, edges[1:], strict=False)
        hidden = hidden + torch.cat([self._position(hidden[first:last]) for first, last in spans])
        if not self.config.do_stable_layer_norm:
            hidden = transformer.layer_norm(hidden)
        for layer in self.layers:
            hidden = layer(hidden, edges)
        return hidden, frames

    def _convolve(self, waveform: Tensor, frames: int, statistics: tuple[Tensor, Tensor] | None) -> Tensor:
        """(T,) to (N, C), in blocks."""
        encoder, (first, *rest) = self.encoder, self.convolutions
        weight, bias = first.weight, first.bias
        if self.config.feat_extract_norm == "group":
            weight, bias = first.with_norm(*(statistics or first.moments(waveform)))
        found = []
        for start in range(0, frames, BLOCK_FRAMES):
            stop = min(frames, start + BLOCK_FRAMES)
            piece = waveform[start * encoder.hop : (stop - 1) * encoder.hop + encoder.receptive_field]
            hidden = convolve_rows(piece[:, None], weight, bias, first.stride)  # M C
            hidden = self.act_convolution(first.normed(hidden))
            for convolution in rest:
                hidden = convolve_rows(hidden, convolution.weight, convolution.bias, convolution.stride)
                hidden = self.act_convolution(convolution.normed(hidden))
            found.append(hidden)
        return torch.cat(found)

    def _position(self, hidden: Tensor) -> Tensor:
        """What a row's surroundings (N, D) add to it."""
        positional, hidden = self.positional, hidden.T[None]  # 1 D N
        if hasattr(positional, "batch_norm"):
            hidden = positional.batch_norm(hidden)
        conv = positional.conv
        hidden = functional.conv1d(
            hidden, self.positional_weight, conv.bias, padding=conv.padding, groups=conv.groups
        )
        hidden = hidden[0, :, :-1] if positional.surplus else hidden[0]
        return positional.activation(hidden.T)  # N D


class _Convolution:
    """One convolution's weights, and the layer norm that follows it if one does."""

    def __init__(self, conv: torch.nn.Conv1d, layer: torch.nn.Module) -> None:
        self.weight, self.bias, self.stride = conv.weight.detach(), conv.bias, conv.stride[0]
        self.bias = None if conv.bias is None else conv.bias.detach()
        self.norm = getattr(layer, "layer_norm", None)

    def normed(self, hidden: Tensor) -> Tensor:
        """(M, C) to the same; a group norm is in the weights already."""
        return self.norm(hidden) if isinstance(self.norm, torch.nn.LayerNorm) else hidden

    def moments(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,) float64 of this convolution of a waveform (T,)."""
        windows = waveform.unfold(0, self.weight.shape[2], self.stride).double()  # M kernel
        mean = windows.mean(0)
        windows = windows - mean
        covariance = windows.T @ windows / len(windows)
        taps = self.weight[:, 0].double()  # C kernel
        variance = ((taps @ covariance) * taps).sum(-1).clamp(min=0)
        mean = taps @ mean
        return (mean if self.bias is None else mean + self.bias.double()), variance

    def with_norm(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and bias that convolve and norm at once, from the mean and variance (C,)."""
        scale = torch.rsqrt(variance.double() + self.norm.eps) * self.norm.weight.double()
        bias = 0.0 if self.bias is None else self.bias.double()
        shift = (bias - mean.double()) * scale + self.norm.bias.double()
        return (self.weight.double() * scale[:, None, None]).to(self.weight), shift.to(self.weight)


class _Layer:
    """One transformer layer over rows laid end to end."""

    def __init__(self, layer: TransformerLayer, quantized: bool) -> None:
        attention, forward = layer.attention, layer.feed_forward
        self.stable, self.heads = layer.stable, attention.heads
        self.first_norm, self.last_norm = layer.layer_norm, layer.final_layer_norm
        self.attend = PackedLinear((attention.q_proj, attention.k_proj, attention.v_proj), quantized)
        self.out = PackedLinear(attention.out_proj, quantized)
        self.up = PackedLinear(forward.intermediate_dense, quantized, forward.activation)
        self.down = PackedLinear(forward.output_dense, quantized)

    def __call__(self, hidden: Tensor, edges: list[int]) -> Tensor:
        """(sum of N, D) to the same; row i is from edges[i] to edges[i + 1]."""
        if self.stable:
            hidden = hidden + self._attention(self.first_norm(hidden), edges)
            return hidden + self.down(self.up(self.last_norm(hidden)))
        hidden = self.first_norm(hidden.add_(self._attention(hidden, edges)))
        return self.last_norm(self.down(self.up(hidden)).add_(hidden))

    def _attention(self, hidden: Tensor, edges: list[int]) -> Tensor:
        projected = self.attend(hidden).unflatten(-1, (3, self.heads, -1))  # sum(N) 3 H D/H
        found = torch.empty_like(hidden)
        for first, last in zip(edges, edges[1:], strict=False):
            query, key, value = projected[first:last].permute(1, 2, 0, 3)  # H N D/H each
            seen = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
            found[first:last] = seen.transpose(0, 1).flatten(1)
        return self.out(found)
