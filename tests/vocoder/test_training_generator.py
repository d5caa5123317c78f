"""The generator made for training finds what `UnitVocoder.generate` finds, gradients included."""

import os
from dataclasses import replace
from importlib.resources import files

import pytest
import torch

from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.training_generator import TrainingGenerator, fast_generate
from speechgpt.vocoder.training_grid import Grid

TINY = VocoderConfig(
    num_units=6,
    embedding_dim=8,
    initial_channels=32,
    upsample_rates=[5, 4],
    upsample_kernels=[11, 8],
    resblock_kernels=[3, 7],
    resblock_dilations=[[1, 3], [2, 5]],
)


def made(config: VocoderConfig, seed: int = 0) -> UnitVocoder:
    """Weights so loud that the last tanh bends, biases that differ."""
    torch.manual_seed(seed)
    model = UnitVocoder(config).add_weight_norm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for conv in model._convolutions():
            conv.parametrizations.weight.original0.copy_(
                1 + 0.3 * torch.rand_like(conv.parametrizations.weight.original0)
            )
        # The waveform's level: that of a small gain, where tanh is straight, times what is missing to 0.3.
        gain = model.conv_post.parametrizations.weight.original0.fill_(1e-4)
        model.conv_post.bias.zero_()
        x = torch.randn(1, model.conv_pre.in_channels, 5)
        gain.mul_(0.3 / model.generate(x).std())
    return model


def gradients(model: UnitVocoder, generate, frames: int, batch: int = 2) -> dict[str, torch.Tensor]:
    """The waveform and every parameter's gradient."""
    config, device = model.config, model.device
    torch.manual_seed(1)
    units = torch.randint(config.num_units, (batch, frames)).to(device)
    speaker = torch.arange(batch, device=device) % config.num_speakers if config.num_speakers else None
    noise = torch.randn(batch, 1, frames * config.hop).to(device)
    model.zero_grad(set_to_none=True)
    waveform = generate(model.embed(units, speaker))
    (waveform.float() * noise).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"waveform": waveform.detach()} | found


def differences(model: UnitVocoder, frames: int) -> dict[str, float]:
    """Relative differences between the two generators, value by value."""
    wanted = gradients(model, model.generate, frames)
    found = gradients(model, TrainingGenerator(model), frames)
    assert wanted.keys() == found.keys() and 0.01 < wanted["waveform"].std() < 0.7
    for name, value in found.items():
        assert value.shape == wanted[name].shape and value.dtype == wanted[name].dtype, name
    grads = [p.grad.data_ptr() for p in model.parameters() if p.grad is not None]
    assert len(set(grads)) == len(grads)  # none is another's memory
    # The last convolution's gain and bias are single numbers: sums of both signs that may nearly cancel.
    last = torch.cat([w.flatten() for name, w in wanted.items() if name.startswith("conv_post")]).norm()
    scales = {name: last if name.startswith("conv_post") else w.norm() for name, w in wanted.items()}
    return {name: ((found[name] - w).norm() / scales[name]).item() for name, w in wanted.items()}


def half_errors(model: UnitVocoder, frames: int) -> tuple[float, float, float]:
    """Distances from float32, relative: the model's gradients in bf16, the fast ones, the fast waveform."""
    exact, kind = gradients(model, model.generate, frames), model.device.type

    def distance(found: dict, names: list[str]) -> float:
        errors = [(found[n] - exact[n]).norm() ** 2 for n in names]
        return (sum(errors) / sum(exact[n].norm() ** 2 for n in names)).sqrt().item()

    with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
        own = gradients(model, model.generate, frames)
        fast = gradients(model, TrainingGenerator(model), frames)
    names = [name for name in exact if name != "waveform"]
    return distance(own, names), distance(fast, names), distance(fast, ["waveform"])


def preset(name: str) -> VocoderConfig:
    config = TrainConfig.load(str(files("speechgpt") / "presets" / name / "vocoder.yaml")).generator
    return replace(config, num_units=6, num_speakers=2, default_speaker="")


