"""The fast forms of the discriminators' convolutions find what SpeechBrain's modules find."""

import pytest
import torch
from torch import nn

from speechgpt.vocoder.discriminators import DiscriminatorConfig, MergedConv1d, build_discriminators
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.weight_norm import to_channels_last


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "groups", "least", "merged"), [
    (32, 64, 16, 8, 4), (32, 32, 4, 8, 1), (48, 96, 16, 32, 16), (12, 12, 3, 32, 1),
])  # fmt: skip
def test_merged_groups_are_the_same_convolution(inputs, outputs, groups, least, merged, last):
    torch.manual_seed(0)
    plain = nn.Conv1d(inputs, outputs, 41, 4, 20, groups=groups)
    ours = MergedConv1d(inputs, outputs, 41, 4, 20, groups=groups).merge(least)
    assert ours.merged == merged
    ours.load_state_dict(plain.state_dict())
    if last:
        to_channels_last(ours)
    x = torch.randn(2, inputs, 301)
    one, two = plain(x), ours(x)
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-5)
    found = [torch.autograd.grad(y.square().sum(), m.weight)[0] for y, m in ((one, plain), (two, ours))]
    torch.testing.assert_close(found[1], found[0], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("last", [False, True])
def test_published_discriminators_score_as_speechbrains_do(last):
    from speechbrain.lobes.models.HifiGAN import HifiganDiscriminator

    torch.manual_seed(0)
    released = HifiganDiscriminator()
    ours = build_discriminators(DiscriminatorConfig(zero_padding=False), least_group=32)
    ours.load_state_dict(released.state_dict())
    if last:
        to_channels_last(ours)
    x = torch.randn(1, 1, 2560)
    with torch.no_grad():
        (scores, features), (wanted, wanted_features) = ours(x), released(x)
    assert len(scores) == len(wanted) == 8
    for found, right in zip([*scores, *sum(features, [])], [*wanted, *sum(wanted_features, [])], strict=True):
        torch.testing.assert_close(found, right, atol=1e-4, rtol=1e-3)


def test_a_run_goes_on_with_other_groups():
    assert TrainConfig(least_group=32).fingerprint() == TrainConfig().fingerprint()
