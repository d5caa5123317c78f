"""fairseq's HuBERT checkpoints of both generations become the encoder that they were, to the last bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechgpt.data.inert import read_inert
from speechgpt.units.fairseq_hubert import (
    PUBLISHED_CONVOLUTIONS,
    convert_hubert,
    is_fairseq_speech,
    parse_convolutions,
)

from ..foreign_files import fairseq_weights, save_fairseq
from .conftest import GROUP, STABLE, make_encoder, noise

LEGACY = {"_use_new_zipfile_serialization": False}


def read_back(path):
    tree = read_inert(path)
    assert is_fairseq_speech(tree)
    return convert_hubert(tree, str(path))


@pytest.mark.parametrize("style", ["cfg", "args", "omegaconf"])
@pytest.mark.parametrize("architecture, normalize", [(GROUP, False), (STABLE, True)], ids=["base", "large"])
def test_checkpoints_of_both_generations(tmp_path, style, architecture, normalize):
    encoder = make_encoder(architecture, normalize)
    save_fairseq(tmp_path / "hubert.pt", encoder, style, **(LEGACY if style == "args" else {}))
    found = read_back(tmp_path / "hubert.pt")
    assert found.fingerprint == encoder.fingerprint and found.normalize == normalize
    waveform = noise(4000)
    for layer in (1, 3):
        ours, theirs = found.features([waveform], layer)[0], encoder.features([waveform], layer)[0]
        assert torch.equal(ours, theirs)


def test_a_converted_encoder_is_saved_and_loaded(tmp_path):
    encoder = make_encoder(GROUP)
    save_fairseq(tmp_path / "hubert.pt", encoder)
    convert_hubert(read_inert(tmp_path / "hubert.pt"), "x", {"from": "y"}).save(tmp_path / "folder")
    loaded = type(encoder).load(tmp_path / "folder", "cpu")
    assert loaded.fingerprint == encoder.fingerprint and loaded.provenance == {"from": "y"}


def test_half_precision_and_a_width_without_projection(tmp_path):
    encoder = make_encoder(GROUP | {"conv_dim": [16] * 7})
    projection = encoder.model.feature_projection.projection
    with torch.no_grad():
        projection.weight.copy_(torch.eye(16))
        projection.bias.zero_()
    save_fairseq(tmp_path / "x.pt", encoder)
    tree = read_inert(tmp_path / "x.pt")
    tree["model"] = {k: v for k, v in tree["model"].items() if not k.startswith("post_extract_proj")}
    found = convert_hubert(tree, "x.pt")
    assert torch.equal(found.features([noise(2000)], 2)[0], encoder.features([noise(2000)], 2)[0])
    tree["model"] = {k: v.astype(np.float16) for k, v in tree["model"].items()}
    assert convert_hubert(tree, "x.pt").dtype == torch.float32


def test_the_true_base_plan_is_the_default(monkeypatch):
    """An `args` that leaves everything to fairseq's defaults is HuBERT base."""
    from speechgpt.units import fairseq_hubert as module

    expected = {"hidden_size": 768, "num_hidden_layers": 12, "conv_kernel": [10, 3, 3, 3, 3, 2, 2]}
    found = module._architecture(module.Fields({}, "x"))
    assert {k: found[k] for k in expected} == expected
    assert parse_convolutions(PUBLISHED_CONVOLUTIONS)[0] == (512, 10, 5)
    assert sum(k == 3 for _, k, _ in parse_convolutions(PUBLISHED_CONVOLUTIONS)) == 4
    assert parse_convolutions("[(2, 3, 4), (5, 6, 7,)] * 2") == [(2, 3, 4), (5, 6, 7)] * 2


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "[(512, 10)]",
        "[(512, 10, 5)] * 99999",
        "[(1, 1, 1)] * 8 + [(1, 1, 1)] * 30",
        "[(0, 10, 5)]",
        "",
        "[" * 900,
        "[(1,2,3)]," * 90,
        "[(1,2,3)" + ",(1,2,3)" * 110,
    ],
)
def test_convolutions_are_parsed_and_never_evaluated(text):
    with pytest.raises(ValueError, match="x.pt: "):
        parse_convolutions(text, "x.pt")


