"""Waveforms and files to units: an encoder, a layer and a codebook that belong together."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.audio import probe, read_audio
from speechgpt.units.codebook import Codebook
from speechgpt.units.devices import choose_device, on_device
from speechgpt.units.encoder import Encoder
from speechgpt.units.extraction import BATCH_SECONDS, NOT_FINITE, OVERFLOWED, Fetch
from speechgpt.units.half_kernels import half_refusal
from speechgpt.units.padding import length_batches
from speechgpt.units.precision import HALF, check_precision
from speechgpt.units.windows import CONTEXT_SECONDS, WINDOW_SECONDS, open_long_audio, window_features

NO_UNIT = -1  # of a frame whose features are not finite

logger = logging.getLogger(__name__)


class UnitEncoder:
    """An encoder, the layer and the codebook that belong together: waveforms to units."""

    def __init__(
        self, encoder: Encoder, codebook: Codebook, layer: int | None = None, precision: str = "float32"
    ) -> None:
        """precision: as `Encoder.frames_of` takes it. Files that go in windows are computed in float32."""
        self.encoder, self.precision = encoder, precision
        self.layer = codebook.provenance.layer if layer is None else layer
        encoder.check_layer(self.layer)
        codebook.check(encoder, self.layer)
        self.codebook = codebook.to(encoder.device)
        self.window_seconds = WINDOW_SECONDS
        self.context_seconds = CONTEXT_SECONDS

    @classmethod
    def load(
        cls,
        encoder: str | Path,
        codebook: str | Path,
        layer: int | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
        precision: str = "float32",
    ) -> "UnitEncoder":
        """dtype: of the encoder's weights. precision: of inference, as `use` takes it."""
        device = choose_device(device)
        if device.type == "cpu" and precision in ("float16", "bfloat16"):
            dtype, precision = getattr(torch, precision), "float32"  # there is no faster way for it there
        return cls(Encoder.load(encoder, device, dtype), Codebook.load(codebook), layer).use(precision)

    def use(self, precision: str) -> "UnitEncoder":
        """From now on computes in `precision`; auto is half on a GPU that can, else float32."""
        where = self.encoder.device.type
        if precision == "auto":
            precision = self._fastest()
        check_precision(precision, where)
        self.precision = precision
        return self

    def _fastest(self) -> str:
        encoder = self.encoder
        if encoder.device.type != "cuda":
            return "float32"
        if reason := half_refusal(encoder.device, encoder.config.conv_pos_batch_norm):
            logger.warning("float32 is used in place of %s, and is slower: %s", HALF, reason)
            return "float32"
        return HALF

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.encoder.sample_rate / self.encoder.hop

    @property
    def num_units(self) -> int:
        """K."""
        return self.codebook.size

    @property
    def computed_in(self) -> str:
        """What decides how features are rounded: float32, float16, bfloat16 or int8."""
        weights = str(self.encoder.dtype).removeprefix("torch.")
        return self.precision if weights == "float32" else weights

    def encode(self, waveforms: Sequence[np.ndarray], batch_seconds: float | None = None) -> list[np.ndarray]:
        """Waveforms (T,) at the encoder's rate to frames (N,) int64 each, the same in any batch.

        Raises ValueError naming the waveforms whose features are no finite numbers.
        """
        rate = self.encoder.sample_rate
        found: list[np.ndarray | None] = [None] * len(waveforms)
        short = []
        for index, waveform in enumerate(waveforms):
            if len(waveform) > self.window_seconds * rate:
                found[index] = self._encode_long(waveform, f"waveform {index}")
            else:
                short.append(index)
        budget = batch_seconds or BATCH_SECONDS[self.encoder.device.type]
        lengths = [len(waveforms[i]) / rate for i in short]
        for batch in length_batches(lengths, budget):
            members = [short[i] for i in batch]
            given = [waveforms[i] for i in members]
            results = self._frames_of(given, self.precision, budget)
            for index, frames in zip(members, results, strict=True):
                found[index] = frames
        if overflowed := [i for i in short if found[i] is None]:
            for index in overflowed:
                (found[index],) = self._frames_of([waveforms[index]], "float32", budget)
            if bad := [i for i in overflowed if found[i] is None]:
                raise ValueError(f"waveform {', '.join(map(str, bad))}: {NOT_FINITE}")
            logger.warning("%d of %d waveforms were %s", len(overflowed), len(waveforms), OVERFLOWED)
        return found

    def _frames_of(
        self, waveforms: list[np.ndarray], precision: str, budget: float
    ) -> list[np.ndarray | None]:
        return self.start(*self.encoder.frames_of(waveforms, self.layer, precision, budget))()

    def encode_file(self, path: str | Path) -> np.ndarray:
        """An audio file of any length to frames (N,) int64, in bounded memory."""
        if probe(path).seconds <= self.window_seconds:
            return self.encode([read_audio(path, self.encoder.sample_rate)])[0]
        with open_long_audio(path, self.encoder.sample_rate) as waveform:
            return self._encode_long(waveform, str(path))

    def _encode_long(self, waveform: np.ndarray, name: str) -> np.ndarray:
        """name: of the waveform, for the error."""
        pieces = window_features(
            self.encoder, waveform, self.layer, self.window_seconds, self.context_seconds
        )
        found = []
        for piece in pieces:
            (units,) = self.start(piece, [len(piece)])()
            if units is None:
                raise ValueError(f"{name}: {NOT_FINITE}")
            found.append(units)
        return np.concatenate(found)  # N

    def assign(self, features: list[Tensor], rows: object = None) -> list[np.ndarray]:
        """Features (N, D) of several rows to frames (N,) int64 of each, with one transfer from the device."""
        units = self.codebook.assign(torch.cat(features)).cpu().numpy()
        return np.split(units, np.cumsum([len(f) for f in features])[:-1])

    def start(self, features: Tensor, frames: list[int], rows: object = None) -> Fetch:
        """Features (sum of N, D) of rows of N frames each; what it returns waits for the units (N,) int64 of
        each, or for None in place of a row whose features are not all finite."""
        units = self.codebook.assign(features)
        # Told by what is fetched anyway, so that the host waits once.
        numbers = torch.where(features.isfinite().all(-1), units, NO_UNIT).int()
        done = None
        if numbers.is_cuda:
            with on_device(numbers.device):  # an event is of the current device's stream
                pinned = torch.empty(len(numbers), dtype=torch.int32, pin_memory=True)
                numbers, done = pinned.copy_(numbers, non_blocking=True), torch.cuda.Event()
                done.record()

        def fetch() -> list[np.ndarray | None]:
            if done is not None:
                done.synchronize()
            found = np.split(numbers.numpy().astype(np.int64), np.cumsum(frames)[:-1])
            return [None if (row == NO_UNIT).any() else row for row in found]

        return fetch
