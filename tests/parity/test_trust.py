"""fairseq runs here without what a crafted file could run through it."""

import argparse
import os

import pytest
import torch

from speechgpt.units.fairseq_backend import FairseqHubert
from speechgpt.vocoder.fairseq_backend import FairseqVocoder

from .conftest import HUBERTS, HubertFile, write_hubert, write_vocoder


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> dict:
    small = HubertFile("cfg", False, HUBERTS["large"].model | {"encoder_layers": 1})
    path = write_hubert(tmp_path_factory.mktemp("trust") / "small.pt", small)
    found = torch.load(path, weights_only=False)
    path.unlink()
    return found


def test_a_call_in_the_pickle_is_refused(state, tmp_path):
    torch.save(state | {"extra": Command(f"touch {tmp_path / 'ran'}")}, tmp_path / "crafted.pt")
    with pytest.raises(ValueError, match="it holds a posix.system"):
        FairseqHubert.load(tmp_path / "crafted.pt", "cpu")
    generator = write_vocoder(tmp_path, "one voice")
    torch.save({"generator": Command(f"touch {tmp_path / 'ran'}")}, generator)
    with pytest.raises(ValueError, match="it holds a posix.system"):
        FairseqVocoder.load(generator, tmp_path / "config.json", "cpu")
    assert not (tmp_path / "ran").exists()


def test_what_fairseq_would_evaluate_is_read_first(state, tmp_path):
    code = f"__import__('os').system('touch {tmp_path / 'ran'}') or [(512, 10, 5)]"
    model = state["cfg"]["model"] | {"conv_feature_layers": code}
    torch.save(state | {"cfg": state["cfg"] | {"model": model}}, tmp_path / "crafted.pt")
    with pytest.raises(ValueError, match="conv_feature_layers: expected a sum of"):
        FairseqHubert.load(tmp_path / "crafted.pt", "cpu")
    assert not (tmp_path / "ran").exists()


def other_models(state: dict, code: str) -> dict[str, dict]:
    """Checkpoints by which fairseq would build another model, and evaluate `code` for it."""
    cfg, wav2vec = state["cfg"], {"_name": "wav2vec", "aggregator": "cnn", "conv_aggregator_layers": code}
    convolutions = {"conv_feature_layers": "[(16, 10, 5)]"}
    task = {"_name": "audio_pretraining", "data": "/tmp", "labels": None}
    args = argparse.Namespace(
        **(wav2vec | convolutions | task), arch="wav2vec", task="audio_pretraining", criterion="wav2vec"
    )
    unnamed = {name: value for name, value in cfg["model"].items() if name != "_name"} | {"arch": "wav2vec"}
    return {
        "cfg": state | {"cfg": cfg | {"task": task, "model": wav2vec | convolutions}},
        "args": state | {"args": args, "cfg": None},
        "args wins": state | {"args": args},
        "nested": state | {"cfg": cfg | {"task": task, "model": {"wav2vec": wav2vec | convolutions}}},
        "unnamed": state | {"cfg": cfg | {"model": unnamed}},
        "task": state | {"cfg": cfg | {"task": cfg["task"] | {"_name": "audio_pretraining"}}},
    }


@pytest.mark.parametrize("how", ["cfg", "args", "args wins", "nested", "unnamed", "task"])
def test_another_model_is_refused_before_fairseq_builds_it(state, tmp_path, how):
    code = f"__import__('os').system('touch {tmp_path / 'ran'}') or [(16, 2, 1)]"
    torch.save(other_models(state, code)[how], tmp_path / "crafted.pt")
    with pytest.raises(ValueError, match="crafted.pt: not run with fairseq: (cfg|args).*(_name|arch) is "):
        FairseqHubert.load(tmp_path / "crafted.pt", "cpu")
    assert not (tmp_path / "ran").exists()


def test_args_and_cfg_must_agree(state, tmp_path):
    cfg = state["cfg"]
    settings = {name: value for name, value in (cfg["model"] | cfg["task"]).items() if name != "_name"}
    settings |= {"arch": "hubert", "task": "hubert_pretraining", "encoder_layers": 2}
    torch.save(state | {"args": argparse.Namespace(**settings)}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match="both.pt: .*args and cfg describe different networks"):
        FairseqHubert.load(tmp_path / "both.pt", "cpu")


def test_what_fairseq_cannot_load_is_one_line(state, tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"model": {}}, tmp_path / "empty.pt")
    weights = {n: w for n, w in state["model"].items() if "fc1" not in n}
    torch.save(state | {"model": weights}, tmp_path / "cut.pt")
    for name in ("text.pt", "empty.pt", "cut.pt"):
        with pytest.raises(ValueError, match=f"{name}: .*fairseq"):
            FairseqHubert.load(tmp_path / name, "cpu")
    with pytest.raises(FileNotFoundError, match="none.pt: no such file"):
        FairseqHubert.load(tmp_path / "none.pt", "cpu")
