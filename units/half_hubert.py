"""HuBERT in half precision on a GPU, for inference over rows laid end to end: no padding, no host waits.

docs/performance.md has what each part was predicted to take and what it takes. What decides units stays
float32: the waveform, the first convolution with its norm, sums inside products and norms, and the scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from speechgpt.units import plain_kernels
from speechgpt.units.encoder import NORMALIZE_EPS, Encoder
from speechgpt.units.hubert import TransformerLayer
from speechgpt.units.packing import Packing

POSITION_BLOCK = 8  # frames that the positional convolution makes at a time: 6 % more work, wide products


def gpu_kernels() -> ModuleType:
    from speechgpt.units import triton_kernels  # where there is no GPU, Triton need not be there either

    return triton_kernels


@dataclass
class Kernels:
    """Who does what; the variants that `speechgpt.units.benchmark` compares."""

    first: ModuleType = plain_kernels
    norm: ModuleType = plain_kernels
    convolution: Callable = field(default=plain_kernels.convolution)
    fused: bool = False  # `convolution` also makes the layers' wider product with its GELU

    @classmethod
    def of(cls, device: torch.device, convolution: str = "triton") -> "Kernels":
        """convolution: triton, triton0 to triton3 (other tiles), fused, cudnn, plain; none: all in plain
        torch."""
        if device.type != "cuda" or convolution == "none":
            return cls()
        found = gpu_kernels()
        ways = {
            "triton": found.convolution,
            "cudnn": plain_kernels.library_convolution,
            "plain": plain_kernels.convolution,
        }
        for number, tile in enumerate(found.TILES):
            ways[f"triton{number}"] = partial(found.convolution, tile=tile)
        if convolution == "fused":
            return cls(found, found, ways["triton"], fused=True)
        return cls(found, found, ways[convolution])


class HalfHubert:
    """The part of a float32 encoder up to `layer` in `dtype`."""

    def __init__(
        self, encoder: Encoder, layer: int, dtype: torch.dtype, kernels: Kernels | None = None
    ) -> None:
        encoder.check_layer(layer)
        self.encoder, self.config, self.dtype = encoder, encoder.config, dtype
        self.kernels = kernels or Kernels.of(encoder.device)
        model = encoder.model
        first, *rest = model.feature_extractor.conv_layers
        self.first, self.rest = first, [_Convolution(layer, dtype) for layer in rest]
        self.taps = first.conv.weight.detach()[:, 0].T.contiguous().float()  # kernel C
        projection = model.feature_projection
        self.before = _norm_of(getattr(projection, "layer_norm", None))
        self.projection = _linear(dtype, projection.projection)
        self.positions = _Positions(model.encoder.pos_conv_embed, dtype)
        self.norm = _norm_of(model.encoder.layer_norm)
        self.layers = [_Layer(module, dtype, self.kernels) for module in model.encoder.layers[:layer]]

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, list[int]]:
        """Waveforms (T,) float32 to features (sum of N, D) in `dtype` on the device, and each row's N.

        Returns before the device has computed them.
        """
        encoder = self.encoder
        lengths = [len(w) for w in waveforms]
        frames = [int(encoder.frames(n)) for n in lengths]
        packing = Packing(lengths, frames, encoder.hop, self.positions.kernel // 2, POSITION_BLOCK)
        waveform, place = self._upload(packing, waveforms)
        if encoder.normalize:
            waveform = _levelled(waveform, packing, place)
        hidden = self._convolve(waveform, packing, place)  # slots C
        hidden = hidden.index_select(0, place.frame_index)  # sum(N) C
        if self.before is not None:
            hidden = self.kernels.norm.norm(hidden, None, *self.before)
        hidden = functional.linear(hidden, *self.projection)  # sum(N) D
        near = self.positions(hidden, packing.spaced_total, place.spaced_index)
        if self.config.do_stable_layer_norm:
            hidden = hidden + near
        else:
            hidden = self.kernels.norm.norm(hidden, near, *self.norm)
        longest = max(frames)
        for layer in self.layers:
            hidden = layer(hidden, place.edges, longest)
        return hidden, frames

    def _upload(self, packing: Packing, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, "_Place"]:
        """Samples (slots * hop + taps,) and what says where rows lie, without waiting for the copies."""
        device, size = self.encoder.device, packing.total_slots * packing.hop
        pinned = device.type == "cuda"
        samples = torch.empty(size + len(self.taps), pin_memory=pinned)
        samples[size:] = 0
        packing.fill(waveforms, samples.numpy()[:size])
        parts = [
            packing.lengths,
            packing.starts,
            *packing.pieces(),
            packing.edges,
            packing.row_of_slot(),
            packing.frame_index(),
            packing.spaced_index(),
        ]
        numbers = torch.empty(sum(len(part) for part in parts), dtype=torch.int64, pin_memory=pinned)
        np.concatenate(parts, out=numbers.numpy())
        split = numbers.to(device, non_blocking=True).split([len(part) for part in parts])
        return samples.to(device, non_blocking=True), _Place(*split[:4], split[4].int(), *split[5:])

    def _convolve(self, waveform: Tensor, packing: Packing, place: "_Place") -> Tensor:
        """Samples (slots * hop + taps,) to (slots, C), but for the last frames of the last row's slots."""
        first, grouped = self.first, self.config.feat_extract_norm == "group"
        stride = first.conv.stride[0]
        gelu = first.activation is functional.gelu
        if grouped:
            scale, shift = self._first_norm(waveform, packing, place)  # B C
            owner, bias, eps = place.row_of_slot, None, None
        else:
            weight, shift, eps = _norm_of(first.layer_norm)
            scale, shift, owner = weight[None], shift[None], torch.zeros_like(place.row_of_slot)
            bias = None if first.conv.bias is None else first.conv.bias.detach().float()
        hidden = self.kernels.first.first_convolution(
            waveform, self.taps, scale, shift, owner, stride, gelu, self.dtype, bias, eps
        )  # slots * hop / stride, C
        if not gelu:
            hidden = first.activation(hidden)
        for convolution in self.rest:
            gelu = convolution.norm is None and first.activation is functional.gelu
            hidden = self.kernels.convolution(
                hidden, convolution.weight, convolution.bias, convolution.stride, gelu
            )
            if convolution.norm is not None:
                hidden = self._normed(hidden, convolution.norm)
            elif not gelu:
                hidden = first.activation(hidden)
        return hidden

    def _normed(self, hidden: Tensor, norm: tuple) -> Tensor:
        gelu = self.first.activation is functional.gelu
        hidden = self.kernels.norm.norm(hidden, None, *norm, gelu)
        return hidden if gelu else self.first.activation(hidden)

    def _first_norm(self, waveform: Tensor, packing: Packing, place: "_Place") -> tuple[Tensor, Tensor]:
        """Scale and shift (B, C) float32 of the first convolution's group norm, from the covariance of what
        each row's windows hold: that convolution is linear."""
        conv, norm = self.first.conv, self.first.layer_norm
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        per_slot = packing.hop // stride
        count = (place.lengths - kernel) // stride + 1  # B, windows of each row
        slot = torch.arange(packing.total_slots, device=waveform.device) - place.starts[place.row_of_slot]
        window = slot[:, None] * per_slot + torch.arange(per_slot, device=waveform.device)  # slots M
        valid = (window < count[place.row_of_slot][:, None]).float()[..., None]
        seen = waveform.as_strided((packing.total_slots, per_slot, kernel), (packing.hop, stride, 1))
        seen = (seen * valid).double()  # slots M kernel
        sums = torch.cat([seen.sum(1), (seen.transpose(1, 2) @ seen).flatten(1)], dim=1)
        sums = place.of_rows(sums) / count[:, None]  # B kernel + kernel * kernel
        mean, square = sums[:, :kernel], sums[:, kernel:].unflatten(1, (kernel, kernel))
        covariance = square - mean[:, :, None] * mean[:, None]
        taps = self.taps.T.double()  # C kernel
        variance = ((taps @ covariance) * taps).sum(-1).clamp(min=0)  # B C
        scale = torch.rsqrt(variance + norm.eps) * norm.weight.double()
        # A bias moves the mean alone, and the norm takes it away again.
        return scale.float(), (norm.bias.double() - (mean @ taps.T) * scale).float()


