"""Speech to features: a HuBERT in Hugging Face layout, cut at the wanted layer, the same in any batch."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt.data.hub import ENCODER, model_folder
from speechgpt.units.devices import choose_device
from speechgpt.units.encoder_files import Undrawn, load_weights, read_configs, read_weights, write_encoder
from speechgpt.units.fingerprint import fingerprint_of
from speechgpt.units.hubert import Hubert
from speechgpt.units.hubert_config import HubertConfig
from speechgpt.units.padding import PADDED_SECONDS, length_batches
from speechgpt.units.precision import check_precision, exact_convolutions
from speechgpt.units.waveforms import check_waveforms, in_memory, side_by_side


class Encoder(nn.Module):
    """Waveforms (B, T) at `sample_rate` to features (B, N, D), one frame each `hop` samples."""

    def __init__(
        self,
        config: HubertConfig,
        normalize: bool = False,
        sample_rate: int = 16_000,
        provenance: dict | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = Hubert(config)
        self.normalize = normalize  # the waveform is brought to mean 0 and variance 1 over its whole length
        self.sample_rate = sample_rate  # Hz
        self.provenance = provenance or {}
        self.derived_from = ""  # fingerprint of the encoder that this one is a rounded or shortened copy of
        self._fingerprint = ""
        self._planned: tuple = (None, None)  # what it was made for, and the plan

    @classmethod
    def create(
        cls, architecture: dict, normalize: bool, seed: int, provenance: dict | None = None
    ) -> "Encoder":
        """A new encoder with random weights; `architecture` holds fields of `HubertConfig`."""
        known = HubertConfig.names()
        if unknown := architecture.keys() - known:
            raise ValueError(
                f"unknown architecture setting {', '.join(sorted(unknown))}; "
                f"known: {', '.join(sorted(known))}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(HubertConfig(**architecture), normalize, provenance=provenance)

    @classmethod
    def load(
        cls, path: str | Path, device: str | torch.device = "auto", dtype: torch.dtype | None = None
    ) -> "Encoder":
        """Reads a Hugging Face folder or hub name; ours has encoder.json for preprocessor_config.json."""
        path = model_folder(path, ENCODER)
        config, extra = read_configs(path)
        weights = read_weights(path)
        with Undrawn():
            encoder = cls(config, extra["normalize"], extra["sample_rate"], extra.get("provenance"))
        encoder.derived_from = extra.get("derived_from", "")
        load_weights(encoder.model, weights, path)
        encoder._fingerprint = encoder.compute_fingerprint()
        return encoder.to(choose_device(device), dtype).eval()

    def save(self, path: str | Path, dtype: torch.dtype | None = None, layers: int | None = None) -> None:
        """Writes the folder that `load` reads; a copy of other dtype or fewer layers names its original."""
        write_encoder(self, Path(path), dtype, layers or self.num_layers)

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return self.config.hop

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees through the convolutions: the shortest waveform that has a frame."""
        return self.config.receptive_field

    @property
    def num_layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def width(self) -> int:
        """D, the features' width."""
        return self.config.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.feature_projection.projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.feature_projection.projection.weight.dtype

    @property
    def fingerprint(self) -> str:
        """sha256 over the float32 weights and the settings that change features, for any layer."""
        return self._fingerprint or self.compute_fingerprint()

    def _apply(self, *given, **more) -> "Encoder":
        self.forget_plan()  # weights move and are rounded without a new version
        return super()._apply(*given, **more)

    def train(self, mode: bool = True) -> "Encoder":
        if mode:
            self._fingerprint = ""  # the weights are about to change
        self.forget_plan()
        return super().train(mode)

    def forget_plan(self) -> None:
        """Call after editing weights through `.data`, or weights made in inference mode: torch counts no
        versions of these, and `frames_of` would go on with a copy of the old ones."""
        self._planned = (None, None)

    def compute_fingerprint(self) -> str:
        return fingerprint_of(self.config, self.normalize, self.sample_rate, self.model.state_dict())

    def frames(self, samples: int | Tensor) -> int | Tensor:
        """Frames N of a waveform of `samples` samples (an int, or a tensor of them): (T - 400) // 320 + 1."""
        return self.config.frames(samples)

    def check_layer(self, layer: int) -> None:
        if not 1 <= layer <= self.num_layers:
            raise ValueError(f"layer {layer}: this encoder has layers 1 to {self.num_layers}")

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor | None = None,
        layers: Sequence[int] = (),
        mask: Tensor | None = None,
        statistics: tuple[Tensor, Tensor] | None = None,
        feature_grad_mult: float = 1.0,
    ) -> list[Tensor]:
        """Waveforms (B, T), normalised where `normalize` says so, to features (B, N, D) of each of `layers`.

        lengths (B,) int64: valid samples a row, all T when None. mask (B, N) bool: frames that the
        transformer sees as the learned mask. statistics: mean and variance (C,) of the first group norm,
        for windows of one long file. Layers count from 1, rising; the default is the last, and no layer
        beyond the last one asked for is computed.
        """
        layers = tuple(layers) or (self.num_layers,)
        hidden = self.convolve(waveforms, lengths, statistics)  # B N C
        if feature_grad_mult != 1.0:  # same values, smaller gradient
            hidden = hidden * feature_grad_mult + hidden.detach() * (1 - feature_grad_mult)
        hidden = self.model.feature_projection(hidden)  # B N D
        if mask is not None:
            hidden = torch.where(mask[..., None], self.model.masked_spec_embed.to(hidden.dtype), hidden)
        attention = None
        if lengths is not None:
            valid = torch.arange(hidden.shape[1], device=hidden.device) < self.frames(lengths)[:, None]  # B N
            hidden = hidden * valid[..., None]
            attention = valid[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)  # B 1 N N
        return self._transform(hidden, attention, layers)

    def _transform(self, hidden: Tensor, attention: Tensor | None, layers: tuple[int, ...]) -> list[Tensor]:
        """Projected features (B, N, D), zero where padded, through the layers to the last one asked for."""
        hidden = self.positioned(hidden)
        found = []
        for number, layer in enumerate(self.model.encoder.layers[: layers[-1]], 1):
            output = layer(hidden, attention)
            if self.training and self.config.layerdrop > 0:
                # Chosen on the device: no wait for the host, and every rank keeps the same graph.
                keep = torch.rand((), device=hidden.device) >= self.config.layerdrop
                output = torch.where(keep, output, hidden)
            hidden = output
            if number in layers:
                found.append(hidden)
        return found

    def positioned(self, hidden: Tensor) -> Tensor:
        """Projected features (B, N, D), zero where padded, to the first layer's input (B, N, D)."""
        transformer = self.model.encoder
        hidden = hidden + transformer.pos_conv_embed(hidden)
        if not self.config.do_stable_layer_norm:
            hidden = transformer.layer_norm(hidden)
        return transformer.dropout(hidden)

    def convolve(
        self, waveforms: Tensor, lengths: Tensor | None, statistics: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """(B, T) to (B, N, C). Frames past a row's end hold anything; valid frames see valid samples."""
        hidden = waveforms[:, None]  # B 1 T
        for number, layer in enumerate(self.model.feature_extractor.conv_layers):
            if number == 0 and self.config.feat_extract_norm == "group":
                hidden = self._first_group_norm(layer, layer.conv(hidden), lengths, statistics)
            else:
                hidden = layer(hidden)
        return hidden.transpose(1, 2)  # B N C

    def _first_group_norm(
        self,
        layer: nn.Module,
        hidden: Tensor,
        lengths: Tensor | None,
        statistics: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """The norm runs over time, where padding would change every frame: only valid positions count."""
        norm, dtype = layer.layer_norm, hidden.dtype
        hidden = hidden.float()  # B C M
        if statistics is not None:
            mean, variance = (s.to(hidden)[None, :, None] for s in statistics)
        elif lengths is None:
            mean = hidden.mean(-1, keepdim=True)
            variance = hidden.var(-1, unbiased=False, keepdim=True)
        else:
            kernel, stride = self.config.convolutions[0]
            count = (lengths - kernel) // stride + 1  # B
            valid = (torch.arange(hidden.shape[-1], device=hidden.device) < count[:, None])[:, None]  # B 1 M
            count = count[:, None, None]
            mean = (hidden * valid).sum(-1, keepdim=True) / count
            variance = ((hidden - mean).square() * valid).sum(-1, keepdim=True) / count
        scale = torch.rsqrt(variance + norm.eps) * norm.weight[None, :, None]  # B C 1
        return layer.activation(((hidden - mean) * scale + norm.bias[None, :, None]).to(dtype))

    def features(self, waveforms: Sequence[np.ndarray | Tensor], layer: int) -> list[Tensor]:
        """Waveforms (T,) of any lengths to features (N, D) float32 of `layer`, the same in any batch."""
        if not len(waveforms):
            self.check_layer(layer)
            return []
        hidden, frames = self.frames_of(waveforms, layer)
        return list(hidden.float().split(frames))

    @torch.no_grad()
    def frames_of(
        self,
        waveforms: Sequence[np.ndarray | Tensor],
        layer: int,
        precision: str = "float32",
        batch_seconds: float = math.inf,
    ) -> tuple[Tensor, list[int]]:
        """Waveforms (T,) to the features of all, one after another (sum of N, D), and each one's N.

        precision: float32; float16 or bfloat16 on a GPU, where this returns before the device is done and
        the features are of that dtype; int8 on a CPU. An encoder that was loaded in half precision, or is in
        training, takes float32 as its own.
        batch_seconds: where rows are padded, of padded audio at a time, if PADDED_SECONDS is not less.
        """
        self.check_layer(layer)
        check_waveforms(waveforms, self.receptive_field, self.sample_rate)
        waveforms = [in_memory(w) for w in waveforms]
        plan = self.plan_for(layer, precision)
        if plan is not None:
            return plan(waveforms)
        frames = [int(self.frames(len(w))) for w in waveforms]
        found: list[Tensor | None] = [None] * len(frames)
        seconds = [len(w) / self.sample_rate for w in waveforms]
        # One long row among many short ones would pad all of them to its length.
        for members in length_batches(seconds, min(batch_seconds, PADDED_SECONDS[self.device.type])):
            batch, lengths = self.pad([waveforms[i] for i in members])  # B T, B
            whole = all(len(waveforms[i]) == batch.shape[1] for i in members)
            with exact_convolutions():
                (hidden,) = self(batch, None if whole else lengths, (layer,))  # B N D
            for index, row in zip(members, hidden, strict=True):
                found[index] = row[: frames[index]]
        return torch.cat(found), frames

    def plan_for(self, layer: int, precision: str):  # PackedHubert | HalfHubert | None
        """What runs `layer` in `precision`, made once for the weights as they are; None: `forward` does.

        Made again when weights have changed, but for changes that torch does not count: see `forget_plan`.
        """
        where = self.device.type
        check_precision(precision, where)
        if precision == "float32" and (where == "cuda" or self.training or self.dtype != torch.float32):
            return None
        versions = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.parameters())
        key = layer, precision, versions
        made_for, plan = self._planned  # read once: another thread may plan another layer
        if made_for != key:
            if precision in ("float32", "int8"):
                from speechgpt.units.packed_hubert import PackedHubert

                plan = PackedHubert(self, layer, precision == "int8")
            else:
                from speechgpt.units.half_hubert import HalfHubert

                plan = HalfHubert(self, layer, getattr(torch, precision))
            self._planned = key, plan
        return plan

    def pad(self, waveforms: Sequence[np.ndarray | Tensor]) -> tuple[Tensor, Tensor]:
        """Waveforms (T,) to one normalised batch (B, T) on the device, and lengths (B,) in samples."""
        check_waveforms(waveforms, self.receptive_field, self.sample_rate)
        batch, lengths = side_by_side(waveforms, self.normalize)
        return batch.to(self.device, self.dtype, non_blocking=True), lengths.to(self.device)
