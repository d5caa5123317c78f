import pytest
import torch

from speechgpt.data.measurement import NotMeasuredError
from speechgpt.decoding_benchmark import _agreement, _large, _prompt, _released, parts
from speechgpt.units.machine import Machine


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine("cpu", quick=True)


@pytest.mark.parametrize("name", [n for n in parts if "tiles" not in n])
def test_every_part_measures_something(machine, name):
    found = list(parts[name](machine, True))
    assert found and all(m.ours > 0 and m.limit > 0 for m in found)
    if name.endswith("mini"):
        assert "1 of 1 answers have transformers' tokens" in found[0].note
    if name.endswith("one turn"):
        assert all("all 4 tokens the same" in m.note for m in found)


def test_what_cannot_be_measured_here_says_so(machine):
    for name in ("language model, one turn", "language model, tiles of the kernels"):
        with pytest.raises(NotMeasuredError):
            list(parts[name](machine, False))


def test_another_answer_is_found_out(machine):
    decoder = _large(machine, True)
    prompt = _prompt(decoder, True)
    _, tokens, logits = _released(decoder, prompt, 4, machine)
    other = [*tokens[:2], tokens[2] + 1, tokens[3]]
    assert "up to 2 of 4, NOT a tie" in _agreement(decoder, prompt, other, logits, "auto")
    tied = logits[2].clone()
    tied[tokens[2] + 1] = tied.max() + torch.finfo(torch.float32).eps
    assert "up to 2 of 4, a tie" in _agreement(decoder, prompt, other, [*logits[:2], tied, logits[3]], "auto")
