"""Sound with the lengths of LibriSpeech and something of the variety of speech, for measurements."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from speechgpt.data.rows import Utterance, write_manifest

RATE = 16_000  # Hz
PHONES, PHONE_SECONDS = 64, 0.2
# LibriSpeech's training rows: most are cut at 12 to 17 s, the others shorter; its longest has 35 s.
USUAL_SECONDS, USUAL_SPREAD, USUAL_SHARE, SHORTEST, LONGEST = 14.3, 1.3, 0.68, 1.3, 35.0
LONG_SHARE = 0.02


def lengths_of_speech(count: int, seed: int = 0) -> np.ndarray:
    """Seconds (count,) between 1 and 35, 12.3 on average."""
    random = np.random.default_rng(seed)
    usual = random.normal(USUAL_SECONDS, USUAL_SPREAD, count)
    short = random.uniform(SHORTEST, USUAL_SECONDS, count)
    long = random.uniform(USUAL_SECONDS, LONGEST, count)
    kind = random.random(count)
    found = np.where(kind < USUAL_SHARE, usual, np.where(kind < 1 - LONG_SHARE, short, long))
    return found.clip(1.0, LONGEST)


class MadeUpSpeech:
    """Sequences of sounds: buzzes of changing pitch under three formants, hisses, and near silence."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        place = np.arange(int(PHONE_SECONDS * RATE)) / RATE
        self.phones = []  # (T,) float32 each
        for number in range(PHONES):
            pitch = random.uniform(80, 250)
            formants = np.cumsum(random.uniform((250, 400, 600), (900, 1300, 1500)))
            partials = pitch * np.arange(1, int(7000 / pitch))
            gains = sum(np.exp(-(((partials - f) / 150) ** 2)) for f in formants)
            phase = 2 * np.pi * partials[:, None] * place * (1 + random.uniform(-0.2, 0.2) * place)
            voiced = (gains[:, None] * np.sin(phase)).sum(0)
            hiss = np.convolve(random.standard_normal(len(place)), random.standard_normal(4), mode="same")
            sound = (voiced + 0.02 * hiss, 0.3 * hiss, 0.01 * hiss)[min(2, number * 4 // PHONES // 2)]
            self.phones.append((sound * np.hanning(len(place)) ** 0.3).astype(np.float32))

    def waveform(self, seconds: float, seed: int) -> np.ndarray:
        """(T,) float32."""
        random = np.random.default_rng(seed)
        size, parts, made = int(seconds * RATE), [], 0
        while made < size:
            phone = self.phones[random.integers(PHONES)]
            phone = phone[: int(len(phone) * random.uniform(0.3, 1))] * random.uniform(0.3, 1)
            parts.append(phone)
            made += len(phone)
        sound = np.concatenate(parts)[:size]
        sound = sound + 0.002 * random.standard_normal(size)
        return (10 ** random.uniform(-1.3, -0.3) * sound / np.abs(sound).max()).astype(np.float32)


def speech(seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Waveforms of LibriSpeech-like lengths, about `seconds` in all."""
    source, lengths = MadeUpSpeech(seed), lengths_of_speech(max(2, round(seconds / 12.3)), seed)
    return [source.waveform(length, seed + number) for number, length in enumerate(lengths)]


def write_corpus(folder: Path, files: int, rows: int, seed: int = 0) -> tuple[Path, float]:
    """Writes `files` FLAC files and a manifest of `rows` rows over them; returns it and its seconds."""
    import soundfile

    speech, seconds = MadeUpSpeech(seed), lengths_of_speech(files, seed)

    def write(number: int) -> None:
        if not (path := folder / f"{number}.flac").exists():
            soundfile.write(path, speech.waveform(seconds[number], seed + number), RATE, subtype="PCM_16")

    with ThreadPoolExecutor() as threads:
        list(threads.map(write, range(files)))
    exact = [int(length * RATE) / RATE for length in seconds]
    chosen = np.arange(rows) % files
    utterances = (Utterance(f"row{n}", f"{i}.flac", exact[i]) for n, i in enumerate(chosen))
    write_manifest(folder / "manifest.jsonl", utterances)
    return folder / "manifest.jsonl", sum(exact[i] for i in chosen)
