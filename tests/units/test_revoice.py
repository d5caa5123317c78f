"""Other voices out of the same recording: formants and pitch move, time and loudness do not."""

import numpy as np
import pytest
import torch

from speechgpt.units.augment import AugmentConfig, augment
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.revoice import RevoiceConfig, revoice

RATE = 16_000


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def vowel(pitch=120.0, formant=1200.0, seconds=1.0):
    """(1, T): harmonics of `pitch` under one broad resonance, silent in its last third."""
    time = torch.arange(round(seconds * RATE)) / RATE
    wave = torch.zeros_like(time)
    for number in range(1, int(4000 / pitch)):
        level = np.exp(-(((number * pitch - formant) / 300) ** 2)) + 0.02
        wave += level * torch.sin(2 * torch.pi * number * pitch * time)
    wave[2 * len(time) // 3 :] = 0
    return 0.1 * wave[None]


def peak(waveform, low=300, high=3500):
    """Frequency in Hz of the smoothed spectrum's maximum."""
    power = torch.fft.rfft(waveform[0, :8192] * torch.hann_window(8192)).abs().square()
    hertz = torch.linspace(0, RATE / 2, len(power))
    smooth = torch.nn.functional.avg_pool1d(power[None, None], 201, 1, 100)[0, 0]
    return float(hertz[torch.where((hertz > low) & (hertz < high), smooth, 0).argmax()])


def period(waveform):
    """Hz of the strongest repetition."""
    part = waveform[0, 2000:6000]
    found = torch.fft.irfft(torch.fft.rfft(part, n=8192).abs().square())[40:250]
    return RATE / (40 + int(found.argmax()))


@pytest.mark.parametrize("tract", [0.85, 1.15])
def test_a_tract_moves_formants_and_leaves_pitch_and_time(tract):
    before = vowel(80)
    after = revoice(before, RevoiceConfig(1.0, [tract, tract], 0, 0), seeded(), RATE)
    assert after.shape == before.shape
    assert peak(after) == pytest.approx(tract * peak(before), rel=0.05)
    assert period(after) == pytest.approx(period(before), rel=0.02)
    silent = 2 * before.shape[1] // 3 + 512
    assert after[:, silent:].abs().max() < 1e-3
    assert float(after.square().mean()) == pytest.approx(float(before.square().mean()), rel=1e-3)


def test_pulses_have_the_drawn_pitch_and_the_old_formant():
    after = revoice(vowel(), RevoiceConfig(1.0, [1, 1], 1.0, 0, [200, 200]), seeded(), RATE)
    assert 200 * 2**-0.3 < period(after) < 200 * 2**0.3
    assert peak(after) == pytest.approx(1200, rel=0.15)


def test_a_whisper_repeats_nothing():
    def regular(waveform):
        part = waveform[0, 2000:8000]
        found = torch.fft.irfft(torch.fft.rfft(part, n=16_384).abs().square())
        return float(found[100:250].max() / found[0])

    assert regular(vowel()) > 0.9
    assert regular(revoice(vowel(), RevoiceConfig(1.0, [1, 1], 0, 1.0), seeded(), RATE)) < 0.7


def test_a_share_of_the_rows_and_the_same_for_the_same_seed():
    rows = torch.cat([vowel(pitch) for pitch in range(100, 180, 10)])
    config = RevoiceConfig(0.5)
    after = revoice(rows, config, seeded(), RATE)
    assert int((after != rows).any(-1).sum()) == 4
    assert torch.equal(after, revoice(rows, config, seeded(), RATE))
    assert not torch.equal(after, revoice(rows, config, seeded(1), RATE))
    assert revoice(rows, RevoiceConfig(0.0), seeded(), RATE) is rows
    alone = [bool((revoice(rows[:1], config, seeded(n), RATE) != rows[:1]).any()) for n in range(40)]
    assert 10 < sum(alone) < 30


def test_it_is_a_part_of_augmentation_and_of_a_config(tmp_path):
    rows, lengths = vowel(), torch.tensor([RATE])
    config = AugmentConfig(revoice=RevoiceConfig(1.0))
    assert config.active
    assert not torch.equal(augment(rows, lengths, config, seeded(), RATE), rows)
    text = "architecture: {}\ntargets: [{kind: mfcc}]\ntraining: {steps: 1}\n"
    text += "augment: {revoice: {chance: 0.5}}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert PretrainConfig.load(tmp_path / "a.yaml").augment.revoice.chance == 0.5
    for wrong in ("{chance: 2}", "{tract: [1.2, 0.8]}", "{loud: 1}"):
        (tmp_path / "a.yaml").write_text(text.replace("{chance: 0.5}", wrong))
        with pytest.raises(ValueError, match="revoice"):
            PretrainConfig.load(tmp_path / "a.yaml")
