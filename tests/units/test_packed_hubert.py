"""Inference over rows laid end to end gives the features of the plan that trains, on a CPU and, in half
precision, by the code of a GPU in plain torch; Triton's kernels are run by its interpreter."""

import numpy as np
import pytest
import torch

from speechgpt.units import precision as module
from speechgpt.units.half_hubert import HalfHubert, _Place
from speechgpt.units.half_kernels import Kernels
from speechgpt.units.packed_hubert import PackedHubert
from speechgpt.units.packing import Packing
from speechgpt.units.plain_kernels import convolution, library_convolution

from .conftest import GROUP, LAYER, STABLE, make_encoder, noise

LENGTHS = (5_000, 400, 719, 720, 3_333, 12_345)
ALL = pytest.mark.parametrize("architecture", [GROUP, LAYER, STABLE], ids=["group", "layer", "stable"])
OTHERS = {
    "relu": GROUP | {"feat_extract_activation": "relu", "hidden_act": "gelu_new"},
    "odd positions": LAYER | {"num_conv_pos_embeddings": 9},
    "no projection norm": GROUP | {"feat_proj_layer_norm": False, "conv_bias": True},
    "25 Hz": GROUP
    | {
        "conv_dim": [8] * 8,
        "conv_kernel": [10, 3, 3, 3, 3, 2, 2, 2],
        "conv_stride": [5, 2, 2, 2, 2, 2, 2, 2],
    },
}


def expected(encoder, waveforms, layer=3) -> torch.Tensor:
    """By `Encoder.forward`, one row at a time."""
    found = []
    for waveform in waveforms:
        batch, _ = encoder.pad([waveform])
        with torch.no_grad():
            found.append(encoder(batch, None, (layer,))[0][0])
    return torch.cat(found)


def waveforms_of(encoder) -> list[np.ndarray]:
    return [noise(n, n) + 0.03 for n in LENGTHS if n >= encoder.receptive_field]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
@ALL
def test_on_a_cpu(architecture, quantized, normalize):
    encoder = make_encoder(architecture, normalize)
    given = waveforms_of(encoder)
    found, frames = PackedHubert(encoder, 3, quantized)(given)
    right = expected(encoder, given)
    assert frames == [int(encoder.frames(len(w))) for w in given]
    limit = 0.05 if quantized else 1e-5
    assert (found - right).abs().max() < limit * right.abs().max()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@ALL
def test_the_plan_of_a_gpu(architecture, dtype, normalize):
    encoder = make_encoder(architecture, normalize)
    given = waveforms_of(encoder)
    found, _ = HalfHubert(encoder, 3, dtype)(given)
    right = expected(encoder, given)
    assert found.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert (found.float() - right).abs().max() < limit * right.abs().max()


@ALL
def test_the_wider_product_with_its_gelu(architecture):
    encoder = make_encoder(architecture)
    given = waveforms_of(encoder)
    plan = HalfHubert(encoder, 3, torch.float32, Kernels(fused=True))
    assert all(layer.product is not None for layer in plan.layers)
    right = expected(encoder, given)
    assert (plan(given)[0] - right).abs().max() < 1e-5 * right.abs().max()


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name):
    encoder = make_encoder(OTHERS[name], normalize=False)
    given = waveforms_of(encoder)
    right = expected(encoder, given, 2)
    for plan in (PackedHubert(encoder, 2), HalfHubert(encoder, 2, torch.float32)):
        assert (plan(given)[0] - right).abs().max() < 1e-5 * right.abs().max()


def test_blocks_have_no_seams(monkeypatch):
    monkeypatch.setattr("speechgpt.units.packed_hubert.BLOCK_FRAMES", 3)
    encoder = make_encoder(GROUP)
    given = waveforms_of(encoder)
    right = expected(encoder, given)
    assert (PackedHubert(encoder, 3)(given)[0] - right).abs().max() < 1e-5 * right.abs().max()


def test_both_convolutions_are_one():
    rows, weight, bias = torch.randn(101, 8), torch.randn(24, 6), torch.randn(6)
    first, second = (way(rows, weight, bias, 2, True) for way in (convolution, library_convolution))
    torch.testing.assert_close(first, second)
    right = torch.conv1d(rows.T[None], weight.view(3, 8, 6).permute(2, 1, 0), bias, stride=2)[0].T
    torch.testing.assert_close(first, torch.nn.functional.gelu(right))


def test_a_plan_follows_the_weights_and_is_made_once():
    encoder = make_encoder(GROUP)
    (before,) = encoder.features([noise(2000)], 2)
    plan = encoder.plan_for(2, "float32")
    assert encoder.plan_for(2, "float32") is plan
    with torch.no_grad():
        encoder.model.encoder.layers[0].feed_forward.output_dense.bias[0] += 1
    assert encoder.plan_for(2, "float32") is not plan
    (after,) = encoder.features([noise(2000)], 2)
    assert (before - after).abs().max() > 1e-3
    torch.testing.assert_close(after, expected(encoder, [noise(2000)], 2), atol=1e-5, rtol=0)


