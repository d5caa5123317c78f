"""Encoders as the hub has them: other sizes, norms, frame rates and file layouts, all told by their files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import HubertConfig, HubertForCTC, HubertModel, Wav2Vec2FeatureExtractor

from speechgpt.data.audio import write_wav
from speechgpt.data.rows import Utterance, write_manifest
from speechgpt.units.codebook import Codebook
from speechgpt.units.codebook_fitting import CodebookConfig, fit_codebook
from speechgpt.units.encode import encode_manifest
from speechgpt.units.encoder import Encoder
from speechgpt.units.unit_encoder import UnitEncoder

from ..conftest import OF_25_HZ, tiny_vocoder
from .conftest import TINY, noise

EXTRA_STRIDE = {
    "conv_dim": [8] * 8,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2, 2],
    "num_feat_extract_layers": 8,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
# What tells the published models apart, at small widths: settings, do_normalize.
MODELS = {
    "utter-project/mHuBERT-147": ({"feat_extract_norm": "group"}, True),
    "facebook/hubert-base-ls960": ({"feat_extract_norm": "group"}, False),
    "facebook/hubert-large-ll60k": (LARGE, True),
    "a base of 25 Hz": ({"feat_extract_norm": "group"} | EXTRA_STRIDE, False),
    "a large of 25 Hz": (LARGE | EXTRA_STRIDE, True),
}
NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def write_folder(
    folder: Path, settings: dict, normalize: bool, pickled: bool = False, head: bool = False
) -> HubertModel:
    """As transformers itself writes one; `pickled`: as it did in 2021, with the weight norm's old names."""
    torch.manual_seed(0)
    config = HubertConfig(**TINY | settings)
    model = (HubertForCTC if head else HubertModel)(config).eval()
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=normalize).save_pretrained(folder)
    assert (folder / "preprocessor_config.json").exists()
    if pickled:
        weights = {}
        for name, value in model.state_dict().items():
            for new, old in NAMES.items():
                name = name.replace(new, old)
            weights[name] = value
        assert any(name.endswith("pos_conv_embed.conv.weight_g") for name in weights)
        weights["label_embs_concat"] = torch.zeros(504, 256)  # conversions of fairseq's files carry it along
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return model.hubert if head else model


@pytest.mark.parametrize("head", [False, True], ids=["bare", "with a head"])
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", MODELS)
def test_a_published_layout_gives_transformers_own_features(name, pickled, head, tmp_path):
    settings, normalize = MODELS[name]
    model = write_folder(tmp_path, settings, normalize, pickled, head)
    encoder = Encoder.load(tmp_path, "cpu")
    slow = "25 Hz" in name
    assert (encoder.hop, encoder.receptive_field) == ((640, 720) if slow else (320, 400))
    assert encoder.normalize is normalize and encoder.sample_rate == 16_000
    for samples in (720, 12_345, 33_000):
        waveform = torch.from_numpy(noise(samples) + 0.1)
        given = torch.nn.functional.layer_norm(waveform, waveform.shape) if normalize else waveform
        with torch.no_grad():
            expected = model(given[None], output_hidden_states=True).hidden_states[2][0]
        (features,) = encoder.features([waveform], 2)
        assert features.shape[0] == encoder.frames(samples)
        torch.testing.assert_close(features, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_layer_k_and_frame_rate_come_from_the_files(name, tmp_path):
    settings, normalize = MODELS[name]
    write_folder(tmp_path / "encoder", settings, normalize)
    rows = []
    for index in range(4):
        write_wav(tmp_path / f"{index}.wav", noise(24_000, index))
        rows.append(Utterance(f"row{index}", f"{index}.wav", 1.5, split="train"))
    write_wav(tmp_path / "short.wav", noise(500))
    write_manifest(tmp_path / "manifest.jsonl", rows)
    encoder = Encoder.load(tmp_path / "encoder", "cpu")
    book = fit_codebook(CodebookConfig(k=7, layer=3, n_init=1), encoder, tmp_path / "manifest.jsonl")
    book.save(tmp_path / "book.safetensors")
    units = UnitEncoder.load(tmp_path / "encoder", tmp_path / "book.safetensors", device="cpu")
    slow = "25 Hz" in name
    assert (units.layer, units.num_units, units.frame_rate) == (3, 7, 25 if slow else 50)
    assert Codebook.load(tmp_path / "book.safetensors").provenance.receptive_field == (720 if slow else 400)
    frames = units.encode_file(tmp_path / "0.wav")
    assert len(frames) == ((24_000 - 720) // 640 + 1 if slow else (24_000 - 400) // 320 + 1)
    # One file that is too short for this encoder is rejected by itself, and costs its batch nothing.
    write_manifest(tmp_path / "manifest.jsonl", [*rows, Utterance("short", "short.wav", 0.031)])
    done = encode_manifest(units, tmp_path / "manifest.jsonl", tmp_path / "units.jsonl", max_bad=1)
    assert done == (4 if slow else 5)
    if slow:
        reason = json.loads((tmp_path / "units.jsonl.rejects.jsonl").read_text())["reason"]
        assert "500 samples; this encoder needs at least 720" in reason


def test_units_of_25_hz_become_speech_of_the_same_length(tmp_path):
    from speechgpt.vocoder.synthesize import Synthesizer

    write_folder(tmp_path, *MODELS["a base of 25 Hz"])
    encoder = Encoder.load(tmp_path, "cpu")
    synthesizer = Synthesizer(tiny_vocoder(9, **OF_25_HZ))
    assert synthesizer.sample_rate / synthesizer.hop == encoder.sample_rate / encoder.hop == 25
    frames = np.arange(int(encoder.frames(48_000))) % 9
    (sound,) = synthesizer.synthesize([frames], [np.ones(len(frames), int)])
    assert 0 <= 48_000 - len(sound) < 2 * encoder.hop and np.isfinite(sound).all()


def test_what_a_folder_lacks_is_named(tmp_path):
    write_folder(tmp_path, *MODELS["facebook/hubert-base-ls960"], pickled=True)
    said = (tmp_path / "preprocessor_config.json").read_text()
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no preprocessor_config.json, which says whether"):
        Encoder.load(tmp_path, "cpu")
    (tmp_path / "preprocessor_config.json").write_text(said)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(ValueError, match="pytorch_model.bin: cannot be read as weights"):
        Encoder.load(tmp_path, "cpu")
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no plain table of names and tensors"):
        Encoder.load(tmp_path, "cpu")
