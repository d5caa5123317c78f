"""Other voices out of the same recording: formants moved without the pitch, and speech of pulses or of noise.

A spectrum is split by its cepstrum into an envelope, which the vocal tract makes, and an excitation. The
envelope is stretched as another tract would (vocal tract length perturbation, Jaitly and Hinton 2013), the
excitation kept, or replaced by pulses of a drawn pitch, as simple synthesisers have it, or by noise, as in a
whisper. Nothing moves in time: phones end where they did.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

SIZE, HOP = 512, 128  # samples of a spectrum, and between two: 32 and 8 ms at 16 kHz
LIFTER = 30  # cepstral coefficients of the envelope: what is narrower than 530 Hz at 16 kHz is excitation
FLOOR = 1e-5  # of magnitudes
VOICED_BELOW = 1000.0  # Hz: a frame with most of its energy below is spoken with the voice
SHARPNESS = 12.0  # of that decision
DRIFT = 0.25  # octaves that the drawn pitch rises and falls
DRIFT_HZ = (0.3, 2.5)  # how often


@dataclass
class RevoiceConfig:
    chance: float = 0.0  # share of rows
    tract: list[float] = field(default_factory=lambda: [0.82, 1.22])  # over 1: higher formants
    pulses: float = 0.3  # share of these rows that pulses excite
    whisper: float = 0.1  # share that noise excites
    pitch: list[float] = field(default_factory=lambda: [75.0, 240.0])  # Hz, of the pulses

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1 or not 0 <= self.pulses + self.whisper <= 1:
            raise ValueError(
                f"chance {self.chance}, pulses {self.pulses}, whisper {self.whisper}: expected shares"
            )
        for name in ("tract", "pitch"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                raise ValueError(f"{name}: {value}, expected [lowest, highest]")


def revoice(waveforms: Tensor, config: RevoiceConfig, generator: torch.Generator, rate: int) -> Tensor:
    """(B, T) float32 to the same, a share of the rows in other voices, as loud as they were."""
    batch = waveforms.shape[0]
    if batch == 1:
        count = int(torch.rand((), generator=generator, device=waveforms.device) < config.chance)
    else:
        count = round(batch * config.chance)  # as many in every batch: the device need not be asked
    if not count:
        return waveforms
    rows = torch.randperm(batch, generator=generator, device=waveforms.device)[:count]  # b
    return waveforms.index_copy(0, rows, _speak(waveforms[rows], config, generator, rate))


def _speak(waveforms: Tensor, config: RevoiceConfig, generator: torch.Generator, rate: int) -> Tensor:
    """(b, T) to (b, T), every row in a voice of its own."""
    count, samples = waveforms.shape

    def uniform(low: float, high: float, *more: int) -> Tensor:
        drawn = torch.rand((count, *more), generator=generator, device=waveforms.device)
        return drawn * (high - low) + low

    spectra = _spectra(waveforms)  # b F N
    envelope = _envelope(spectra)  # b F N
    own = spectra * torch.exp(-envelope)
    kind = uniform(0, 1)[:, None, None]
    noise = torch.randn(waveforms.shape, generator=generator, device=waveforms.device)
    whispered = _flat(noise)
    buzz = _flat(_pulses(uniform(*config.pitch), uniform(*DRIFT_HZ), uniform(0, 6.28), samples, rate))
    voiced = _voiced(spectra, rate)  # b 1 N
    excitation = torch.where(kind < config.pulses, voiced * buzz + (1 - voiced) * whispered, own)
    excitation = torch.where(kind > 1 - config.whisper, whispered, excitation)
    moved = _stretch(envelope, uniform(*config.tract))
    window = torch.hann_window(SIZE, device=waveforms.device)
    out = torch.istft(moved.exp() * excitation, SIZE, HOP, window=window, length=samples)  # b T
    level = waveforms.square().mean(-1) / out.square().mean(-1).clamp(min=1e-12)
    return out * level.sqrt()[:, None]


def _spectra(waveforms: Tensor) -> Tensor:
    window = torch.hann_window(SIZE, device=waveforms.device)
    return torch.stft(waveforms, SIZE, HOP, window=window, return_complex=True)  # b F N


def _envelope(spectra: Tensor) -> Tensor:
    """Logarithms (b, F, N) of the smooth part of the magnitudes."""
    cepstrum = torch.fft.irfft(spectra.abs().clamp(min=FLOOR).log(), dim=1)  # b SIZE N
    cepstrum[:, LIFTER : SIZE - LIFTER + 1] = 0
    return torch.fft.rfft(cepstrum, dim=1).real


def _flat(waveforms: Tensor) -> Tensor:
    """Spectra (b, F, N) of an excitation, its envelope taken away."""
    spectra = _spectra(waveforms)
    return spectra * torch.exp(-_envelope(spectra))


def _pulses(pitch: Tensor, drift: Tensor, phase: Tensor, samples: int, rate: int) -> Tensor:
    """Pulses (b, T) of a pitch (b,) in Hz that rises and falls `drift` (b,) times a second."""
    seconds = torch.arange(samples, device=pitch.device) / rate  # T
    octaves = DRIFT * torch.sin(6.2832 * drift[:, None] * seconds + phase[:, None])
    turns = (pitch[:, None] * 2**octaves / rate).double().cumsum(-1).floor()  # b T
    return torch.nn.functional.pad(turns.diff(dim=-1), (1, 0)).float()


def _voiced(spectra: Tensor, rate: int) -> Tensor:
    """(b, 1, N) 0 to 1."""
    power = spectra.abs().square()
    low = power[:, : round(VOICED_BELOW / rate * SIZE)].sum(1, keepdim=True)
    share = low / power.sum(1, keepdim=True).clamp(min=FLOOR)
    return torch.sigmoid(SHARPNESS * (share - 0.5))


def _stretch(envelope: Tensor, tract: Tensor) -> Tensor:
    """(b, F, N): what was at a frequency f is at `tract` (b,) times f."""
    bins = envelope.shape[1]
    place = torch.arange(bins, device=envelope.device) / tract[:, None]  # b F
    place = place.clamp(max=bins - 1.001)
    below, share = place.long(), (place - place.long())[..., None]
    index = below[..., None].expand_as(envelope)
    return envelope.gather(1, index) * (1 - share) + envelope.gather(1, index + 1) * share