def test_an_encoder_in_training_runs_as_it_trains(monkeypatch):
    encoder = make_encoder(GROUP).train()
    assert encoder.plan_for(2, "float32") is None
    assert encoder.half().eval().plan_for(2, "float32") is None
    with pytest.raises(ValueError, match="precision float16 on cpu: expected one of float32, int8"):
        make_encoder(GROUP).frames_of([noise(2000)], 2, "float16")
    assert set(module.PRECISIONS) == {"cpu", "cuda"}


def test_rows_are_laid_at_whole_frames():
    packing = Packing([800, 400, 641], [2, 1, 1], 320, gap=4, block=8)
    assert packing.starts.tolist() == [0, 3, 5] and packing.total_slots == 8
    assert packing.frame_index().tolist() == [0, 1, 3, 5]
    # What makes frames 0 to 7 sees up to frame 10, and its product with zero weights must be a zero.
    assert packing.spaced_index().tolist() == [0, 1, 16, 32] and packing.spaced_total == 48
    assert packing.row_of_slot().tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [part.tolist() for part in packing.pieces()] == [[3, 2, 3], [1, 1, 1]]
    out = np.full(8 * 320, 9, np.float32)
    packing.fill([np.ones(800, np.float32), np.ones(400, np.float32), np.ones(641, np.float32)], out)
    assert out.sum() == 1841 and not out[800:960].any() and out[960] == 1


def test_long_rows_are_summed_in_pieces():
    packing = Packing([32 * 320, 65 * 320 - 5, 1, 64 * 320 + 1], [1] * 4, 320)
    sizes, counts = packing.pieces()
    assert sizes.tolist() == [32, 32, 32, 1, 1, 32, 32, 1] and counts.tolist() == [1, 3, 1, 3]
    values = torch.randn(packing.total_slots, 3, dtype=torch.float64)
    place = _Place(*map(torch.from_numpy, (packing.lengths, packing.starts, sizes, counts)), *[None] * 4)
    right = torch.stack([row.sum(0) for row in values.split(packing.slots.tolist())])
    torch.testing.assert_close(place.of_rows(values), right)


INTERPRETED = """
import torch
from speechgpt.units import plain_kernels, triton_kernels
from triton.runtime.errors import OutOfResources
torch.manual_seed(0)
wave, taps = torch.randn(4 * 80 + 10), torch.randn(10, 40)
scale, shift, owner = torch.rand(2, 40), torch.randn(2, 40), torch.tensor([0, 0, 1, 1])
for gelu, more in ((False, ()), (True, ()), (True, (torch.randn(40), 1e-5)), (False, (None, 1e-5))):
    a, b = (m.first_convolution(wave, taps, scale, shift, owner, 5, gelu, torch.float16, *more)
            for m in (plain_kernels, triton_kernels))
    torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
tile = (32, 32, 16, 1, 4)
for width, bias in ((8, None), (16, torch.randn(40))):
    rows, weight = torch.randn(71, width), torch.randn(3 * width, 40)
    a = plain_kernels.convolution(rows, weight, bias, 2, True)
    b = triton_kernels.convolution(rows, weight, bias, 2, True, tile)
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
rows, added = torch.randn(7, 40), torch.randn(7, 40)
for gelu, more in ((False, added), (True, None)):
    a, b = (m.norm(rows, more, torch.ones(40), torch.ones(40), 1e-5, gelu)
            for m in (plain_kernels, triton_kernels))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
triton_kernels.probe(torch.device("cpu"))
def large(*given):
    raise OutOfResources(147456, 101376, "shared memory")
triton_kernels.convolution = large
from speechgpt.units.triton_works import triton_refusal
torch.cuda.get_device_capability = lambda device: (8, 0)
assert "shared memory" in triton_refusal(triton_kernels.probe, torch.device("cpu"))
print("equal")
"""


def test_triton_kernels_are_the_plain_ones(interpreted):
    interpreted(INTERPRETED)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("way", ["triton", "fused", "cudnn", "plain"])
@ALL
def test_on_a_gpu(architecture, way):
    widths = {"conv_dim": [64] * 7, "hidden_size": 64, "num_hidden_layers": 3}
    encoder = make_encoder(architecture | widths).cuda()
    given = waveforms_of(encoder)
    found, _ = HalfHubert(encoder, 3, torch.float16, Kernels.of(encoder.device, way))(given)
    right = expected(encoder, given)
    assert (found.float() - right).abs().max() < 1e-2 * right.abs().max()


def test_kernels_need_no_triton_on_a_cpu():
    assert Kernels.of(torch.device("cpu")) == Kernels()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("architecture", [GROUP, LAYER], ids=["group", "layer"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_row_that_is_not_finite_leaves_its_neighbours_alone(architecture, normalize, value):
    encoder = make_encoder(architecture, normalize)
    for samples in (8000, 8100, 8319, 8320):  # where a row ends within a hop and within a block of frames
        waveforms = [noise(samples, seed) for seed in range(3)]
        waveforms[1][[0, -1]] = value
        for plan in (PackedHubert(encoder, 2), HalfHubert(encoder, 2, torch.float16)):
            features, frames = plan(waveforms)
            finite = [bool(row.isfinite().all()) for row in features.split(frames)]
            assert finite == [True, False, True], (samples, plan)
