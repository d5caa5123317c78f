"""Phones as labels of frames: what aligners and synthesisers say was spoken when."""

import numpy as np

from speechgpt.units.audio_pool import IGNORED

SILENCE = "SIL"
PHONES = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG "
    "OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)


def frame_centres(frames: int, hop: int, field: int, rate: int) -> np.ndarray:
    """Where the centre of each frame lies, (N,) float64, in seconds."""
    return (np.arange(frames) * hop + field / 2) / rate


def phone_labels(phones: list, frames: int, hop: int, field: int, rate: int, states: int) -> np.ndarray:
    """[[phone, end in seconds], ...] to the state under each frame's centre (N,) int16; no phones: IGNORED.

    Class `p * states + s` is the s-th part of phone p; silence is the last class, with one state.
    """
    if not phones:
        return np.full(frames, IGNORED, dtype=np.int16)
    numbers = {phone: i * states for i, phone in enumerate(PHONES)} | {SILENCE: len(PHONES) * states}
    if unknown := {name for name, _ in phones} - numbers.keys():
        raise ValueError(f"unknown phone {', '.join(sorted(unknown))}; expected {' '.join(PHONES)} {SILENCE}")
    ends = np.array([end for _, end in phones], dtype=np.float64)
    starts = np.concatenate([[0.0], ends[:-1]])
    centres = frame_centres(frames, hop, field, rate)  # N
    place = np.minimum(np.searchsorted(ends, centres, side="right"), len(ends) - 1)
    share = (centres - starts[place]) / np.maximum(ends[place] - starts[place], 1e-6)
    state = np.clip((share * states).astype(np.int64), 0, states - 1)
    base = np.array([numbers[name] for name, _ in phones])[place]
    return np.where(base == numbers[SILENCE], base, base + state).astype(np.int16)
