"""Labels for masked prediction, one a frame: clusters of MFCCs, an earlier encoder's units, phone states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from speechgpt.units.audio_pool import IGNORED, AudioPool
from speechgpt.units.codebook_fitting import fit_kmeans
from speechgpt.units.extraction import BATCH_SECONDS
from speechgpt.units.padding import length_batches
from speechgpt.units.phones import PHONES, phone_labels
from speechgpt.units.unit_encoder import UnitEncoder

# HuBERT's first iteration: k-means with 100 clusters on 13 MFCCs with first and second differences
# (Hsu et al. 2021, section IV.B), here at the encoder's own frames.
PUBLISHED_MFCC_K = 100
MFCC_COUNT, MEL_BANDS, FFT_SIZE = 13, 40, 512
PRE_EMPHASIS, LOWEST_HZ = 0.97, 20.0
DELTA_REACH = 2  # frames to each side


@dataclass
class Target:
    """One source of labels."""

    kind: str  # mfcc | units | phones
    weight: float = 1.0  # of its loss
    k: int = PUBLISHED_MFCC_K  # mfcc: clusters
    sample_frames: int = 500_000  # mfcc: frames that the clusters are fitted to
    states_per_phone: int = 3  # phones: thirds of each phone; silence has one
    only_without_phones: bool = False  # mfcc, units: rows that have phones carry no label of this source

    def __post_init__(self) -> None:
        if self.kind not in ("mfcc", "units", "phones"):
            raise ValueError(f"kind: {self.kind!r}, expected mfcc, units or phones")
        if not 1 <= self.states_per_phone <= 5:
            raise ValueError(f"states_per_phone: {self.states_per_phone}, expected 1 to 5")


def make_labels(
    target: Target, pools: Sequence[AudioPool], hop: int, field: int, seed: int, teacher: UnitEncoder | None
) -> tuple[list[Tensor], int]:
    """Labels (sum of N,) int16 of every pool and the number of classes; the first pool is what trains."""
    if target.kind == "phones":
        classes = len(PHONES) * target.states_per_phone + 1
        found = [_phone_pool(pool, hop, field, target.states_per_phone) for pool in pools]
        if not (found[0] >= 0).any():
            raise ValueError("target phones: no training row has phones; `speechgpt align` adds them")
    elif target.kind == "mfcc":
        classes = target.k
        centroids = fit_mfcc(pools[0], target.k, hop, field, target.sample_frames, seed)
        found = [_mfcc_pool(pool, centroids, hop, field) for pool in pools]
    else:
        if teacher is None:
            raise ValueError("target units: needs --teacher ENCODER and --teacher-codebook CODEBOOK")
        if (teacher.encoder.hop, teacher.encoder.receptive_field) != (hop, field):
            raise ValueError(f"the teacher's hop is {teacher.encoder.hop} samples, the new encoder's {hop}")
        classes = teacher.num_units
        found = [unit_labels(pool, teacher) for pool in pools]
    if target.only_without_phones and target.kind != "phones":
        found = [_without_phones(pool, labels, hop, field) for pool, labels in zip(pools, found, strict=True)]
    return found, classes


def frame_counts(pool: AudioPool, hop: int, field: int) -> list[int]:
    return ((pool.lengths - field) // hop + 1).tolist()


def _phone_pool(pool: AudioPool, hop: int, field: int, states: int) -> Tensor:
    found = []
    for row, frames in zip(pool.rows, frame_counts(pool, hop, field), strict=True):
        try:
            found.append(phone_labels(row.phones, frames, hop, field, pool.sample_rate, states))
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error
    return torch.from_numpy(np.concatenate(found))


def _without_phones(pool: AudioPool, labels: Tensor, hop: int, field: int) -> Tensor:
    counts = frame_counts(pool, hop, field)
    has = torch.tensor([bool(row.phones) for row in pool.rows]).repeat_interleave(torch.tensor(counts))
    return torch.where(has, IGNORED, labels)


def mfcc(waveform: Tensor, hop: int, field: int, rate: int) -> Tensor:
    """(T,) to (N, 39) float32: 13 MFCCs, their first and second differences, at the encoder's frames."""
    emphasised = functional.pad(waveform[1:] - PRE_EMPHASIS * waveform[:-1], (1, 0))
    windows = emphasised.unfold(0, field, hop)  # N field
    windows = windows * torch.hamming_window(field, periodic=False, device=waveform.device)
    power = torch.fft.rfft(windows, n=max(FFT_SIZE, field)).abs().square()  # N F
    bands = (power @ _mel_filters(power.shape[-1], rate).to(power)).clamp(min=1e-10).log()  # N bands
    static = bands @ _cosines().to(bands)  # N 13
    first = _differences(static)
    return torch.cat([static, first, _differences(first)], dim=-1)  # N 39


