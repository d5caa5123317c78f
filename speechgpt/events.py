"""What a turn gives while it is answered: text that was heard, the answer's text, sound, the whole reply; and
when it gave it.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

MARKS = ("encode", "first_token", "first_sound", "total")


@dataclass(frozen=True)
class HeardText:
    """The next piece of the question's transcript; of a typed question its words, at once."""

    text: str


@dataclass(frozen=True)
class AnswerText:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class Sound:
    """The next piece of the spoken answer."""

    waveform: np.ndarray = field(repr=False)  # (T,) float32 in [-1, 1]
    sample_rate: int  # Hz


@dataclass(frozen=True)
class Reply:
    """One answered turn. Earlier replies, given as `history`, make a conversation of several turns."""

    transcript: str  # the question as the model heard it, or as it was typed
    answer: str  # what the model says
    units: np.ndarray  # (U,) int64, the answer's deduplicated units; empty without speech
    waveform: np.ndarray | None = field(
        repr=False
    )  # (T,) float32 in [-1, 1], the answer; None without speech
    sample_rate: int  # Hz, of `waveform`
    seconds_in: float  # length of the spoken question; 0 when it was typed
    timings: dict[str, float | None]  # encode, first_token, first_sound, total: seconds since the call
    stalls: float  # seconds that who plays the sound as it comes would have waited after it began
    question_frames: np.ndarray = field(repr=False)  # (N,) int64, a unit a frame; empty when it was typed
    turn: tuple[Any, Any] = field(
        repr=False
    )  # (question, speechgpt.answers.Turn), for the next turn's history


Event = HeardText | AnswerText | Sound | Reply


class TurnClock:
    """Seconds of work since it was made, at named moments; each name counts once.

    It also plays: sound that comes after all that came before it has been heard makes a stall.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._marks: dict[str, float] = {}
        self._played_until = 0.0
        self.stalls = 0.0

    def now(self) -> float:
        return time.perf_counter() - self._start

    def mark(self, name: str, seconds: float | None = None) -> None:
        self._marks.setdefault(name, self.now() if seconds is None else seconds)

    def play(self, seconds: float) -> None:
        """So much sound is there now."""
        now = self.now()
        if "first_sound" in self._marks:
            self.stalls += max(0.0, now - self._played_until)
        self.mark("first_sound", now)
        self._played_until = max(self._played_until, now) + seconds

    def timed(self, events: Iterator[T]) -> Iterator[T]:
        """The same events. While their consumer has one, which may play it, the clock stands."""
        for event in events:
            left = time.perf_counter()
            yield event
            self._start += time.perf_counter() - left

    def timings(self) -> dict[str, float | None]:
        self.mark("total")
        return {name: self._marks.get(name) for name in MARKS}
