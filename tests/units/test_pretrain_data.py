"""What pretraining learns from is the same for any number of processes, made once, and told in the log."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from speechgpt.data.rows import read_manifest
from speechgpt.units import pretrain_data as module
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.encoder import Encoder
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.pretrain_data import load_data
from speechgpt.units.unit_encoder import UnitEncoder

from .conftest import ALONE, LAYER, make_encoder, noise

CONFIG = {
    "architecture": LAYER | {"hidden_dropout": 0.1},
    "normalize": True,
    "targets": [
        {"kind": "phones"},
        {"kind": "units", "only_without_phones": True},
        {"kind": "units"},
        {"kind": "mfcc", "k": 7},
    ],
    "training": {"steps": 4, "batch_size": 4, "crop_seconds": 0.8, "checkpoint_steps": 2, "max_bad": 1},
}
DRIVER = """
import sys
from pathlib import Path
import torch
from speechgpt.units import audio_shares, labels
from speechgpt.units.encoder import Encoder
from speechgpt.units.pretrain import pretrain
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.pretrain_data import load_data
from speechgpt.units.pretrain_run import Pretraining
from speechgpt.units.processes import World
from speechgpt.units.unit_encoder import UnitEncoder

audio_shares.CHUNK_SECONDS, labels.BATCH_SECONDS = 2.0, {"cpu": 3.0}  # work for both processes
folder = Path(sys.argv[1])
config = PretrainConfig.load(folder / "encoder.yaml")
encoder = Encoder.create(config.architecture, config.normalize, 1)
teacher = UnitEncoder.load(folder / "teacher", folder / "teacher" / "codebook.safetensors", device="cpu")
world = World.join("cpu")

def load(name, world):
    path = folder / name / "labels.safetensors"
    path.parent.mkdir(exist_ok=True)
    train, dev, classes = load_data(config, encoder, folder / "manifest.jsonl", path, "key", world, teacher)
    found = {"classes": classes}
    for split, sampler in (("train", train), ("dev", dev)):
        pool = sampler.pool
        found[split] = [pool.samples, pool.starts, pool.lengths, *sampler.labels]
        found[split + " rows"] = [row.id for row in pool.rows]
    return found

found = {"fresh": load("two", world), "again": load("two", world)}
if world.first:
    found["alone"] = load("one", World(0, 1, world.device))
torch.save(found, folder / f"found-{world.rank}.pt")
world.barrier()

def run(name):
    return pretrain(config, folder / "manifest.jsonl", folder / name, "cpu", teacher)

issues = []
for failing in (0, 1):
    try:
        with world.together():
            if world.rank == failing:
                raise FileNotFoundError(f"process {failing} has no file")
    except ValueError as error:
        issues.append(str(error))
torch.save(issues, folder / f"issues-{world.rank}.pt")

leave, World.leave = World.leave, lambda self: None
run("straight")
update = Pretraining._update

def killed(self):
    if self.step == 3:
        raise KeyboardInterrupt
    return update(self)

Pretraining._update = killed
try:
    run("resumed")
except KeyboardInterrupt:
    Pretraining._update = update
run("resumed")
leave(world)
"""


def a_teacher() -> UnitEncoder:
    encoder = make_encoder(LAYER)
    centroids = encoder.features([noise(16_000)], 2)[0][:6]
    return UnitEncoder(encoder, Codebook(centroids, Provenance(encoder.fingerprint, 2, 16_000, 320, True)))


@pytest.fixture
def prepared(corpus, tmp_path) -> Path:
    """A folder with a config, a teacher, and a manifest one of whose files is broken."""
    (tmp_path / "encoder.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "audio" / "4.wav").write_bytes(b"RIFF")
    teacher = a_teacher()
    teacher.encoder.save(tmp_path / "teacher")
    teacher.codebook.save(tmp_path / "teacher" / "codebook.safetensors")
    return tmp_path


def equal(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    return all(
        len(found) == len(other[name]) and all(map(torch.equal, found, other[name]))
        if name in ("train", "dev")
        else found == other[name]
        for name, found in one.items()
    )


@pytest.mark.slow
def test_two_processes_learn_from_what_one_does(prepared):
    (prepared / "driver.py").write_text(DRIVER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run(
        [*torchrun, str(prepared / "driver.py"), str(prepared)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    first, second = (torch.load(prepared / f"found-{rank}.pt") for rank in (0, 1))
    alone = first.pop("alone")
    assert alone["classes"] == [118, 6, 6, 7]
    assert len(alone["train rows"]) == 11 and len(alone["dev rows"]) == 2
    for found in (first, second):
        assert equal(found["fresh"], alone) and equal(found["again"], alone)
    for rank in (0, 1):
        issues = torch.load(prepared / f"issues-{rank}.pt")
        assert issues == ["process 0 has no file", "process 1 has no file"]
    assert ran.stderr.count("going on from step 2") == 1
    straight, resumed = (Encoder.load(prepared / name, "cpu") for name in ("straight", "resumed"))
    assert straight.fingerprint == resumed.fingerprint
    assert not list(prepared.glob("*/*decoded*")) and (prepared / "two" / "labels.safetensors").exists()


def test_labels_are_made_once_and_the_log_tells_how_long_it_took(prepared, monkeypatch, capsys):
    config = PretrainConfig.load(prepared / "encoder.yaml")
    encoder, teacher, path = make_encoder(LAYER), a_teacher(), prepared / "labels.safetensors"

    def load(key: str):
        return load_data(config, encoder, prepared / "manifest.jsonl", path, key, ALONE, teacher)

    train, _, classes = load("one")
    told = capsys.readouterr().err
    frames = sum(len(s.labels[0]) for s in load("one")[:2])
    hours = sum(row.seconds for row in read_manifest(prepared / "manifest.jsonl") if row.id != "row4") / 3600
    assert f"decoded 13 files, {hours:.2f} h, in " in told and f"labelled {frames} frames in " in told
    told = capsys.readouterr().err
    assert "decoded 13 files" in told and "labelled" not in told
    monkeypatch.setattr(module, "make_labels", lambda *_: pytest.fail("labels of this run were made again"))
    again, _, same_classes = load("one")
    assert same_classes == classes and all(map(torch.equal, again.labels, train.labels))
    with pytest.raises(pytest.fail.Exception):
        load("another run")


def test_too_many_unreadable_files_end_the_run(prepared):
    config = PretrainConfig.load(prepared / "encoder.yaml")
    config = replace(config, training=replace(config.training, max_bad=0))
    with pytest.raises(ValueError, match=r"1 files cannot be read, max_bad is 0: .*4\.wav"):
        load_data(config, make_encoder(LAYER), prepared / "manifest.jsonl", prepared / "l", "", ALONE, None)
