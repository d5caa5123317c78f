"""Who listens when speech is scored, and how words are counted.

A judge is anything with a `name` and `hear(waveform, sample_rate) -> str`. `pocketsphinx` knows nothing of
the model that it judges; `self` is the model's own transcription, where nobody else understands the speech.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from speechgpt.data.audio import RECEPTIVE_FIELD, SAMPLE_RATE, resample
from speechgpt.data.text_normal import normalise

LOUDNESS = 0.7  # peak that every recording is scaled to before pocketsphinx hears it


class Judge(Protocol):
    name: str

    def hear(self, waveform: np.ndarray, sample_rate: int) -> str: ...


class Pocketsphinx:
    """pocketsphinx with its own US English acoustic and language model."""

    name = "pocketsphinx"

    def __init__(self) -> None:
        try:
            from pocketsphinx import Decoder
        except ModuleNotFoundError as error:
            raise ValueError(
                "the judge pocketsphinx is not installed; `pip install speechgpt[judge]`, or `judge: self`"
            ) from error
        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def hear(self, waveform: np.ndarray, sample_rate: int) -> str:
        """(T,) float32 at `sample_rate` to normalised words, "" when nothing is heard."""
        heard = resample(waveform, sample_rate, SAMPLE_RATE)
        heard = heard / max(float(np.abs(heard).max(initial=0.0)), 1e-6) * LOUDNESS
        self._decoder.start_utt()
        self._decoder.process_raw((heard * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return normalise(hypothesis.hypstr) if hypothesis else ""


class SelfJudge:
    """The model's own transcription: shows that the loop closes, not that a person would understand."""

    name = "self"

    def __init__(self, transcribe: Callable[[np.ndarray], str], longest: float = float("inf")) -> None:
        """`longest`: seconds of a recording that are heard, since a bad model may not stop speaking."""
        self._transcribe, self._longest = transcribe, longest

    def hear(self, waveform: np.ndarray, sample_rate: int) -> str:
        """(T,) float32 at `sample_rate` to normalised words, "" when there is nothing to hear."""
        heard = resample(waveform, sample_rate, SAMPLE_RATE)
        heard = heard[: int(min(self._longest * SAMPLE_RATE, len(heard)))]
        if len(heard) < RECEPTIVE_FIELD or not heard.any():
            return ""
        return normalise(self._transcribe(heard))


def load_judge(name: str, transcribe: Callable[[np.ndarray], str], longest: float = float("inf")) -> Judge:
    if name == Pocketsphinx.name:
        return Pocketsphinx()
    if name == SelfJudge.name:
        return SelfJudge(transcribe, longest)
    raise ValueError(f"unknown judge {name!r}; known: pocketsphinx, self")


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """(substitutions + deletions + insertions, reference words) of two texts after `normalise`."""
    try:
        import jiwer
    except ModuleNotFoundError as error:
        raise ValueError("word errors are counted by jiwer; `pip install speechgpt[judge]`") from error

    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return len(hypothesis.split()), 0
    found = jiwer.process_words(reference, hypothesis)
    return found.substitutions + found.deletions + found.insertions, len(reference.split())
