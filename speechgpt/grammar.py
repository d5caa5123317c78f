"""Decoding that cannot produce a malformed turn.

A turn is a sequence of blocks: fixed tokens, text up to a marker, units up to `<eosp>`. Each block says which
tokens may follow, and how many tokens its end costs at most, so that a turn is always closed in time.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from speechgpt.blocks import Block, Fixed, Limits, MarkedText, Units, only
from speechgpt.spelled_text import Literal, PieceTable, SpelledText, Until
from speechgpt.vocabulary import Vocabulary

KINDS = ("asr", "tts", "chat", "speech-speech", "speech-text", "text-speech", "text-text")


class TurnState(NamedTuple):
    block: int
    inner: Hashable  # the block's own state
    dead: bool = False  # a token came that the grammar forbids: nothing after it matters


class TurnMachine:
    """The grammar of one kind of turn, as a machine over tokens. Shared by all turns of the kind."""

    def __init__(self, vocabulary: Vocabulary, kind: str, limits: Limits):
        if kind not in KINDS:
            raise ValueError(f"unknown kind of turn {kind!r}; expected one of {', '.join(KINDS)}")
        self.size, self.eos = vocabulary.size, vocabulary.eos_id
        upstream = vocabulary.profile == "upstream"
        blocks = (_upstream_blocks if upstream else _native_blocks)(vocabulary, kind, limits)
        self.blocks: list[Block] = [*blocks, Fixed([vocabulary.eos_id], vocabulary.size)]
        self._later = [sum(b.cost(b.start) for b in self.blocks[i + 1 :]) for i in range(len(self.blocks))]
        self._masks: dict[tuple, tuple[torch.Tensor, bool]] = {}
        # (wanted, other): both end the answer's text, and the caller, not the model, decides which comes.
        self.same_end: tuple[int, int] | None = None
        if not upstream and "-" in kind:
            ends = (vocabulary.single("ua"), vocabulary.single("eoa"))
            self.same_end = ends if kind.endswith("-speech") else ends[::-1]
        self.start = TurnState(0, self.blocks[0].start)
        self.shortest = self.cost(self.start)  # tokens that any turn of this kind needs, its end included

    def finished(self, state: TurnState) -> bool:
        return state.dead or state.block == len(self.blocks)

    def cost(self, state: TurnState) -> int:
        """Tokens that close the turn from here, at most."""
        if self.finished(state):
            return 0
        return self.blocks[state.block].cost(state.inner) + self._later[state.block]

    def advance(self, state: TurnState, token: int) -> TurnState:
        if self.finished(state):
            return state
        block = self.blocks[state.block]
        inner = block.advance(state.inner, token)
        if inner is None:
            return state._replace(dead=True)
        if not block.done(inner):
            return state._replace(inner=inner)
        after = state.block + 1
        return TurnState(after, self.blocks[after].start if after < len(self.blocks) else None)

    def choices(self, state: TurnState, remaining: int) -> tuple[tuple, tuple[int, ...]]:
        """(key for `forbidden`, single tokens to leave out) with `remaining` tokens to go."""
        if self.finished(state):
            return ("eos",), ()
        key, unwanted = self.blocks[state.block].choices(state.inner, remaining <= self.cost(state))
        return (state.block, key), unwanted

    def forbidden(self, key: tuple, device: torch.device, width: int) -> torch.Tensor:
        """(width,) bool: True for tokens that may not follow. `width` may exceed the vocabulary."""
        return self._mask(key, device, width)[0]

    def _mask(self, key: tuple, device: torch.device, width: int) -> tuple[torch.Tensor, bool]:
        """(the mask, whether the answer's text may end here): kept on the device that it was asked for."""
        found = self._masks.get((key, device, width))
        if found is None:
            allowed = np.zeros(width, dtype=bool)
            own = only([self.eos], self.size) if key == ("eos",) else self.blocks[key[0]].mask(key[1])
            allowed[: self.size] = own
            ends = self.same_end is not None and bool(allowed[self.same_end[0]])
            found = self._masks[(key, device, width)] = (torch.from_numpy(~allowed).to(device), ends)
        return found

    def filter(self, states: Sequence[TurnState], remaining: int, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V), one state a row -> (B, V), minus infinity where forbidden.

        Only for masks that it has not seen yet does it wait for the device.
        """
        chosen = [self.choices(state, remaining) for state in states]
        masks = [self._mask(key, scores.device, scores.shape[-1]) for key, _ in chosen]
        if any(ends for _, ends in masks):
            wanted, other = self.same_end
            scores = scores.clone()
            # After the units too `<eoa>` follows `<eosp>`, where the grammar leaves nothing else.
            scores[:, wanted] = torch.maximum(scores[:, wanted], scores[:, other])
        same = all(mask is masks[0][0] for mask, _ in masks)
        forbidden = masks[0][0] if same else torch.stack([mask for mask, _ in masks])
        scores = scores.masked_fill(forbidden, float("-inf"))
        width = scores.shape[-1]
        if places := [row * width + token for row, (_, unwanted) in enumerate(chosen) for token in unwanted]:
            # From pinned memory the copy is queued like other work; a plain one would wait for the device.
            found = torch.tensor(places, pin_memory=scores.is_cuda).to(scores.device, non_blocking=True)
            scores.view(-1).index_fill_(0, found, float("-inf"))
        return scores


@lru_cache(maxsize=64)
def turn_machine(vocabulary: Vocabulary, kind: str, limits: Limits) -> TurnMachine:
    """Machines are kept, because their masks are worth keeping."""
    return TurnMachine(vocabulary, kind, limits)


class TurnGrammar:
    """Lets only well-formed turns of one kind through, under any way of decoding, for any batch.

    It is a logits processor for transformers' `generate`, though transformers is not imported. All rows of a
    batch have the same (padded) `prompt_length`. One object serves one call of `generate`.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        kind: str,
        prompt_length: int,
        max_new_tokens: int,
        max_units: int = Limits.max_units,
        max_text_tokens: int = Limits.max_text_tokens,
        max_repeats: int = Limits.max_repeats,
    ):
        self.machine = turn_machine(vocabulary, kind, Limits(max_units, max_text_tokens, max_repeats))
        if max_new_tokens < self.machine.shortest:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; a {kind} turn needs {self.machine.shortest}"
            )
        self.prompt_length, self.max_new_tokens = prompt_length, max_new_tokens
        self._rows: list[tuple[list[int], list[TurnState]]] = []  # (tokens, the states before each and after)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids` (B, L) with the prompt, `scores` (B, V) -> (B, V), minus infinity where forbidden."""
        rows = input_ids[:, self.prompt_length :].tolist()
        remaining = self.max_new_tokens - (input_ids.shape[1] - self.prompt_length)
        followed = [self._follow(tokens, i) for i, tokens in enumerate(rows)]
        self._rows = followed
        return self.machine.filter([states[-1] for _, states in followed], remaining, scores)

    def _follow(self, tokens: list[int], row: int) -> tuple[list[int], list[TurnState]]:
        """Takes the row up where it, or another one (beams are reordered), was left; else where they part."""
        known = self._rows[row : row + 1] + self._rows
        best = next((k for k in known if tokens[:-1] == k[0]), None)
        if best is None:
            best = max(known, key=lambda k: _common(k[0], tokens), default=([], [self.machine.start]))
        shared = _common(best[0], tokens)
        states = best[1][: shared + 1]
        for token in tokens[shared:]:
            states.append(self.machine.advance(states[-1], token))
        return tokens, states


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    if a == b[: len(a)]:
        return len(a)
    return next(i for i, (x, y) in enumerate(zip([*a, None], [*b, -1], strict=False)) if x != y)


