"""SpeechBrain's HiFi-GAN discriminators, on a GPU computed in fast forms: the same weights, names and sums.

What a config may change: which periods and how many scales judge, their width, padding inside the period
discriminators (the paper's zeros instead of reflection), norms of weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from speechgpt.vocoder.judge_layers import check_height, convolve, first, inner, place, score
from speechgpt.vocoder.judge_shapes import SLOPE, form_of, on_kernels
from speechgpt.vocoder.judge_weights import normed, weight_of
from speechgpt.vocoder.weight_norm import WeightNorm, to_channels_last

GROUPS = 16  # most groups of a convolution in the scale discriminators


@dataclass
class DiscriminatorConfig:
    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    scales: int = 3  # multi-scale discriminators: the waveform, then averaged down by 2 and by 4
    period_width: float = 1.0  # channels of the period discriminators, times the published ones
    scale_width: float = 1.0  # channels of the scale discriminators, times the published ones
    first_scale: int = 0  # 1: the first scale judges the waveform averaged down by 2 already
    zero_padding: bool = True  # False: reflection, as SpeechBrain pads
    spectral_norm: bool = True  # of the first scale, as published; False: weight norm there too
    weight_norm: bool = True  # False: plain weights
    # Without effect: the layout is always the one that the kernels read. It stays because a run is known by
    # all of its settings: without it, a finished run would count as another one and be trained again.
    channels_last: bool = True

    def __post_init__(self):
        if not self.periods and not self.scales:
            raise ValueError("discriminator config: no periods and no scales, so nothing judges")


def build_discriminators(config: DiscriminatorConfig) -> "Judges":
    """SpeechBrain's discriminators of the config's sizes, with PyTorch's first weights."""
    from speechbrain.lobes.models.HifiGAN import (
        DiscriminatorP,
        DiscriminatorS,
        HifiganDiscriminator,
    )

    judges = HifiganDiscriminator()
    judges.mpd.discriminators = nn.ModuleList(DiscriminatorP(p) for p in config.periods)
    judges.msd.discriminators = nn.ModuleList(
        DiscriminatorS(use_spectral_norm=config.spectral_norm and i == 0) for i in range(config.scales)
    )
    for judge in judges.mpd.discriminators:
        _rebuild_period(judge, config)
    for judge in judges.msd.discriminators:
        _rebuild_scale(judge, config)
    return to_channels_last(Judges(judges, config))


class Judges(nn.Module):
    """Period and scale discriminators; their modules hold the weights, under SpeechBrain's names.

    Under autocast all is computed in its precision, sums and scores in float32.
    """

    def __init__(self, judges: nn.Module, config: DiscriminatorConfig):
        super().__init__()
        self.mpd, self.msd, self.first_scale = judges.mpd, judges.msd, config.first_scale
        if config.first_scale:
            self.msd = nn.Module()
            self.msd.judges = judges.msd
        reflect = not config.zero_padding
        parts = [(judge, judge.period, reflect) for judge in judges.mpd.discriminators]
        parts += [(judge, 0, False) for judge in judges.msd.discriminators]
        self.stacks, self.rows = [Stack(*part) for part in parts], [Rows(*part) for part in parts]

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Waveforms (B, 1, T) -> scores (B, S), and each discriminator's features, the last one its score.

        Features are (B, C, H, p) or (B, C, H), as SpeechBrain's; copies, where rows hold several groups.
        """
        scores, features, (stacks, dtype) = [], [], self._way(x)
        with torch.autocast(x.device.type, enabled=False):
            for stack, sound in zip(stacks, self._sounds(x), strict=True):
                found, layers = stack.run(sound, stack.weights(dtype))
                scores.append(found)
                features.append([stack.unfold(f) for f in stack.features(layers, sound.shape[1])])
                features[-1].append(found.view(len(x), 1, -1, *[stack.period] * bool(stack.period)))
        return scores, features

    def scores(self, x: Tensor) -> list[Tensor]:
        """Waveforms (B, 1, T) -> scores (B, S) of every discriminator."""
        stacks, dtype = self._way(x)
        with torch.autocast(x.device.type, enabled=False):
            parts = zip(stacks, self._sounds(x), strict=True)
            return [stack.run(sound, stack.weights(dtype))[0] for stack, sound in parts]

    def compare(self, fake: Tensor, real: Tensor) -> tuple[list[Tensor], Tensor]:
        """Waveforms (B, 1, T) twice -> scores (B, S) of `fake`, and how far apart their features are ().

        That is the mean over all layers of the mean absolute difference. `real` has no gradient, and the
        weights, which are made once for both, have none either.
        """
        scores, distances, (stacks, dtype) = [], [], self._way(fake)
        with torch.autocast(fake.device.type, enabled=False):
            for stack, one, two in zip(stacks, self._sounds(fake), self._sounds(real), strict=True):
                with torch.no_grad():
                    weights = stack.weights(dtype)
                    wanted, layers = stack.run(two, weights)
                    if stack.spectral and self.training:  # each pass estimates the norm anew
                        weights = stack.weights(dtype)
                found, means = stack.run(one, weights, layers)
                scores.append(found)
                distances += [*means, (found - wanted).abs().mean()]
        return scores, torch.stack(distances).mean()

    def _way(self, x: Tensor) -> tuple[list["Stack"], torch.dtype]:
        """How x is judged, and in which precision."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return self.rows if on_kernels(x, dtype) else self.stacks, dtype

    def _sounds(self, x: Tensor) -> list[Tensor]:
        """What each discriminator judges (B, T)."""
        x, sounds = x.float(), []
        for number, stack in enumerate(self.stacks):
            if not stack.period:
                first = number == 0 or self.stacks[number - 1].period
                for _ in range(self.first_scale if first else 1):
                    x = F.avg_pool1d(x, 4, 2, padding=2)
            sounds.append(x.squeeze(1))
        return sounds


