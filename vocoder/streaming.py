"""Units to sound while the units still arrive: joined, the pieces equal the whole utterance's waveform.

A sample depends on the frames within the generator's reach, a duration on the units within the predictor's:
both finite and known from the config. So a piece is final once that much is known to its right, and it comes
from a window with that much to either side: the zero padding at the window's edges cannot reach what is kept.
"""

from collections.abc import Sequence

import numpy as np

from speechgpt.vocoder.synthesize import Synthesizer

CHUNK_FRAMES = 25  # half a second at 50 Hz
FIRST_CHUNK_FRAMES = 10  # smaller, because somebody waits for it
MOST_FRAMES = 500  # of one piece: bounds the memory when very many units come at once


class StreamingSynthesizer:
    """Units as they arrive to samples as soon as they are final; joined, they equal `Synthesizer.synthesize`
    of all units to float error.

    It keeps the context alone, however long the stream. After `finish` it is ready for another utterance.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        speaker: "str | int | np.ndarray | None" = None,
        duration_scale: float = 1.0,
        right_frames: int | None = None,
        chunk_frames: int = CHUNK_FRAMES,
        first_chunk_frames: int = FIRST_CHUNK_FRAMES,
    ):
        """`right_frames`: context to the right that a frame waits for. None is exact: the generator's whole
        reach. Fewer come sooner and err; those may then also be of units whose durations are not final.
        Durations wait for their whole reach in either mode: with less, every unit would look like the last
        one of the utterance. `chunk_frames`: the fewest frames of a piece, `first_chunk_frames` of the first
        one. Raises ValueError for a vocoder without a duration predictor, an unknown speaker, or numbers out
        of range.
        """
        config = synthesizer.vocoder.config
        if not config.duration_predictor:
            raise ValueError("this vocoder has no duration predictor, so it cannot speak units as they come")
        for name, value in (("chunk_frames", chunk_frames), ("first_chunk_frames", first_chunk_frames)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if right_frames is not None and right_frames < 0:
            raise ValueError(f"right_frames is {right_frames}, expected at least 0, or None for exact sound")
        if not duration_scale > 0:
            raise ValueError(f"duration_scale is {duration_scale}, expected a number above 0")
        synthesizer.speaker(speaker, 1)  # refuses an unknown one
        self.synthesizer, self.speaker, self.duration_scale = synthesizer, speaker, duration_scale
        self.left_frames, reach = config.frame_reach
        self.exact = right_frames is None or right_frames >= reach
        self.right_frames = reach if self.exact else right_frames
        self.unit_reach = config.unit_reach
        self.chunk_frames, self.first_chunk_frames = chunk_frames, first_chunk_frames
        self.fixed = synthesizer.vocoder.device.type == "cuda"  # windows of few lengths, captured beforehand
        synthesizer.prepare(self._window_lengths(), speaker)
        self._reset()

    def _window_lengths(self) -> list[int]:
        """Frames of the windows of all pieces but the last ones."""
        lengths, spoken, wanted = [], 0, self.first_chunk_frames
        while not lengths or spoken < self.left_frames + self.chunk_frames:
            lengths.append(min(spoken, self.left_frames) + wanted + self.right_frames)
            spoken, wanted = spoken + wanted, self.chunk_frames
        return sorted(set(lengths))

    def _reset(self) -> None:
        self._units = np.zeros(0, np.int64)  # context, then those whose durations are not fixed yet
        self._unit_context = 0  # units of it that are context
        self._frames = np.zeros(0, np.int64)  # context, then those that are not spoken yet
        self._frame_context = 0  # frames of it that are context
        self._wanted = self.first_chunk_frames  # fewest frames of the next piece

    def push(self, units: Sequence[int]) -> np.ndarray:
        """The samples (T,) float32 that have become final with these units (U,): often none.

        Raises ValueError, as `Synthesizer` does, for a unit out of range; the stream then stays as it was.
        """
        units = self.synthesizer.check(units)
        if not len(units):
            return np.zeros(0, np.float32)
        self._units = np.concatenate([self._units, units])
        return self._speak(self._fix_durations(self.unit_reach), last=False)

    def finish(self) -> np.ndarray:
        """The rest (T,) float32, now that no unit follows."""
        rest = self._speak(self._fix_durations(0), last=True)
        self._reset()
        return rest

    def _fix_durations(self, wait: int) -> np.ndarray:
        """Moves all but the last `wait` units to the frames, for good; returns the frames of those that wait,
        as they look now.
        """
        if len(self._units) == self._unit_context:
            return np.zeros(0, np.int64)
        durations = self.synthesizer.durations([self._units], self.speaker, self.duration_scale)[0]  # U
        fixed = max(len(self._units) - wait, self._unit_context)
        new = slice(self._unit_context, fixed)
        self._frames = np.concatenate([self._frames, np.repeat(self._units[new], durations[new])])
        waiting = np.repeat(self._units[fixed:], durations[fixed:])
        start = max(0, fixed - self.unit_reach)
        self._units, self._unit_context = self._units[start:], fixed - start
        return waiting

    def _speak(self, waiting: np.ndarray, last: bool) -> np.ndarray:
        """The pieces (T,) that have their context; `waiting` are frames (N,) that may still change."""
        waiting = waiting[:0] if self.exact else waiting[: self.right_frames]
        pieces = [np.zeros(0, np.float32)]
        while True:
            unspoken = len(self._frames) - self._frame_context
            ready = unspoken if last else min(unspoken, unspoken + len(waiting) - self.right_frames)
            if ready < (1 if last else self._wanted):
                return np.concatenate(pieces)
            pieces.append(self._piece(min(ready, self._wanted if self.fixed else MOST_FRAMES), waiting))
            self._wanted = self.chunk_frames

    def _piece(self, count: int, waiting: np.ndarray) -> np.ndarray:
        """The next `count` frames' samples (count * hop,); they become context."""
        start, stop = self._frame_context, self._frame_context + count
        window = np.concatenate([self._frames, waiting])[: stop + self.right_frames]  # N
        sound = self.synthesizer.speak([window], self.speaker)[0]  # N*hop
        hop, dropped = self.synthesizer.hop, max(0, stop - self.left_frames)
        self._frames, self._frame_context = self._frames[dropped:], stop - dropped
        return sound[start * hop : stop * hop]
