"""All training audio in one flat int16 tensor: a batch of random crops is one gather, not a data loader."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.data.rows import Utterance

FULL_SCALE = 32_768.0  # int16
IGNORED = -100  # a frame without a label
SPEED_DENOMINATOR = 20  # speeds are multiples of 1/20, so that resampling is one strided convolution
ZERO_CROSSINGS = 12  # of the resampling kernel to each side
ROLL_OFF = 0.95  # its pass band, as a share of the lower Nyquist frequency


@dataclass
class AudioPool:
    """The waveforms of `rows`, one after another."""

    rows: list[Utterance]
    samples: Tensor  # (sum of T,) int16
    starts: Tensor  # (R,) int64, where each row begins
    lengths: Tensor  # (R,) int64, samples of each row
    sample_rate: int  # Hz

    @property
    def hours(self) -> float:
        return int(self.lengths.sum()) / self.sample_rate / 3600

    def waveform(self, row: int) -> Tensor:
        """(T,) float32 of one row, on the pool's device."""
        start = int(self.starts[row])
        return self.samples[start : start + int(self.lengths[row])].float() / FULL_SCALE

    def to(self, device: torch.device) -> "AudioPool":
        moved = (t.to(device) for t in (self.samples, self.starts, self.lengths))
        return AudioPool(self.rows, *moved, self.sample_rate)


@dataclass
class Crops:
    """A batch of random crops."""

    waveforms: Tensor  # (B, T) float32, zero past each row's end
    lengths: Tensor  # (B,) int64, valid samples
    labels: list[Tensor]  # (B, N) int64 for each label source, IGNORED where there is none