class Stack:
    """One discriminator, computed as SpeechBrain does, on any device. `period` 0: of a scale."""

    def __init__(self, judge: nn.Module, period: int, reflect: bool):
        self.period, self.reflect = period, reflect
        # SpeechBrain's own convolution is within a wrapper.
        self.layers = [getattr(layer, "conv", layer) for layer in [*judge.convs, judge.conv_post]]
        self.spectral = hasattr(self.layers[0], "weight_orig")

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        return [normed(conv).to(dtype) for conv in self.layers]

    def run(
        self, x: Tensor, weights: list[Tensor], against: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T) -> scores (B, S) float32, and the layers' activations as they are laid out.

        With `against`, another run's activations: in their place the mean distances to them, each ().
        """
        h, found = self.fold(x).unsqueeze(1).to(weights[0].dtype), []  # N 1 H
        for n, (conv, weight) in enumerate(zip(self.layers, weights, strict=True)):
            half = conv.kernel_size[0] // 2
            if self.reflect:
                check_height(h.shape[2], half)
                h, half = F.pad(h, (half, half), "reflect"), 0
            h = F.conv1d(h, weight, conv.bias.to(h.dtype), conv.stride[0], half, 1, conv.groups)  # N C H
            if n < len(self.layers) - 1:
                h = F.leaky_relu(h, SLOPE)
                found.append(h if against is None else (h.float() - against[n].float()).abs().mean())
        return self.unfold(h.squeeze(1).float()).flatten(1), found  # B S

    def features(self, layers: list[Tensor], samples: int) -> Iterator[Tensor]:
        """Of the activations that `run` returned: (N, C, H)."""
        yield from layers

    def fold(self, x: Tensor) -> Tensor:
        """(B, T) -> lanes (N, H): each of a period's phases for itself."""
        if not self.period:
            return x
        missing = -x.shape[1] % self.period
        x = F.pad(x, (0, missing), "reflect") if missing else x
        return x.unflatten(1, (-1, self.period)).transpose(1, 2).flatten(0, 1)  # B*p H

    def unfold(self, x: Tensor) -> Tensor:
        """Of lanes (N, ..., H): (B, ..., H, p), or as they are of a scale."""
        return x.unflatten(0, (-1, self.period)).movedim(1, -1) if self.period else x


class Rows(Stack):
    """The same over rows, as `judge_shapes` says: what the kernels compute."""

    def __init__(self, judge: nn.Module, period: int, reflect: bool):
        super().__init__(judge, period, reflect)
        self.forms = [
            form_of(c.in_channels, c.out_channels, c.groups, c.kernel_size[0], c.stride[0])
            for c in self.layers
        ]

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        return [weight_of(conv, form, dtype) for conv, form in zip(self.layers, self.forms, strict=True)]

    def run(
        self, x: Tensor, weights: list[Tensor], against: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        lanes = self.fold(x)
        y = first(lanes, weights[0], self.forms[0], self.reflect)
        length, found = self.forms[0].length(lanes.shape[1]), []
        for n, (source, target) in enumerate(zip(self.forms, self.forms[1:], strict=False)):
            other = against[n] if against is not None else None
            z, distance = place(y, self.layers[n].bias, source, target, length, self.reflect, other)
            found.append(z if distance is None else distance)
            length = target.length(length)
            if n < len(self.forms) - 2:
                y = convolve(z, weights[n + 1], target)
        return self.unfold(score(z, weights[-1], self.layers[-1].bias)).flatten(1), found

    def features(self, layers: list[Tensor], samples: int) -> Iterator[Tensor]:
        length = -(-samples // max(1, self.period))
        for z, form, target in zip(layers, self.forms, self.forms[1:], strict=False):
            length = form.length(length)
            yield inner(z, target, length).transpose(1, 2)


def _scaled(channels: int, width: float) -> int:
    """Channels times width, a positive multiple of GROUPS; 1 (the waveform, the score) stays 1."""
    return 1 if channels == 1 else max(GROUPS, round(channels * width / GROUPS) * GROUPS)


def _rebuild_period(judge: nn.Module, config: DiscriminatorConfig) -> None:
    for layer in [*judge.convs, judge.conv_post]:
        old = layer.conv
        conv = nn.Conv2d(
            _scaled(old.in_channels, config.period_width),
            _scaled(old.out_channels, config.period_width),
            old.kernel_size,
            old.stride,
        )
        layer.conv = _norm(conv, config)


def _rebuild_scale(judge: nn.Module, config: DiscriminatorConfig) -> None:
    def rebuild(old: nn.Module) -> nn.Module:
        if hasattr(old, "weight_orig") and config.scale_width == 1:
            return old
        conv = nn.Conv1d(
            _scaled(old.in_channels, config.scale_width),
            _scaled(old.out_channels, config.scale_width),
            old.kernel_size[0],
            old.stride[0],
            old.padding[0],
            groups=old.groups,
        )
        return nn.utils.spectral_norm(conv) if hasattr(old, "weight_orig") else _norm(conv, config)

    judge.convs = nn.ModuleList(rebuild(conv) for conv in judge.convs)
    judge.conv_post = rebuild(judge.conv_post)


def _norm(conv: nn.Module, config: DiscriminatorConfig) -> nn.Module:
    if config.weight_norm:
        parametrize.register_parametrization(conv, "weight", WeightNorm())
    return conv
