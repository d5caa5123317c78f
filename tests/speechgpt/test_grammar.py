import random
import time

import pytest
import torch

from speechgpt.data.dialogue_rows import ChainRow, InstructRow
from speechgpt.grammar import KINDS, Limits, TurnGrammar, TurnMachine, turn_machine
from speechgpt.prompts import PromptFormat

TEXT = "the capital is (paris); so"


def rows(kind: str):
    if kind == "asr":
        return InstructRow("x", kind, description="Do it.", text=TEXT, units=[1, 2])
    if kind == "tts":
        return InstructRow("x", kind, description="Do it.", text=TEXT, units=[1, 2, 1, 3])
    if kind == "chat":
        return InstructRow("x", kind, question=TEXT, answer=TEXT)
    units = {"question_units": [1, 2]} if kind.startswith("speech") else {}
    units |= {"answer_units": [1, 2, 1, 3]} if kind.endswith("-speech") else {}
    return ChainRow("x", kind, TEXT, TEXT, **units)


def walk(vocabulary, kind: str, limit: int, limits: Limits, seed: int, lean: str = "") -> list[int]:
    """Random tokens under the grammar; `lean` makes text or units never end of themselves."""
    random.seed(seed)
    machine = turn_machine(vocabulary, kind, limits)
    state, ids = machine.start, []
    stops = {
        vocabulary.single("<eosp>"),
        *vocabulary.marker("<eoa>"),
        *vocabulary.marker("ta"),
        *vocabulary.marker("ua"),
    }
    while not machine.finished(state):
        key, unwanted = machine.choices(state, limit - len(ids))
        forbidden = machine.forbidden(key, torch.device("cpu"), vocabulary.size)
        allowed = [i for i in (~forbidden).nonzero().flatten().tolist() if i not in unwanted]
        assert allowed
        if lean == "never end":
            allowed = [i for i in allowed if i not in stops] or allowed
        elif lean == "end":
            allowed = [i for i in allowed if i in stops] or allowed
        ids.append(random.choice(allowed))
        state = machine.advance(state, ids[-1])
    assert not state.dead
    return ids


def check(vocabulary, kind: str, ids: list[int], limit: int, limits: Limits) -> None:
    assert len(ids) <= limit and ids[-1] == vocabulary.eos_id and ids.count(vocabulary.eos_id) == 1
    turn = PromptFormat(vocabulary).parse(ids, kind)
    assert turn.complete
    assert bool(turn.transcript.strip()) == (kind == "asr" or kind.startswith("speech-"))
    assert bool(turn.answer.strip()) == (kind not in ("asr", "tts"))
    assert bool(turn.units) == (kind == "tts" or kind.endswith("-speech"))
    assert len(turn.units) <= limits.max_units
    assert all(a != b for a, b in zip(turn.units, turn.units[1:], strict=False))


@pytest.mark.parametrize("kind", KINDS)
def test_training_answers_pass(vocabulary, kind):
    rendered = PromptFormat(vocabulary).render(rows(kind))
    answer = rendered.ids[rendered.prompt_length :]
    machine = TurnMachine(vocabulary, kind, Limits())
    state = machine.start
    for position, token in enumerate(answer):
        key, unwanted = machine.choices(state, 100)
        assert not machine.forbidden(key, torch.device("cpu"), vocabulary.size)[token], position
        assert token not in unwanted
        state = machine.advance(state, token)
    assert machine.finished(state) and not state.dead


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lean", ["", "never end", "end"])
def test_any_walk_is_a_well_formed_turn_within_the_limit(vocabulary, kind, lean):
    limits = Limits(max_units=9, max_text_tokens=7)
    shortest = turn_machine(vocabulary, kind, limits).shortest
    for limit in [*range(shortest, shortest + 14), 90]:
        check(vocabulary, kind, walk(vocabulary, kind, limit, limits, limit, lean), limit, limits)


def test_caps(vocabulary):
    limits = Limits(max_units=5, max_text_tokens=4)
    ids = walk(vocabulary, "speech-speech", 500, limits, 3, "never end")
    assert len(PromptFormat(vocabulary).parse(ids).units) == 5
    assert len(ids) < 50


