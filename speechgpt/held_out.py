"""What the figures of held-out speech are measured with: model, rows, judge, and work in batches."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.data.draws import draw_some
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.data.qa_file import QuestionAnswer
from speechgpt.data.questions import DIGIT_CORPORA
from speechgpt.data.rows import Utterance
from speechgpt.data.text_normal import normalise
from speechgpt.hearings import Hearings, heard
from speechgpt.judge import Judge, Pocketsphinx
from speechgpt.measures import Measure
from speechgpt.pipeline import SpeechGPT
from speechgpt.right_answers import order_slots
from speechgpt.scores import samples, section

BATCH_SECONDS = 30.0  # padded audio that the encoder takes at once


@dataclass(frozen=True)
class FigureSettings:
    """One figure in eval.yaml."""

    rows: int = 100  # items at most; drawn where there are more
    corpora: tuple[str, ...] = ()  # names; empty: all that fit
    goal: float | None = None  # see the figure

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; expected a whole number from 1")


@dataclass(frozen=True)
class Figure:
    """Measures that are read together, as a section of the report."""

    title: str
    text: str
    measures: tuple[Measure, ...]
    shown: dict[str, Any] | None = None  # samples to look at

    def section(self) -> dict[str, Any]:
        return section(self.title, self.text, list(self.measures), self.shown)


@dataclass
class HeldOut:
    """The rows that nobody trained on, and who answers and judges them."""

    model: SpeechGPT
    judge: Judge
    rows: list[tuple[Utterance, Path]]  # of all splits, with their audio
    questions: list[QuestionAnswer]  # of all splits
    split: str
    seed: int
    _people: dict[Path, str] = field(default_factory=dict, repr=False)

    @property
    def sphinx(self) -> bool:
        """Whether pocketsphinx, which is the judge, can be put beside the model."""
        return isinstance(self.judge, Pocketsphinx)

    @cached_property
    def held(self) -> list[tuple[Utterance, Path]]:
        longest = self.model.model_dir.config.max_question_seconds
        return [(row, path) for row, path in self.rows if row.split == self.split and row.seconds <= longest]

    @cached_property
    def orders(self) -> list[tuple[Utterance, Path]]:
        """Rows whose slots are those of an order."""
        return [(row, path) for row, path in self.held if order_slots(row)]

    @cached_property
    def digits(self) -> list[tuple[Utterance, Path]]:
        return [(row, path) for row, path in self.held if row.corpus in DIGIT_CORPORA]

    def sentences(self, corpora: Sequence[str]) -> list[tuple[Utterance, Path]]:
        """Rows with a text, of these corpora; where none is named all but orders, digits and questions.

        Raises NotMeasuredError for a named corpus without such rows.
        """
        said = [(row, path) for row, path in self.held if normalise(row.text)]
        if corpora:
            there = {row.corpus for row, _ in said}
            if absent := [corpus for corpus in corpora if corpus not in there]:
                raise NotMeasuredError(
                    f"no rows with a text of corpus {', '.join(absent)} in split {self.split!r} of the "
                    f"manifests; corpora there: {', '.join(sorted(filter(None, there))) or 'none'}"
                )
            return [(row, path) for row, path in said if row.corpus in corpora]
        return [(row, path) for row, path in said if _is_sentence(row)]

    def hear_people(self, rows: Sequence[tuple[Utterance, Path]]) -> list[str]:
        """What the judge hears in the recordings themselves, of which it hears each once."""
        new = [(row, path) for row, path in rows if path not in self._people]
        heard = self.judge.hear_all(waveforms_of(new), SAMPLE_RATE)
        self._people |= {path: text for (_, path), text in zip(new, heard, strict=True)}
        return [self._people[path] for _, path in rows]

    def draw(self, items: Sequence, count: int) -> list:
        """`count` of them, the same for the same seed, in their own order."""
        return draw_some(items, count, self.seed)


def _is_sentence(row: Utterance) -> bool:
    asked = ".q" in row.id[-2:] or ".a" in row.id[-2:] or ".q." in row.id or ".a." in row.id
    return not (asked or row.slots or row.corpus in DIGIT_CORPORA)


def needed(rows: list, what: str) -> list:
    if not rows:
        raise NotMeasuredError(f"the manifests have no {what} of the split that is scored")
    return rows


def waveforms_of(rows: Sequence[tuple[Utterance, Path]]) -> list[np.ndarray]:
    """(T,) float32 at 16 kHz each."""
    return [read_audio(path, SAMPLE_RATE) for _, path in rows]


def encode_all(
    model: SpeechGPT, waveforms: Sequence[np.ndarray], kind: str = "speech-text"
) -> list[list[int] | Hearings]:
    """Deduplicated units (U) of each, or its hearings, as the language model takes them."""
    times = model.generator.decoding.hearings_for(kind)
    return [asked for _, asked in heard(model.encoder, waveforms, times, BATCH_SECONDS)]


def transcribe_all(model: SpeechGPT, waveforms: Sequence[np.ndarray]) -> list[str]:
    """As `model.transcribe` writes each down."""
    return model.generator.transcribe_batch(encode_all(model, waveforms, "asr"))


def answer_all(model: SpeechGPT, waveforms: Sequence[np.ndarray], out: str = "text") -> list:
    """As `model.reply` answers each: `speechgpt.answers.Turn`s. `out`: text | speech."""
    return model.generator.turn_batch(encode_all(model, waveforms), out)


def answer_typed(model: SpeechGPT, texts: Sequence[str]) -> list[str]:
    """As `model.reply` answers each text, in text."""
    words = [normalise(t) for t in texts] if model.model_dir.config.plain_text else list(texts)
    return [turn.answer for turn in model.generator.turn_batch(words, "text")]


def say_all(model: SpeechGPT, units: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """As `model.reply` says its units: (T,) at the model's sample rate each."""
    scale = model.model_dir.config.duration_scale
    return model.synthesizer.synthesize([np.asarray(u, np.int64) for u in units], duration_scale=scale)


def wrong_first(right: Sequence[bool], columns: list[str], *lists: Sequence) -> dict[str, Any]:
    """Samples for the page: what went wrong stands before what went right."""
    order = sorted(range(len(right)), key=lambda i: right[i])
    return samples(columns, *([values[i] for i in order] for values in lists))
