"""The benchmark's parts run on toy sizes, and their figures are what they say."""

import mmap

import pytest

from speechgpt.data.measurement import Growth, Measurement
from speechgpt.units import benchmark
from speechgpt.units.encoder import Encoder
from speechgpt.units.growth import peak_memory
from speechgpt.units.machine import Machine
from speechgpt.units.made_up_speech import lengths_of_speech
from speechgpt.units.operations import flops_a_second


@pytest.fixture(scope="module")
def machine():
    return Machine("cpu", quick=True)


@pytest.mark.parametrize("name", [n for n in benchmark.parts if n != "speech to units"])
def test_parts_run(machine, name):
    found = list(benchmark.parts[name](machine, True))
    assert found and all(isinstance(m, Measurement) and m.ours > 0 for m in found)


def test_the_baseline_is_fairseq_with_the_same_units(machine):
    pytest.importorskip("fairseq")
    exact, small = benchmark.parts["speech to units"](machine, True)
    assert exact.baseline and exact.limit and "units are fairseq's, 0 differ by more" in exact.note
    assert small.baseline == exact.baseline


def test_growth_runs(machine):
    points = list(benchmark.growth["speech to units by hours"](machine, True))
    assert [type(p) for p in points] == [Growth, Growth] and points[0].size < points[1].size


def test_the_command_prints_each_figure(capsys):
    assert benchmark.main(["--device", "cpu", "--quick", "--only", "precisions", "--profile"]) == 0
    said = capsys.readouterr().out
    assert "units of int8 that are float32's, mini" in said and "aten::" in said


def test_operations_of_hubert_base():
    """13.2 GFLOP a second of audio to layer 11, of which the convolutions are 4.9."""
    encoder = Encoder.create({"num_hidden_layers": 1}, False, 0)
    assert 13e9 < flops_a_second(encoder, 11) < 14.5e9
    assert 4.8e9 < flops_a_second(encoder, 0) - 2 * 50 * 768 * (512 + 48 * 128) < 5.1e9


def test_lengths_are_librispeechs():
    seconds = lengths_of_speech(20_000)
    assert 1 <= seconds.min() and seconds.max() <= 35 and 11.5 < seconds.mean() < 13.5


def test_peak_memory_sees_what_is_taken(machine):
    # Straight from the system: what malloc has kept since an earlier test would count as had before.
    with peak_memory(machine) as peak, mmap.mmap(-1, 64 << 20) as taken:
        taken.write(bytes(1 << 20) * 64)
        assert peak() > 50 << 20
