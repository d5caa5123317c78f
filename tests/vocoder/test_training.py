"""Training: the loss falls, resume equals a straight run, non-finite stops, errors, the command."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.processes import World
from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.graphs import Phases
from speechgpt.vocoder.synthesize import Synthesizer
from speechgpt.vocoder.train import Run, already_done, main, train
from speechgpt.vocoder.training_data import load_pool, resolve_generator

K = 6


def run(config, corpus, out, **more):
    return train(config, corpus / "manifest.jsonl", corpus / "units.jsonl", out, device="cpu", **more)


def make_run(config, corpus, out) -> Run:
    device = torch.device("cpu")
    plan, pool = load_pool(config, corpus / "manifest.jsonl", corpus / "units.jsonl", None, device)
    return Run(config, plan, pool, out, World(0, 1, device))


def test_training_makes_a_vocoder_and_the_loss_falls(train_config, corpus, tmp_path):
    report = run(replace(train_config, steps=60, warmup_steps=56), corpus, tmp_path)
    log = json.loads((tmp_path / "train_log.json").read_text())
    assert log[-1]["mel"] < 0.7 * log[0]["mel"]
    assert log[-1]["durations"] < log[0]["durations"]
    assert report["steps"] == 60 and report["K"] == K and report["speakers"] == ["ann", "bob"]
    assert report["dev"]["utterances"] == 2 and report["dev"]["duration_error"] < 5
    synthesizer = Synthesizer.load(tmp_path, "cpu")
    assert synthesizer.speakers == ["ann", "bob"]
    assert len(synthesizer.synthesize([[1, 2]], speaker="bob")[0]) % 320 == 0


def test_resume_equals_a_straight_run(train_config, corpus, tmp_path):
    run(train_config, corpus, tmp_path / "straight")
    for steps in (4, 8, 12):  # cut in the warm-up and among adversarial steps
        cut = make_run(replace(train_config, steps=steps, cooldown_steps=0), corpus, tmp_path / "cut")
        cut.resume()
        cut.train()
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "cut"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    logs = [json.loads((tmp_path / name / "train_log.json").read_text()) for name in ("straight", "cut")]
    assert [e["mel"] for e in logs[0]] == [e["mel"] for e in logs[1]]


def test_done_is_not_trained_again(train_config, corpus, tmp_path):
    assert not already_done(train_config, tmp_path)
    run(replace(train_config, steps=3, warmup_steps=3), corpus, tmp_path)
    assert already_done(replace(train_config, steps=3, warmup_steps=3), tmp_path)
    assert not already_done(replace(train_config, steps=4, warmup_steps=3), tmp_path)
    assert not already_done(replace(train_config, steps=3, warmup_steps=2), tmp_path)
    done = replace(train_config, steps=3, warmup_steps=3)
    assert already_done(done, tmp_path, corpus / "units.jsonl")
    assert not already_done(done, tmp_path, corpus / "manifest.jsonl")  # other units than it learned from


def test_a_checkpoint_of_another_run_is_left_alone(train_config, corpus, tmp_path, capsys):
    run(replace(train_config, steps=2, warmup_steps=2), corpus, tmp_path)
    other = replace(train_config, steps=2, warmup_steps=2, learning_rate=1e-5)
    run(other, corpus, tmp_path / "straight")
    capsys.readouterr()
    run(other, corpus, tmp_path)
    assert "another training (config differ): starting afresh" in capsys.readouterr().err
    fresh, straight = (
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "straight")
    )
    assert fresh == straight


@pytest.mark.parametrize("warmup", [0, 9])
def test_a_loss_that_is_not_finite_stops_before_the_update(train_config, corpus, tmp_path, warmup):
    training = make_run(replace(train_config, warmup_steps=warmup, ema=0.0), corpus, tmp_path)
    training.one_step()
    training.one_step()
    before = [p.clone() for p in training.steps.model.parameters()]
    good = training.pool.draw

    def spoiled(*arguments):
        batch = good(*arguments)
        batch.audio[0, 100] = float("nan")
        return batch

    training.pool.draw = spoiled
    with pytest.raises(ValueError, match="step 2: the loss or its gradient is not finite"):
        training.train()
    after = list(training.steps.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_averages_of_an_older_run_take_the_layout_of_their_weights(train_config, corpus, tmp_path):
    """Runs from before the discriminators' rows kept weights, and averages of gradients, in another order."""
    training = make_run(replace(train_config, warmup_steps=0), corpus, tmp_path)
    training.one_step()
    state = training.steps.state_dict()
    before = [v.clone() for s in state["judge_optimizer"]["state"].values() for v in s.values()]
    for averages in state["judge_optimizer"]["state"].values():
        for name, value in averages.items():
            averages[name] = value.contiguous()
    later = make_run(replace(train_config, warmup_steps=0), corpus, tmp_path)
    later.steps.load_state_dict(state)
    optimizer, moved = later.steps.judge_optimizer, 0
    for weight, averages in optimizer.state.items():
        assert averages["exp_avg"].stride() == weight.stride()
        moved += not weight.is_contiguous()
    after = [v for averages in optimizer.state.values() for v in averages.values()]
    assert moved and all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_minutes_end_the_training(train_config, corpus, tmp_path):
    report = run(replace(train_config, steps=10**6, max_minutes=1e-4), corpus, tmp_path)
    assert report["stopped_by"] == "max_minutes" and 0 < report["steps"] < 1000


