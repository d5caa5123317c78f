"""Text whose end is spelled, not marked: the upstream profile's `; [ta]`, `; [ua]` and `<eoa>`.

Tokens are taken as the characters they spell, and a small automaton over characters decides which tokens may
follow. So it does not matter how the tokenizer cuts a marker into pieces (`>.` may be one, and `");` too).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from speechgpt.upstream_vocabulary import SPECIALS, UpstreamVocabulary
from speechgpt.vocabulary import MARKERS

DIGITS = "0123456789"
UNIT_PATTERN = "<9>"  # stands for any number in angle brackets


class Literal(NamedTuple):
    text: str


class Until(NamedTuple):
    """Text that is not blank and holds no marker, up to and with the string `end`."""

    end: str


class State(NamedTuple):
    element: int  # index of the Literal or Until
    position: int  # characters of a Literal that are done
    items: frozenset[tuple[str, int]]  # (pattern, characters of it that are done), in an Until
    seen: int  # characters that are no white space in this Until, counted as far as they matter
    tokens: int  # in this element


class PieceTable:
    """The characters that each text token spells, sorted for quick masks."""

    def __init__(self, vocabulary: UpstreamVocabulary):
        self.size = vocabulary.size
        self.text = {i: vocabulary.piece_text(i) for i in vocabulary.text_ids()}
        self.by_first: dict[str, list[int]] = {}
        self.by_text: dict[str, int] = {}
        for token, text in self.text.items():
            self.by_first.setdefault(text[0], []).append(token)
            self.by_text.setdefault(text, token)

    def spell(self, text: str) -> list[int]:
        """Tokens that spell `text`, the longest first piece at each step."""
        ids = []
        while text:
            length = next((n for n in range(len(text), 0, -1) if text[:n] in self.by_text), 0)
            if not length:
                raise ValueError(f"the tokenizer has no piece for {text[0]!r}")
            ids.append(self.by_text[text[:length]])
            text = text[length:]
        return ids


@dataclass
class SpelledText:
    """A block of a turn: Literals and Untils in order, in text tokens. `max_tokens` caps every Until."""

    table: PieceTable
    elements: Sequence[Literal | Until]
    max_tokens: int

    @property
    def start(self) -> State:
        return self._enter(0)

    def advance(self, state: State, token: int) -> State | None:
        """The next state (element len(elements) at the block's end); None where the token may not stand."""
        element = state.element
        if token not in self.table.text:
            return None
        for char in self.table.text[token]:
            state = self._step(state, char)
            if state is None:
                return None
        return state._replace(tokens=state.tokens + 1 if state.element == element else 0)

    def done(self, state: State) -> bool:
        return state.element == len(self.elements)

    def choices(self, state: State, closing: bool) -> tuple[tuple, tuple[int, ...]]:
        """(key for `mask`, single tokens to leave out)."""
        until = isinstance(self.elements[state.element], Until)
        closing = closing or (until and state.tokens >= self.max_tokens)
        return (closing, state._replace(tokens=0)), ()

    def cost(self, state: State) -> int:
        """No fewer than the tokens that end the block from here."""
        return sum(self._costs[state.element :])

    def mask(self, key: tuple) -> np.ndarray:
        """(V,) bool: the tokens allowed in a state, or only those that end it soonest."""
        closing, state = key
        allowed = np.zeros(self.table.size, dtype=bool)
        element = self.elements[state.element]
        if closing:
            allowed[self._closing_ids(state)] = True
            return allowed
        if isinstance(element, Literal):
            tokens = self.table.by_first.get(element.text[state.position], [])
        else:
            # Tokens that touch no pattern are allowed as they are; the others are tried one by one.
            expected = {c for pattern, done in state.items for c in _expected(pattern, done)}
            allowed[self._plain] = True
            tokens = [*self._tricky, *(i for c in expected for i in self.table.by_first.get(c, []))]
        for token in tokens:
            allowed[token] = self.advance(state, token) is not None
        return allowed

    def _enter(self, element: int) -> State:
        return State(element, 0, frozenset(), 0, 0)

    def _step(self, state: State, char: str) -> State | None:
        if self.done(state):
            return None
        element = self.elements[state.element]
        if isinstance(element, Literal):
            if element.text[state.position] != char:
                return None
            if state.position + 1 < len(element.text):
                return state._replace(position=state.position + 1)
            return self._enter(state.element + 1)
        end = element.end
        seen = min(state.seen + (not char.isspace()), _solid(end) + 1)
        items, finished = set(), set()
        for pattern, done in [*state.items, *((p, 0) for p in self._forbidden[end])]:
            if char not in _expected(pattern, done):
                continue
            after = 2 if pattern == UNIT_PATTERN and char in DIGITS else done + 1
            (finished if after == len(pattern) else items).add((pattern, after))
        if (end, len(end)) in finished:
            return self._enter(state.element + 1) if seen > _solid(end) else None
        return None if finished else state._replace(items=frozenset(items), seen=seen)

    def _closing_ids(self, state: State) -> list[int]:
        element = self.elements[state.element]
        if isinstance(element, Literal):
            return self.table.spell(element.text[state.position :])[:1]
        if self._blank_cost(state):
            expected = {c for pattern, done in state.items for c in _expected(pattern, done)}
            return [i for i in self._words if self.table.text[i][0] not in expected]
        return self.table.spell(element.end[self._progress(state) :])[:1]

    def _progress(self, state: State) -> int:
        end = self.elements[state.element].end
        return max((done for pattern, done in state.items if pattern == end), default=0)

    def _blank_cost(self, state: State) -> int:
        """1 where the text is still blank, so that a word must come first."""
        if self.done(state) or isinstance(self.elements[state.element], Literal):
            return 0
        end = self.elements[state.element].end
        return int(state.seen <= _solid(end[: self._progress(state)]))

    @cached_property
    def _forbidden(self) -> dict[str, tuple[str, ...]]:
        markers = (*MARKERS, *SPECIALS, UNIT_PATTERN)
        ends = [e.end for e in self.elements if isinstance(e, Until)]
        return {end: (end, *(m for m in markers if m != end)) for end in ends}

    @cached_property
    def _costs(self) -> list[int]:
        def cost(element: Literal | Until) -> int:
            text = element[0]
            spelled = max(len(self.table.spell(text[i:])) for i in range(len(text)))
            return spelled + isinstance(element, Until)  # a word first, where the text is blank

        return [cost(e) for e in self.elements]

    @cached_property
    def _tricky(self) -> list[int]:
        firsts = {pattern[0] for patterns in self._forbidden.values() for pattern in patterns}
        return [i for i, text in self.table.text.items() if firsts & set(text)]

    @cached_property
    def _plain(self) -> np.ndarray:
        tricky = set(self._tricky)
        return np.array([i for i in self.table.text if i not in tricky])

    @cached_property
    def _words(self) -> list[int]:
        return [int(i) for i in self._plain if any(c.isalnum() for c in self.table.text[i])]


def _expected(pattern: str, done: int) -> str:
    """The characters that take a pattern further."""
    if pattern == UNIT_PATTERN:
        return ("<", DIGITS, DIGITS + ">")[done]
    return pattern[done]


def _solid(text: str) -> int:
    return sum(not c.isspace() for c in text)
