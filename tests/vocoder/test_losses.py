"""The losses and discriminators are SpeechBrain's."""

import pytest
import torch

from speechgpt.vocoder.discriminators import DiscriminatorConfig, build_discriminators
from speechgpt.vocoder.losses import (
    LogMel,
    adversarial_loss,
    discriminator_loss,
    duration_loss,
    feature_loss,
    mel_loss,
)
from speechgpt.vocoder.weight_norm import to_channels_last

hifigan = pytest.importorskip("speechbrain.lobes.models.HifiGAN")


def test_losses_equal_speechbrains():
    torch.manual_seed(0)
    real, fake = torch.randn(2, 1, 4000) * 0.1, torch.randn(2, 1, 4000) * 0.1
    spectral = hifigan.L1SpecLoss(sample_rate=16_000, hop_length=256, win_length=1024, mel_fmax=8000.0)
    log_mel = LogMel(16_000)
    mine = mel_loss(log_mel(fake[:, 0]), log_mel(real[:, 0]))
    assert torch.allclose(mine, spectral(fake, real), rtol=1e-5)

    judges = build_discriminators(DiscriminatorConfig(period_width=1 / 16, scale_width=1 / 16))
    with torch.no_grad():
        (scores_real, features_real), (scores_fake, features_fake) = judges(real), judges(fake)
    theirs = hifigan.DiscriminatorLoss(hifigan.MSEDLoss())(scores_fake, scores_real)["D_loss"]
    assert torch.allclose(discriminator_loss(scores_real, scores_fake), theirs)
    loss = hifigan.MSEGLoss()
    assert torch.allclose(adversarial_loss(scores_fake), sum(loss(s) for s in scores_fake))
    theirs = hifigan.MelganFeatureLoss()(features_fake, features_real)
    assert torch.allclose(feature_loss(features_fake, features_real), theirs)


def test_reflecting_discriminators_are_speechbrains_whatever_their_layout():
    torch.manual_seed(0)
    sound = torch.randn(1, 1, 2000) * 0.1
    # In training mode spectral norm estimates anew, so it is left out here.
    judges = build_discriminators(DiscriminatorConfig(zero_padding=False, spectral_norm=False))
    published = hifigan.HifiganDiscriminator()
    published.msd.discriminators[0] = hifigan.DiscriminatorS()
    published.load_state_dict(judges.state_dict())
    to_channels_last(judges)
    with torch.no_grad():
        (mine, _), (theirs, _) = judges(sound), published(sound)
    assert len(mine) == len(theirs) == 8
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, theirs, strict=True))


def test_zero_padding_keeps_the_shapes():
    sound = torch.randn(1, 1, 2000)
    narrow = {"period_width": 1 / 16, "scale_width": 1 / 16}
    with torch.no_grad():
        zero = build_discriminators(DiscriminatorConfig(**narrow))(sound)
        reflect = build_discriminators(DiscriminatorConfig(**narrow, zero_padding=False))(sound)
    assert [f.shape for fs in zero[1] for f in fs] == [f.shape for fs in reflect[1] for f in fs]


def test_fewer_and_narrower_discriminators():
    config = DiscriminatorConfig(periods=[5], scales=1, first_scale=1, period_width=0.25, scale_width=0.25)
    judges = build_discriminators(config)
    scores, features = judges(torch.randn(2, 1, 2000))
    assert len(scores) == 2 and features[0][0].shape[1] == 16
    assert sum(p.numel() for p in judges.parameters()) < 2e6
    with pytest.raises(ValueError, match="nothing judges"):
        DiscriminatorConfig(periods=[], scales=0)


def test_duration_loss_counts_scored_units_alone():
    predicted = torch.log1p(torch.tensor([[2.0, 5.0]]))
    durations, mask = torch.tensor([[2, 9]]), torch.tensor([[True, False]])
    assert duration_loss(predicted, durations, mask).item() == pytest.approx(0, abs=1e-6)
    assert duration_loss(predicted, durations, ~mask).item() > 0.1


def test_silence_has_a_finite_gradient():
    silence = torch.zeros(1, 3000, requires_grad=True)
    LogMel(16_000)(silence).sum().backward()
    assert torch.isfinite(silence.grad).all()
