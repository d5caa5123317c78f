"""What rooms, telephones and other people do to a waveform, drawn anew for each batch on its own device."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.units.revoice import RevoiceConfig, revoice

TELEPHONE_LOW_HZ = (200.0, 350.0)
TELEPHONE_HIGH_HZ = (3300.0, 3900.0)
BAND_HIGH_HZ = (3300.0, 7600.0)
EQUALIZER_POINTS = 8  # gains drawn evenly over the logarithm of frequency
EDGE_OCTAVES = 0.06  # how soft a band limit is
BABBLE_VOICES = 5  # other rows of the batch under a row
LOWEST_HZ = 50.0
FFT_BLOCK = 4096  # sizes with small factors are fast
QUANTUM = 1 / 32_768  # of 16 bit audio


@dataclass
class AugmentConfig:
    """Chances are per row; ranges are uniform."""

    speeds: list[float] = field(
        default_factory=lambda: [1.0]
    )  # multiples of 0.05; 1.1 is 10 % faster and higher
    speed_groups: int = 4  # equal parts of a batch, each at a speed of its own
    trim: float = 0.0  # the largest share of a row, where it is shorter than a crop, that each end loses
    equalizer_chance: float = 0.0
    equalizer_db: float = 8.0  # the largest gain or cut
    band_chance: float = 0.0  # low-pass somewhere between 3.3 and 7.6 kHz
    telephone_chance: float = 0.0  # band-pass of 8 kHz telephony
    noise_chance: float = 0.0
    babble_share: float = 0.4  # of the noisy rows: other voices; the rest: white to brown noise
    snr_db: list[float] = field(default_factory=lambda: [3.0, 30.0])
    reverb_chance: float = 0.0
    reverb_seconds: list[float] = field(default_factory=lambda: [0.1, 0.7])  # until 60 dB down
    reverb_direct_db: list[float] = field(default_factory=lambda: [-3.0, 12.0])  # direct sound over the tail
    gain_db: list[float] = field(default_factory=lambda: [0.0, 0.0])  # peak level; [0, 0]: left as it is
    revoice: RevoiceConfig = field(default_factory=RevoiceConfig)  # other voices out of the same recording

    def __post_init__(self) -> None:
        for name in ("snr_db", "reverb_seconds", "reverb_direct_db", "gain_db"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name}: {getattr(self, name)}, expected [lowest, highest]")
        if not 0 <= self.trim < 0.5:
            raise ValueError(f"trim: {self.trim}, expected 0 to less than 0.5")
        if not self.speeds or not all(0.5 <= s <= 2 for s in self.speeds):
            raise ValueError(f"speeds: {self.speeds}, expected numbers from 0.5 to 2")

    @property
    def active(self) -> bool:
        chances = (self.equalizer_chance, self.band_chance, self.telephone_chance, self.noise_chance)
        return any(chances) or self.reverb_chance > 0 or self.gain_db != [0.0, 0.0] or self.revoice.chance > 0


def augment(
    waveforms: Tensor, lengths: Tensor, config: AugmentConfig, generator: torch.Generator, rate: int
) -> Tensor:
    """(B, T) float32, zero past `lengths` (B,), to the same: voice, room, noise, channel, gain."""
    if not config.active:
        return waveforms
    if config.revoice.chance > 0:
        waveforms = revoice(waveforms, config.revoice, generator, rate)
    batch, samples = waveforms.shape
    draw = _Draw(batch, waveforms.device, generator)
    padded = samples + int(rate * config.reverb_seconds[1] * (config.reverb_chance > 0))
    size = -(-padded // FFT_BLOCK) * FFT_BLOCK
    spectra = torch.fft.rfft(waveforms, n=size)  # B F
    hertz = torch.linspace(0, rate / 2, spectra.shape[1], device=waveforms.device)  # F
    if config.reverb_chance > 0:
        spectra = _reverb(spectra, draw, config, rate, size)
    if config.noise_chance > 0:
        spectra = _noise(spectra, lengths, draw, config, hertz, size)
    out = torch.fft.irfft(spectra * _channel(draw, config, hertz), n=size)[:, :samples]  # B T
    if config.gain_db != [0.0, 0.0]:
        peak = 10 ** (draw.uniform(*config.gain_db) / 20)
        out = out * (peak / out.abs().amax(-1).clamp(min=1e-5))[:, None]
        out = (out / QUANTUM).round() * QUANTUM  # what a quiet recording loses
    return out * (torch.arange(samples, device=out.device) < lengths[:, None])


class _Draw:
    """Random numbers for the rows of one batch."""

    def __init__(self, batch: int, device: torch.device, generator: torch.Generator) -> None:
        self.batch, self.device, self.generator = batch, device, generator

    def uniform(self, low: float, high: float, *more: int) -> Tensor:
        """(B, *more)."""
        shape = (self.batch, *more)
        return torch.rand(shape, device=self.device, generator=self.generator) * (high - low) + low

    def normal(self, *more: int) -> Tensor:
        return torch.randn((self.batch, *more), device=self.device, generator=self.generator)

    def chance(self, share: float) -> Tensor:
        """(B,) bool."""
        return self.uniform(0, 1) < share


def _reverb(spectra: Tensor, draw: _Draw, config: AugmentConfig, rate: int, size: int) -> Tensor:
    """Convolves with decaying noise after a direct sound, so that labels stay in step."""
    samples = int(rate * config.reverb_seconds[1])
    seconds = torch.arange(samples, device=spectra.device) / rate  # R
    decay = torch.exp(-6.9 * seconds / draw.uniform(*config.reverb_seconds)[:, None])  # -60 dB at its time
    tail = draw.normal(samples) * decay  # B R
    tail[:, 0] = 0
    direct = 10 ** (draw.uniform(*config.reverb_direct_db) / 20)
    tail = tail / (tail.square().sum(-1).sqrt() * direct)[:, None]
    response = torch.fft.rfft(tail, n=size) + 1  # the direct sound is 1 at time 0
    return torch.where(draw.chance(config.reverb_chance)[:, None], spectra * response, spectra)


def _noise(
    spectra: Tensor, lengths: Tensor, draw: _Draw, config: AugmentConfig, hertz: Tensor, size: int
) -> Tensor:
    """Adds noise at a drawn distance below the speech: white to brown, or other rows' voices."""
    random = torch.complex(draw.normal(len(hertz)), draw.normal(len(hertz)))  # B F
    slope = draw.uniform(0, 1)[:, None]  # amplitude falls by 0 to 6 dB an octave
    coloured = random * (hertz.clamp(min=LOWEST_HZ) / LOWEST_HZ) ** -slope
    noise = coloured
    if draw.batch > 1:
        shifts = (
            torch.randperm(draw.batch - 1, generator=draw.generator, device=draw.device)[:BABBLE_VOICES] + 1
        )
        rows = (torch.arange(draw.batch, device=draw.device)[:, None] + shifts) % draw.batch  # B voices
        levels = draw.uniform(0.3, 1.0, rows.shape[1])  # B voices
        babble = (spectra[rows] * levels[..., None]).sum(1)  # B F
        noise = torch.where(draw.chance(config.babble_share)[:, None], babble, coloured)
    speech_power = spectra.abs().square().sum(-1) / lengths  # over the row's own length
    noise_power = noise.abs().square().sum(-1).clamp(min=1e-12) / size
    ratio = speech_power / noise_power * 10 ** (-draw.uniform(*config.snr_db) / 10)
    ratio = ratio * draw.chance(config.noise_chance)
    return spectra + noise * ratio.sqrt()[:, None]


