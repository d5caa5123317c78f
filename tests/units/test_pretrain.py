"""Masked prediction learns, resumes exactly, stops before a bad update, and runs on several processes."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

from speechgpt.data.rows import read_manifest, write_manifest
from speechgpt.units import pretrain as module
from speechgpt.units.encoder import Encoder
from speechgpt.units.masked_prediction import (
    HeadConfig,
    MaskedPrediction,
    MaskingConfig,
    draw_mask,
    normalize_rows,
)
from speechgpt.units.pretrain import pretrain
from speechgpt.units.pretrain_config import PretrainConfig, TrainingConfig
from speechgpt.units.pretrain_run import CLOCK_STEPS

from .conftest import GROUP, LAYER, STABLE, make_encoder, noise

CONFIG = {
    "architecture": LAYER | {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "normalize": True,
    "targets": [{"kind": "phones", "states_per_phone": 1}],
    "head": {"kind": "linear", "unmasked_weight": 1.0},
    "augment": {"speeds": [0.9, 1.1], "speed_groups": 2, "noise_chance": 0.5, "gain_db": [-20, 0]},
    "training": {"steps": 6, "batch_size": 4, "crop_seconds": 0.8, "log_every": 2, "learning_rate": 3e-3},
}


def a_config(tmp_path: Path, **changes) -> PretrainConfig:
    values = CONFIG | changes
    values["training"] = CONFIG["training"] | changes.get("training", {})
    path = tmp_path / "encoder.yaml"
    path.write_text(yaml.safe_dump(values))
    return PretrainConfig.load(path)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return Encoder.load(folder, "cpu").model.state_dict()


def test_masks_are_spans_inside_their_rows():
    lengths = torch.tensor([200, 50, 12, 1])
    mask = draw_mask(lengths, 200, MaskingConfig(0.08, 10), torch.Generator().manual_seed(0))
    assert mask.shape == (4, 200) and mask.any(-1).all()
    assert not any(mask[i, n:].any() for i, n in enumerate(lengths.tolist()))
    assert 0.35 < mask[0].float().mean() < 0.75
    runs = "".join("x" if m else " " for m in mask[0].tolist()).split()
    assert all(len(run) >= 10 for run in runs[:-1])
    whole = MaskingConfig(unmasked_rows=1.0)
    assert not draw_mask(lengths, 200, whole, torch.Generator().manual_seed(0)).any()


def test_rows_are_normalised_over_their_own_length():
    waveforms = torch.zeros(2, 900)
    waveforms[0], waveforms[1, :500] = torch.from_numpy(noise(900)), torch.from_numpy(noise(500))
    found = normalize_rows(waveforms, torch.tensor([900, 500]))
    expected, lengths = make_encoder(LAYER).pad([noise(900), noise(500)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", [GROUP, LAYER, STABLE])
def test_the_loss_is_cross_entropy_over_masked_and_unmasked_frames(architecture):
    head = HeadConfig("linear", masked_weight=1.0, unmasked_weight=0.5)
    model = MaskedPrediction(make_encoder(architecture), [7], [2.0], head).eval()
    waveforms = torch.from_numpy(noise(2 * 6800)).view(2, 6800)
    lengths = torch.tensor([6800, 3600])  # 21 and 11 frames
    labels = torch.randint(0, 7, (2, 21), generator=torch.Generator().manual_seed(0))
    labels[1, 11:] = labels[0, :4] = -100
    mask = draw_mask(torch.tensor([21, 11]), 21, MaskingConfig(0.1, 4), torch.Generator().manual_seed(2))
    loss, statistics = model(waveforms, lengths, mask, [labels])
    (hidden,) = model.encoder(waveforms, lengths, mask=mask)
    if architecture is STABLE:
        hidden = model.encoder.model.encoder.layer_norm(hidden)
    logits = model.heads[0][0](hidden)
    parts = [functional.cross_entropy(logits[m], labels[m]) for m in (mask, ~mask)]
    torch.testing.assert_close(loss, 2 * (parts[0] + 0.5 * parts[1]))
    assert statistics[0, 2] + statistics[0, 5] == (labels >= 0).sum()


def test_it_learns(corpus, tmp_path):
    quiet = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
    config = a_config(
        tmp_path,
        architecture=LAYER | quiet,
        masking={"start_chance": 0.03, "span": 4},
        training={"steps": 90, "batch_size": 8, "log_every": 30, "learning_rate": 1e-2},
    )
    metrics = pretrain(config, corpus, tmp_path / "out", "cpu")
    assert metrics["phones_unmasked_accuracy"] > 0.6 and metrics["dev_phones_unmasked_accuracy"] > 0.6
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert done["fingerprint"] == Encoder.load(tmp_path / "out", "cpu").fingerprint
    left = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert left == ["config.json", "done.json", "encoder.json", "model.safetensors"]


def test_a_resumed_run_equals_a_straight_one(corpus, tmp_path, monkeypatch, capsys):
    config = a_config(tmp_path, training={"checkpoint_steps": 2})
    straight = pretrain(config, corpus, tmp_path / "straight", "cpu")
    update = module.Pretraining._update

    def killed(self):
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(module.Pretraining, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, corpus, tmp_path / "resumed", "cpu")
    assert not (tmp_path / "resumed" / "done.json").exists()
    monkeypatch.setattr(module.Pretraining, "_update", update)
    resumed = pretrain(config, corpus, tmp_path / "resumed", "cpu")
    assert "going on from step 2" in capsys.readouterr().err
    first, second = weights_of(tmp_path / "straight"), weights_of(tmp_path / "resumed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert resumed["loss"] == straight["loss"]
    monkeypatch.setattr(module.Pretraining, "run", lambda self: pytest.fail("a finished run ran again"))
    assert pretrain(config, corpus, tmp_path / "resumed", "cpu") == resumed


def test_a_checkpoint_of_another_run_is_not_continued(corpus, tmp_path, capsys):
    config = a_config(tmp_path)
    pretrain(config, corpus, tmp_path / "out", "cpu")
    other = replace(config, training=replace(config.training, seed=9))
    pretrain(other, corpus, tmp_path / "out", "cpu")
    assert "going on" not in capsys.readouterr().err
    first = weights_of(tmp_path / "out")
    pretrain(config, corpus, tmp_path / "out", "cpu")
    assert not torch.equal(
        first["feature_projection.projection.weight"],
        weights_of(tmp_path / "out")["feature_projection.projection.weight"],
    )


def test_a_loss_that_is_not_finite_stops_before_the_update(corpus, tmp_path, monkeypatch):
    forward, before = MaskedPrediction.forward, {}

    def broken(self, *batch):
        loss, statistics = forward(self, *batch)
        broken.step += 1
        if broken.step == 3:
            before.update({name: p.detach().clone() for name, p in self.named_parameters()})
            broken.model = self
            loss = loss * float("nan")
        return loss, statistics

    broken.step = 0
    monkeypatch.setattr(MaskedPrediction, "forward", broken)
    config = a_config(tmp_path, training={"checkpoint_steps": 1})
    with pytest.raises(ValueError, match="step 3: the loss or its gradient is not finite"):
        pretrain(config, corpus, tmp_path / "out", "cpu")
    for name, parameter in broken.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2


def test_several_sources_and_layers_and_a_teacher(corpus, tmp_path):
    pretrain(a_config(tmp_path), corpus, tmp_path / "first", "cpu")
    from speechgpt.units.codebook_fitting import CodebookConfig, fit_codebook
    from speechgpt.units.unit_encoder import UnitEncoder

    encoder = Encoder.load(tmp_path / "first", "cpu")
    teacher = UnitEncoder(encoder, fit_codebook(CodebookConfig(k=5, layer=2, n_init=1), encoder, corpus))
    config = a_config(
        tmp_path,
        targets=[{"kind": "phones"}, {"kind": "units", "weight": 0.5, "only_without_phones": True}],
        head={"kind": "cosine", "width": 8, "layers": [2, 3], "unmasked_weight": 1.0},
        training={"steps": 2, "log_every": 2, "save_dtype": "float16"},
    )
    metrics = pretrain(config, corpus, tmp_path / "second", "cpu", teacher, tmp_path / "first")
    assert {"phones_masked_accuracy", "units_masked_accuracy"} <= metrics.keys()
    assert Encoder.load(tmp_path / "second", "cpu").derived_from == ""


def test_time_ends_a_run_and_sets_its_learning_rate(corpus, tmp_path):
    config = a_config(tmp_path, training={"steps": None, "max_minutes": 0.004})
    metrics = pretrain(config, corpus, tmp_path / "out", "cpu")
    assert metrics["steps"] % CLOCK_STEPS == 0 and metrics["minutes"] < 0.5
    with pytest.raises(ValueError, match="needs steps, max_minutes or both"):
        a_config(tmp_path, training={"steps": None})


@pytest.mark.parametrize("schedule", ["trapezoid", "linear", "cosine"])
def test_learning_rates_rise_and_fall(schedule):
    training = TrainingConfig(steps=1, learning_rate=2.0, warmup=0.1, decay=0.4, schedule=schedule)
    assert training.rate(0) == 0 and training.rate(0.05) == pytest.approx(1.0)
    assert training.rate(0.1) == pytest.approx(2.0) and training.rate(1) == pytest.approx(0)
    assert training.rate(0.95) < training.rate(0.8) <= 2.0


@pytest.mark.parametrize("preset", ["toy", "mini", "speechgpt-7b"])
def test_presets_are_valid(preset):
    folder = Path(__file__).parents[2] / "speechgpt" / "presets" / preset
    config = PretrainConfig.load(folder / "encoder.yaml")
    from speechgpt.units.codebook_fitting import CodebookConfig

    book = CodebookConfig.load(folder / "codebook.yaml")
    assert 1 <= book.layer <= config.architecture["num_hidden_layers"]
    if preset != "speechgpt-7b":
        encoder = Encoder.create(config.architecture, config.normalize, 0)
        assert (encoder.hop, encoder.receptive_field) == (320, 400)


def test_the_encoders_of_mini_are_one_architecture_and_those_of_folds_learn_as_in_voices():
    presets = Path(__file__).parents[2] / "speechgpt" / "presets" / "mini"
    names = ("encoder", "refine", "voices", "fold-encoder")
    first, refined, voices, fold = (asdict(PretrainConfig.load(presets / f"{n}.yaml")) for n in names)
    assert first["architecture"] == refined["architecture"] == voices["architecture"]
    # From fresh weights: faster, and longer warmed up.
    for name in ("steps", "learning_rate", "warmup"):
        fold["training"][name] = voices["training"][name]
    assert fold == voices


@pytest.mark.slow
def test_two_processes_train_one_encoder(corpus, tmp_path):
    a_config(tmp_path)
    rows = [replace(row, split="train") for row in read_manifest(corpus)]
    write_manifest(corpus, rows)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "speechgpt.units.pretrain", "--config", str(tmp_path / "encoder.yaml")]
    command += ["--manifest", str(corpus)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--device", "cpu", "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads(done.stdout)
    assert metrics["processes"] == 2 and metrics["steps"] == 2
    assert Encoder.load(tmp_path / "out", "cpu").num_layers == 3
