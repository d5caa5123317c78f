"""Who listens when speech is scored, and how words are counted.

A judge is anything with a `name`, `hear(waveform, sample_rate) -> str` and `hear_all` for many.
`pocketsphinx` knows nothing of the model that it judges; `self` is the model's own transcription, where
nobody else understands the speech.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from speechgpt.data.audio import RECEPTIVE_FIELD, SAMPLE_RATE, resample
from speechgpt.data.parallel import in_processes
from speechgpt.data.text_normal import normalise

LOUDNESS = 0.7  # peak that every recording is scaled to before pocketsphinx hears it
# With a grammar, pocketsphinx gets what helps it: beams so wide that little is pruned, and quiet around the
# recording, which cut words need.
GRAMMAR = {"lm": None, "bestpath": False, "beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60}
QUIET_SECONDS = 0.25
CHUNK = 20  # recordings that one process hears with one decoder
QUIET = 1e-4  # its standard deviation: digital silence would be a sound of its own


class Judge(Protocol):
    name: str

    def hear(self, waveform: np.ndarray, sample_rate: int) -> str: ...

    def hear_all(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[str]: ...


class Pocketsphinx:
    """pocketsphinx with its own US English acoustic model, and its own language model or a grammar."""

    name = "pocketsphinx"

    def __init__(self, jsgf: str = "") -> None:
        """`jsgf`: a grammar of all that can be said; empty: anything, by pocketsphinx's language model."""
        try:
            from pocketsphinx import Decoder
        except ModuleNotFoundError as error:
            raise ValueError(
                "the judge pocketsphinx is not installed; `pip install speechgpt[judge]`, or `judge: self`"
            ) from error
        self._jsgf = jsgf
        self._decoder = Decoder(samprate=SAMPLE_RATE, loglevel="FATAL", **(GRAMMAR if jsgf else {}))
        if jsgf:
            self._decoder.add_jsgf_string("grammar", jsgf)
            self._decoder.activate_search("grammar")

    def hear(self, waveform: np.ndarray, sample_rate: int) -> str:
        """(T,) float32 at `sample_rate` to normalised words, "" for none, whatever it heard before."""
        if not len(waveform):
            return ""  # of a model that said nothing
        heard = resample(waveform, sample_rate, SAMPLE_RATE)
        heard = heard / max(float(np.abs(heard).max()), 1e-6) * LOUDNESS
        if self._jsgf:
            quiet = round(QUIET_SECONDS * SAMPLE_RATE)
            noise = np.random.default_rng(0).standard_normal(len(heard) + 2 * quiet)
            heard = np.clip(np.pad(heard, quiet) + QUIET * noise, -1, 1)
        self._decoder.reinit_feat()  # else its estimate of the noise goes on from the recording before
        self._decoder.start_utt()
        self._decoder.process_raw((heard * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return normalise(hypothesis.hypstr) if hypothesis else ""

    def hear_all(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """What is heard in each, by a process for each core, and the same whatever their number."""
        work = [
            (first, self._jsgf, waveforms[first : first + CHUNK], sample_rate)
            for first in range(0, len(waveforms), CHUNK)
        ]
        heard = [""] * len(waveforms)
        for first, found in in_processes(_hear_chunk, work):
            heard[first : first + CHUNK] = found
        return heard


def _hear_chunk(work: tuple[int, str, Sequence[np.ndarray], int]) -> tuple[int, list[str]]:
    """One decoder for the chunk, since making it takes as long as hearing a recording."""
    first, jsgf, waveforms, sample_rate = work
    judge = Pocketsphinx(jsgf)
    return first, [judge.hear(waveform, sample_rate) for waveform in waveforms]


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

    def hear_all(self, waveforms: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        return [self.hear(waveform, sample_rate) for waveform in waveforms]


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
