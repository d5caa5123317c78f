"""Batch synthesis: lists of units to waveforms, with predicted or given durations."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.units.precision import exact_convolutions
from speechgpt.units.triton_works import probe_of, triton_runs
from speechgpt.vocoder.folded import FoldedGenerator
from speechgpt.vocoder.generator import Lengths, UnitVocoder
from speechgpt.vocoder.replay import Replay

# How the convolutions compute; the last one, and durations, are float32 in every case. float32 is exact,
# tf32 rounds float32 products to 10 bits on CUDA.
PRECISIONS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
WAYS = ("fused", "folded")  # to compute half precision on CUDA: a kernel of ours a convolution, or cuDNN
HALF_WAY = "fused"
PROBE = probe_of("speechgpt.vocoder.triton_kernels")
BATCH_FRAMES = 6_000  # padded frames of one generator batch (two minutes at 50 Hz): bounds the memory
BATCH_UNITS = 100_000  # padded units of one batch of the duration predictor


class Synthesizer:
    """Speaks deduplicated units. Every row of a batch sounds as it would alone."""

    def __init__(self, vocoder: UnitVocoder, precision: str = "float32", way: str = HALF_WAY):
        """The weights are copied as they are now. `precision`: one of PRECISIONS. `way`: one of WAYS, for
        half precision on CUDA alone.
        """
        for name, value, known in (("precision", precision, PRECISIONS), ("way", way, WAYS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        self.vocoder, self.precision = vocoder.eval(), precision
        self.generator = _generator(vocoder, PRECISIONS[precision], way)
        self.replay = Replay(self.generator)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto", precision: str = "float32") -> "Synthesizer":
        return cls(UnitVocoder.load(folder, device), precision)

    @property
    def sample_rate(self) -> int:
        return self.vocoder.sample_rate

    @property
    def hop(self) -> int:
        return self.vocoder.hop

    @property
    def speakers(self) -> list[str]:
        """Names of the voices; empty for a vocoder of one voice or of speaker vectors."""
        return list(self.vocoder.config.speakers)

    def synthesize(
        self,
        units: Sequence[Sequence[int]],
        durations: Sequence[Sequence[int]] | None = None,
        speaker: "str | int | np.ndarray | None" = None,
        duration_scale: float = 1.0,
    ) -> list[np.ndarray]:
        """One waveform (T,) float32 a row of `units`; T is the sum of the durations times the hop.

        `durations` in frames, predicted when None; `duration_scale` above 1 slows predicted durations down.
        `speaker` is a name, a row of the table, or a speaker vector; None is the default voice.
        """
        rows = [self.check(row, number) for number, row in enumerate(units)]
        if durations is None:
            durations = self.durations(rows, speaker, duration_scale)
        frames = [
            self._expand(u, d, number) for number, (u, d) in enumerate(zip(rows, durations, strict=True))
        ]
        return self.speak(frames, speaker)

    def speak(
        self, frames: Sequence[np.ndarray], speaker: "str | int | np.ndarray | None" = None
    ) -> list[np.ndarray]:
        """One waveform (N * hop,) float32 a row of frames (N,) int64, one unit a frame."""
        waveforms = [np.zeros(0, np.float32) for _ in frames]
        # A CPU gains nothing from a batch, and a row alone needs no masks.
        budget = BATCH_FRAMES if self.vocoder.device.type == "cuda" else 0
        for batch in _batches([len(f) for f in frames], budget):
            padded, mask = _pad([frames[i] for i in batch], self.vocoder.device)  # B N
            sound = self._generate(padded, self.speaker(speaker, len(batch)), mask).cpu().numpy()  # B T
            for row, i in enumerate(batch):
                waveforms[i] = sound[row, : len(frames[i]) * self.hop].copy()
        return waveforms

    def prepare(self, lengths: Sequence[int], speaker: "str | int | np.ndarray | None" = None) -> None:
        """On CUDA: captures the generator for single rows of these many frames, which then launch at once."""
        if self.vocoder.device.type == "cuda":
            for length in lengths:
                frames = torch.zeros(1, length, dtype=torch.int64, device=self.vocoder.device)
                with torch.inference_mode(), self.arithmetic():
                    self.replay.prepare(self.vocoder.embed(frames, self.speaker(speaker, 1)))

    def _generate(self, frames: Tensor, speaker: Tensor | None, mask: Tensor) -> Tensor:
        """frames (B, N) int64 and where they are (B, N) bool -> (B, N * hop) float32."""
        with torch.inference_mode(), self.arithmetic():
            x = self.vocoder.embed(frames, speaker)  # B D N
            if bool(mask.all()):
                return self.replay(x)
            lengths = Lengths(mask)
            return self.generator(lengths.clip(x.contiguous(), 1), lengths)

    def arithmetic(self) -> AbstractContextManager:
        return exact_convolutions() if self.precision == "float32" else nullcontext()

    def durations(
        self,
        units: Sequence[Sequence[int]],
        speaker: "str | int | np.ndarray | None" = None,
        duration_scale: float = 1.0,
    ) -> list[np.ndarray]:
        """Predicted frames of every unit: one (U,) int64 a row."""
        if not duration_scale > 0:
            raise ValueError(f"duration_scale is {duration_scale}, expected a number above 0")
        rows = [self.check(row, number) for number, row in enumerate(units)]
        result = [np.zeros(0, np.int64) for _ in rows]
        for batch in _batches([len(r) for r in rows], BATCH_UNITS):
            padded, mask = _pad([rows[i] for i in batch], self.vocoder.device)  # B U
            with torch.inference_mode():
                frames = self.vocoder.durations(
                    padded, self.speaker(speaker, len(batch)), mask, duration_scale
                )
            frames = frames.cpu().numpy()
            for row, i in enumerate(batch):
                result[i] = frames[row, : len(rows[i])].copy()
        return result

    def check(self, row: Sequence[int], number: int = 0) -> np.ndarray:
        """A row of units as (U,) int64. Raises ValueError naming the row and the codebook's size."""
        units = np.asarray(row, dtype=np.int64).reshape(-1)
        size = self.vocoder.config.num_units
        bad = units[(units < 0) | (units >= size)]
        if len(bad):
            raise ValueError(
                f"unit {bad[0]} in row {number} is out of range: this vocoder's codebook has K = {size} "
                f"units (0 to {size - 1})"
            )
        return units

    @staticmethod
    def _expand(units: np.ndarray, durations: Sequence[int], number: int) -> np.ndarray:
        durations = np.asarray(durations, dtype=np.int64).reshape(-1)
        if len(durations) != len(units):
            raise ValueError(f"row {number}: {len(units)} units but {len(durations)} durations")
        if len(durations) and durations.min() < 1:
            raise ValueError(f"row {number}: a duration of {durations.min()} frames, expected at least 1")
        return np.repeat(units, durations)  # N

    def speaker(self, speaker: "str | int | np.ndarray | None", batch: int) -> Tensor | None:
        """What the vocoder takes for a batch of one voice. Raises ValueError for an unknown one."""
        config, device = self.vocoder.config, self.vocoder.device
        if config.speaker_vector_dim:
            vector = torch.as_tensor(np.zeros(0) if speaker is None else speaker, dtype=torch.float32)
            if vector.shape != (config.speaker_vector_dim,):
                raise ValueError(
                    f"this vocoder needs a speaker vector of {config.speaker_vector_dim} numbers"
                )
            return vector.to(device).expand(batch, -1)  # B V
        if not config.num_speakers:
            if speaker is not None and speaker != 0 and speaker != config.default_speaker:
                raise ValueError(f"speaker {speaker!r} was asked for, but this vocoder has one voice")
            return None
        return torch.full((batch,), self.speaker_index(speaker), dtype=torch.int64, device=device)

    def speaker_index(self, speaker: str | int | None) -> int:
        """Row of the speaker table. Raises ValueError that lists the voices."""
        config = self.vocoder.config
        if speaker is None:
            speaker = config.default_speaker or 0
        if isinstance(speaker, str):
            if speaker not in config.speakers:
                raise ValueError(f"unknown speaker {speaker!r}; known: {', '.join(config.speakers)}")
            return config.speakers.index(speaker)
        if not 0 <= speaker < config.num_speakers:
            raise ValueError(f"speaker {speaker} is out of range: this vocoder has {config.num_speakers}")
        return int(speaker)


def _generator(vocoder: UnitVocoder, dtype: torch.dtype, way: str) -> Callable[..., Tensor]:
    """The generator made for speaking; cuDNN's where Triton is not installed or cannot compile."""
    wanted = vocoder.device.type == "cuda" and dtype != torch.float32 and way == "fused"
    if wanted and triton_runs(PROBE, vocoder.device, "cuDNN speaks"):
        from speechgpt.vocoder.fused import FusedGenerator

        return FusedGenerator(vocoder, dtype)
    return FoldedGenerator(vocoder, dtype)


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Indices of the non-empty rows, longest first, in groups whose padded size stays within `budget`."""
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _pad(rows: list[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of ids to (B, N) int64, zero where there is none, and the mask (B, N) bool."""
    lengths = np.array([len(r) for r in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]  # B N
    padded = np.zeros(mask.shape, np.int64)
    padded[mask] = np.concatenate(rows)
    return torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device)
