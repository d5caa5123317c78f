"""HuBERT in half precision on a GPU, for inference over rows laid end to end: no padding, no host waits.

docs/performance.md has what each part was predicted to take and what it takes. What decides units stays
float32: the waveform, the first convolution with its norm, sums inside products and norms, and the scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.units.devices import on_device
from speechgpt.units.encoder import Encoder
from speechgpt.units.half_kernels import Kernels
from speechgpt.units.half_layers import (
    POSITION_BLOCK,
    HalfConvolution,
    HalfLayer,
    HalfPositions,
    linear_of,
    norm_of,
)
from speechgpt.units.packing import Packing
from speechgpt.units.waveforms import NORMALIZE_EPS


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
        self.first, self.rest = first, [HalfConvolution(layer, dtype) for layer in rest]
        self.taps = first.conv.weight.detach()[:, 0].T.contiguous().float()  # kernel C
        projection = model.feature_projection
        self.before = norm_of(getattr(projection, "layer_norm", None))
        self.projection = linear_of(dtype, projection.projection)
        self.positions = HalfPositions(model.encoder.pos_conv_embed, dtype)
        self.norm = norm_of(model.encoder.layer_norm)
        self.layers = [HalfLayer(module, dtype, self.kernels) for module in model.encoder.layers[:layer]]

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, list[int]]:
        """Waveforms (T,) float32 to features (sum of N, D) in `dtype` on the device, and each row's N.

        Returns before the device has computed them.
        """
        with on_device(self.encoder.device):
            return self._features(waveforms)

    def _features(self, waveforms: Sequence[np.ndarray]) -> tuple[Tensor, list[int]]:
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
            weight, shift, eps = norm_of(first.layer_norm)
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
        valid = (window < count[place.row_of_slot][:, None])[..., None]
        seen = waveform.as_strided((packing.total_slots, per_slot, kernel), (packing.hop, stride, 1))
        # Chosen, not multiplied: windows past a row's end see the next row, whose samples may not be finite.
        seen = torch.where(valid, seen, 0.0).double()  # slots M kernel
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
