"""Training data: crops aligned with their units, loudness, weights, errors that name both numbers."""

import numpy as np
import pytest
import torch

from speechgpt.data.rows import UnitRow
from speechgpt.vocoder.pool import DataConfig, Pool, load_rows, normalise_loudness, read_rows

HOP = 320


@pytest.fixture
def pool():
    """Three utterances whose samples tell their frame: unit u sounds as the constant u / 100."""
    rows = []
    for number, (units, durations) in enumerate([([1, 2, 3], [2, 5, 4]), ([4, 5], [1, 2]), ([6, 7], [9, 9])]):
        waveform = np.repeat(np.array(units) / 100, np.array(durations) * HOP).astype(np.float32)
        waveform = np.append(waveform, np.zeros(80, np.float32))
        rows.append((UnitRow(f"u{number}", units, durations, "ab"[number % 2], "corpus"), waveform))
    pool = Pool(rows, HOP, ["a", "b"], torch.device("cpu"))
    pool.weigh(DataConfig())
    return pool


def test_crops_are_aligned_with_their_units(pool):
    batch = pool.draw(64, 6, 2, (1, 2))
    assert batch.audio.shape == (64, 6 * HOP) and batch.frames.shape == (64, 6)
    told = (batch.audio.view(64, 6, HOP) * 100).round()
    assert torch.equal(told, batch.frames[:, :, None].expand_as(told).float())
    # The second utterance has 3 frames: it is repeated.
    short = batch.frames[batch.speaker == 1]
    assert len(short) and torch.equal(short[:, :3], short[:, 3:])


def test_unit_windows_and_their_masks(pool):
    batch = pool.draw(32, 2, 3, (3,))
    for row in range(32):
        units = batch.units[row][batch.unit_mask[row]].tolist()
        assert units in ([1, 2, 3], [4, 5], [6, 7])
        assert torch.equal(batch.loss_mask[row], batch.unit_mask[row])  # whole utterances: all scored


def test_units_at_a_cut_edge_are_not_scored():
    rows = [(UnitRow("u", list(range(20)), [1] * 20), np.zeros(20 * HOP, np.float32))]
    pool = Pool(rows, HOP, [""], torch.device("cpu"))
    pool.weigh(DataConfig())
    batch = pool.draw(64, 2, 8, (0,))
    for units, mask in zip(batch.units, batch.loss_mask, strict=True):
        first, last = int(units[0]), int(units[-1])
        scored = units[mask].tolist()
        assert scored == list(range(first + (2 if first else 0), last + 1 - (2 if last < 19 else 0)))


def test_the_same_seed_draws_the_same(pool):
    one, two, other = pool.draw(4, 3, 2, (1, 5)), pool.draw(4, 3, 2, (1, 5)), pool.draw(4, 3, 2, (1, 6))
    assert torch.equal(one.audio, two.audio) and not torch.equal(one.audio, other.audio)


def test_weights_by_speaker(pool):
    pool.weigh(DataConfig(weights={"a": 0.25, "b": 0.75}))
    share = (pool.draw(4000, 1, 1, (0,)).speaker == 1).float().mean()
    assert abs(float(share) - 0.75) < 0.05
    with pytest.raises(ValueError, match="weights for zoe"):
        pool.weigh(DataConfig(weights={"zoe": 1.0}))


def test_loudness():
    random = np.random.default_rng(0)
    speech = random.normal(0, 0.002, 16_000).astype(np.float32)
    speech[8000:] = 0  # a pause does not count
    loud = normalise_loudness(speech, 16_000, DataConfig())
    assert abs(20 * np.log10(loud[:8000].std()) + 23) < 0.5
    click = np.full(16_000, 1e-4, np.float32)
    click[100] = 0.5
    assert abs(np.abs(normalise_loudness(click, 16_000, DataConfig())).max() - 10 ** (-1 / 20)) < 1e-3
    assert not normalise_loudness(np.zeros(100, np.float32), 16_000, DataConfig()).any()


def test_reading_a_corpus(corpus):
    manifest, units, config = corpus / "manifest.jsonl", corpus / "units.jsonl", DataConfig()
    assert len(read_rows(manifest, units, config, ["dev"])) == 2
    pairs = read_rows(manifest, units, DataConfig(speakers=["ann"]), ["train"])
    assert [row.speaker for _, row in pairs] == ["ann"] * 3
    first = f"{pairs[0][0].corpus}/{pairs[0][0].id}"
    kept = read_rows(manifest, units, DataConfig(speakers=["ann"], exclude=[first]), ["train"])
    assert [row.id for _, row in kept] == [row.id for _, row in pairs[1:]]
    rows = load_rows(pairs, manifest, HOP, 16_000, config)
    assert all(len(w) == sum(r.durations) * HOP for r, w in rows)


def test_another_hop_is_an_error_with_both_numbers(corpus):
    manifest, config = corpus / "manifest.jsonl", DataConfig()
    pairs = read_rows(manifest, corpus / "units.jsonl", config, ["train"])
    with pytest.raises(ValueError, match="32[0-9] samples a frame; this vocoder's hop is 160"):
        load_rows(pairs, manifest, 160, 16_000, config)
    assert load_rows(pairs, manifest, 640, 16_000, DataConfig(max_bad=6)) == []
