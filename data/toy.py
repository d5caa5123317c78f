"""The toy corpus: a dozen words spoken by a formant synthesiser in numpy, so that it needs no other program.

Every phone is its own spectral shape, every speaker its own pitch and vocal tract length, and phone ends are
exact, so that a tiny model can learn all of it in seconds. Not speech that a person would want to hear.
"""

import argparse
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechgpt.data.audio import SAMPLE_RATE, write_wav
from speechgpt.data.files import write_jsonl
from speechgpt.data.rows import Utterance, write_manifest
from speechgpt.data.settings import load_settings

LEXICON = {
    "see": ("S", "IY"),
    "moo": ("M", "UW"),
    "low": ("L", "OW"),
    "moss": ("M", "AA", "S"),
    "less": ("L", "EH", "S"),
    "soon": ("S", "UW", "N"),
    "me": ("M", "IY"),
    "no": ("N", "OW"),
    "lawn": ("L", "AA", "N"),
    "solo": ("S", "OW", "L", "OW"),
    "men": ("M", "EH", "N"),
    "lean": ("L", "IY", "N"),
}
PARTNER = {"moo": "lawn", "low": "men", "moss": "solo", "less": "lean"}  # what is asked -> what is answered
PARTNER |= {answer: asked for asked, answer in PARTNER.items()}
WORDINGS = ("see {}", "me see {}", "see {} soon", "soon see {}")
HELD_OUT = {2: (0, 1, 2, 3), 3: (4, 5, 6, 7)}  # wording -> words that training never asks in it


@dataclass(frozen=True)
class Sound:
    formants: tuple[float, float, float]  # Hz, of an adult male
    voice: float  # gain of the harmonic source
    noise: float  # gain of the noise source
    seconds: float  # mean duration


SOUNDS = {
    "SIL": Sound((500, 1500, 2500), 0.0, 0.002, 0.14),
    "AA": Sound((750, 1150, 2500), 1.0, 0.01, 0.16),
    "IY": Sound((280, 2300, 3000), 1.0, 0.01, 0.15),
    "UW": Sound((320, 850, 2300), 1.0, 0.01, 0.15),
    "EH": Sound((560, 1800, 2550), 1.0, 0.01, 0.14),
    "OW": Sound((480, 900, 2450), 1.0, 0.01, 0.16),
    "S": Sound((5000, 6000, 7000), 0.0, 0.5, 0.13),
    "M": Sound((240, 1000, 2100), 0.45, 0.01, 0.10),
    "N": Sound((260, 1650, 2700), 0.45, 0.01, 0.10),
    "L": Sound((360, 1250, 2900), 0.6, 0.01, 0.09),
}


@dataclass(frozen=True)
class Speaker:
    name: str
    pitch: float  # Hz
    tract: float  # formants are multiplied by this: shorter vocal tracts resonate higher
    split: str


SPEAKERS = (
    Speaker("toy-a", 110, 1.00, "train"),
    Speaker("toy-b", 190, 1.14, "train"),
    Speaker("toy-c", 140, 0.94, "train"),
    Speaker("toy-d", 160, 1.07, "dev"),
    Speaker("toy-e", 125, 1.03, "test"),
)


@dataclass(frozen=True)
class ToyConfig:
    seed: int = 0
    sentences: int = 48  # besides the questions, which all voices of a split ask, and the answers
    words: list[int] = field(default_factory=lambda: [3, 6])  # fewest and most words of a sentence
    held_out: int = 6  # sentences for dev, and as many for test

    @classmethod
    def load(cls, path: str | Path) -> "ToyConfig":
        return load_settings(cls, path)


def phones_of(text: str, rng: random.Random) -> list[tuple[str, float]]:
    """[(phone, end in seconds), ...] with random durations and pauses; begins and ends in silence."""
    labels = ["SIL"]
    for word in text.split():
        if word not in LEXICON:
            raise ValueError(f"word {word!r} is not in the toy lexicon; known: {', '.join(LEXICON)}")
        labels += LEXICON[word]
        if rng.random() < 0.1:
            labels.append("SIL")
    labels += [] if labels[-1] == "SIL" else ["SIL"]
    timed, end = [], 0.0
    for label in labels:
        end += SOUNDS[label].seconds * rng.uniform(0.8, 1.25)
        timed.append((label, round(end, 4)))
    return timed