@dataclass
class _Place:
    """A packing on the device."""

    lengths: Tensor  # (B,) int64, like all but `edges`: samples
    starts: Tensor  # (B,) in slots
    pieces: Tensor  # (pieces,) slots of each
    pieces_of_row: Tensor  # (B,)
    edges: Tensor  # (B + 1,) int32
    row_of_slot: Tensor  # (slots,)
    frame_index: Tensor  # (sum of N,)
    spaced_index: Tensor  # (sum of N,)

    def of_rows(self, of_slots: Tensor) -> Tensor:
        """(slots, X) float64 to the sums over each row's slots (B, X), always in the same order."""
        # The sizes are right by the way they are made; checking them would wait for the device.
        of_pieces = torch.segment_reduce(of_slots, "sum", lengths=self.pieces, axis=0, unsafe=True)
        return torch.segment_reduce(of_pieces, "sum", lengths=self.pieces_of_row, axis=0, unsafe=True)


def _levelled(waveform: Tensor, packing: Packing, place: _Place) -> Tensor:
    """Each row of (slots * hop + taps,) to mean 0 and variance 1 over its own length, zero after it."""
    size = packing.total_slots * packing.hop
    slots = waveform[:size].view(-1, packing.hop)
    sums = torch.stack([slots.sum(1, dtype=torch.float64), slots.double().square().sum(1)], dim=1)
    mean, square = (place.of_rows(sums) / place.lengths[:, None]).unbind(1)  # B each
    scale = torch.rsqrt((square - mean.square()).clamp(min=0) + NORMALIZE_EPS)
    owner = place.row_of_slot
    left = (
        place.lengths[owner]
        - (torch.arange(len(owner), device=owner.device) - place.starts[owner]) * packing.hop
    )
    valid = torch.arange(packing.hop, device=owner.device) < left[:, None]
    found = (slots - mean.float()[owner][:, None]) * scale.float()[owner][:, None] * valid
    return functional.pad(found.flatten(), (0, len(waveform) - size))


