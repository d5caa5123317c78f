"""The vocoder's parts of `speechgpt bench` run on toy sizes and say what they compare."""

import re

import pytest
import torch

from speechgpt.data.measurement import NotMeasuredError
from speechgpt.units.machine import Machine
from speechgpt.vocoder import benchmark_speaking
from speechgpt.vocoder.architecture import VocoderConfig
from speechgpt.vocoder.benchmark import parts
from speechgpt.vocoder.benchmark_speaking import multiplications, random_vocoder
from speechgpt.vocoder.benchmark_training import training
from speechgpt.vocoder.generator import UnitVocoder


@pytest.mark.parametrize("name", parts)
def test_every_part_runs(name):
    try:
        found = list(parts[name](Machine("cpu", quick=True), True))
    except NotMeasuredError as reason:
        pytest.skip(str(reason))
    assert found
    for entry in found:
        assert entry.ours > 0 and (entry.baseline is None or entry.baseline > 0) and entry.note


def test_the_published_generator_takes_eight_billion_multiplications_a_second():
    config = VocoderConfig()
    assert 50 * multiplications(config) == pytest.approx(8.02e9, rel=0.002)
    from torch.utils.flop_counter import FlopCounterMode

    small = VocoderConfig(num_units=9, embedding_dim=8, initial_channels=32)
    model = UnitVocoder(small)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 50, dtype=torch.int64))
    # At the edges the counter counts taps on padding as well.
    assert counter.get_total_flops() == pytest.approx(2 * 50 * multiplications(small), rel=0.05)


def test_random_weights_are_heard():
    model = random_vocoder(Machine("cpu", quick=True), True)
    with torch.inference_mode():
        sound = model(torch.arange(40)[None])
    assert 0.1 < sound.std() < 0.9
    assert 1 <= model.durations(torch.arange(40)[None]).float().mean() <= 2


def test_variants_of_the_training_find_the_released_losses():
    """Where the padding is SpeechBrain's, the first steps' losses are those of its modules, in bf16."""
    for entry in training(Machine("cpu", quick=True), True):
        if "zeros" not in entry.note:
            found, released = re.search(r"features (\S+), .*? \((\S+),", entry.note).groups()
            assert float(found) == pytest.approx(float(released), rel=0.02)
            found, released = re.search(r"discriminator (\S+), .*? \((\S+),", entry.note).groups()
            assert float(found) == pytest.approx(float(released), rel=0.01)


def test_a_variant_that_fails_does_not_end_the_part(monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no such\nkernel")

    machine = Machine("cpu", quick=True)
    monkeypatch.setattr(benchmark_speaking, "Synthesizer", broken)
    assert not list(benchmark_speaking._each(machine, None, "speech", None))
    assert "speech, float32, folded: failed: no such kernel" in capsys.readouterr().err
