"""The latency benchmark, quick: its figures mean nothing, but it must run and say the turn that it fixes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechgpt import latency_benchmark
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.fixed_turn import PIECES, ROWS, TOY, fixed_model, noise, write_tokenizer
from speechgpt.units.machine import Machine


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("cpu", quick=True)


def check(found: list, names: list[str]) -> None:
    assert [m.part for m in found] == names
    for measured in found:
        assert measured.unit == "s" and measured.lower_is_better
        assert measured.ours > 0 and measured.baseline > 0


def test_a_fixed_turn_is_said_whatever_the_weights(tmp_path):
    model = fixed_model(TOY, torch.device("cpu"), tmp_path)
    assert model.generator.vocabulary.size == ROWS
    replies = [model.reply(noise(seed)) for seed in (3, 4)]
    assert not np.array_equal(replies[0].question_frames, replies[1].question_frames)
    for reply in replies:
        assert reply.transcript == reply.answer == "a a a a a"
        assert len(reply.units) == TOY.units and model.generator.timings.new_tokens == len(
            model.generator.answer
        )
        frames = len(reply.waveform) / model.synthesizer.hop / TOY.units
        assert 1.2 < frames < 1.8
    released = latency_benchmark.ReleasedWay(model, model.generator.answer)
    assert released._decoded([1, 2, 3], 10_000) == list(model.generator.answer)


def test_the_tokenizer_has_llamas_pieces(tmp_path):
    import sentencepiece

    write_tokenizer(tmp_path / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert pieces.get_piece_size() == PIECES and pieces.decode(pieces.encode("a a b")) == "a a b"


def test_a_turn_of_large_sizes(machine):
    found = list(latency_benchmark.large_turn(machine, True))
    kinds = ["first sound of a turn of 7B sizes, exact", "first sound of a turn of 7B sizes, low latency"]
    check(found, [*kinds, "whole answer of a turn of 7B sizes, spoken"])
    assert found[0].limit > 0 and found[0].ours < found[2].ours


def test_each_figure_has_its_machine(machine):
    with pytest.raises(NotMeasuredError, match="on a GPU"):
        next(latency_benchmark.large_turn(machine, False))
    for part in (latency_benchmark.start_up, latency_benchmark.mini_turn):
        with pytest.raises(NotMeasuredError, match="on a CPU"):
            next(part(SimpleNamespace(kind="cuda"), False))


def test_a_mini_turn(machine):
    found = list(latency_benchmark.mini_turn(machine, True))
    kinds = ["first sound of a mini turn, exact", "first sound of a mini turn, low latency"]
    check(found, [*kinds, "whole answer of a mini turn, spoken"])
    assert found[0].ours < found[2].ours


@pytest.mark.slow
def test_a_start(machine):
    (found,) = latency_benchmark.start_up(machine, True)
    check([found], ["start-up of `talk` with mini, to the first file's encoding"])
    assert found.limit > 0 and found.baseline > found.ours  # transformers alone takes twice as long as torch


def test_a_start_that_fails_says_why(machine, monkeypatch):
    monkeypatch.setattr(latency_benchmark, "OURS", "raise SystemExit('no model')")
    with pytest.raises(RuntimeError, match="no model"):
        next(latency_benchmark.start_up(machine, True))


def test_figures_are_medians_and_the_worst_stall():
    some = [
        latency_benchmark.Latency(first, first + 1, stall, 7) for first, stall in ((3, 0), (1, 0.5), (2, 0.1))
    ]
    assert latency_benchmark.middle(some) == latency_benchmark.Latency(2, 3, 0.5, 7)


def test_the_parts_are_in_the_benchmark():
    from speechgpt.bench import AREAS

    assert (
        "speechgpt.latency_benchmark" in AREAS
        and Path(latency_benchmark.__file__).name == "latency_benchmark.py"
    )