def change(tree, **changes):
    for name, value in changes.items():
        tree["cfg"]["model"][name] = value


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"_name": "wav2vec"}, "cfg: model: _name is 'wav2vec'; expected 'hubert'"),
        ({"layer_type": "conformer"}, "cfg: model: layer_type is 'conformer'; only 'transformer'"),
        ({"pos_conv_depth": 5}, "pos_conv_depth is 5"),
        ({"activation_fn": "swish"}, "activation_fn is 'swish'; expected one of gelu"),
        ({"extractor_mode": "other"}, "extractor_mode"),
        ({"encoder_layers": 2}, "unexpected encoder.layers.2"),
        ({"encoder_layers": 4}, "missing encoder.layers.3"),
        ({"encoder_embed_dim": 1 << 20}, "has shape"),
        ({"encoder_ffn_embed_dim": 1 << 20}, "has shape"),
        ({"encoder_embed_dim": "768"}, "encoder_embed_dim is '768'; expected a whole number"),
        ({"encoder_embed_dim": 17}, "no multiple"),
        ({"conv_pos": 10**9}, "conv_pos"),
        ({"encoder_layers": 0}, "encoder_layers is 0; expected 1 to 256"),
    ],
)
def test_settings_of_other_networks_are_refused_by_name(tmp_path, changes, expected):
    """Among them sizes that nobody could allocate: they are compared with the weights first."""
    save_fairseq(tmp_path / "x.pt", make_encoder(GROUP))
    tree = read_inert(tmp_path / "x.pt")
    change(tree, **changes)
    with pytest.raises(ValueError, match="x.pt") as error:
        convert_hubert(tree, "x.pt")
    assert expected in str(error.value)


def test_other_checkpoints_are_refused_by_name():
    weights = {k: v.numpy() for k, v in fairseq_weights(make_encoder(GROUP)).items()}
    for extra, expected in (("quantizer.vars", "wav2vec 2.0"), ("w2v_encoder.proj", "fine-tuned")):
        tree = {"model": weights | {extra: np.zeros(1, np.float32)}, "cfg": {"model": {}, "task": {}}}
        with pytest.raises(ValueError, match=expected):
            convert_hubert(tree, "x.pt")
    with pytest.raises(ValueError, match="neither args nor cfg"):
        convert_hubert({"model": weights}, "x.pt")
    with pytest.raises(ValueError, match="'mask_emb' is a SimpleNamespace; expected a tensor"):
        convert_hubert({"model": weights | {"mask_emb": SimpleNamespace()}, "args": {}}, "x.pt")


@pytest.mark.parametrize("width", [1 << 17, 32])
def test_a_projection_is_not_made_up_for_a_width_that_is_only_claimed(tmp_path, monkeypatch, width):
    """2**17 wide its identity would take 64 GiB."""

    def never(*sizes):
        raise AssertionError(f"an identity of {sizes}")

    save_fairseq(tmp_path / "x.pt", make_encoder(GROUP))
    tree = read_inert(tmp_path / "x.pt")
    change(tree, encoder_embed_dim=width)
    tree["model"] = {k: v for k, v in tree["model"].items() if not k.startswith("post_extract_proj")}
    monkeypatch.setattr(torch, "eye", never)
    with pytest.raises(ValueError, match="x.pt: the weights do not fit"):
        convert_hubert(tree, "x.pt")


def test_a_missing_projection_of_another_width_is_named(tmp_path):
    save_fairseq(tmp_path / "x.pt", make_encoder(GROUP | {"conv_dim": [8] * 7}))
    tree = read_inert(tmp_path / "x.pt")
    tree["model"] = {k: v for k, v in tree["model"].items() if not k.startswith("post_extract_proj")}
    with pytest.raises(ValueError, match="x.pt: has no post_extract_proj, which its settings need"):
        convert_hubert(tree, "x.pt")


@pytest.mark.parametrize("offset", [0, 1])
def test_one_storage_under_many_names_is_not_copied_for_each(tmp_path, offset):
    big = torch.zeros(10_000)
    weights = fairseq_weights(make_encoder(GROUP)) | {f"x{n}": big[n * offset :] for n in range(50)}
    torch.save({"model": weights, "cfg": {"model": {}, "task": {}}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt: model: its tensors would take .* bytes, the file has"):
        convert_hubert(read_inert(tmp_path / "x.pt"), str(tmp_path / "x.pt"))


def test_args_and_cfg_of_one_file_must_agree(tmp_path):
    """Ours would follow the one and fairseq the other."""
    save_fairseq(tmp_path / "x.pt", make_encoder(GROUP))
    tree = read_inert(tmp_path / "x.pt")
    tree["args"] = (
        tree["cfg"]["model"] | tree["cfg"]["task"] | {"arch": "hubert", "task": "hubert_pretraining"}
    )
    convert_hubert(tree, "x.pt")
    with pytest.raises(ValueError, match="args and cfg describe different networks"):
        convert_hubert(tree | {"args": tree["args"] | {"layer_norm_first": True}}, "x.pt")
    with pytest.raises(ValueError, match="args: arch is 'wav2vec'; expected 'hubert'"):
        convert_hubert(tree | {"args": tree["args"] | {"arch": "wav2vec"}}, "x.pt")
