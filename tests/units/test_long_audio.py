"""Long files: no frame is lost at a seam, and what the whole file would give comes out window by window."""

import numpy as np
import pytest
import soundfile
import torch

from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.running_norms import BLOCK_SAMPLES, RunningNorms
from speechgpt.units.streaming import StreamingEncoder
from speechgpt.units.unit_encoder import UnitEncoder
from speechgpt.units.windows import window_features

from .conftest import GROUP, LAYER, STABLE, make_encoder, noise

TWENTY_FIVE_HZ = GROUP | {
    "conv_dim": [8] * 8,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2, 2],
}
ALL = pytest.mark.parametrize(
    "architecture",
    [GROUP, GROUP | {"conv_bias": True}, LAYER, STABLE, TWENTY_FIVE_HZ],
    ids=["group", "group-bias", "layer", "stable", "25hz"],
)


def units_of(architecture: dict, normalize: bool = True, layer: int = 2) -> UnitEncoder:
    encoder = make_encoder(architecture, normalize)
    features = torch.cat(encoder.features([noise(40_000, seed) for seed in range(3)], layer))
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:9]
    provenance = Provenance(encoder.fingerprint, layer, encoder.sample_rate, encoder.hop, normalize)
    return UnitEncoder(encoder, Codebook(features[chosen], provenance))


@ALL
@pytest.mark.parametrize("normalize", [False, True])
def test_windows_that_remember_all_give_the_whole_files_features(architecture, normalize):
    encoder = make_encoder(architecture, normalize)
    for layer in (1, 3):
        (whole,) = encoder.features([noise(70_001) + 0.05], layer)
        parts = list(window_features(encoder, noise(70_001) + 0.05, layer, 0.7, 0.3))
        assert len(parts) > 5
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5 * float(whole.abs().max()), rtol=0)


@ALL
def test_no_frame_is_lost_at_a_seam(architecture, monkeypatch):
    """Lengths a sample to each side of where a window, or a block of the convolutions, ends."""
    monkeypatch.setattr("speechgpt.units.windows.BLOCK_SECONDS", 0.5)
    encoder = make_encoder(architecture)
    hop, field, window = encoder.hop, encoder.receptive_field, round(0.4 * encoder.sample_rate / encoder.hop)
    for frames in (window, 2 * window, 2 * window + 1, 3 * window - 1):
        for samples in ((frames - 1) * hop + field + delta for delta in (-1, 0, 1, hop - 1)):
            parts = list(window_features(encoder, noise(samples), 2, 0.4, 0.1, memory_frames=7))
            assert all(len(part) == window for part in parts[:-1])
            assert sum(map(len, parts)) == encoder.frames(samples) == (samples - field) // hop + 1
    assert len(torch.cat(list(window_features(encoder, noise(field), 2, 0.4)))) == 1


@ALL
def test_a_small_memory_is_better_than_none(architecture):
    encoder, waveform = make_encoder(architecture), np.concatenate([noise(48_000, seed) for seed in range(4)])
    (whole,) = encoder.features([waveform], 3)

    def error(frames: int) -> float:
        parts = torch.cat(list(window_features(encoder, waveform, 3, 0.6, 0.2, frames)))
        return float((parts - whole).square().mean().sqrt())

    assert error(100) < 0.5 * error(1) and error(10_000) < 1e-5


