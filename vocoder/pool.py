"""All training audio and units in a few flat arrays on the device: a batch is a gather, not a data loader."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.data.draws import matches
from speechgpt.data.rows import UnitRow, Utterance, read_manifest, read_units

FULL_SCALE = 32_768.0  # int16
DECODERS = 8  # threads that read audio
PREDICTOR_REACH = 2  # units to each side that a duration depends on


@dataclass
class DataConfig:
    target_dbfs: float = -23.0  # RMS level that every utterance is brought to; the vocoder speaks at it
    peak_dbfs: float = -1.0  # the gain never lifts a peak above this
    loud_share: float = 0.5  # the RMS is taken over the loudest share of 20 ms blocks: pauses do not count
    splits: list[str] = field(default_factory=lambda: ["train"])
    speakers: list[str] = field(default_factory=list)  # only these speakers; empty: all
    weights: dict[str, int | float] = field(
        default_factory=dict
    )  # by speaker, else by corpus: how often it is drawn
    exclude: list[str] = field(default_factory=list)  # patterns of CORPUS/ID of rows to leave out
    max_bad: int = 0  # utterances that may be unusable before it is an error

    def __post_init__(self):
        if not 0 < self.loud_share <= 1:
            raise ValueError(f"loud_share is {self.loud_share}, expected a number in (0, 1]")


def normalise_loudness(waveform: np.ndarray, sample_rate: int, config: DataConfig) -> np.ndarray:
    """(T,) float32 with one gain over the whole utterance, so that its speech has `target_dbfs` RMS."""
    block = sample_rate // 50
    count = max(1, len(waveform) // block)
    power = np.square(waveform[: count * block].astype(np.float64))
    power = np.sort(power.reshape(count, -1).mean(axis=1))[::-1]  # loudest first
    level = np.sqrt(power[: max(1, round(count * config.loud_share))].mean())
    peak = float(np.abs(waveform).max())
    if level == 0 or peak == 0:
        return waveform.astype(np.float32)
    gain = min(10 ** (config.target_dbfs / 20) / level, 10 ** (config.peak_dbfs / 20) / peak)
    return (waveform * gain).astype(np.float32)


@dataclass
class Batch:
    audio: Tensor  # (B, S * hop) float32
    frames: Tensor  # (B, S) int64, one unit a frame
    speaker: Tensor  # (B,) int64
    units: Tensor  # (B, W) int64, deduplicated, for the duration predictor
    durations: Tensor  # (B, W) int64, frames
    unit_speaker: Tensor  # (B,) int64
    unit_mask: Tensor  # (B, W) bool, where a unit is
    loss_mask: Tensor  # (B, W) bool, where its whole context is there


class Pool:
    """The utterances of a manifest that have unit rows, ready to be cropped from."""

    def __init__(
        self,
        rows: list[tuple[UnitRow, np.ndarray]],
        hop: int,
        speakers: list[str],
        device: torch.device,
        sample_rate: int = SAMPLE_RATE,
    ):
        """rows: unit rows and waveforms (T,) float32 at their level, long enough."""
        if not rows:
            raise ValueError("no utterance to train on")
        self.hop, self.device, self.speakers, self.sample_rate = hop, device, speakers, sample_rate
        self.rows = [row for row, _ in rows]
        self.frame_count = np.array([sum(r.durations) for r in self.rows])
        self.frame_start = np.concatenate([[0], np.cumsum(self.frame_count)])
        self.unit_count = np.array([len(r.units) for r in self.rows])
        self.unit_start = np.concatenate([[0], np.cumsum(self.unit_count)])
        self.speaker = np.array(
            [speakers.index(r.speaker) if r.speaker in speakers else 0 for r in self.rows]
        )
        units = np.concatenate([np.asarray(r.units, np.int64) for r in self.rows])
        durations = np.concatenate([np.asarray(r.durations, np.int64) for r in self.rows])
        audio = np.concatenate(
            [_to_int16(w[: n * hop]) for (_, w), n in zip(rows, self.frame_count, strict=True)]
        )
        self.units = torch.from_numpy(units).to(device)
        self.durations = torch.from_numpy(durations).to(device)
        self.frames = torch.from_numpy(np.repeat(units, durations)).to(device)  # all frames
        self.audio = torch.from_numpy(audio).to(device)  # all samples, int16

    @property
    def hours(self) -> float:
        return float(self.frame_start[-1]) * self.hop / self.sample_rate / 3600

    def weigh(self, config: DataConfig) -> None:
        """Chances of the utterances: by length, within the weight of their speaker or corpus, if any."""
        chance = self.frame_count.astype(np.float64)
        if config.weights:
            known = {r.speaker for r in self.rows} | {r.corpus for r in self.rows}
            if unknown := config.weights.keys() - known:
                raise ValueError(
                    f"data: weights for {', '.join(sorted(unknown))}, not among the speakers and corpora "
                    f"{', '.join(sorted(k for k in known if k))}"
                )
            keys = [r.speaker if r.speaker in config.weights else r.corpus for r in self.rows]
            for key in set(keys):
                mine = np.array([k == key for k in keys])
                chance[mine] *= config.weights.get(key, 0.0) / chance[mine].sum()
        self.cumulative = np.cumsum(chance / chance.sum())

    def draw(self, batch: int, segment: int, window: int, seed: tuple[int, ...]) -> Batch:
        """A random batch of `batch` crops of `segment` frames and as many windows of `window` units.

        The same seed gives the same batch, whatever was drawn before. An utterance shorter than a segment is
        repeated from its start.
        """
        random = np.random.default_rng(seed)
        pick = np.minimum(np.searchsorted(self.cumulative, random.random((2, batch))), len(self.rows) - 1)
        place = random.random((2, batch))
        who = pick[0]
        count = self.frame_count[who]
        first = np.floor(place[0] * np.maximum(count - segment + 1, 1)).astype(np.int64)  # B
        index = self.frame_start[who][:, None] + (first[:, None] + np.arange(segment)) % count[:, None]  # B S
        index = self._send(index)
        samples = (index * self.hop).unsqueeze(-1) + torch.arange(self.hop, device=self.device)  # B S hop
        audio = self.audio[samples.flatten(1)].float() / FULL_SCALE  # B S*hop
        units = self._draw_units(pick[1], place[1], window)
        return Batch(audio, self.frames[index], self._send(self.speaker[who]), *units)

    def _draw_units(self, who: np.ndarray, place: np.ndarray, window: int) -> tuple[Tensor, ...]:
        count = self.unit_count[who]
        first = np.floor(place * np.maximum(count - window + 1, 1)).astype(np.int64)[:, None]  # B 1
        position = first + np.arange(window)  # B W
        there = position < count[:, None]
        # At a cut edge the predictor lacks its context, so those units are not scored.
        whole = (first == 0) | (np.arange(window) >= PREDICTOR_REACH)
        whole &= (first + window >= count[:, None]) | (np.arange(window) < window - PREDICTOR_REACH)
        index = self._send(self.unit_start[who][:, None] + np.minimum(position, count[:, None] - 1))
        return (
            self.units[index],
            self.durations[index],
            self._send(self.speaker[who]),
            self._send(there),
            self._send(there & whole),
        )

    def _send(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def whole(self, row: int) -> tuple[np.ndarray, UnitRow]:
        """The waveform (N * hop,) float32 and the row of one utterance."""
        start, stop = self.frame_start[row] * self.hop, self.frame_start[row + 1] * self.hop
        return self.audio[start:stop].float().cpu().numpy() / FULL_SCALE, self.rows[row]


def _to_int16(waveform: np.ndarray) -> np.ndarray:
    return np.clip(np.round(waveform * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def read_rows(manifest: str | Path, units: str | Path, config: DataConfig, splits: list[str]):
    """Pairs (utterance, unit row) of the wanted splits and speakers that are in both files."""
    spoken = {row.id: row for row in read_manifest(manifest)}
    pairs: list[tuple[Utterance, UnitRow]] = []
    for row in read_units(units):
        utterance = spoken.get(row.id)
        if utterance is None:
            raise ValueError(
                f"{units}: row {row.id} is not in {manifest}: encode that manifest's audio again"
            )
        row.speaker, row.corpus = utterance.speaker, utterance.corpus
        wanted = not config.speakers or utterance.speaker in config.speakers
        if matches(f"{utterance.corpus}/{utterance.id}", config.exclude):
            wanted = False
        if wanted and utterance.split in splits and row.units:
            pairs.append((utterance, row))
    return pairs


def load_rows(
    pairs: list[tuple[Utterance, UnitRow]],
    manifest: str | Path,
    hop: int,
    sample_rate: int,
    config: DataConfig,
) -> list[tuple[UnitRow, np.ndarray]]:
    """Reads and normalises the audio. Raises ValueError when over `max_bad` do not fit their units."""

    def load(pair: tuple[Utterance, UnitRow]):
        utterance, row = pair
        try:
            waveform = read_audio(utterance.audio(manifest), sample_rate)
            _check_hop(len(waveform), row, hop, sample_rate)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        return row, normalise_loudness(waveform, sample_rate, config)[: sum(row.durations) * hop]

    with ThreadPoolExecutor(DECODERS) as pool:
        loaded = list(tqdm(pool.map(load, pairs), total=len(pairs), desc="audio", disable=None, leave=False))
    bad = [item for item in loaded if isinstance(item, str)]
    if len(bad) > config.max_bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ValueError(f"{bad[0]}{more}; max_bad is {config.max_bad}")
    return [item for item in loaded if not isinstance(item, str)]


def _check_hop(samples: int, row: UnitRow, hop: int, sample_rate: int) -> None:
    """HuBERT-like encoders give about samples / hop frames, never more."""
    frames = sum(row.durations)
    if frames * hop > samples or (frames + 3) * hop < samples:
        raise ValueError(
            f"row {row.id}: {frames} frames of units for {samples} samples at {sample_rate} Hz, which is "
            f"{samples / max(frames, 1):.0f} samples a frame; this vocoder's hop is {hop}"
        )
