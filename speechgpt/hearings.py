"""A recording heard several times, at other speeds: what one hearing mistakes, the others often do not.

The language model reads each hearing's units by itself, and what it thinks of the next token is averaged
(speechgpt.averaged_scores).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from speechgpt.data.audio import RECEPTIVE_FIELD, resample

if TYPE_CHECKING:
    from speechgpt.prompts import Asked, Question
    from speechgpt.units.unit_encoder import UnitEncoder

# Times as fast as it was said; the first hearing is of the recording as it is, the others slower and faster
# by turns. Measured on mini, four beams, with all five and with the first alone, words wrong of 42 sentences:
# a diphone voice that it was not trained on 35.4 and 42.1 %, two that it was 13.7 and 15.3, 10.5 and 12.9 %,
# a person 28.2 and 26.3 %; of 94 others of hers 26.7 and 29.0 %.
SPEEDS = (1.0, 0.93, 1.07, 0.87, 1.13)


@dataclass(frozen=True)
class Hearings:
    """A spoken question, heard several times."""

    units: tuple[Sequence[int], ...]  # (U) of each hearing; the first is of the recording as it is

    def __post_init__(self):
        if not self.units:
            raise ValueError("a question without hearings; expected the units of at least one")


def hearings_of(question: "Asked") -> "Sequence[Question]":
    """The units of each hearing; of a question that is one text or one sequence of units, itself alone."""
    return question.units if isinstance(question, Hearings) else (question,)


def heard(
    encoder: "UnitEncoder", waveforms: Sequence[np.ndarray], times: int, batch_seconds: float | None = None
) -> list[tuple[np.ndarray, list[int] | Hearings]]:
    """Waveforms (T,) at the encoder's rate -> of each its frames (N,) int64, and what the language model is
    asked with: deduplicated units, or `Hearings` of them when it is heard more than once."""
    from speechgpt.units.dedup import deduplicate

    rate = encoder.encoder.sample_rate
    every = [copy for waveform in waveforms for copy in at_speeds(waveform, rate, times)]
    frames = encoder.encode(every, batch_seconds)
    found = []
    for first in range(0, len(frames), times):
        units = tuple(deduplicate(some)[0].tolist() for some in frames[first : first + times])
        found.append((frames[first], Hearings(units) if times > 1 else units[0]))
    return found


def at_speeds(waveform: np.ndarray, rate: int, times: int) -> list[np.ndarray]:
    """(T,) at `rate` Hz, and (T / speed,) float32 at each further speed; pitch goes with the speed."""
    copies = [waveform]
    for speed in SPEEDS[1:times]:
        faster = resample(waveform, round(rate * speed), rate)
        # The shortest recordings would have no frame when they are said faster.
        copies.append(np.pad(faster, (0, max(0, RECEPTIVE_FIELD - len(faster)))))
    return copies
