"""Runs of one unit collapse to that unit and how long it lasted, and back. Numpy alone."""

from collections.abc import Sequence

import numpy as np


def deduplicate(frames: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames (N,) to units (U,) and durations (U,), int64: `sum(durations) == N`, no neighbours equal."""
    frames = np.asarray(frames, dtype=np.int64)
    if frames.ndim != 1:
        raise ValueError(f"expected frames of shape (N,), found {frames.shape}")
    if len(frames) == 0:
        return frames, frames.copy()
    starts = np.flatnonzero(np.diff(frames, prepend=frames[0] - 1))  # U
    return frames[starts], np.diff(starts, append=len(frames))


def expand(units: Sequence[int] | np.ndarray, durations: Sequence[int] | np.ndarray) -> np.ndarray:
    """Units (U,) and durations (U,) in frames to frames (N,) int64: `expand(*deduplicate(x)) == x`."""
    units, durations = np.asarray(units, dtype=np.int64), np.asarray(durations, dtype=np.int64)
    if units.shape != durations.shape:
        raise ValueError(f"{units.size} units but {durations.size} durations; expected one duration a unit")
    if (durations < 0).any():
        raise ValueError(f"duration {int(durations.min())}; expected at least 0 frames")
    return np.repeat(units, durations)  # N