class CropSampler:
    """Draws crops of `crop_frames` frames and their labels; the same generator state gives the same batch."""

    def __init__(
        self,
        pool: AudioPool,
        labels: list[Tensor],
        hop: int,
        field: int,
        crop_frames: int,
        sampling: dict,
        trim: float = 0.0,
    ) -> None:
        """labels: for each source the labels of all rows (sum of N,), in the pool's order.

        trim: the largest share of a row, where it is shorter than a crop, that is cut off at each end.
        """
        self.pool, self.labels, self.trim = pool, labels, trim
        self.hop, self.field, self.crop_frames = hop, field, crop_frames
        self.frame_counts = (pool.lengths - field) // hop + 1  # R
        self.frame_starts = self.frame_counts.cumsum(0) - self.frame_counts  # R
        chances = row_chances(pool, sampling)
        self.cumulative = torch.from_numpy(np.cumsum(chances)).to(pool.samples.device)  # R

    @property
    def crop_samples(self) -> int:
        return (self.crop_frames - 1) * self.hop + self.field

    def draw(self, batch: int, generator: torch.Generator, speeds: Sequence[float] = (1.0,)) -> Crops:
        """A batch whose i-th equal part is played at `speeds[i]`: pitch, formants and tempo all move."""
        sizes = [batch * (i + 1) // len(speeds) - batch * i // len(speeds) for i in range(len(speeds))]
        parts = [
            self._draw(size, generator, speed) for size, speed in zip(sizes, speeds, strict=True) if size
        ]
        return Crops(
            torch.cat([p.waveforms for p in parts]),
            torch.cat([p.lengths for p in parts]),
            [torch.cat(labels) for labels in zip(*(p.labels for p in parts), strict=True)],
        )

    def _draw(self, batch: int, generator: torch.Generator, speed: float) -> Crops:
        pool, device = self.pool, self.pool.samples.device
        speed = round(speed * SPEED_DENOMINATOR) / SPEED_DENOMINATOR
        chance = torch.rand(2, batch, generator=generator, device=device, dtype=torch.float64)
        picked = torch.searchsorted(self.cumulative, chance[0]).clamp(max=len(pool.rows) - 1)  # B
        wanted = math.ceil(self.crop_samples * speed) + ZERO_CROSSINGS  # samples before resampling
        room = (pool.lengths[picked] - wanted).clamp(min=0) // self.hop + 1  # B, places to start
        first = (chance[1] * room).long()  # B, in frames, so that labels stay in step
        cut = torch.zeros_like(first)  # B, samples off the row's end
        if self.trim:
            shares = self.trim * torch.rand(2, batch, generator=generator, device=device)
            shares = shares * (pool.lengths[picked] <= wanted)
            first = first + (shares[0] * (self.frame_counts[picked] - 1)).long()
            cut = (shares[1] * pool.lengths[picked]).long()
        left = (pool.lengths[picked] - first * self.hop - cut).clamp(min=self.field)  # B, samples to the end
        offsets = torch.arange(wanted, device=device)
        index = (pool.starts[picked] + first * self.hop)[:, None] + offsets  # B T
        waveforms = pool.samples[index.clamp(max=len(pool.samples) - 1)].float() / FULL_SCALE
        waveforms = waveforms * (offsets < left[:, None])
        if speed != 1:
            waveforms = change_speed(waveforms, speed)
        waveforms = waveforms[:, : self.crop_samples]
        lengths = (left / speed).long().clamp(min=self.field, max=self.crop_samples)  # B
        return Crops(waveforms, lengths, self._labels(picked, first, lengths, speed))

    def _labels(self, picked: Tensor, first: Tensor, lengths: Tensor, speed: float) -> list[Tensor]:
        """Labels (B, N) of the original frames whose centres are nearest to the crop's, after its speed."""
        frames = torch.arange(self.crop_frames, device=picked.device)
        source = retime(frames, speed, self.hop, self.field)  # N
        last = self.frame_counts[picked] - 1
        source = torch.minimum(first[:, None] + source, last[:, None])  # B N
        index = self.frame_starts[picked][:, None] + source
        valid = frames < ((lengths - self.field) // self.hop + 1)[:, None]
        return [torch.where(valid, labels[index].long(), IGNORED) for labels in self.labels]


def retime(frames: Tensor, speed: float, hop: int, field: int) -> Tensor:
    """Frame numbers (N,) of audio played at `speed` to the nearest frame numbers (N,) of the original."""
    centre = field / 2
    return (((frames * hop + centre) * speed - centre) / hop).round().long().clamp(min=0)


def row_chances(pool: AudioPool, sampling: dict[str, float]) -> np.ndarray:
    """How often each row is drawn (R,), summing to 1: by its length, corpora by `sampling` where it is given.

    The key "*" stands for every corpus that is not named.
    """
    chances = pool.lengths.cpu().numpy().astype(np.float64)
    corpora = np.array([row.corpus for row in pool.rows])
    found = sorted(set(corpora))
    if sampling:
        if unknown := sampling.keys() - set(found) - {"*"}:
            raise ValueError(
                f"sampling names {', '.join(sorted(unknown))}; the rows are of {', '.join(found)}"
            )
        if "*" not in sampling and (left_out := set(found) - sampling.keys()):
            raise ValueError(
                f"sampling has no weight for {', '.join(sorted(left_out))}; give one, or one for '*'"
            )
        for corpus in found:
            mine = corpora == corpus
            chances[mine] *= sampling.get(corpus, sampling.get("*", 0.0)) / chances[mine].sum()
    if not chances.sum() > 0:
        raise ValueError("sampling gives every row the weight 0")
    return chances / chances.sum()


def change_speed(waveforms: Tensor, speed: float) -> Tensor:
    """(B, T) to about (B, T / speed): band-limited resampling, sample n of the result is at n * speed."""
    up, down = _ratio(speed)
    kernels, reach = _resampling_kernels(up, down, waveforms.device)  # up 1 taps
    padded = functional.pad(waveforms[:, None], (reach, reach + down))
    out = functional.conv1d(padded, kernels, stride=down)  # B up T'
    return out.transpose(1, 2).flatten(1)[:, : int(waveforms.shape[1] / speed)]


def _ratio(speed: float) -> tuple[int, int]:
    down = round(speed * SPEED_DENOMINATOR)
    common = math.gcd(down, SPEED_DENOMINATOR)
    return SPEED_DENOMINATOR // common, down // common


@lru_cache
def _resampling_kernels(up: int, down: int, device: torch.device) -> tuple[Tensor, int]:
    """Windowed sincs (up, 1, taps): `up` results for every `down` samples; and their reach to each side."""
    cutoff = ROLL_OFF * min(1.0, up / down)  # of the input's Nyquist frequency
    reach = math.ceil(ZERO_CROSSINGS / cutoff)
    taps = torch.arange(2 * reach + down + 1, dtype=torch.float64) - reach
    distance = taps - torch.arange(up, dtype=torch.float64)[:, None] * down / up  # up taps
    window = torch.cos(torch.pi / 2 * (distance / (reach + 1)).clamp(-1, 1)).square()
    return (cutoff * torch.sinc(cutoff * distance) * window)[:, None].float().to(device), reach
