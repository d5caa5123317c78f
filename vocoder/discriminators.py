"""SpeechBrain's HiFi-GAN discriminators, set up to train fast.

The modules and their forward passes are SpeechBrain's. What a config may change: which periods and how many
scales judge, their width, padding inside the period discriminators (the paper's zeros, which the convolution
does itself, instead of reflection), memory layout, norms of weights.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from speechgpt.vocoder.weight_norm import WeightNorm

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
    channels_last: bool = True  # memory layout of the convolutions on CUDA

    def __post_init__(self):
        if not self.periods and not self.scales:
            raise ValueError("discriminator config: no periods and no scales, so nothing judges")


def build_discriminators(config: DiscriminatorConfig, least_group: int = 0) -> nn.Module:
    """A module: waveforms (B, 1, T) -> (list of scores (B, S), list of lists of features).

    `least_group`: channels that a group of a grouped convolution has at least when it is computed; the sums
    stay the same.
    """
    from speechbrain.lobes.models.HifiGAN import (
        DiscriminatorP,
        DiscriminatorS,
        HifiganDiscriminator,
    )

    judges = HifiganDiscriminator()
    judges.mpd.discriminators = nn.ModuleList(DiscriminatorP(p) for p in config.periods)
    last = config.first_scale + config.scales
    judges.msd.discriminators = nn.ModuleList(
        DiscriminatorS(use_spectral_norm=config.spectral_norm and i == 0) for i in range(config.scales)
    )
    if config.first_scale:
        judges.msd = _Averaged(judges.msd, config.first_scale)
    elif last > len(judges.msd.meanpools) + 1:
        judges.msd.meanpools = nn.ModuleList(nn.AvgPool1d(4, 2, padding=2) for _ in range(last - 1))
    for judge in judges.mpd.discriminators:
        _rebuild_period(judge, config)
    for judge in _scales(judges):
        _rebuild_scale(judge, config, least_group)
    return judges


class ReflectingConv2d(nn.Conv2d):
    """Pads the height by reflection: rows put beside each other, which keeps the channels innermost."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (B, C, H, W); the convolution itself pads nothing."""
        size = self.kernel_size[0] // 2
        if x.shape[2] <= size:
            raise ValueError(f"a height of {x.shape[2]} cannot be reflected by {size}: use longer segments")
        before = [x[:, :, i : i + 1] for i in range(size, 0, -1)]
        after = [x[:, :, -i - 1 : -i] for i in range(1, size + 1)]
        return super()._conv_forward(torch.cat([*before, x, *after], 2), weight, bias)


class MergedConv1d(nn.Conv1d):
    """A grouped convolution whose groups of few channels are computed several at once.

    A GPU's matrix products sum 16 channels at least, and are slow below 32. The weight stays as it is; the
    one that is computed with holds it on its block diagonal, exact zeros elsewhere.
    """

    merged = 1  # groups computed as one

    def merge(self, least: int) -> "MergedConv1d":
        """Groups of `least` input channels or more, as near as doubling comes."""
        while self.in_channels // self.groups * self.merged < least and self.groups % (2 * self.merged) == 0:
            self.merged *= 2
        return self

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.merged == 1:
            return super()._conv_forward(x, weight, bias)
        groups, (outputs, inputs, taps) = self.groups // self.merged, weight.shape
        diagonal = torch.eye(self.merged, dtype=weight.dtype, device=weight.device)
        # Taps before channels in memory if the weight is so: the layout decides cuDNN's kernel.
        parts = weight.transpose(1, 2).reshape(groups, self.merged, -1, taps, 1, inputs)
        wide = parts * diagonal.view(1, self.merged, 1, 1, self.merged, 1)
        wide = wide.reshape(outputs, taps, self.merged * inputs).transpose(1, 2)  # O m*I k
        wide = wide if weight.stride(1) == 1 else wide.contiguous()
        return F.conv1d(x, wide, bias, self.stride, self.padding, self.dilation, groups)


class _Averaged(nn.Module):
    """The scale discriminators, on a waveform averaged down first."""

    def __init__(self, judges: nn.Module, times: int):
        super().__init__()
        self.judges, self.pool, self.times = judges, nn.AvgPool1d(4, 2, padding=2), times
        judges.meanpools = nn.ModuleList(nn.AvgPool1d(4, 2, padding=2) for _ in judges.discriminators)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        for _ in range(self.times):
            x = self.pool(x)
        return self.judges(x)


def _scales(judges: nn.Module) -> nn.ModuleList:
    return (judges.msd.judges if isinstance(judges.msd, _Averaged) else judges.msd).discriminators


def _scaled(channels: int, width: float) -> int:
    """Channels times width, a positive multiple of GROUPS; 1 (the waveform, the score) stays 1."""
    return 1 if channels == 1 else max(GROUPS, round(channels * width / GROUPS) * GROUPS)


def _rebuild_period(judge: nn.Module, config: DiscriminatorConfig) -> None:
    for layer in [*judge.convs, judge.conv_post]:
        old = layer.conv
        kind = nn.Conv2d if config.zero_padding else ReflectingConv2d
        conv = kind(
            _scaled(old.in_channels, config.period_width),
            _scaled(old.out_channels, config.period_width),
            old.kernel_size,
            old.stride,
        )
        layer.in_channels = conv.in_channels
        layer.padding = "valid"  # the wrapper pads nothing: the convolution pads itself
        if config.zero_padding:
            conv.padding = (old.kernel_size[0] // 2, 0)
        layer.conv = _norm(conv, config)


def _rebuild_scale(judge: nn.Module, config: DiscriminatorConfig, least_group: int) -> None:
    def rebuild(old: nn.Module) -> nn.Module:
        if hasattr(old, "weight_orig"):  # spectral norm: only its layout is ours
            if config.scale_width == 1 and not least_group:
                return old
        conv = MergedConv1d(
            _scaled(old.in_channels, config.scale_width),
            _scaled(old.out_channels, config.scale_width),
            old.kernel_size[0],
            old.stride[0],
            old.padding[0],
            groups=old.groups,
        ).merge(least_group)
        return nn.utils.spectral_norm(conv) if hasattr(old, "weight_orig") else _norm(conv, config)

    judge.convs = nn.ModuleList(rebuild(conv) for conv in judge.convs)
    judge.conv_post = rebuild(judge.conv_post)


def _norm(conv: nn.Module, config: DiscriminatorConfig) -> nn.Module:
    if config.weight_norm:
        parametrize.register_parametrization(conv, "weight", WeightNorm())
    return conv
