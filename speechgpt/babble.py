"""Recordings with other people talking behind them, at a level that is asked for."""

from collections.abc import Sequence

import numpy as np

VOICES = 8  # recordings that talk at once
# Levels are those of the loudest stretch, as in the published test of spoken orders
# (github.com/Picovoice/speech-to-intent-benchmark, benchmark/mixer.py).
STRETCH = 2048  # samples, 0.128 s at 16 kHz
LOUDEST = 0.5  # peak of a mixture


def loudest(waveform: np.ndarray) -> float:
    """Energy of the loudest stretch of (T,)."""
    whole = waveform[: max(len(waveform) // STRETCH, 1) * STRETCH]
    power = np.square(np.pad(whole, (0, -len(whole) % STRETCH)), dtype=np.float64)
    return float(power.reshape(-1, STRETCH).sum(axis=1).max())


def babble(voices: Sequence[np.ndarray], samples: int, rng: np.random.Generator) -> np.ndarray:
    """(T,) float32: some of the voices at once, equally loud, each from a random place and over again."""
    mixed = np.zeros(samples, np.float64)
    for number in rng.permutation(len(voices))[:VOICES]:
        voice = voices[number]
        start = int(rng.integers(len(voice)))
        mixed += np.resize(np.roll(voice, -start), samples) / max(float(np.sqrt(np.mean(voice**2))), 1e-9)
    return mixed.astype(np.float32)


def add_babble(
    waveform: np.ndarray, voices: Sequence[np.ndarray], snr_db: float, rng: np.random.Generator
) -> np.ndarray:
    """(T,) float32 with babble `snr_db` under it; (T,) float32 that peaks at `LOUDEST`."""
    noise = babble(voices, len(waveform), rng)
    scale = np.sqrt(loudest(waveform) / (max(loudest(noise), 1e-12) * 10 ** (snr_db / 10)))
    noisy = waveform + scale * noise
    return (noisy * (LOUDEST / max(float(np.abs(noisy).max()), 1e-9))).astype(np.float32)