def _native_blocks(v: Vocabulary, kind: str, limits: Limits) -> list[Block]:
    def text(marker: str) -> MarkedText:
        return MarkedText(v, marker, limits.max_text_tokens)

    def fixed(*markers: str) -> Fixed:
        return Fixed([v.single(m) for m in markers], v.size)

    units = [fixed("<sosp>"), Units(v, limits), fixed("<eoa>")]
    if kind in ("asr", "tts"):
        return units if kind == "tts" else [text("<eoa>")]
    heard = [text("[ta]")] if kind.startswith("speech-") else [fixed("[ta]")]
    return [*heard, text("[ua]"), *units] if kind.endswith("-speech") else [*heard, text("<eoa>")]


def _upstream_blocks(v: Vocabulary, kind: str, limits: Limits) -> list[Block]:
    table = _piece_table(v)

    def spelled(*elements: Literal | Until) -> SpelledText:
        return SpelledText(table, elements, limits.max_text_tokens)

    def units(end: str) -> list[Block]:
        return [Fixed(v.marker("<sosp>"), v.size), Units(v, limits), Fixed(v.encode_template(end), v.size)]

    space = Literal(" ")
    if kind == "tts":
        return units("<eoa> ")
    if kind in ("asr", "chat"):
        return [spelled(space, Until("<eoa>"), space)]
    heard = [space, Until("; [ta]")] if kind.startswith("speech-") else [Literal(" [ta]")]
    if kind.endswith("-speech"):
        return [spelled(*heard, space, Until("; [ua]")), *units("<eoa>.")]
    return [spelled(*heard, space, Until("<eoa>"), Literal("."))]


@lru_cache(maxsize=8)
def _piece_table(vocabulary: Vocabulary) -> PieceTable:
    return PieceTable(vocabulary)