def test_long_cycles_of_units_are_cut(vocabulary):
    machine = turn_machine(vocabulary, "tts", Limits(max_repeats=3))
    state = machine.advance(machine.start, vocabulary.single("<sosp>"))
    cycle = [vocabulary.unit_id(u) for u in (1, 2, 3)]
    for token in cycle * 3:
        assert token not in machine.choices(state, 500)[1]
        state = machine.advance(state, token)
    assert set(machine.choices(state, 500)[1]) == {cycle[0], cycle[2]}  # a fourth time, and a neighbour
    state = machine.advance(state, vocabulary.unit_id(9))
    assert machine.choices(state, 500)[1] == (vocabulary.unit_id(9),)


def test_upstream_text_cannot_spell_markers_or_units(upstream):
    """However the pieces are cut, and whatever stands before."""
    machine = turn_machine(upstream, "speech-text", Limits(max_text_tokens=100))

    def ends(text: str) -> str:
        state = machine.start
        for char in text:
            state = machine.advance(state, upstream.pieces.piece_to_id("▁" if char == " " else char))
        return "dead" if state.dead else "done" if state.block == 1 else str(state.inner.element)

    assert ends(" hi; [ta] a <b> [c] <1 2; 3>") == "3"
    for text in (
        " hi <12>",
        " hi <007>",
        " <eoa>",
        " x[ta]",
        " x; [ua]",
        " </s>",
        " [Human]",
        " <<s>",
        " ; [ta]",
    ):
        assert ends(text) == "dead", text
    assert (
        ends(" hi;; [ta]") == "2" and ends(" hi; [ta] x<eoa>") == "4" and ends(" hi; [ta] x<<eoa>.") == "done"
    )
    assert ends(" hi; [ta] x<eoa>!") == "dead"


def test_processor_equals_the_machine_whatever_the_history(vocabulary):
    """Rows grow, swap places as beams do, and go back as rejected drafts do."""
    torch.manual_seed(0)
    kind, limits = "speech-speech", Limits(max_units=6, max_text_tokens=5)
    grammar = TurnGrammar(vocabulary, kind, 2, 60, max_units=6, max_text_tokens=5)
    walks = [walk(vocabulary, kind, 60, limits, seed) for seed in range(3)]
    machine = turn_machine(vocabulary, kind, limits)
    scores = torch.randn(3, vocabulary.size + 5)  # a padded embedding table

    def expected(ids: list[int]) -> list[int]:
        state = machine.start
        for token in ids:
            state = machine.advance(state, token)
        key, unwanted = machine.choices(state, 60 - len(ids))
        forbidden = machine.forbidden(key, torch.device("cpu"), scores.shape[1])
        return [i for i in (~forbidden).nonzero().flatten().tolist() if i not in unwanted]

    for step, length in enumerate([0, 1, 2, 3, 4, 3, 5, 2, 8, 9, 9, 1, 12]):
        order = [(step + i) % 3 for i in range(3)]
        prefixes = [(walks[i] + [vocabulary.pad_id] * 12)[:length] for i in order]
        out = grammar(torch.tensor([[7, 7, *ids] for ids in prefixes]), scores)
        for row, ids in zip(out, prefixes, strict=True):
            assert row.isfinite().nonzero().flatten().tolist() == expected(ids)
            assert not row.isnan().any()


def test_a_forbidden_draft_does_no_harm(vocabulary):
    grammar = TurnGrammar(vocabulary, "asr", 1, 30)
    out = grammar(
        torch.tensor([[7, vocabulary.unit_id(3), vocabulary.unit_id(3)]]), torch.zeros(1, vocabulary.size)
    )
    assert out.isfinite().sum() == 1
    assert grammar(torch.tensor([[7]]), torch.zeros(1, vocabulary.size)).isfinite().sum() > 10


def test_too_little_room_and_unknown_kinds_are_refused(vocabulary):
    with pytest.raises(ValueError, match="a speech-speech turn needs"):
        TurnGrammar(vocabulary, "speech-speech", 1, 5)
    with pytest.raises(ValueError, match="unknown kind"):
        TurnGrammar(vocabulary, "song", 1, 500)


def test_masks_are_made_once(upstream):
    machine = TurnMachine(upstream, "speech-speech", Limits())
    walks = [walk(upstream, "speech-speech", 200, Limits(), seed) for seed in range(2)]
    del walks
    state, started = machine.start, time.perf_counter()
    for _ in range(200):
        machine.forbidden(machine.choices(state, 500)[0], torch.device("cpu"), upstream.size)
    assert time.perf_counter() - started < 1
