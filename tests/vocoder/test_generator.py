"""The generator: published sizes, shapes, speakers, weight norm, saving."""

import json
from dataclasses import replace

import pytest
import torch

from speechgpt.vocoder.durations import frames_from_log
from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.settings import TrainConfig

K, HOP = 6, 320


def size(model) -> int:
    return sum(p.numel() for p in model.parameters())


def preset(name: str) -> VocoderConfig:
    from importlib.resources import files

    return TrainConfig.load(str(files("speechgpt") / "presets" / name / "vocoder.yaml")).generator


def test_published_sizes():
    model = UnitVocoder(VocoderConfig())
    assert size(model) == 13_475_010  # 13.48 M
    assert model.hop == 320
    assert len(model.ups) == 5 and len(model.resblocks) == 15
    assert preset("speechgpt-7b") == VocoderConfig()


def test_names_are_those_of_published_checkpoints():
    names = set(UnitVocoder(VocoderConfig(num_speakers=200)).add_weight_norm().state_dict())
    for name in (
        "dict.weight",
        "spkr.weight",
        "dur_predictor.conv1.0.weight",
        "dur_predictor.ln2.bias",
        "dur_predictor.proj.weight",
        "conv_pre.parametrizations.weight.original0",
        "ups.4.parametrizations.weight.original1",
        "resblocks.14.convs2.2.bias",
        "conv_post.bias",
    ):
        assert name in names


@pytest.mark.parametrize("name", ["toy", "mini"])
def test_presets_have_the_hop_of_the_encoder(name):
    config = replace(preset(name), num_units=1000, num_speakers=4)
    model = UnitVocoder(config)
    assert model.hop == 320
    assert size(model) * 2 < 4e6 + 1e5  # bytes in float16


def test_waveform_shape_and_range(small, make_vocoder):
    sound = make_vocoder(small)(torch.randint(K, (3, 7)))
    assert sound.shape == (3, 7 * HOP)
    assert sound.abs().max() <= 1 and sound.std() > 1e-3


def test_padded_rows_equal_rows_alone(small, make_vocoder):
    model = make_vocoder(small)
    frames = torch.randint(K, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            padded = model(frames, mask=mask)
            for row, length in enumerate([9, 4, 1]):
                alone = model(frames[row : row + 1, :length])[0]
                assert torch.allclose(padded[row, : length * HOP], alone, atol=1e-5)
                assert not padded[row, length * HOP :].any()


def test_padded_durations_equal_durations_alone(small, make_vocoder):
    model = make_vocoder(small)
    units = torch.randint(K, (3, 9))
    mask = torch.arange(9) < torch.tensor([9, 5, 2])[:, None]
    padded = model.log_durations(units, mask=mask)
    for row, length in enumerate([9, 5, 2]):
        alone = model.log_durations(units[row : row + 1, :length])[0]
        assert torch.allclose(padded[row, :length], alone, atol=1e-5)


def test_durations_round_as_published():
    frames = torch.tensor([0.2, 1.4, 1.6, 2.5, 3.5, 7.0])
    expected = torch.round(frames).clamp(min=1).long()
    assert torch.equal(frames_from_log(torch.log1p(frames.double()).float()), expected)
    assert frames_from_log(torch.tensor([-5.0])).item() == 1
    assert frames_from_log(torch.log1p(torch.tensor([3.0])), scale=2.0).item() == 6


def test_speaker_table_changes_the_voice(two_voices, make_vocoder):
    model = make_vocoder(two_voices)
    frames = torch.randint(K, (1, 5))
    ann, bob = model(frames, torch.tensor([0])), model(frames, torch.tensor([1]))
    assert not torch.allclose(ann, bob, atol=1e-3)
    with pytest.raises(ValueError, match="speaker is needed"):
        model(frames)


def test_speaker_vectors(small, make_vocoder):
    model = make_vocoder(replace(small, speaker_vector_dim=5))
    frames = torch.randint(K, (2, 5))
    sound = model(frames, torch.randn(2, 5))
    assert sound.shape == (2, 5 * HOP)
    with pytest.raises(ValueError, match="2"):
        model(frames, torch.randn(3, 5))


def test_weight_norm_folds_away(small, make_vocoder):
    model = make_vocoder(small)
    frames = torch.randint(K, (1, 4))
    before = model(frames)
    model.add_weight_norm()
    assert torch.allclose(model(frames), before, atol=1e-6)
    assert set(model.folded_state()) == set(UnitVocoder(small).state_dict())
    model.remove_weight_norm()
    assert torch.allclose(model(frames), before, atol=1e-6)


def test_save_and_load(small, tmp_path, make_vocoder):
    small.codebook = {"K": K, "encoder": "abc"}
    model = make_vocoder(small)
    model.save(tmp_path)
    again = UnitVocoder.load(tmp_path, "cpu")
    assert again.config == small
    frames = torch.randint(K, (1, 4))
    assert torch.equal(again(frames), model(frames))
    model.save(tmp_path, half=True)
    again = UnitVocoder.load(tmp_path, "cpu")
    assert again.dict.weight.dtype == torch.float32
    assert torch.allclose(again(frames), model(frames), atol=0.05)


def test_load_names_what_is_wrong(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        UnitVocoder.load(tmp_path)
    UnitVocoder(small).save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "embedding_dim": 9}))
    with pytest.raises(ValueError, match="does not fit config.json"):
        UnitVocoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "colour": 1}))
    with pytest.raises(ValueError, match="colour.*known"):
        UnitVocoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**values, "format": 99}))
    with pytest.raises(ValueError, match="format"):
        UnitVocoder.load(tmp_path)


def test_config_lists_every_problem(small):
    with pytest.raises(ValueError, match="upsample kernel 6.*exclude"):
        replace(
            small,
            upsample_rates=[5, 8, 8],
            upsample_kernels=[6, 16, 16],
            num_speakers=2,
            speaker_vector_dim=3,
        )
