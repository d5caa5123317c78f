"""Crops are what the files hold, their labels follow a change of speed, and augmentation keeps time."""

import math

import pytest
import torch

from speechgpt.data.rows import Utterance
from speechgpt.units.audio_pool import (
    IGNORED,
    AudioPool,
    CropSampler,
    change_speed,
    retime,
    row_chances,
)
from speechgpt.units.augment import AugmentConfig, augment

from .conftest import noise


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def a_pool(seconds: list[float], corpora: str) -> AudioPool:
    waveforms = [torch.from_numpy(noise(round(s * 16_000), i)) for i, s in enumerate(seconds)]
    lengths = torch.tensor([len(w) for w in waveforms])
    rows = [Utterance(str(i), "", s, corpus=c) for i, (s, c) in enumerate(zip(seconds, corpora, strict=True))]
    samples = (torch.cat(waveforms) * 32_768).round().to(torch.int16)
    return AudioPool(rows, samples, lengths.cumsum(0) - lengths, lengths, 16_000)


def numbered(pool: AudioPool) -> torch.Tensor:
    """Labels that tell the row and the frame."""
    counts = ((pool.lengths - 400) // 320 + 1).tolist()
    return torch.cat([torch.arange(n) + 1000 * i for i, n in enumerate(counts)]).to(torch.int16)


def test_crops_and_labels_come_from_the_same_place():
    pool = a_pool([0.5, 3.0], "ab")
    sampler = CropSampler(pool, [numbered(pool)], 320, 400, 50, {"a": 1.0, "b": 1.0})
    crops = sampler.draw(16, seeded())
    assert crops.waveforms.shape == (16, 49 * 320 + 400) and crops.labels[0].shape == (16, 50)
    for waveform, length, labels in zip(crops.waveforms, crops.lengths, crops.labels[0], strict=True):
        row, frame = divmod(int(labels[0]), 1000)
        source = pool.waveform(row)[frame * 320 :][: int(length)]
        torch.testing.assert_close(waveform[: int(length)], source)
        frames = (int(length) - 400) // 320 + 1
        assert not waveform[int(length) :].any() and (labels[frames:] == IGNORED).all()
        assert labels[:frames].tolist() == list(range(int(labels[0]), int(labels[0]) + frames))
    assert {int(n) for n in crops.lengths} == {8000, 16_080}


def test_trimmed_rows_lose_a_share_of_each_end_and_their_labels_with_it():
    pool = a_pool([1.0, 3.0], "ab")
    sampler = CropSampler(pool, [numbered(pool)], 320, 400, 80, {"a": 1.0, "b": 1.0}, trim=0.25)
    crops, starts, lengths = sampler.draw(200, seeded()), set(), set()
    for waveform, length, labels in zip(crops.waveforms, crops.lengths, crops.labels[0], strict=True):
        row, frame = divmod(int(labels[0]), 1000)
        source = pool.waveform(row)[frame * 320 :][: int(length)]
        torch.testing.assert_close(waveform[: int(length)], source)
        assert not waveform[int(length) :].any()
        frames = (int(length) - 400) // 320 + 1
        assert labels[:frames].tolist() == list(range(int(labels[0]), int(labels[0]) + frames))
        if row == 0:  # shorter than a crop
            starts.add(frame)
            lengths.add(int(length) + frame * 320)
        else:
            assert int(length) == sampler.crop_samples
    assert min(starts) == 0 and max(starts) == 11 and len(starts) == 12  # of 49 frames
    assert 12_000 <= min(lengths) < 12_400 and 15_600 < max(lengths) <= 16_000


def test_the_same_seed_draws_the_same_crops():
    pool = a_pool([2.0, 3.0], "ab")
    sampler = CropSampler(pool, [numbered(pool)], 320, 400, 40, {})
    first, second = sampler.draw(6, seeded(), (0.9, 1.1)), sampler.draw(6, seeded(), (0.9, 1.1))
    assert torch.equal(first.waveforms, second.waveforms)
    assert torch.equal(first.labels[0], second.labels[0])
    assert not torch.equal(first.waveforms, sampler.draw(6, seeded(1), (0.9, 1.1)).waveforms)


@pytest.mark.parametrize("speed", [0.8, 0.95, 1.1, 1.25])
def test_labels_follow_a_change_of_speed(speed):
    # A click each 0.25 s; the labels number the stretches between them.
    samples = 16_000 * 4
    waveform = torch.zeros(samples)
    waveform[2000::4000] = 0.9
    centres = torch.arange((samples - 400) // 320 + 1) * 320 + 200
    labels = ((centres - 2000).div(4000, rounding_mode="floor") + 1).to(torch.int16)
    pool = AudioPool(
        [Utterance("a", "", 4.0)],
        (waveform * 32_767).to(torch.int16),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor([samples]),
        16_000,
    )
    crops = CropSampler(pool, [labels], 320, 400, 100, {}).draw(8, seeded(), (speed,))
    for wave, found, length in zip(crops.waveforms, crops.labels[0], crops.lengths, strict=True):
        clicks = (wave[: int(length)] > 0.3).nonzero().flatten()
        clicks = clicks[torch.cat([torch.tensor([True]), clicks[1:] - clicks[:-1] > 50])]
        frames = (found != IGNORED).nonzero().flatten()
        middles = frames * 320 + 200
        heard = (clicks < middles[:, None]).sum(-1)  # clicks before each frame
        clear = (clicks - middles[:, None]).abs().amin(-1) > 320 / speed
        first = found[frames][clear] - heard[clear]
        assert len(clicks) > 3 and clear.float().mean() > 0.5
        assert (first == first[0]).all()


def test_retiming_keeps_frames_at_speed_one():
    frames = torch.arange(100)
    assert torch.equal(retime(frames, 1.0, 320, 400), frames)
    assert retime(frames, 1.25, 320, 400)[80] == 100 and retime(frames, 0.8, 320, 400)[80] == 64


@pytest.mark.parametrize("speed", [0.8, 0.9, 1.05, 1.2])
def test_a_tone_is_faster_and_higher(speed):
    time = torch.arange(16_000) / 16_000
    found = change_speed(torch.sin(2 * math.pi * 1000 * time)[None], speed)[0]
    assert len(found) == int(16_000 / speed)
    expected = torch.sin(2 * math.pi * 1000 * speed * torch.arange(len(found)) / 16_000)
    assert (found - expected)[200:-200].abs().max() < 3e-3


def test_corpora_are_drawn_by_their_weights():
    pool = a_pool([1.0, 3.0, 2.0], "aab")
    assert row_chances(pool, {}).tolist() == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert row_chances(pool, {"a": 1.0, "b": 3.0}).tolist() == pytest.approx([1 / 16, 3 / 16, 3 / 4])
    assert row_chances(pool, {"b": 1.0, "*": 1.0}).tolist() == pytest.approx([1 / 8, 3 / 8, 1 / 2])
    with pytest.raises(ValueError, match="sampling names c; the rows are of a, b"):
        row_chances(pool, {"a": 1, "c": 1})
    with pytest.raises(ValueError, match="no weight for b"):
        row_chances(pool, {"a": 1})


FULL = AugmentConfig(
    equalizer_chance=0.5,
    band_chance=0.5,
    telephone_chance=0.5,
    noise_chance=0.8,
    reverb_chance=0.5,
    gain_db=[-30, 0],
)


def test_augmentation_keeps_shape_silence_and_seed():
    waveforms = torch.stack([torch.from_numpy(noise(16_000, i)) for i in range(5)])
    lengths = torch.tensor([16_000, 12_000, 400, 8_000, 16_000])
    waveforms = waveforms * (torch.arange(16_000) < lengths[:, None])
    found = augment(waveforms, lengths, FULL, seeded(), 16_000)
    assert found.shape == waveforms.shape and torch.isfinite(found).all() and found.abs().max() <= 1
    for row, length in zip(found, lengths.tolist(), strict=True):
        assert not row[length:].any() and row[:length].any()
    assert torch.equal(found, augment(waveforms, lengths, FULL, seeded(), 16_000))
    assert augment(waveforms, lengths, AugmentConfig(), seeded(), 16_000) is waveforms
    alone = augment(waveforms[:1], lengths[:1], FULL, seeded(), 16_000)
    assert torch.isfinite(alone).all()


@pytest.mark.parametrize("babble", [0.0, 1.0])
def test_noise_is_at_its_distance(babble):
    waveforms = torch.stack([torch.from_numpy(noise(16_000, i)) for i in range(6)])
    config = AugmentConfig(noise_chance=1.0, babble_share=babble, snr_db=[12.0, 12.0])
    added = augment(waveforms, torch.full((6,), 16_000), config, seeded(), 16_000) - waveforms
    distance = 10 * (waveforms.square().sum(-1) / added.square().sum(-1)).log10()
    assert (distance - 12).abs().max() < 1


def test_a_telephone_hears_only_its_band():
    waveforms = torch.randn(2, 16_000, generator=seeded())
    config = AugmentConfig(telephone_chance=1.0)
    found = augment(waveforms, torch.full((2,), 16_000), config, seeded(), 16_000)
    power = torch.fft.rfft(found).abs().square()  # 1 Hz a bin but for rounding
    before = torch.fft.rfft(waveforms).abs().square()
    assert (power[:, 600:3000].sum(-1) / before[:, 600:3000].sum(-1) > 0.9).all()
    assert (power[:, 5000:].sum(-1) / before[:, 5000:].sum(-1) < 0.01).all()
