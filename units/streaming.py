"""Speech to units while it is still being spoken, in bounded memory and with a stated look-ahead."""

import numpy as np
import torch

from speechgpt.units.precision import exact_convolutions
from speechgpt.units.running_norms import RunningNorms
from speechgpt.units.unit_encoder import UnitEncoder

LOOK_AHEAD_SECONDS = 1.0  # heard after a frame before its unit is final
STEP_SECONDS = 0.5  # audio between two computations
HISTORY_SECONDS = 8.0  # of the past that each computation sees


class StreamingEncoder:
    """Waveform in pieces of any lengths to frames that are final.

    Each `step_seconds` of audio one window is encoded: `history_seconds` of the past, the step, and
    `look_ahead_seconds` after it. The step's frames are then final, so a unit is known when at most
    look-ahead + step seconds (and the time of one computation) have passed since it was heard. What an
    encoder computes over a whole file (`normalize`, the first group norm) is computed over all that was heard
    until then, so the first seconds differ most from `UnitEncoder.encode`; a recording that ends before the
    first step is complete gets the same units. Memory does not grow with the stream.

    The frames depend on the samples alone, not on how they were cut into pieces.
    """

    def __init__(
        self,
        units: UnitEncoder,
        look_ahead_seconds: float = LOOK_AHEAD_SECONDS,
        step_seconds: float = STEP_SECONDS,
        history_seconds: float = HISTORY_SECONDS,
    ) -> None:
        for name, value in (("look-ahead", look_ahead_seconds), ("history", history_seconds)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} {value} s: expected 0 or more")
        if not 0 < step_seconds < float("inf"):
            raise ValueError(f"step {step_seconds} s: expected more than 0")
        self.units = units
        rate = units.frame_rate
        self._look = round(look_ahead_seconds * rate)  # frames, like the next two
        self._step = max(1, round(step_seconds * rate))
        self._history = round(history_seconds * rate)
        self._norms = RunningNorms(units.encoder)
        self._kept: list[np.ndarray] = []  # the samples from `_start` to `_heard`
        self._start = self._heard = self._counted = 0  # samples; the norms know those before `_counted`
        self._final = 0  # frames given out
        self._finished = False

    @property
    def frames(self) -> int:
        """How many frames are final."""
        return self._final

    @property
    def samples(self) -> int:
        """How many samples were heard."""
        return self._heard

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples (T,) at the encoder's rate to the frames (n,) int64 that they make final, often none."""
        if self._finished:
            raise ValueError("the stream is finished; make a new StreamingEncoder for another")
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"expected samples (T,), found {samples.shape}")
        if not np.isfinite(samples).all():
            where = self._heard + int(np.argmin(np.isfinite(samples)))
            raise ValueError(f"sample {where} of the stream is not a finite number")
        found, taken = [], 0
        while taken < len(samples):
            piece = samples[taken : taken + self._due() - self._heard]
            self._kept.append(piece.copy())  # the caller may fill its buffer anew
            taken, self._heard = taken + len(piece), self._heard + len(piece)
            if self._heard == self._due():
                found.append(self._encode(self._final + self._step, self._final + self._step + self._look))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def finish(self) -> np.ndarray:
        """The remaining frames (n,) int64. Raises ValueError when too little was heard for a single one."""
        encoder, self._finished = self.units.encoder, True
        if self._heard < encoder.receptive_field:
            raise ValueError(
                f"the stream ended after {self._heard} samples; the encoder needs "
                f"at least {encoder.receptive_field}"
            )
        total = int(encoder.frames(self._heard))
        return self._encode(total, total) if total > self._final else np.zeros(0, np.int64)

    def _due(self) -> int:
        """Samples after which the next step's frames and their look-ahead are complete."""
        encoder = self.units.encoder
        return (self._final + self._step + self._look - 1) * encoder.hop + encoder.receptive_field

    def _encode(self, stop: int, seen: int) -> np.ndarray:
        """The frames that are not final up to `stop`, from a window that ends before frame `seen`."""
        encoder = self.units.encoder
        kept = np.concatenate(self._kept)
        self._norms.add(kept[self._counted - self._start :])
        self._counted = self._heard
        left = max(0, self._final - self._history)
        window = kept[
            left * encoder.hop - self._start : (seen - 1) * encoder.hop
            + encoder.receptive_field
            - self._start
        ]
        shift, scale = self._norms.level
        piece = torch.from_numpy((window - shift) * scale)[None].to(encoder.device, encoder.dtype)  # 1 T
        layer, group = self.units.layer, self._norms.group
        if (plan := encoder.plan_for(layer, "float32")) is not None:
            features, _ = plan.levelled(piece, group)  # N D
        else:
            with torch.no_grad(), exact_convolutions():
                features = encoder(piece, None, (layer,), statistics=group)[0][0]  # N D
        (found,) = self.units.assign([features[self._final - left : stop - left].float()])
        self._final = stop
        kept = kept[max(0, stop - self._history) * encoder.hop - self._start :]
        self._kept, self._start = [kept.copy()], self._heard - len(kept)
        return found
