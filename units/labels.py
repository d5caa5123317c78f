"""Labels for masked prediction, one a frame: clusters of MFCCs, an earlier encoder's units, phone states."""

from collections.abc import Iterable, Iterator, Sequence
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
from speechgpt.units.processes import World
from speechgpt.units.unit_encoder import UnitEncoder

# HuBERT's first iteration: k-means with 100 clusters on 13 MFCCs with first and second differences
# (Hsu et al. 2021, section IV.B), here at the encoder's own frames.
PUBLISHED_MFCC_K = 100
MFCC_COUNT, MEL_BANDS, FFT_SIZE = 13, 40, 512
MFCC_WIDTH = 3 * MFCC_COUNT  # with first and second differences
PRE_EMPHASIS, LOWEST_HZ = 0.97, 20.0
DELTA_REACH = 2  # frames to each side

Labelled = tuple[int, np.ndarray]  # a row's place in its pool, and its labels (N,)


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
    target: Target,
    pools: Sequence[AudioPool],
    hop: int,
    field: int,
    seed: int,
    teacher: UnitEncoder | None,
    world: World,
) -> tuple[list[Tensor], int]:
    """Labels (sum of N,) int16 of every pool and the number of classes; the first pool is what trains.

    Each process labels its share of the rows, on its device; all return the same, whatever their number.
    The pools are in memory and not on a GPU, where every row would be a wait.
    """
    if target.kind == "phones":
        classes = len(PHONES) * target.states_per_phone + 1
        parts = [_phones(pool, hop, field, target.states_per_phone, world) for pool in pools]
    elif target.kind == "mfcc":
        classes = target.k
        centroids = torch.zeros(target.k, MFCC_WIDTH)
        with world.together():
            if world.first:
                centroids = fit_mfcc(pools[0], target.k, hop, field, target.sample_frames, seed, world.device)
        centroids = world.sum(centroids)  # zero everywhere else
        parts = [_clusters(pool, centroids, hop, field, world) for pool in pools]
    else:
        if teacher is None:
            raise ValueError("target units: needs --teacher ENCODER and --teacher-codebook CODEBOOK")
        if (teacher.encoder.hop, teacher.encoder.receptive_field) != (hop, field):
            raise ValueError(f"the teacher's hop is {teacher.encoder.hop} samples, the new encoder's {hop}")
        classes = teacher.num_units
        parts = [_units(pool, teacher, world) for pool in pools]
    found = [_joined(part, pool, hop, field, world) for part, pool in zip(parts, pools, strict=True)]
    if target.kind == "phones" and not (found[0] >= 0).any():
        raise ValueError("target phones: no training row has phones; `speechgpt align` adds them")
    if target.only_without_phones and target.kind != "phones":
        found = [_without_phones(pool, labels, hop, field) for pool, labels in zip(pools, found, strict=True)]
    return found, classes


def frame_counts(pool: AudioPool, hop: int, field: int) -> list[int]:
    return ((pool.lengths - field) // hop + 1).tolist()


def _joined(found: Iterable[Labelled], pool: AudioPool, hop: int, field: int, world: World) -> Tensor:
    """The labels (sum of N,) int16 of all rows, of which each process has `found` some."""
    counts = frame_counts(pool, hop, field)
    ends = np.cumsum(counts)
    labels = np.zeros(ends[-1], np.int32)
    with world.together():
        for row, values in found:
            labels[ends[row] - counts[row] : ends[row]] = values
    return world.sum(torch.from_numpy(labels)).to(torch.int16)


def _phones(pool: AudioPool, hop: int, field: int, states: int, world: World) -> Iterator[Labelled]:
    counts = frame_counts(pool, hop, field)
    for index in range(world.rank, len(pool.rows), world.size):
        row = pool.rows[index]
        try:
            yield index, phone_labels(row.phones, counts[index], hop, field, pool.sample_rate, states)
        except ValueError as error:
            raise ValueError(f"row {row.id}: {error}") from error


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


def fit_mfcc(
    pool: AudioPool, k: int, hop: int, field: int, sample_frames: int, seed: int, device: torch.device
) -> Tensor:
    """Centroids (K, 39) of the MFCCs of a random sample of rows."""
    generator = np.random.default_rng(seed)
    counts, found, reach = frame_counts(pool, hop, field), [], 0
    for row in generator.permutation(len(pool.rows)):
        if reach >= sample_frames:
            break
        found.append(mfcc(pool.waveform(row).to(device), hop, field, pool.sample_rate).cpu())
        reach += counts[row]
    sample = torch.cat(found).numpy()
    return torch.from_numpy(fit_kmeans(sample, k, seed, n_init=3))


def _clusters(pool: AudioPool, centroids: Tensor, hop: int, field: int, world: World) -> Iterator[Labelled]:
    centroids = centroids.to(world.device)
    half_norms = centroids.square().sum(-1) / 2  # K
    mine = range(world.rank, len(pool.rows), world.size)
    found = []
    for row in tqdm(mine, desc="MFCC labels", disable=None if world.first else True):
        values = mfcc(pool.waveform(row).to(world.device), hop, field, pool.sample_rate)  # N 39
        found.append((half_norms - values @ centroids.T).argmin(-1).to(torch.int16))
    if found:  # one transfer from the device
        labels = torch.cat(found).cpu().split([len(labels) for labels in found])
        yield from zip(mine, (part.numpy() for part in labels), strict=True)


def _units(pool: AudioPool, teacher: UnitEncoder, world: World) -> Iterator[Labelled]:
    """The teacher's units, every row encoded whole and in the batch that one process would encode it in."""
    seconds = (pool.lengths / pool.sample_rate).tolist()
    mine = length_batches(seconds, BATCH_SECONDS[teacher.encoder.device.type])[world.rank :: world.size]
    for batch in tqdm(mine, desc="unit labels", disable=None if world.first else True):
        yield from zip(batch, teacher.encode([pool.waveform(i) for i in batch]), strict=True)
