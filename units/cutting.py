"""Recordings cut short at both ends, with the phones that are left of them."""

import random
from collections.abc import Sequence

import numpy as np

from speechgpt.data.audio import SAMPLE_RATE

SHORTEST = 0.12  # seconds that cutting its ends leaves of a recording
ROUNDING = 1e-6  # seconds; a phone that lasts no longer is none
LEVEL_SAMPLES = SAMPLE_RATE // 100  # one level for each 10 ms


def cut_ends(
    waveform: np.ndarray, quiet_db: Sequence[float] | None, share: float, seed: int, name: str
) -> tuple[np.ndarray, int]:
    """(T,) to (T',) without its quiet ends, then without up to `share` of the rest at each end; and how many
    samples it lost in front.

    Quiet is what lies so many decibels below the loudest 10 ms, drawn from `quiet_db` (least, most) for each
    end: recordings that were cut where they fall silent lost what is soft, the consonants of a "six" as well.
    None leaves the quiet ends on. The draws depend on `seed` and `name` alone.
    """
    quiet = 0
    if quiet_db:
        waveform, quiet = _without_quiet_ends(waveform, quiet_db, seed, name)
    waveform, more = _without_shares(waveform, share, seed, name)
    return waveform, quiet + more


def _without_shares(waveform: np.ndarray, share: float, seed: int, name: str) -> tuple[np.ndarray, int]:
    rng = random.Random(f"{seed} trim {name}")
    front, back = (round(rng.uniform(0, share) * len(waveform)) for _ in range(2))
    return _without(waveform, front, back)


def _without_quiet_ends(
    waveform: np.ndarray, decibels: Sequence[float], seed: int, name: str
) -> tuple[np.ndarray, int]:
    rng = random.Random(f"{seed} quiet {name}")
    whole = len(waveform) // LEVEL_SAMPLES
    if not whole:
        return waveform, 0
    levels = np.square(waveform[: whole * LEVEL_SAMPLES]).reshape(whole, LEVEL_SAMPLES).mean(1)  # T / 160
    front, back = (
        int(np.argmax(heard >= levels.max() * 10 ** (-rng.uniform(*decibels) / 10))) * LEVEL_SAMPLES
        for heard in (levels, levels[::-1])
    )
    return _without(waveform, front, back)


def _without(waveform: np.ndarray, front: int, back: int) -> tuple[np.ndarray, int]:
    """(T,) to (T',) without so many samples, or fewer, so that `SHORTEST` is left; how many in front."""
    room = max(0, len(waveform) - round(SHORTEST * SAMPLE_RATE))
    if front + back > room:
        front, back = front * room // (front + back), back * room // (front + back)
    return waveform[front : len(waveform) - back], front


def cut_phones(phones: list, begin: float, seconds: float) -> list[list]:
    """[[phone, end in seconds], ...] to those of the `seconds` that begin at `begin`."""
    kept: list[list] = []
    for phone, end in phones:
        if end > begin and (not kept or kept[-1][1] < seconds - ROUNDING):
            kept.append([phone, min(end - begin, seconds)])
    return kept


def retime_phones(phones: list, scale: float) -> list[list]:
    """[[phone, end in seconds], ...] of a recording to those of a copy that lasts `scale` times as long."""
    return [[phone, round(end * scale, 4)] for phone, end in phones]
