"""fairseq's CodeHiFiGAN generators become our vocoder; what ours cannot say is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt.data.inert import read_inert
from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.published import convert_generator, fold, is_generator, is_generator_config

from ..foreign_files import VOICES, codehifigan_config, save_codehifigan


@pytest.fixture
def published(small) -> VocoderConfig:
    """As published but small: fairseq's blocks have three pairs each, and the speaker the units' width."""
    return replace(small, speaker_dim=8, resblock_dilations=[[1, 2, 3], [1, 3, 5]])


def with_voices(config: VocoderConfig, voices: str) -> VocoderConfig:
    return {
        "one": config,
        "table": replace(config, num_speakers=3),
        "vector": replace(config, speaker_vector_dim=5),
    }[voices]


def converted(path) -> UnitVocoder:
    values = json.loads((path.parent / "config.json").read_text())
    tree = read_inert(path)
    assert is_generator(tree) and is_generator_config(values)
    return convert_generator(tree, values, str(path), "config.json")


@pytest.mark.parametrize("voices", VOICES)
def test_generators_of_every_kind_of_voice(tmp_path, published, make_vocoder, voices):
    model = make_vocoder(with_voices(published, voices))
    found = converted(save_codehifigan(tmp_path, model, voices))
    units = torch.tensor([[0, 3, 1, 5, 2]])
    speaker = {"one": None, "table": torch.tensor([2]), "vector": torch.randn(1, 5)}[voices]
    with torch.inference_mode():
        ours, theirs = found(units, speaker), model(units, speaker)
        assert torch.equal(found.durations(units, speaker), model.durations(units, speaker))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    found.save(tmp_path / "folder")
    assert UnitVocoder.load(tmp_path / "folder", "cpu").config == found.config


def test_the_published_sizes_are_the_defaults():
    config = VocoderConfig()
    with torch.device("meta"):
        model = UnitVocoder(config)
    values = codehifigan_config(model)
    state = {k: np.zeros(v.shape, np.float32) for k, v in model.state_dict().items()}
    found = convert_generator({"generator": state}, values, "g", "config.json")
    assert found.config == replace(config, training=found.config.training)
    assert sum(p.numel() for p in found.parameters()) == 13_475_010


def test_weight_norm_is_folded_as_torch_does(published, make_vocoder):
    convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 6, 3))
    torch.nn.init.normal_(convolution.parametrizations.weight.original0)
    for g, v in (("weight_g", "weight_v"), [f"parametrizations.weight.original{i}" for i in (0, 1)]):
        arrays = {
            f"c.{g}": convolution.parametrizations.weight.original0.detach().numpy(),
            f"c.{v}": convolution.parametrizations.weight.original1.detach().numpy(),
        }
        assert torch.equal(fold(arrays, "g")["c.weight"], convolution.weight)
        with pytest.raises(ValueError, match="has no c."):
            fold({f"c.{g}": arrays[f"c.{g}"]}, "g")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"f0": True}, "pitch"),
        ({"model_in_dim": 99}, "model_in_dim is 99; units and speaker make 8"),
        ({"code_hop_size": 160}, "code_hop_size is 160, upsample_rates make 320"),
        ({"num_embeddings": 7}, "dict.weight has shape (6, 8), its settings mean (7, 8)"),
        ({"num_embeddings": 1 << 20}, "has shape"),
        ({"upsample_initial_channel": 1 << 14}, "has shape"),
        ({"upsample_rates": [8, 8]}, "2 upsample_rates but 3 upsample_kernels"),
        ({"upsample_rates": "8,8,5"}, "upsample_rates is '8,8,5'; expected"),
        ({"upsample_rates": [1] * 99}, "up to 16"),
        ({"resblock_dilation_sizes": 3}, "resblock_dilation_sizes is 3"),
        ({"multispkr": "x"}, "model_in_dim is 8; units and speaker make 16"),
        ({"dur_predictor_params": None}, "unexpected dur_predictor"),
        ({"embedding_dim": None}, "config.json: embedding_dim is missing"),
    ],
)
def test_settings_of_other_networks_are_refused_by_name(tmp_path, published, make_vocoder, changes, expected):
    path = save_codehifigan(tmp_path, make_vocoder(published))
    values = codehifigan_config(make_vocoder(published)) | changes
    with pytest.raises(ValueError) as error:
        convert_generator(read_inert(path), values, str(path), "config.json")
    assert expected in str(error.value)


def test_a_duration_predictor_of_another_kernel_is_refused(tmp_path, published, make_vocoder):
    path, values = (
        save_codehifigan(tmp_path, make_vocoder(published)),
        codehifigan_config(UnitVocoder(published)),
    )
    values["dur_predictor_params"]["var_pred_kernel_size"] = 5
    with pytest.raises(ValueError, match="var_pred_kernel_size is 5; expected 3"):
        convert_generator(read_inert(path), values, "g", "config.json")


def test_one_storage_under_many_names_is_not_copied_for_each(tmp_path, published, make_vocoder, monkeypatch):
    path = save_codehifigan(tmp_path, make_vocoder(published))
    tree = read_inert(path)
    big = np.zeros(100_000, np.float32)
    tree["generator"] = {**tree["generator"], **{f"x{n}.weight_v": big for n in range(50)}}
    monkeypatch.setattr("speechgpt.vocoder.published.fold", None)
    with pytest.raises(ValueError, match="g: generator: its tensors would take .* bytes, the file has"):
        convert_generator(tree, codehifigan_config(make_vocoder(published)), "g", "config.json")


def test_speechbrain_generators_are_refused_with_the_difference(tmp_path):
    from speechbrain.lobes.models.HifiGAN import UnitHifiganGenerator

    sizes = {
        "resblock_kernel_sizes": [3],
        "resblock_dilation_sizes": [[1, 3, 5]],
        "upsample_factors": [8, 8, 5],
    }
    model = UnitHifiganGenerator(
        in_channels=8,
        out_channels=1,
        resblock_type="1",
        upsample_kernel_sizes=[16, 16, 11],
        upsample_initial_channel=32,
        embedding_dim=8,
        duration_predictor=True,
        **sizes,
    )
    torch.save(model.state_dict(), tmp_path / "generator.ckpt")
    tree = read_inert(tmp_path / "generator.ckpt")
    assert is_generator(tree)
    with pytest.raises(ValueError, match="SpeechBrain: .* by reflection .* no layer norm"):
        convert_generator(tree, {}, "generator.ckpt", "config.json")