def speak(phones: list[tuple[str, float]], speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Source and filter: returns (T,) float32 whose phones end where `phones` says."""
    samples = round(phones[-1][1] * SAMPLE_RATE)
    pitch = speaker.pitch * (1.08 - 0.16 * np.linspace(0, 1, samples)) * rng.uniform(0.96, 1.04)  # T
    phase = np.cumsum(pitch / SAMPLE_RATE)
    pulses = np.diff(np.floor(phase), prepend=0.0) * np.sqrt(SAMPLE_RATE / speaker.pitch)  # T
    window, hop = 512, 128
    frames = samples // hop + 1  # N
    spectrum = {}
    for name, source in (("voice", pulses), ("noise", rng.standard_normal(samples))):
        padded = np.pad(source, (window // 2, window + hop))  # T -> T + 3/2 window + hop
        pieces = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:frames]  # N window
        spectrum[name] = np.fft.rfft(pieces * np.hanning(window))  # N window -> N F
    shape = _envelopes(phones, speaker, frames, hop, window)  # N F, twice
    mixed = np.fft.irfft(spectrum["voice"] * shape[0] + spectrum["noise"] * shape[1])  # N F -> N window
    out = np.zeros(frames * hop + window)
    for n, piece in enumerate(mixed):
        out[n * hop : n * hop + window] += piece
    out = out[window // 2 : window // 2 + samples]  # T
    return (0.5 * out / np.abs(out).max()).astype(np.float32)


def _envelopes(phones, speaker: Speaker, frames: int, hop: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Spectral gains (N, F) of the voiced and of the noise source, moving smoothly between phones."""
    ends = np.array([end for _, end in phones])
    which = np.searchsorted(ends, np.arange(frames) * hop / SAMPLE_RATE).clip(max=len(phones) - 1)
    frequency = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)  # F
    tilt = 1 / (1 + (frequency / 900))  # the glottis: about -6 dB an octave
    voiced, noisy = [], []
    for label, _ in phones:
        sound = SOUNDS[label]
        peaks = sum(
            (90 + 0.06 * f) ** 2 / ((frequency - f * speaker.tract) ** 2 + (90 + 0.06 * f) ** 2)
            for f in sound.formants
        )
        voiced.append(sound.voice * peaks * tilt)
        noisy.append(sound.noise * peaks)
    smooth = np.hanning(5)[1:-1] / np.hanning(5).sum()

    def moving(gains: list[np.ndarray]) -> np.ndarray:
        track = np.pad(np.array(gains)[which], ((1, 1), (0, 0)), mode="edge")  # N+2 F
        return sum(s * track[i : i + frames] for i, s in enumerate(smooth))  # N F

    return moving(voiced), moving(noisy)


def sentences(config: ToyConfig) -> list[tuple[str, str, str]]:
    """[(id, text, split), ...]; no text is in two splits."""
    low, high = config.words
    rng = random.Random(config.seed)
    words = list(LEXICON)
    texts: list[str] = []
    while len(texts) < config.sentences:
        text = " ".join(rng.choice(words) for _ in range(rng.randint(low, high)))
        if text not in texts:
            texts.append(text)
    held = config.held_out
    splits = ["test"] * held + ["dev"] * held + ["train"] * max(0, len(texts) - 2 * held)
    return [(f"toy{n:04d}", t, s) for n, (t, s) in enumerate(zip(texts, splits, strict=False))]


def questions() -> list[dict]:
    """Question-answer rows: every word is asked in every wording, each word once in dev or in test."""
    rows = []
    for number, (asked, answer) in enumerate(PARTNER.items()):
        for wording, pattern in enumerate(WORDINGS):
            split = ("dev", "test")[number % 2] if number in HELD_OUT.get(wording, ()) else "train"
            row = {"id": f"toy.q{number}{'abcd'[wording]}", "question": pattern.format(asked)}
            rows.append(row | {"answer": f"no {answer}", "split": split, "answer_id": row["id"]})
    return rows


def build(config: ToyConfig, out: Path) -> int:
    """Writes OUT/wavs/*.wav, OUT/qa.jsonl and, last, OUT/manifest.jsonl; returns the number of utterances."""
    by_split: dict[str, list[Speaker]] = {}
    for speaker in SPEAKERS:
        by_split.setdefault(speaker.split, []).append(speaker)
    spoken = [(i, text, split, None) for i, text, split in sentences(config)]
    for row in (rows := questions()):
        for speaker in by_split[row["split"]]:
            spoken.append((f"{row['id']}.q.{speaker.name}", row["question"], row["split"], speaker))
        # The answering voice belongs to train, so that no split shares a speaker with another.
        spoken.append((f"{row['answer_id']}.a", row["answer"], SPEAKERS[0].split, SPEAKERS[0]))
    manifest = []
    for identity, text, split, speaker in spoken:
        seed = zlib.crc32(f"{config.seed} {identity}".encode())  # one utterance does not depend on the others
        rng = random.Random(seed)
        speaker = speaker or rng.choice(by_split[split])
        phones = phones_of(text, rng)
        waveform = speak(phones, speaker, np.random.default_rng(seed))  # T
        path = Path("wavs") / f"{identity}.wav"
        write_wav(out / path, waveform)
        seconds = len(waveform) / SAMPLE_RATE
        timed = [list(p) for p in phones]
        manifest.append(
            Utterance(identity, str(path), seconds, speaker.name, "toy", text, split, phones=timed)
        )
    write_jsonl(out / "qa.jsonl", rows)
    return write_manifest(out / "manifest.jsonl", manifest)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt toy-corpus", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, help="YAML: seed, sentences, words, held_out")
    parser.add_argument("--out", type=Path, required=True, help="folder for wavs/, manifest.jsonl, qa.jsonl")
    args = parser.parse_args(argv)
    config = ToyConfig.load(args.config) if args.config else ToyConfig()
    count = build(config, args.out)
    print(f"{args.out}/manifest.jsonl: {count} utterances, {args.out}/qa.jsonl: {len(questions())} questions")
    return 0
