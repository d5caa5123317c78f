"""Features are HuBERT's, are the same in any batch, and come back from disk."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from speechgpt.units import encoder as module
from speechgpt.units.encoder import Encoder
from speechgpt.units.windows import window_features

from .conftest import GROUP, LAYER, STABLE, make_encoder, noise, transformers_model

LENGTHS = (400, 719, 720, 12_345, 16_000)
ALL = pytest.mark.parametrize("architecture", [GROUP, LAYER, STABLE], ids=["group", "layer", "stable"])


@pytest.mark.parametrize(("samples", "frames"), [(400, 1), (719, 1), (720, 2), (16_000, 49), (16_080, 50)])
def test_frames_at_edge_lengths(samples, frames):
    encoder = make_encoder(GROUP)
    assert (encoder.hop, encoder.receptive_field) == (320, 400)
    assert encoder.frames(samples) == frames == (samples - 400) // 320 + 1
    (features,) = encoder.features([noise(samples)], 1)
    assert features.shape == (frames, 16) and features.dtype == torch.float32


@pytest.mark.parametrize("normalize", [False, True])
@ALL
def test_features_are_those_of_transformers_hubert(architecture, normalize):
    encoder = make_encoder(architecture, normalize)
    judge = transformers_model(encoder)
    for samples in LENGTHS:
        waveform = torch.from_numpy(noise(samples))
        if normalize:
            waveform = torch.nn.functional.layer_norm(waveform, waveform.shape)
        with torch.no_grad():
            expected = judge(waveform[None], output_hidden_states=True).hidden_states
        for layer in (1, 3):
            (features,) = encoder.features([noise(samples)], layer)
            torch.testing.assert_close(features, expected[layer][0], atol=1e-5, rtol=0)


@ALL
def test_features_do_not_depend_on_the_batch(architecture):
    encoder = make_encoder(architecture)
    waveforms = [noise(samples, samples) for samples in LENGTHS]
    together = encoder.features(waveforms, 3)
    backwards = encoder.features(waveforms[::-1], 3)[::-1]
    for waveform, first, second in zip(waveforms, together, backwards, strict=True):
        (alone,) = encoder.features([waveform], 3)
        torch.testing.assert_close(first, alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(second, alone, atol=1e-5, rtol=0)


@ALL
@pytest.mark.parametrize("samples", [400, 720, 16_000, 40_000, 48_123])
def test_windows_lose_no_frame_at_a_seam(architecture, samples):
    encoder = make_encoder(architecture)
    waveform = noise(samples)
    parts = list(window_features(encoder, waveform, 2, window_seconds=0.7, context_seconds=0.3))
    assert sum(len(part) for part in parts) == encoder.frames(samples)
    (whole,) = encoder.features([waveform], 2)
    parts = torch.cat(list(window_features(encoder, waveform, 2, window_seconds=5, context_seconds=1)))
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_short_waveform_and_wrong_layer_are_errors():
    encoder = make_encoder(GROUP)
    with pytest.raises(ValueError, match="399 samples; the encoder needs at least 400"):
        encoder.features([noise(800), noise(399)], 1)
    for layer in (0, 4):
        with pytest.raises(ValueError, match=f"layer {layer}: this encoder has layers 1 to 3"):
            encoder.features([noise(800)], layer)


def test_only_the_layers_that_are_asked_for_are_computed():
    encoder = make_encoder(LAYER)
    encoder.model.encoder.layers[2].forward = lambda *_, **__: pytest.fail("layer 3 was computed")
    encoder.features([noise(800)], 2)


def test_save_and_load_give_the_same_features(tmp_path):
    encoder = make_encoder(STABLE)
    encoder.save(tmp_path / "whole")
    loaded = Encoder.load(tmp_path / "whole", "cpu")
    assert loaded.fingerprint == encoder.fingerprint and loaded.normalize
    torch.testing.assert_close(loaded.features([noise(999)], 3), encoder.features([noise(999)], 3))
    encoder.save(tmp_path / "small", torch.float16, layers=2)
    small = Encoder.load(tmp_path / "small", "cpu")
    assert small.num_layers == 2 and small.derived_from == encoder.fingerprint != small.fingerprint
    torch.testing.assert_close(
        small.features([noise(999)], 2)[0], encoder.features([noise(999)], 2)[0], atol=0.05, rtol=0
    )


def test_fingerprint_follows_weights_and_settings():
    first = make_encoder(LAYER)
    assert first.fingerprint == make_encoder(LAYER).fingerprint
    assert first.fingerprint != make_encoder(LAYER, seed=1).fingerprint
    assert first.fingerprint != make_encoder(LAYER, normalize=False).fingerprint


def test_a_hub_folder_loads_without_our_own_file(tmp_path):
    encoder = make_encoder(GROUP)
    encoder.save(tmp_path)
    (tmp_path / "encoder.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text('{"do_normalize": true, "sampling_rate": 16000}')
    old = {f"hubert.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    name = "hubert.encoder.pos_conv_embed.conv."
    for new, before in (("original0", "weight_g"), ("original1", "weight_v")):
        old[name + before] = old.pop(f"{name}parametrizations.weight.{new}")
    old["lm_head.weight"] = torch.zeros(3, 16)
    save_file(old, tmp_path / "model.safetensors")
    assert Encoder.load(tmp_path, "cpu").fingerprint == encoder.fingerprint


def test_broken_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such encoder folder"):
        Encoder.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        Encoder.load(tmp_path)
    make_encoder(GROUP).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 32, "num_hidden_layers": 4}))
    with pytest.raises(ValueError, match="does not fit config.json: .*(shape|missing)"):
        Encoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "wav2vec2"}))
    with pytest.raises(ValueError, match="'wav2vec2', expected 'hubert'"):
        Encoder.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as .safetensors weights"):
        Encoder.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match="holds no model.safetensors or pytorch_model.bin; found .*config.json"
    ):
        Encoder.load(tmp_path)


def test_unknown_architecture_setting_is_named():
    with pytest.raises(ValueError, match="unknown architecture setting hidden_sise"):
        Encoder.create({"hidden_sise": 3}, False, 0)


def test_normalised_waveforms_have_no_level():
    encoder = make_encoder(LAYER)
    loud, quiet = encoder.features([noise(4000), (noise(4000) * np.float32(0.1))], 2)
    torch.testing.assert_close(loud, quiet, atol=2e-2, rtol=0)


def test_loading_draws_no_weights():
    """They would be overwritten; of an encoder of 95 million that took longer than to read the file."""
    from torch import nn

    from speechgpt.units.encoder_files import Undrawn

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with Undrawn():
        nn.Conv1d(3, 4, 5), nn.Linear(6, 7), nn.Embedding(8, 9)
    assert torch.equal(torch.random.get_rng_state(), before)
    nn.Linear(6, 7)
    assert not torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_rows_are_padded_each_forward_stays_within_the_budget(dtype, monkeypatch):
    """One long row among many short ones: padded together they would be 18 s; in order, and as when alone."""
    encoder, seen = make_encoder(GROUP).to(dtype), []
    monkeypatch.setattr(encoder, "plan_for", lambda *_: None)  # as on CUDA in float32
    waveforms = [noise(1600 + 320 * n, n) for n in range(5)] + [noise(32_000, 9)] + [noise(2000, 7)] * 3
    alone = [encoder.features([w], 2)[0] for w in waveforms]
    plain = encoder.convolve

    def convolve(batch, *given):
        seen.append(batch.numel() / encoder.sample_rate)
        return plain(batch, *given)

    monkeypatch.setattr(encoder, "convolve", convolve)
    monkeypatch.setitem(module.PADDED_SECONDS, "cpu", 2.5)
    together = encoder.features(waveforms, 2)
    assert max(seen) <= 2.5 and 1 < len(seen) < len(waveforms)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 if dtype == torch.float32 else 0.1, rtol=0)


def test_an_encoder_made_in_inference_mode_gives_the_same_features():
    with torch.inference_mode():
        encoder = make_encoder(GROUP)
        inside = encoder.features([noise(999)], 2)
    torch.testing.assert_close(encoder.features([noise(999)], 2), inside)
    torch.testing.assert_close(make_encoder(GROUP).features([noise(999)], 2), inside)


@pytest.mark.parametrize(
    "forget", [Encoder.forget_plan, lambda encoder: encoder.train().eval(), Encoder.eval]
)
def test_edits_that_torch_does_not_count_are_seen_after_forgetting_the_plan(forget):
    encoder, changed = make_encoder(GROUP), make_encoder(GROUP, seed=1)
    before = encoder.features([noise(999)], 2)[0]
    for mine, other in zip(encoder.parameters(), changed.parameters(), strict=True):
        mine.data.copy_(other.data)
    forget(encoder)
    after = encoder.features([noise(999)], 2)[0]
    torch.testing.assert_close(after, changed.features([noise(999)], 2)[0])
    assert not torch.allclose(before, after)


def test_an_encoder_on_another_device_is_an_error_that_says_what_is_expected():
    with pytest.raises(ValueError, match="the encoder is on mps: expected one of cpu, cuda"):
        module.check_precision("float32", "mps")


@pytest.mark.parametrize("planned", [False, True])
def test_waveforms_are_tensors_or_arrays_of_one_dimension(planned, monkeypatch):
    encoder = make_encoder(GROUP)
    if not planned:
        monkeypatch.setattr(encoder, "plan_for", lambda *_: None)
    for shape in ((2, 800), (800, 1), ()):
        for waveform in (np.zeros(shape, np.float32), torch.zeros(shape)):
            with pytest.raises(ValueError, match=r"waveform 1 of the batch: shape \(.*\), expected \(T,\)"):
                encoder.features([noise(800), waveform], 1)
    waveform = torch.from_numpy(noise(999)).bfloat16()
    expected = encoder.features([waveform.float().numpy()], 2)[0]
    for given in (waveform, waveform.double(), waveform.float().requires_grad_(), waveform.double().numpy()):
        torch.testing.assert_close(encoder.features([given], 2)[0], expected)
