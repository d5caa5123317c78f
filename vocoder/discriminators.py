"""SpeechBrain's HiFi-GAN discriminators, set up to train fast.

The modules and their forward passes are SpeechBrain's. What a config may change: which periods and how many
scales judge, their width, padding inside the period discriminators (the paper's zeros, which the convolution
does itself, instead of reflection, a slow kernel of its own before each), memory layout, norms of weights.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn
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


def build_discriminators(config: DiscriminatorConfig) -> nn.Module:
    """A module: waveforms (B, 1, T) -> (list of scores (B, S), list of lists of features)."""
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
        _rebuild_scale(judge, config)
    return judges


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
        conv = nn.Conv2d(
            _scaled(old.in_channels, config.period_width),
            _scaled(old.out_channels, config.period_width),
            old.kernel_size,
            old.stride,
        )
        layer.in_channels = conv.in_channels
        if config.zero_padding:
            layer.padding = "valid"  # the wrapper pads nothing: the convolution pads itself
            conv.padding = (old.kernel_size[0] // 2, 0)
        layer.conv = _norm(conv, config)


def _rebuild_scale(judge: nn.Module, config: DiscriminatorConfig) -> None:
    def rebuild(old: nn.Module) -> nn.Module:
        if hasattr(old, "weight_orig"):  # spectral norm: only its layout is ours
            if config.scale_width == 1:
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