def _channel(draw: _Draw, config: AugmentConfig, hertz: Tensor) -> Tensor:
    """Gains (B, F): a smooth random equalizer and band limits, without phase: nothing moves in time."""
    octaves = (hertz.clamp(min=LOWEST_HZ) / LOWEST_HZ).log2()  # F
    points = draw.uniform(-config.equalizer_db, config.equalizer_db, 1, EQUALIZER_POINTS)
    place = (octaves / octaves[-1] * (EQUALIZER_POINTS - 1)).clamp(max=EQUALIZER_POINTS - 1.001)
    below, share = place.long(), place - place.long()
    curve = points[:, 0, below] * (1 - share) + points[:, 0, below + 1] * share  # B F
    curve = curve * draw.chance(config.equalizer_chance)[:, None]
    gains = 10 ** (curve / 20)
    telephone, band = draw.chance(config.telephone_chance), draw.chance(config.band_chance)
    nothing = torch.full((draw.batch,), 1e6, device=draw.device)
    high = torch.where(band, draw.uniform(*BAND_HIGH_HZ), nothing)
    high = torch.where(telephone, draw.uniform(*TELEPHONE_HIGH_HZ), high)
    low = torch.where(telephone, draw.uniform(*TELEPHONE_LOW_HZ), torch.full_like(nothing, LOWEST_HZ / 100))
    return gains * _below(octaves, high) * (1 - _below(octaves, low))


def _below(octaves: Tensor, edge_hz: Tensor) -> Tensor:
    """(B, F): 1 below the edge, 0 above, softly."""
    edge = (edge_hz / LOWEST_HZ).log2()[:, None]
    return functional.sigmoid((edge - octaves) / EDGE_OCTAVES)