CASES = {
    "tiny": (TINY, 7),
    "one frame": (TINY, 1),
    "odd widths": (replace(TINY, initial_channels=24, upsample_rates=[3, 3], upsample_kernels=[7, 5]), 9),
    "long rows": (replace(TINY, initial_channels=16, upsample_rates=[10], upsample_kernels=[12]), 51),
    "mini": (replace(preset("mini"), initial_channels=32), 3),
    "own": (replace(preset("own"), initial_channels=64), 3),
    "published": (replace(preset("speechgpt-7b"), num_speakers=0, speakers=[]), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_waveform_and_gradients(name):
    config, frames = CASES[name]
    found = differences(made(config), frames)
    assert max(found.values()) < 1e-5, {n: v for n, v in found.items() if v >= 1e-5}


def test_it_follows_the_weights():
    model = made(TINY)
    fast, x = TrainingGenerator(model), model.embed(torch.randint(6, (2, 5))).detach()
    before = fast(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert (fast(x) - model.generate(x)).abs().max() < 1e-5 < (fast(x) - before).abs().max()


def test_what_it_cannot_do():
    with pytest.raises(ValueError, match="add_weight_norm"):
        TrainingGenerator(UnitVocoder(TINY))
    with pytest.raises(ValueError, match="odd"):
        TrainingGenerator(UnitVocoder(replace(TINY, resblock_kernels=[3, 4])).add_weight_norm())


def test_without_a_gpu_the_model_generates():
    model = UnitVocoder(TINY).add_weight_norm()
    assert fast_generate(model) == model.generate


@pytest.mark.parametrize("grid", [Grid(7), Grid(7, 4), Grid(7, 1, 3), Grid(23, 4, 3), Grid(24, 4, 3)])
def test_a_grid_gives_back_what_it_was_given(grid):
    x = torch.arange(1.0, 2 * grid.length * 5 + 1).view(2, -1, 5)
    stored = grid.lay(x)
    assert stored.shape == (2, grid.stored, 5) and torch.equal(grid.read(stored), x)
    assert stored.count_nonzero() == x.numel()
    image = grid.image(stored)
    assert image.is_contiguous(memory_format=torch.channels_last) and image.shape[1] == 5 * grid.rows
    assert torch.equal(grid.stacked(image, 5), stored)


INTERPRETED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_training_generator import CASES, differences, half_errors, made
from speechgpt.vocoder import training_passes
assert training_passes.KERNELS
for name in ("tiny", "odd widths", "long rows"):
    config, frames = CASES[name]
    found = differences(made(config), frames)
    assert max(found.values()) < 1e-5, (name, {n: v for n, v in found.items() if v >= 1e-5})
# The interpreter cuts numbers off at bf16 where a GPU rounds: twice the error, and to one side.
own, fast, waveform = half_errors(made(CASES["tiny"][0]), 7)
assert 1e-4 < fast < 3 * own and waveform < 0.05, (own, fast, waveform)
print("equal")
"""


def test_the_kernels_find_the_same(interpreted):
    interpreted(INTERPRETED, os.path.dirname(__file__))


@pytest.mark.parametrize("channels", [256, 16])
def test_the_passes_compile_for_a_gpu_with_wide_loads(channels, compiled_for_gpu):
    from speechgpt.vocoder.training_kernels import _join, _last_gradient, _split, _tiles

    block_t, block_c = _tiles(channels)
    sizes = {"channels": channels, "rows": max(1, 128 // channels), "block_t": block_t, "block_c": block_c}
    half = ["y", "residual", "total", "out", "active", "grad", "x", "grad_x"]
    types = dict.fromkeys(half, "*bf16") | dict.fromkeys(["bias", "sums", "sound", "weight"], "*fp32")
    types |= {"scale": "fp32", "slope": "fp32"}
    join, split = (compiled_for_gpu(k, types, sizes).asm["ptx"] for k in (_join, _split))
    # 8 numbers at once: two loads for the sums and one for each of the others would be 16-bit ones else.
    assert "ld.global.v4.b32" in join and "st.global.v4.b32" in join and "ld.global.b16" not in join
    assert "ld.global.v4.b32" in split and "st.global.v4.b32" in split and "ld.global.b16" not in split
    types["grad"] = "*fp32"
    last = {"channels": channels, "block_c": block_c, "block_t": 128, "block_k": 7}
    assert "v4.b32" in compiled_for_gpu(_last_gradient, types, last).asm["ptx"]


def test_the_weights_passes_compile_for_a_gpu(compiled_for_gpu):
    from speechgpt.vocoder.training_kernels import ROW_STEP, _weigh, _weigh_gradient

    types = dict.fromkeys(["values", "gains", "grad_values", "grad_gains"], "*fp32")
    types |= {"table": "*i32", "out": "*bf16", "grad": "*bf16"}
    constants = {"fields": 8, "step": ROW_STEP}
    for kernel in (_weigh, _weigh_gradient):
        assert "sqrt" in compiled_for_gpu(kernel, types, constants).asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CASES)
def test_on_a_gpu(name):
    config, frames = CASES[name]
    model = made(config).cuda()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        found = differences(model, frames)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert found["waveform"] < 1e-4
    # cuDNN adds up in other orders: now and then a leaky ReLU's input falls on the other side of zero.
    assert max(found.values()) < 1e-2, {n: v for n, v in found.items() if v >= 1e-2}
    # One draw's ratio lies anywhere between 0.4 and 2, by which leaky ReLUs rounding turns: of many draws.
    errors = torch.tensor([half_errors(made(config, seed).cuda(), frames) for seed in range(8)])
    own, fast, waveform = errors.square().mean(0).sqrt().tolist()
    assert 1e-4 < fast < 1.4 * own and waveform < 0.05, (own, fast, waveform)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_pass_follows_the_weights():
    model = made(CASES["published"][0]).cuda()
    fast, units = TrainingGenerator(model), torch.randint(6, (4, 9), device="cuda")

    def run() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            waveform = fast(model.embed(units))
        waveform.square().sum().backward()
        return waveform.detach()

    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(), run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        waveform = run()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.95)
    for _ in range(3):
        graph.replay()
    found = {name: g.clone() for name, g in grads.items()}
    assert (run() - waveform).norm() < 1e-3 * waveform.norm()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert (parameter.grad - found[name]).norm() < 0.05 * found[name].norm(), name
