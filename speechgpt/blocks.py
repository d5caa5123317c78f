"""The stretches that a turn is made of: fixed tokens, text up to a marker, units up to `<eosp>`."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from speechgpt.vocabulary import Vocabulary

MAX_PERIOD = 8  # units: longer cycles than this are not looked for


@dataclass(frozen=True)
class Limits:
    """What a turn may not exceed."""

    max_units: int = 1000  # about 30 s of speech
    max_text_tokens: int = 256  # of the transcript, and of the answer
    max_repeats: int = 6  # times that a cycle of up to MAX_PERIOD units may come in a row


class Block(Protocol):
    """One stretch of a turn. States are hashable values, so that a prefix can be taken up again."""

    start: Hashable

    def choices(self, state, closing: bool) -> tuple[Hashable, tuple[int, ...]]:
        """(key for `mask`, single tokens to leave out). `closing`: only what ends the block soonest."""

    def mask(self, key) -> np.ndarray:
        """(V,) bool: the tokens that may follow."""

    def advance(self, state, token: int):
        """The state after a token; None where it may not stand."""

    def done(self, state) -> bool: ...

    def cost(self, state) -> int:
        """No fewer than the tokens that end the block from here."""


@dataclass
class Fixed:
    """Exactly these tokens. The state counts those that are done."""

    ids: Sequence[int]
    size: int  # V
    start: int = 0

    def choices(self, state: int, closing: bool) -> tuple[int, tuple[int, ...]]:
        return self.ids[state], ()

    def mask(self, key: int) -> np.ndarray:
        return only([key], self.size)

    def advance(self, state: int, token: int) -> int | None:
        return state + 1 if token == self.ids[state] else None

    def done(self, state: int) -> bool:
        return state == len(self.ids)

    def cost(self, state: int) -> int:
        return len(self.ids) - state


class TextState(NamedTuple):
    tokens: int
    solid: bool  # something that is no white space has come
    ended: bool


class MarkedText:
    """Text that is not blank, then a marker of one token."""

    start = TextState(0, False, False)

    def __init__(self, vocabulary: Vocabulary, marker: str, max_tokens: int):
        self.end, self.max_tokens = vocabulary.single(marker), max_tokens
        self.text, self.solid = _text_masks(vocabulary)

    def choices(self, state: TextState, closing: bool) -> tuple[str, tuple[int, ...]]:
        if closing or state.tokens >= self.max_tokens:
            return ("end" if state.solid else "solid"), ()
        return ("text or end" if state.solid else "text"), ()

    def mask(self, key: str) -> np.ndarray:
        if key == "end":
            return only([self.end], len(self.text))
        if key == "text or end":
            return self.text | only([self.end], len(self.text))
        return self.text if key == "text" else self.solid

    def advance(self, state: TextState, token: int) -> TextState | None:
        if token == self.end:
            return state._replace(ended=True) if state.solid else None
        if not self.text[token]:
            return None
        return TextState(state.tokens + 1, state.solid or bool(self.solid[token]), False)

    def done(self, state: TextState) -> bool:
        return state.ended

    def cost(self, state: TextState) -> int:
        return 1 if state.solid else 2


class UnitState(NamedTuple):
    recent: tuple[int, ...]  # up to the last MAX_PERIOD units, newest last
    runs: tuple[int, ...]  # for each period from 2 on: units in a row that equal the one a period before
    count: int
    ended: bool


class Units:
    """At least one unit, no two equal neighbours, no long cycles, then `<eosp>`."""

    start = UnitState((), (0,) * (MAX_PERIOD - 1), 0, False)

    def __init__(self, vocabulary: Vocabulary, limits: Limits):
        self.v, self.limits, self.end = vocabulary, limits, vocabulary.single("<eosp>")
        self.units = np.zeros(vocabulary.size, dtype=bool)
        self.units[vocabulary.base_size : vocabulary.base_size + vocabulary.num_units] = True

    def choices(self, state: UnitState, closing: bool) -> tuple[str, tuple[int, ...]]:
        if state.count and (closing or state.count >= self.limits.max_units):
            return "end", ()
        return ("units or end" if state.count else "units"), self._unwanted(state)

    def mask(self, key: str) -> np.ndarray:
        if key == "units":
            return self.units
        end = only([self.end], len(self.units))
        return end if key == "end" else self.units | end

    def advance(self, state: UnitState, token: int) -> UnitState | None:
        if token == self.end:
            return state._replace(ended=True) if state.count else None
        if not self.v.is_unit(token) or token in state.recent[-1:]:
            return None
        recent = state.recent
        runs = tuple(
            run + 1 if len(recent) >= period and recent[-period] == token else 0
            for period, run in enumerate(state.runs, 2)
        )
        return UnitState((*recent, token)[-MAX_PERIOD:], runs, state.count + 1, False)

    def done(self, state: UnitState) -> bool:
        return state.ended

    def cost(self, state: UnitState) -> int:
        return 1 if state.count else 2

    def _unwanted(self, state: UnitState) -> tuple[int, ...]:
        unwanted = set(state.recent[-1:])
        for period, run in enumerate(state.runs, 2):
            if run >= period * (self.limits.max_repeats - 1):
                unwanted.add(state.recent[-period])
        return tuple(unwanted)


@lru_cache(maxsize=8)
def _text_masks(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """((V,) bool of text tokens, (V,) bool of those that are no white space)."""
    ids = vocabulary.text_ids()
    solid = [i for i in ids if vocabulary.decode_text([i]).strip()]
    return only(ids, vocabulary.size), only(solid, vocabulary.size)


def only(ids: Sequence[int], size: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[list(ids)] = True
    return mask
