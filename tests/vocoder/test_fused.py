"""The kernels of half precision say what the trained generator says, and compile for a GPU unseen."""

import pytest
import torch

INTERPRETED = """
import torch
from speechgpt.vocoder.fused import FusedGenerator
from speechgpt.vocoder.generator import Lengths, UnitVocoder, VocoderConfig
torch.manual_seed(0)
for rates, kernels, channels, blocks, dilations in (
    ([3, 2], [7, 4], 64, [3, 5, 7], [[1, 3], [1], [1, 2]]),
    ([5, 4], [11, 8], 24, [3], [[1, 5]]),
):
    model = UnitVocoder(VocoderConfig(
        num_units=6, embedding_dim=8, initial_channels=channels, upsample_rates=rates,
        upsample_kernels=kernels, resblock_kernels=blocks, resblock_dilations=dilations)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.1)
        x = model.embed(torch.randint(6, (3, 11)))
        wanted = model.generate(x).squeeze(1)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
            found = FusedGenerator(model, dtype)(x)
            assert found.dtype == torch.float32 and found.shape == wanted.shape
            error = (found - wanted).abs().max() / wanted.abs().max()
            assert wanted.std() > 1e-4 and error < tolerance, (rates, dtype, error)
        lengths = Lengths(torch.arange(11) < torch.tensor([11, 7, 1])[:, None])
        found = FusedGenerator(model, torch.float32)(lengths.clip(x.contiguous(), 1), lengths)
        for row, length in enumerate([11, 7, 1]):
            alone = model.generate(x[row : row + 1, :, :length])[0, 0]
            assert (found[row, : len(alone)] - alone).abs().max() < 1e-5 * alone.abs().max()
            assert not found[row, len(alone):].any()
print("equal")
"""


def test_the_kernels_say_what_the_trained_generator_says(interpreted):
    interpreted(INTERPRETED)


@pytest.mark.parametrize("channels", [256, 16])
def test_the_convolution_compiles_for_a_gpu_with_wide_loads_and_tensor_cores(channels, compiled_for_gpu):
    from speechgpt.vocoder.triton_kernels import DEPTH, _convolution

    constants = {"channels": channels, "columns": channels, "activate": True, "slope": 0.1}
    constants |= {"block_t": 128, "block_n": min(channels, 128), "block_k": DEPTH}
    types = dict.fromkeys(["x", "weight", "residual", "total", "out"], "*fp16")
    types |= {"bias": "*fp32", "frames": "*i32", "slope_out": "fp32", "scale": "fp32"}
    compiled = compiled_for_gpu(_convolution, types, constants, num_warps=8, num_stages=3)
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert "0x10" in compiled.asm["ptx"].split("cp.async.cg", 1)[1].splitlines()[0]  # 16 bytes at once
    assert compiled.metadata.shared <= 113 * 1024  # two programs fit a processor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_on_a_gpu(small, make_vocoder, dtype):
    from speechgpt.vocoder.fused import FusedGenerator

    model = make_vocoder(small)
    with torch.inference_mode():
        model.conv_post.weight.mul_(0.02)
        x = model.embed(torch.randint(6, (3, 40)))
        wanted = model.generate(x).squeeze(1)
        found = FusedGenerator(model.cuda(), dtype)(x.cuda()).cpu()
    assert (found - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu_speaks_as_the_first(small, make_vocoder):
    from speechgpt.vocoder.fused import FusedGenerator
    from speechgpt.vocoder.synthesize import Synthesizer

    model, found = make_vocoder(small), []
    for number in (0, 1):
        synthesizer = Synthesizer(model.to(f"cuda:{number}"), "fp16")
        assert isinstance(synthesizer.generator, FusedGenerator)
        synthesizer.prepare([40])
        found += synthesizer.speak([torch.arange(40).remainder(6).numpy()])
        assert 40 in synthesizer.replay.captured and torch.cuda.current_device() == 0
    assert abs(found[0] - found[1]).max() < 1e-3 * abs(found[0]).max()
