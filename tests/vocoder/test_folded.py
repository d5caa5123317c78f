"""The generator made for speaking says what the trained one says, in tiles, in padded batches, in half."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt.units.precision import exact_convolutions
from speechgpt.vocoder import folded
from speechgpt.vocoder.folded import FoldedGenerator
from speechgpt.vocoder.generator import Lengths
from speechgpt.vocoder.replay import Replay, measured_kernels
from speechgpt.vocoder.synthesize import PRECISIONS, Synthesizer

K, HOP = 6, 320
TOLERANCE = 1e-5  # of the waveform's peak


@pytest.fixture
def deep(small):
    """Three narrow stages, two of which are tiled; kernels of several reaches."""
    return replace(small, upsample_rates=[4, 2, 5], upsample_kernels=[8, 4, 11], initial_channels=64)


def both(model, count, **options):
    with torch.inference_mode():
        x = model.embed(torch.randint(K, (1, count)))
        return FoldedGenerator(model)(x, **options), model.generate(x).squeeze(1)


def assert_near(found, wanted, tolerance=TOLERANCE):
    assert found.dtype == torch.float32 and found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_it_says_what_the_trained_generator_says(deep, make_vocoder):
    found, wanted = both(make_vocoder(deep), 40)
    assert wanted.std() > 1e-3
    assert_near(found, wanted)


@pytest.mark.parametrize("samples", [1, 40, 333, 1_000])
@pytest.mark.parametrize("channels", [64, 32, 16])
def test_tiles_do_not_show(deep, make_vocoder, monkeypatch, samples, channels):
    monkeypatch.setattr(folded, "TILE_SAMPLES", samples)
    monkeypatch.setattr(folded, "FIRST_TILED", channels)
    model = make_vocoder(deep)
    assert FoldedGenerator(model).tiled == {64: 0, 32: 1, 16: 2}[channels]
    assert_near(*both(model, 40))


def test_the_input_stays_as_it_was(deep, make_vocoder):
    model = make_vocoder(deep)
    with torch.inference_mode():
        x = model.embed(torch.randint(K, (1, 30)))
        before = x.clone()
        first = FoldedGenerator(model)(x).clone()
        assert torch.equal(x, before)
        assert torch.equal(FoldedGenerator(model)(x), first)


def test_padded_rows_equal_rows_alone(deep, make_vocoder):
    model = make_vocoder(deep)
    generator = FoldedGenerator(model)
    frames = torch.randint(K, (3, 19))
    lengths = Lengths(torch.arange(19) < torch.tensor([19, 7, 1])[:, None])
    with torch.inference_mode():
        x = lengths.clip(model.embed(frames).contiguous(), 1)
        padded = generator(x, lengths)
        for row, length in enumerate([19, 7, 1]):
            alone = generator(model.embed(frames[row : row + 1, :length]))[0]
            assert_near(padded[row, : length * model.hop], alone)
            assert not padded[row, length * model.hop :].any()


def test_weight_norm_and_later_changes(deep, make_vocoder):
    model = make_vocoder(deep).add_weight_norm()
    generator = FoldedGenerator(model)
    with torch.inference_mode():
        x = model.embed(torch.randint(K, (1, 9)))
        before = generator(x)
        assert_near(before, model.generate(x).squeeze(1))
    with torch.no_grad():
        model.conv_post.bias.add_(0.3)
    with torch.inference_mode():
        assert torch.equal(generator(x), before)
        assert not torch.allclose(model.generate(x).squeeze(1), before, atol=0.01)


def test_half_precision_is_near_and_not_equal(small, make_vocoder):
    model = make_vocoder(small)
    with torch.no_grad():
        model.conv_post.weight.mul_(0.02)  # out of the saturation
    units, durations = [[1, 2, 3, 4, 5]], [[3] * 5]
    exact = Synthesizer(model).synthesize(units, durations)[0]
    assert 0.01 < np.abs(exact).max() < 0.99
    errors = {}
    for precision in PRECISIONS:
        found = Synthesizer(model, precision).synthesize(units, durations)[0]
        assert found.dtype == np.float32
        errors[precision] = np.abs(found - exact).max() / np.abs(exact).max()
    assert errors["float32"] == 0 < errors["fp16"] < errors["bf16"] < 0.1
    with pytest.raises(ValueError, match="precision is 'int8'.*float32"):
        Synthesizer(model, "int8")


def test_a_replay_runs_what_it_did_not_capture(small, make_vocoder):
    seen = []
    replay = Replay(lambda x: (seen.append(x.shape), x + 1)[1])
    replay.prepare(torch.zeros(1, 3, 5))  # on a CPU: nothing to capture
    assert not seen and not replay.captured
    assert torch.equal(replay(torch.zeros(2, 3, 5)), torch.ones(2, 3, 5))
    assert seen == [(2, 3, 5)]


def test_measured_kernels_live_beside_the_new_setting_of_float32():
    """`cudnn.flags` raises once `conv.fp32_precision` was set, which speaking exactly does."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.benchmark_limit, cudnn.conv.fp32_precision
    with exact_convolutions(), measured_kernels(3):
        assert (cudnn.benchmark, cudnn.benchmark_limit) == (True, 3)
        assert cudnn.conv.fp32_precision == "ieee"
    assert (cudnn.benchmark, cudnn.benchmark_limit, cudnn.conv.fp32_precision) == before
