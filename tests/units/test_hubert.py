"""Our HuBERT is transformers': names, first weights, values, gradients, and the files of both."""

import json

import pytest
import torch
from transformers import HubertConfig, HubertModel

from speechgpt.units.encoder import Encoder
from speechgpt.units.hubert import Hubert
from speechgpt.units.hubert_config import HubertConfig as OurConfig

from .conftest import GROUP, LAYER, STABLE, make_encoder, noise, transformers_model

# True sizes but for the depth.
BASE = {"num_hidden_layers": 2}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
QUIET = dict.fromkeys(("hidden_dropout", "activation_dropout", "attention_dropout", "layerdrop"), 0.0) | {
    "apply_spec_augment": False
}


@pytest.mark.parametrize(
    "settings",
    [GROUP, STABLE, LAYER | {"feat_proj_layer_norm": False}, GROUP | {"conv_pos_batch_norm": True}],
    ids=["group", "stable", "no projection norm", "batch norm"],
)
def test_one_seed_means_the_same_weights_under_the_same_names(settings):
    torch.manual_seed(3)
    ours = Hubert(OurConfig(**settings)).state_dict()
    torch.manual_seed(3)
    theirs = HubertModel(HubertConfig(**settings)).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("architecture", [BASE, LARGE], ids=["base", "large"])
def test_features_are_those_of_transformers(architecture):
    encoder = make_encoder(architecture, normalize=False)
    judge = transformers_model(encoder)
    waveform = torch.from_numpy(noise(12_345))
    with torch.no_grad():
        expected = judge(waveform[None], output_hidden_states=True)
        found = encoder(waveform[None], layers=(1, 2))
        last = encoder.model.encoder.layer_norm(found[1]) if encoder.config.do_stable_layer_norm else found[1]
    pairs = zip([*found, last], [*expected.hidden_states[1:], expected.last_hidden_state], strict=True)
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("architecture", [GROUP, LAYER, STABLE], ids=["group", "layer", "stable"])
def test_gradients_are_those_of_transformers(architecture):
    encoder = make_encoder(architecture | QUIET, normalize=False).double().train()
    judge = transformers_model(encoder.float()).double()
    encoder.double()
    waveform = torch.from_numpy(noise(8_000)).double()
    theirs = judge(waveform[None].clone())
    (judge_loss := theirs.last_hidden_state.square().sum()).backward()
    (found,) = encoder(waveform[None], layers=(3,))
    if architecture is STABLE:
        found = encoder.model.encoder.layer_norm(found)
    (loss := found.square().sum()).backward()
    torch.testing.assert_close(loss, judge_loss, rtol=1e-6, atol=0)
    gradients = dict(judge.named_parameters())
    compared = 0
    for name, parameter in encoder.model.named_parameters():
        if gradients[name].grad is None:
            assert parameter.grad is None or not parameter.grad.any(), name
            continue
        compared += 1
        scale = float(gradients[name].grad.abs().max()) + 1e-9
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=0, atol=1e-6 * scale)
    assert compared > 60


def test_transformers_reads_what_we_write(tmp_path):
    encoder = make_encoder(STABLE)
    encoder.save(tmp_path)
    model = HubertModel.from_pretrained(tmp_path).eval()
    theirs, ours = model.state_dict(), encoder.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    written = json.loads((tmp_path / "config.json").read_text())
    before = json.loads(HubertConfig(**STABLE).to_json_string())
    before.pop("transformers_version")
    assert {name: written[name] for name in before} == before


def test_fields_that_are_not_known_here_stay_in_the_file(tmp_path):
    make_encoder(GROUP).save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["HubertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    Encoder.load(tmp_path, "cpu").save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == values


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_dim": [8] * 6}, "conv_dim has 6, conv_stride has 7"),
        ({"conv_kernel": "10"}, "conv_kernel is '10', expected a list of whole numbers"),
        ({"hidden_size": "768"}, "hidden_size is '768', expected int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected 1 or more"),
        ({"num_attention_heads": 7}, "hidden_size 768 is no multiple of 7"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch'"),
    ],
)
def test_settings_that_mean_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        OurConfig(**settings)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="activation 'gelo': expected one of gelu, "):
        Hubert(OurConfig(**GROUP | {"hidden_act": "gelo"}))