def test_learning_rate(train_config):
    config = replace(
        train_config, steps=100, warmup_steps=10, lr_decay=0.5, lr_decay_steps=20, cooldown_steps=10
    )
    assert config.rate(0) == config.warmup_learning_rate
    assert config.rate(10) == config.learning_rate
    assert config.rate(40) == config.learning_rate / 4
    assert config.rate(95) == pytest.approx(config.learning_rate / 16 / 2)


def test_speakers_and_codebook(train_config, corpus, tmp_path):
    with pytest.raises(ValueError, match="2 speakers.*multi_speaker"):
        run(replace(train_config, multi_speaker=False), corpus, tmp_path)
    book = tmp_path / "codebook.safetensors"
    Codebook(torch.randn(K, 3), Provenance("f" * 64, 2, 16_000, 320, False)).save(book)
    open_size = replace(train_config, generator=replace(train_config.generator, num_units=0))
    plan = resolve_generator(open_size, ["ann", "bob"], book, "m")
    assert plan.num_units == K and plan.codebook["encoder"] == "f" * 64 and plan.default_speaker == "ann"
    with pytest.raises(ValueError, match="--codebook"):
        resolve_generator(open_size, ["ann"], None, "m")
    Codebook(torch.randn(K, 3), Provenance("f" * 64, 2, 16_000, 160, False)).save(book)
    with pytest.raises(ValueError, match="hop 160, but the vocoder's is 320"):
        resolve_generator(open_size, ["ann"], book, "m")
    fewer = replace(train_config, generator=replace(train_config.generator, num_units=K - 1))
    with pytest.raises(ValueError, match=f"unit {K - 1}; the codebook has K = {K - 1}"):
        run(fewer, corpus, tmp_path)


def test_the_command(train_config, corpus, tmp_path, capsys):
    config = tmp_path / "vocoder.yaml"
    config.write_text(yaml.safe_dump(asdict(replace(train_config, steps=4, warmup_steps=2))))
    files = ["--manifest", str(corpus / "manifest.jsonl"), "--units", str(corpus / "units.jsonl")]
    call = ["--config", str(config), *files, "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(call) == 0
    assert "4 steps" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "done.json").read_text())["stopped_by"] == "steps"
    assert main(call) == 0
    assert "already trained" in capsys.readouterr().out
    assert UnitVocoder.load(tmp_path / "out", "cpu").config.num_units == K


def test_the_benchmark(train_config, tmp_path, capsys):
    config = tmp_path / "vocoder.yaml"
    config.write_text(yaml.safe_dump(asdict(train_config)))
    assert main(["--config", str(config), "--benchmark", "1", "--device", "cpu"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 2 and all(r["steps_per_second"] > 0 for r in results)
    assert main(["--config", str(config), "--profile", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one adversarial step") and len(lines) == 16


def test_phases_run_in_order():
    seen = []
    phases = Phases(
        [lambda: seen.append(1), lambda: seen.append(2)], capture=False, between=[lambda: seen.append(9)]
    )
    phases()
    assert seen == [1, 9, 2] and not phases.captured


@pytest.mark.slow
def test_two_processes(train_config, corpus, tmp_path):
    config = tmp_path / "vocoder.yaml"
    config.write_text(yaml.safe_dump(asdict(replace(train_config, steps=4, warmup_steps=2))))
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    call += ["-m", "speechgpt.vocoder.train"]
    call += ["--config", str(config), "--manifest", str(corpus / "manifest.jsonl")]
    call += ["--units", str(corpus / "units.jsonl"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "done.json").read_text())["steps"] == 4
