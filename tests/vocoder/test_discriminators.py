"""Plainly and over rows our discriminators find what SpeechBrain's find: scores, features, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from speechgpt.vocoder import discriminators
from speechgpt.vocoder.benchmark_training import Released, step_flops
from speechgpt.vocoder.discriminators import DiscriminatorConfig, build_discriminators
from speechgpt.vocoder.judge_layers import convolve, inner, place
from speechgpt.vocoder.judge_shapes import ConvForm, form_of
from speechgpt.vocoder.judge_weights import widen
from speechgpt.vocoder.losses import adversarial_loss, discriminator_loss, feature_loss
from speechgpt.vocoder.settings import TrainConfig

hifigan = pytest.importorskip("speechbrain.lobes.models.HifiGAN")
REFLECTION = DiscriminatorConfig(zero_padding=False)
NARROW = {"period_width": 1 / 16, "scale_width": 1 / 8}


@pytest.fixture(params=["plain", "rows"])
def way(request, monkeypatch):
    """Both ways to compute: the rows by PyTorch's passes, which the kernels are held to."""
    monkeypatch.setattr(discriminators, "on_kernels", lambda *_: request.param == "rows")


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())


@pytest.mark.parametrize("reflect", [False, True])
@pytest.mark.parametrize(("first", "second"), [
    (ConvForm(1, 6, 4, 5, 1), ConvForm(3, 5, 8, 7, 2, block=3)),
    (ConvForm(3, 4, 2, 9, 2, block=2), ConvForm(8, 6, 1, 5, 3, direct=True)),
    (ConvForm(3, 4, 2, 9, 2, block=2), ConvForm(2, 6, 4, 41, 4, block=4)),
    (ConvForm(5, 8, 1, 5, 1), ConvForm(8, 3, 1, 5, 3)),
])  # fmt: skip
@pytest.mark.parametrize("length", [30, 31, 37])
def test_rows_make_the_same_convolution(first, second, length, reflect):
    torch.manual_seed(0)
    half = second.half
    if reflect and length <= half:
        pytest.skip("nothing to reflect")
    rows = -(-length // first.block)
    y, bias = torch.randn(2, rows, first.channels_out * first.block), torch.randn(first.channels_out)
    weight = torch.randn(second.channels_out, second.inputs, second.kernel)
    z, _ = place(y, bias, first, second, length, reflect, None)
    found = convolve(z, widen(weight, None, None, second, torch.float32), second)
    found = found.unflatten(2, (second.groups, second.block, -1)).transpose(2, 3).flatten(3).flatten(1, 2)
    y = y.unflatten(2, (first.groups, first.block, -1)).transpose(2, 3).flatten(3).flatten(1, 2)[:, :length]
    x = nn.functional.leaky_relu(y + bias, 0.1).transpose(1, 2)
    assert torch.equal(inner(z, second, length), x.transpose(1, 2))
    padded = nn.functional.pad(x, (half, half), "reflect" if reflect else "constant")
    wanted = nn.functional.conv1d(padded, weight, stride=second.stride, groups=second.groups)
    assert wanted.shape[2] == second.length(length)
    assert close(found[:, : wanted.shape[2]].transpose(1, 2), wanted, 1e-5)


@pytest.mark.parametrize(("samples", "narrow"), [
    (2560, NARROW), (2411, NARROW), (2240, NARROW), (2411, NARROW | {"scale_width": 1 / 16}), (2411, {}),
])  # fmt: skip
def test_scores_features_and_gradients_are_speechbrains(way, samples, narrow):
    torch.manual_seed(0)
    released, ours = Released(narrow), build_discriminators(replace(REFLECTION, **narrow))
    assert list(ours.state_dict()) == list(released.state_dict())
    ours.load_state_dict(released.state_dict())
    x = 0.1 * torch.randn(2, 1, samples)
    (scores, features), (wanted, wanted_features) = ours(x), released(x)
    assert len(scores) == len(wanted) == 8
    for found, right in zip([*scores, *sum(features, [])], [*wanted, *sum(wanted_features, [])], strict=True):
        assert found.shape == right.shape and close(found, right)
    for one, two in zip(_gradients(ours, scores), _gradients(released, wanted), strict=True):
        assert close(one, two)
    assert all(map(close, ours.state_dict().values(), released.state_dict().values()))  # spectral norm's


def _gradients(judges: nn.Module, scores: list[torch.Tensor]) -> list[torch.Tensor]:
    loss = discriminator_loss([s[:1] for s in scores], [s[1:] for s in scores])
    return torch.autograd.grad(loss, list(judges.parameters()))


@pytest.mark.parametrize("zeros", [False, True])
def test_the_generators_losses_and_gradient_are_speechbrains(way, zeros):
    torch.manual_seed(0)
    released = Released(NARROW)
    ours = build_discriminators(DiscriminatorConfig(**NARROW, zero_padding=zeros))
    ours.load_state_dict(released.state_dict())
    plain = ours if zeros else released  # of zeros SpeechBrain has none: against our own features
    real, fake = (0.1 * torch.randn(2, 1, 2411) for _ in range(2))
    found, wanted = fake.clone().requires_grad_(True), fake.clone().requires_grad_(True)
    start = {name: value.clone() for name, value in ours.state_dict().items()}
    scores, distance = ours.requires_grad_(False).compare(found, real)
    ours.load_state_dict(start)
    with torch.no_grad():
        features_real = plain(real)[1]
    right, features = plain(wanted)
    assert close(distance, feature_loss(features, features_real))
    assert all(map(close, scores, right))
    (adversarial_loss(scores) + 2 * distance).backward()
    (adversarial_loss(right) + 2 * feature_loss(features, features_real)).backward()
    assert close(found.grad, wanted.grad)


def test_the_published_layers_are_computed_as_measured():
    assert form_of(128, 256, 16, 41, 2) == ConvForm(8, 16, 16, 41, 2, block=8)
    assert form_of(128, 256, 16, 41, 2).taps == 4
    assert form_of(512, 1024, 1, 5, 3).direct and not form_of(32, 128, 1, 5, 3).direct
    assert form_of(1, 128, 1, 15, 1).window == 32  # 16 outputs of 15 taps: 30 samples


def test_a_segment_too_short_to_reflect_is_named(way):
    judges = build_discriminators(replace(REFLECTION, periods=[11], scales=0, **NARROW))
    with pytest.raises(ValueError, match="cannot be reflected by 2: use longer segments"):
        judges(torch.zeros(1, 1, 44))


def test_a_steps_arithmetic_counts_groups():
    config = replace(TrainConfig(), batch_size=2, segment_frames=4)
    only = _Scales()
    counted = 0
    for scale, samples in zip(only.judges.discriminators, (1280, 641, 321), strict=True):
        for conv in [*scale.convs, scale.conv_post]:
            kernel, stride = conv.kernel_size[0], conv.stride[0]
            samples = (samples + 2 * (kernel // 2) - kernel) // stride + 1
            counted += 2 * samples * kernel * conv.out_channels * conv.in_channels // conv.groups
    generator = step_flops(config, _Silent())
    assert step_flops(config, only) - generator == 2 * 9 * counted


class _Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.judges = Released(NARROW).msd

    def forward(self, x):
        return self.judges(x)


class _Silent(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x
