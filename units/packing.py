"""Where the rows of a batch lie when they are laid end to end, so that nothing is padded.

Every row begins at a multiple of the hop, and therefore at a whole position of every convolution; what
convolutions make over the seam between two rows is a frame or two, which nobody reads.
"""

from collections.abc import Sequence

import numpy as np

PIECE_SLOTS = 32  # slots summed at a time, so that a GPU sums a long row in many places at once


class Packing:
    """Rows of `lengths` samples. All arrays are int64 on the host; what a device needs goes in one piece."""

    def __init__(
        self, lengths: Sequence[int], frames: Sequence[int], hop: int, gap: int = 0, block: int = 1
    ) -> None:
        """frames: of each row. gap, block: frames between two rows, and what their starts are multiples of,
        where the positional convolution sees them."""
        self.lengths, self.frames = np.asarray(lengths, np.int64), np.asarray(frames, np.int64)  # B
        self.hop = hop
        self.slots = -(-self.lengths // hop)  # B, hops from one row's start to the next one's
        self.starts = self.slots.cumsum() - self.slots  # B, in hops
        self.total_slots, self.total_frames = int(self.slots.sum()), int(self.frames.sum())
        self.edges = np.concatenate([[0], self.frames.cumsum()])  # B + 1, among the frames that are read
        # The gap follows a row's last whole block: all of that is made from what lies near it.
        spaced = -(-(-(-self.frames // block) * block + gap) // block) * block  # B
        self.spaced_total = int(spaced.sum())
        self._spaced_starts = spaced.cumsum() - spaced

    def frame_index(self) -> np.ndarray:
        """(sum of N,): which of the frames that the convolutions made are read."""
        return self._places(self.starts)

    def spaced_index(self) -> np.ndarray:
        """(sum of N,): where they lie with gaps between the rows."""
        return self._places(self._spaced_starts)

    def _places(self, starts: np.ndarray) -> np.ndarray:
        within = np.arange(self.total_frames) - np.repeat(self.edges[:-1], self.frames)
        return within + np.repeat(starts, self.frames)

    def row_of_slot(self) -> np.ndarray:
        """(slots,): the row that each hop belongs to."""
        return np.repeat(np.arange(len(self.slots)), self.slots)

    def pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Slots of each piece (pieces,), of `PIECE_SLOTS` at most, none over a row's end; each row's number
        of pieces (B,)."""
        counts = -(-self.slots // PIECE_SLOTS)  # B
        sizes = np.full(counts.sum(), PIECE_SLOTS)
        sizes[counts.cumsum() - 1] = self.slots - (counts - 1) * PIECE_SLOTS
        return sizes, counts

    def fill(self, waveforms: Sequence[np.ndarray], out: np.ndarray) -> None:
        """Writes waveforms (T,) into `out` (slots * hop,) float32, zero after each row's end."""
        for start, slots, waveform in zip(self.starts, self.slots, waveforms, strict=True):
            place = out[start * self.hop : (start + slots) * self.hop]
            place[: len(waveform)] = waveform
            place[len(waveform) :] = 0
