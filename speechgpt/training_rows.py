"""Made-up rows with the lengths of the published stage 2 (SpeechInstruct, cross-modal): random ids.

The published set has about 9 million unit-text pairs of GigaSpeech, Common Voice and LibriSpeech. Known of
these: 10,000 h in 8.3 M, 2,400 h in 1.7 M and 960 h in 0.28 M utterances, so 4.3, 5.1 and 12.3 s on average.
Assumed: log-normal lengths for the first two (sigma 0.6 and 0.4), and LibriSpeech's two humps (a third evenly
from 1.5 to 12 s, the rest about 15 s, a few up to 35 s). Speech has 33 deduplicated units and 3.6 text tokens
a second; the prefix and the descriptions have their true words, at 1.3 tokens a word.
"""

import numpy as np

from speechgpt.data.instruct import TASKS, read_descriptions
from speechgpt.data.published import PREFIX

UNITS_PER_SECOND = 33.0
TEXT_TOKENS_PER_SECOND = 3.6
TOKENS_PER_WORD = 1.3
TEMPLATE_TOKENS = 12  # "[Human]: ", "This is input: ", "<eoh> [SpeechGPT]: ", "<s>": about
CLOSING_TOKENS = 4  # "<eoa> " (three pieces) and "</s>"
PIECES, UNITS, VOCABULARY = 32_000, 1000, 33_006
SHARES = {"gigaspeech": 8.3, "common voice": 1.7, "librispeech": 0.28}  # million utterances


def seconds_of_speech(corpus: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) seconds of drawn utterances."""
    if corpus == "librispeech":
        short = rng.uniform(1.5, 12, count)
        usual, long = rng.triangular(12, 15.2, 17, count), rng.uniform(17, 35, count)
        hump = rng.random(count)
        return np.where(hump < 0.35, short, np.where(hump < 0.98, usual, long))
    mean, sigma, most = {"gigaspeech": (4.35, 0.6, 20.0), "common voice": (5.1, 0.4, 15.0)}[corpus]
    return np.clip(rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count), 0.6, most)


def drawn_seconds(speech: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) of one corpus, or of all by their shares if `speech` is "published"."""
    if speech != "published":
        return seconds_of_speech(speech, count, rng)
    share = np.array([*SHARES.values()]) / sum(SHARES.values())
    corpus = rng.choice(len(SHARES), size=count, p=share)
    drawn = np.stack([seconds_of_speech(name, count, rng) for name in SHARES])  # corpora count
    return drawn[corpus, np.arange(count)]


def training_rows(
    count: int, speech: str = "published", seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Rows (ids (L,) int64, loss mask (L,) bool, 0): recognition or synthesis, the answer supervised."""
    rng = np.random.default_rng([seed, 7])
    described = [
        [TOKENS_PER_WORD * len(line.split()) for line in read_descriptions(TASKS / f"{task}.txt")]
        for task in ("asr", "tts")
    ]
    prefix = TOKENS_PER_WORD * len(PREFIX.split())
    rows = []
    for seconds in drawn_seconds(speech, count, rng):
        task = int(rng.integers(2))
        speech_ids = rng.integers(PIECES, PIECES + UNITS, round(seconds * UNITS_PER_SECOND) + 2)
        text_ids = rng.integers(3, PIECES, max(1, round(seconds * TEXT_TOKENS_PER_SECOND)))
        given, wanted = (speech_ids, text_ids) if task == 0 else (text_ids, speech_ids)
        before = round(prefix + rng.choice(described[task])) + TEMPLATE_TOKENS
        parts = rng.integers(3, PIECES, before), given, wanted, rng.integers(3, PIECES, CLOSING_TOKENS)
        ids = np.concatenate(parts)
        rows.append((ids, np.arange(len(ids)) >= before + len(given), 0))
    return rows