def _norm_of(norm: torch.nn.LayerNorm | None) -> tuple[Tensor, Tensor, float] | None:
    return None if norm is None else (norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)


def _linear(dtype: torch.dtype, *layers: torch.nn.Linear) -> tuple[Tensor, Tensor]:
    weights, biases = ([getattr(m, name).detach() for m in layers] for name in ("weight", "bias"))
    return torch.cat(weights).to(dtype), torch.cat(biases).to(dtype)


class _Convolution:
    def __init__(self, layer: torch.nn.Module, dtype: torch.dtype) -> None:
        weight, bias = layer.conv.weight.detach(), layer.conv.bias
        self.weight = weight.permute(2, 1, 0).flatten(0, 1).to(dtype).contiguous()  # kernel * C, C'
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.stride = layer.conv.stride[0]
        self.norm = _norm_of(getattr(layer, "layer_norm", None))


class _Positions:
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


class _Layer:
    """One transformer layer over rows laid end to end."""

    def __init__(self, layer: TransformerLayer, dtype: torch.dtype, kernels: Kernels) -> None:
        attention, forward = layer.attention, layer.feed_forward
        self.stable, self.heads, self.activation = layer.stable, attention.heads, forward.activation
        self.norm = kernels.norm.norm
        self.first_norm, self.last_norm = _norm_of(layer.layer_norm), _norm_of(layer.final_layer_norm)
        self.attend = _linear(dtype, attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = _linear(dtype, attention.out_proj)
        self.up, self.down = _linear(dtype, forward.intermediate_dense), _linear(dtype, forward.output_dense)
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