def _mel_filters(bins: int, rate: int) -> Tensor:
    """Triangles (F, bands) evenly spaced in mel from 20 Hz to the Nyquist frequency."""

    def mel(hertz: Tensor) -> Tensor:
        return 2595 * torch.log10(1 + hertz / 700)

    low, high = mel(torch.tensor(LOWEST_HZ)), mel(torch.tensor(rate / 2))
    edges = torch.linspace(float(low), float(high), MEL_BANDS + 2)
    place = mel(torch.linspace(0, rate / 2, bins))[:, None]  # F 1
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((place - left) / (middle - left), (right - place) / (right - middle)).clamp(min=0)


def _cosines() -> Tensor:
    """The DCT (bands, 13), orthonormal."""
    band = torch.arange(MEL_BANDS, dtype=torch.float32)[:, None]
    matrix = torch.cos(torch.pi / MEL_BANDS * (band + 0.5) * torch.arange(MFCC_COUNT))
    matrix[:, 0] /= 2**0.5
    return matrix * (2 / MEL_BANDS) ** 0.5


def _differences(values: Tensor) -> Tensor:
    """Regression slopes (N, C) over 2 frames to each side, the edges repeated."""
    padded = functional.pad(values.T[None], (DELTA_REACH, DELTA_REACH), mode="replicate")[0].T
    slopes = sum(
        n * (padded[DELTA_REACH + n :][: len(values)] - padded[DELTA_REACH - n :][: len(values)])
        for n in range(1, DELTA_REACH + 1)
    )
    return slopes / (2 * sum(n * n for n in range(1, DELTA_REACH + 1)))


def fit_mfcc(pool: AudioPool, k: int, hop: int, field: int, sample_frames: int, seed: int) -> Tensor:
    """Centroids (K, 39) of the MFCCs of a random sample of rows."""
    generator = np.random.default_rng(seed)
    counts, found, reach = frame_counts(pool, hop, field), [], 0
    for row in generator.permutation(len(pool.rows)):
        if reach >= sample_frames:
            break
        found.append(mfcc(pool.waveform(row), hop, field, pool.sample_rate).cpu())
        reach += counts[row]
    sample = torch.cat(found).numpy()
    return torch.from_numpy(fit_kmeans(sample, k, seed, n_init=3))


def _mfcc_pool(pool: AudioPool, centroids: Tensor, hop: int, field: int) -> Tensor:
    centroids = centroids.to(pool.samples.device)
    half_norms = centroids.square().sum(-1) / 2  # K
    found = []
    for row in tqdm(range(len(pool.rows)), desc="MFCC labels", disable=None):
        values = mfcc(pool.waveform(row), hop, field, pool.sample_rate)  # N 39
        found.append((half_norms - values @ centroids.T).argmin(-1).to(torch.int16))
    return torch.cat(found).cpu()


def unit_labels(pool: AudioPool, teacher: UnitEncoder) -> Tensor:
    """The teacher's units (sum of N,) int16 of every row, encoded whole."""
    seconds = (pool.lengths / pool.sample_rate).tolist()
    budget = BATCH_SECONDS[teacher.encoder.device.type]
    found: list[np.ndarray | None] = [None] * len(seconds)
    for batch in tqdm(length_batches(seconds, budget), desc="unit labels", disable=None):
        for row, units in zip(batch, teacher.encode([pool.waveform(i).cpu() for i in batch]), strict=True):
            found[row] = units.astype(np.int16)
    return torch.from_numpy(np.concatenate(found))
