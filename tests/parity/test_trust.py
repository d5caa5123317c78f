"""fairseq runs here without what a crafted file could run through it."""

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