@pytest.mark.parametrize("architecture", [GROUP, GROUP | {"conv_bias": True}], ids=["plain", "bias"])
@pytest.mark.parametrize("normalize", [False, True])
def test_one_pass_gives_the_statistics_of_the_whole_waveform(architecture, normalize):
    encoder = make_encoder(architecture, normalize)
    waveform = noise(2 * BLOCK_SAMPLES + 77) * np.float32(3) + np.float32(0.4)
    norms, cut = RunningNorms(encoder), RunningNorms(encoder)
    norms.add(waveform)
    for piece in np.array_split(waveform, [3, 4, 9, 5000, 70_000]):
        cut.add(piece)
    shift, scale = norms.level
    if normalize:
        np.testing.assert_allclose(
            [shift, scale], [waveform.mean(), (waveform.var() + 1e-5) ** -0.5], rtol=1e-4
        )
    else:
        assert (shift, scale) == (0, 1)
    levelled = torch.from_numpy((waveform - shift) * scale)
    hidden = encoder.model.feature_extractor.conv_layers[0].conv(levelled[None, None])[0].detach().double()
    mean, variance = norms.group
    torch.testing.assert_close(mean, hidden.mean(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(variance, hidden.var(-1, unbiased=False), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(cut.group[1], variance, atol=1e-9, rtol=1e-6)


def test_a_layer_norm_encoder_has_no_group_statistics():
    assert RunningNorms(make_encoder(LAYER)).group is None


def streamed(units: UnitEncoder, pieces: list[np.ndarray], **settings) -> np.ndarray:
    stream = StreamingEncoder(units, **settings)
    found = [stream.push(piece) for piece in pieces] + [stream.finish()]
    assert stream.frames == sum(map(len, found))
    return np.concatenate(found)


@ALL
def test_a_stream_does_not_depend_on_how_it_was_cut(architecture):
    units, waveform = units_of(architecture), noise(50_123)
    settings = {"look_ahead_seconds": 0.3, "step_seconds": 0.25, "history_seconds": 0.7}
    whole = streamed(units, [waveform], **settings)
    assert len(whole) == units.encoder.frames(len(waveform))
    rng = np.random.default_rng(0)
    for cuts in (np.arange(160, 50_123, 160), np.sort(rng.integers(0, 50_123, 40)), np.arange(1, 900)):
        pieces = np.array_split(waveform, cuts)
        assert np.array_equal(streamed(units, pieces, **settings), whole)


@ALL
def test_a_stream_gives_every_frame_once(architecture):
    units = units_of(architecture)
    hop, field = units.encoder.hop, units.encoder.receptive_field
    settings = {"look_ahead_seconds": 0.1, "step_seconds": 0.2, "history_seconds": 0.3}
    for frames in (1, 2, 5, 14, 15, 16, 31):
        for samples in ((frames - 1) * hop + field + delta for delta in (0, 1, hop - 1)):
            assert len(streamed(units, [noise(samples)], **settings)) == frames


def test_a_frame_is_final_after_its_look_ahead_and_at_most_a_step():
    units = units_of(GROUP)
    stream = StreamingEncoder(units, look_ahead_seconds=0.4, step_seconds=0.2, history_seconds=1.0)
    for piece in np.split(noise(32_000), 200):
        stream.push(piece)
        heard = int(units.encoder.frames(stream.samples)) if stream.samples >= 400 else 0
        assert heard - stream.frames < 20 + 10
        assert stream.frames <= max(0, heard - 20)


def test_a_stream_shorter_than_its_first_step_gets_the_files_own_units():
    for architecture in (GROUP, LAYER, STABLE):
        units, waveform = units_of(architecture), noise(15_000)
        assert np.array_equal(streamed(units, [waveform]), units.encode([waveform])[0])


def test_a_stream_keeps_no_more_than_it_needs():
    units = units_of(GROUP)
    stream = StreamingEncoder(units, look_ahead_seconds=0.2, step_seconds=0.2, history_seconds=0.4)
    for piece in np.split(noise(160_000), 100):
        stream.push(piece)
        assert sum(map(len, stream._kept)) <= 16_000
    stream.finish()
    with pytest.raises(ValueError, match="is finished"):
        stream.push(noise(10))


def test_a_stream_refuses_what_is_no_audio():
    units = units_of(GROUP)
    stream = StreamingEncoder(units)
    stream.push(noise(1000))
    with pytest.raises(ValueError, match="sample 1003 of the stream is not a finite number"):
        stream.push(np.array([0, 0, 0, np.nan], np.float32))
    with pytest.raises(ValueError, match=r"expected samples \(T,\)"):
        stream.push(np.zeros((2, 3)))
    short = StreamingEncoder(units)
    short.push(noise(399))
    with pytest.raises(ValueError, match="ended after 399 samples; the encoder needs at least 400"):
        short.finish()
    for wrong in ({"look_ahead_seconds": -1}, {"step_seconds": 0}, {"history_seconds": float("nan")}):
        with pytest.raises(ValueError, match="expected"):
            StreamingEncoder(units, **wrong)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_long_stereo_file_in_windows_gets_the_units_of_its_whole(tmp_path, rate):
    units = units_of(GROUP)
    sides = np.stack([noise(round(3.7 * rate), seed) for seed in (1, 2)], axis=1)
    soundfile.write(tmp_path / "long.wav", sides, rate, subtype="FLOAT")
    whole = units.encode_file(tmp_path / "long.wav")
    units.window_seconds = 0.8
    parts = units.encode_file(tmp_path / "long.wav")
    assert len(whole) == len(parts) and (whole == parts).mean() > 0.98


def test_what_a_long_file_leaves_in_memory_does_not_grow_with_it(monkeypatch):
    """Frames that a layer remembers are copies of their own, not slices that hold all of the file."""
    encoder, held = make_encoder(LAYER), []
    plain = torch.cat

    def watched(tensors, *rest, **named):
        tensors = list(tensors)
        held.append(sum(t.untyped_storage().nbytes() for t in tensors))
        return plain(tensors, *rest, **named)

    monkeypatch.setattr(torch, "cat", watched)
    for waveform in (noise(160_000), noise(640_000)):
        for _ in window_features(encoder, waveform, 1, 0.5, 0.1, memory_frames=50):
            pass
    assert max(held) <= 2 * 4 * encoder.width * 100  # bytes: a hundred frames, not two thousand
