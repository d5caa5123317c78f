"""Fewer multiplications give the same sums: any kernel, dilation and length, within a few roundings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from speechgpt.vocoder import minimal_filter
from speechgpt.vocoder.architecture import VocoderConfig
from speechgpt.vocoder.folded import FoldedGenerator
from speechgpt.vocoder.generator import Lengths
from speechgpt.vocoder.minimal_filter import MinimalFilter, MinimalPair, least_length, pays
from speechgpt.vocoder.streaming import StreamingSynthesizer
from speechgpt.vocoder.synthesize import Synthesizer

SLOPE = 0.1
TOLERANCE = 1e-5  # of the waveform's peak

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def conv(width: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    return nn.Conv1d(width, width, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


def minimal(first: nn.Conv1d, second: nn.Conv1d) -> MinimalPair:
    return MinimalPair(*(MinimalFilter(c.weight, c.bias, c.dilation[0]) for c in (first, second)), SLOPE)


def exact(first: nn.Conv1d, second: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    """x (1, C, 1, T) float32 -> (1, C, 1, T) float64."""

    def through(conv, x):
        weights = conv.weight.double(), conv.bias.double()
        return F.conv1d(F.leaky_relu(x, SLOPE), *weights, 1, conv.padding, conv.dilation)

    x = x[:, :, 0].double()  # 1 C T
    return (x + through(second, through(first, x))).unsqueeze(2)


@pytest.mark.parametrize("kernel", [5, 7, 9, 11, 13])
@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
@pytest.mark.parametrize("tile", [minimal_filter.TILE, 16 * 100])
def test_a_pair_says_what_its_convolutions_say(kernel, dilation, tile, monkeypatch):
    monkeypatch.setattr(minimal_filter, "TILE", tile)
    torch.manual_seed(0)
    first, second = conv(16, kernel, dilation), conv(16, kernel)
    with torch.inference_mode():
        pair = minimal(first, second)
        for length in (*range(1, 4 * dilation + 3), 119, 120, 121):
            x = torch.randn(1, 16, 1, length).contiguous(memory_format=torch.channels_last)
            before, wanted = x.clone(), exact(first, second, x)
            found = pair(x)
            assert found.shape == x.shape and found.is_contiguous(memory_format=torch.channels_last)
            assert (found - wanted).abs().max() < 3e-6 * wanted.abs().max()
            assert torch.equal(x, before)


def test_nothing_of_memory_before_it_is_read(monkeypatch):
    """Buffers come as they are: whatever they hold must not reach the result."""
    torch.manual_seed(0)
    first, second = conv(16, 7, 3), conv(16, 7)
    x = torch.randn(1, 16, 1, 53).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        pair = minimal(first, second)
        wanted = pair(x)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape: empty(*shape).fill_(torch.nan))
        assert torch.equal(pair(x), wanted)


def test_the_rounding_is_a_few_times_a_convolutions():
    torch.manual_seed(0)
    first, second = conv(64, 11, 3), conv(64, 11)
    x = torch.randn(1, 64, 1, 400).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        wanted = exact(first, second, x)
        plain = x[:, :, 0]
        plain = plain + second(F.leaky_relu(first(F.leaky_relu(plain, SLOPE)), SLOPE))
        errors = [(y - wanted).square().mean().sqrt() for y in (minimal(first, second)(x), plain[:, :, None])]
    assert errors[0] < 6 * errors[1]


def test_it_pays_where_channels_and_taps_are_many():
    config = VocoderConfig()
    widths = [config.initial_channels >> stage for stage in range(1, 6)]
    found = {(w, k) for w in widths for k in config.resblock_kernels if pays(w, k)}
    assert found == {(256, 7), (256, 11), (128, 7), (128, 11), (64, 11)}
    assert least_length(256, 11) == 382 and least_length(128, 7) == 2442  # 11 - 20/4 and 7 - 13/4 taps saved
    assert not pays(4096, 3)


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """Makes every pair of more than four taps take the fast way; the lengths that it was given."""
    monkeypatch.setattr(minimal_filter, "LEAST_SAVED_A_SAMPLE", 0)
    monkeypatch.setattr(minimal_filter, "LEAST_SAVED", 1)
    lengths: list[int] = []
    call = MinimalPair.__call__

    def noted(pair, x):
        lengths.append(x.shape[3])
        return call(pair, x)

    monkeypatch.setattr(MinimalPair, "__call__", noted)
    return lengths


@pytest.fixture
def wide(small):
    return replace(
        small,
        initial_channels=64,
        resblock_kernels=[3, 7, 11],
        resblock_dilations=[[1, 3, 5]] * 3,
    )


@pytest.fixture
def quiet_vocoder(make_vocoder, wide):
    """Weights that keep the signal's size, so that errors are not lost in a saturated tanh."""
    model = make_vocoder(wide)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 3:
                inputs = 2 * weight.shape[0] if name.startswith("ups") else weight[0].numel()
                weight.normal_(0, 0.7 / inputs**0.5)
    return model


