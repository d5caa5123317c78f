"""Units as the language model says them to sound in time: a short piece at once, then longer and longer ones.

Every piece costs its context anew, and the first is waited for. Let sound be made r times faster than it is
heard. When A seconds of it are made, c of them in the first piece, the other A - c were made while that was
played, in (A - c) / r, so A - (A - c) / r are still to be heard. Pieces that grow by g make the next one
c + (g - 1) A long, which takes 1/r of that. So a player that starts with the first piece never starves while
g is at most r. On a GPU context costs next to nothing, and windows of few lengths are captured beforehand:
there all later pieces are as long as g allows the second one to be.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from speechgpt.vocoder.synthesize import Synthesizer

FIRST_SECONDS = 0.2  # of sound in the first piece
GROWTH = 1.5  # of a piece on the one before it
LONGEST_SECONDS = 2.0
UNITS_AT_ONCE = (
    4  # that are handed to the vocoder: each time it predicts durations, which a unit alone is not worth
)
LOW_LATENCY_SECONDS = (
    0.16  # of context to the right, in place of the generator's whole reach: 23 dB above its error
)


class PacedSpeech:
    """Deduplicated units one by one to pieces of sound, which joined equal the whole answer's waveform."""

    def __init__(self, synthesizer: "Synthesizer", duration_scale: float, low_latency: bool) -> None:
        """`low_latency` does not wait for all of the context, and errs a little for it."""
        from speechgpt.vocoder.streaming import StreamingSynthesizer

        rate = synthesizer.sample_rate / synthesizer.hop  # frames a second
        self._frames, self._longest = round(FIRST_SECONDS * rate), round(LONGEST_SECONDS * rate)
        self._growing = synthesizer.vocoder.device.type == "cpu"
        self._stream = StreamingSynthesizer(
            synthesizer,
            duration_scale=duration_scale,
            right_frames=round(LOW_LATENCY_SECONDS * rate) if low_latency else None,
            first_chunk_frames=self._frames,
            chunk_frames=self._next_size(),
        )
        self._waiting: list[int] = []

    def _next_size(self) -> int:
        self._frames = min(self._longest, max(self._frames + 1, round(GROWTH * self._frames)))
        return self._frames

    def push(self, unit: int) -> np.ndarray:
        """The samples (T,) float32 that are final with this unit: often none."""
        self._waiting.append(unit)
        if len(self._waiting) < UNITS_AT_ONCE:
            return np.zeros(0, np.float32)
        units, self._waiting = self._waiting, []
        sound = self._stream.push(units)
        if len(sound) and self._growing:
            self._stream.chunk_frames = self._next_size()
        return sound

    def finish(self) -> np.ndarray:
        """The rest (T,) float32."""
        sound = self._stream.push(self._waiting)
        self._waiting = []
        return np.concatenate([sound, self._stream.finish()])