def test_a_generator_of_it_says_what_the_trained_one_says(quiet_vocoder, used):
    with torch.inference_mode():
        x = quiet_vocoder.embed(torch.randint(6, (1, 40)))
        found, wanted = FoldedGenerator(quiet_vocoder)(x), quiet_vocoder.generate(x).squeeze(1)
    assert len(used) >= 18  # six pairs a stage
    assert 0.01 < wanted.abs().max() < 0.99
    assert (found - wanted).abs().max() < TOLERANCE * wanted.abs().max()


def test_filters_are_made_at_first_use_of_the_weights_as_they_were(quiet_vocoder, used):
    """Of the generator's own copy, to the last bit: not of what became of the vocoder meanwhile."""
    generator = FoldedGenerator(quiet_vocoder)
    pairs = [pair for block in generator.blocks for pair in block]
    x = quiet_vocoder.embed(torch.randint(6, (2, 40))).detach()
    with torch.inference_mode():
        generator(x)
        assert not used and not any(pair.minimal for pair in pairs)
        wanted = FoldedGenerator(quiet_vocoder)(x[:1])
    block = quiet_vocoder.resblocks[1]  # of seven taps
    own = minimal(block.convs1[1], block.convs2[1])
    with torch.no_grad():
        for weight in quiet_vocoder.parameters():
            weight.add_(0.01)
    with torch.inference_mode():
        assert torch.equal(generator(x[:1]), wanted)
        made = generator.blocks[1][1].minimal
        for ours, theirs in ((made.first, own.first), (made.second, own.second)):
            assert torch.equal(ours.bias, theirs.bias) and ours.padding == theirs.padding
            for one, two in zip(ours.filters, theirs.filters, strict=True):
                assert torch.equal(one.to_dense(), two.to_dense())
    assert sum(pair.minimal is not None for pair in pairs) == len(used) / 2 >= 18


def test_batches_and_padded_rows_go_the_plain_way(quiet_vocoder, used):
    frames = torch.randint(6, (2, 9))
    with torch.inference_mode():
        generator, x = FoldedGenerator(quiet_vocoder), quiet_vocoder.embed(frames)
        both = generator(x)
        lengths = Lengths(torch.arange(9) < torch.tensor([[4]]))
        padded = generator(lengths.clip(x[:1].contiguous(), 1), lengths)
        assert not used
        for row in range(2):
            alone = generator(x[row : row + 1])[0]
            assert (both[row] - alone).abs().max() < TOLERANCE * alone.abs().max()
        alone = generator(x[:1, :, :4])[0]
    assert used
    assert (padded[0, : len(alone)] - alone).abs().max() < TOLERANCE * alone.abs().max()


@pytest.mark.parametrize("switch", [1, 500])
def test_a_stream_equals_the_whole_where_the_ways_differ(quiet_vocoder, used, monkeypatch, switch):
    """With a switch at 500 rows the windows of a stream go the plain way and the whole sound the fast one."""
    monkeypatch.setattr("speechgpt.vocoder.folded.least_length", lambda width, kernel: switch)
    synthesizer = Synthesizer(quiet_vocoder)
    units = [int(u) for u in np.random.default_rng(0).integers(6, size=60)]
    whole = synthesizer.synthesize([units])[0]
    in_whole = len(used)
    stream = StreamingSynthesizer(synthesizer)
    joined = np.concatenate([*(stream.push([unit]) for unit in units), stream.finish()])
    assert in_whole and len(joined) == len(whole)
    assert np.abs(joined - whole).max() < TOLERANCE * np.abs(whole).max()
