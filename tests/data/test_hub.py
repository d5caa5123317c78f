"""Models by name, in a cache of the hub's true layout; the network is off, refused or silent."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechgpt.data.hub import ADAPTER, ENCODER, LLAMA, TOKENIZER, is_hub_name, main, model_folder, snapshot

REVISION = "0123456789abcdef0123456789abcdef01234567"
NAME = "fnlp/SpeechGPT-7B-cm"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, name: str, files: dict[str, str]) -> Path:
    """models--owner--name with refs, blobs and snapshots of links, as huggingface_hub lays it out."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    (folder / "blobs").mkdir()
    found = folder / "snapshots" / REVISION
    found.mkdir(parents=True)
    for number, (file, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{number:040x}"
        blob.write_text(content)
        (found / file).symlink_to(Path("../../blobs") / blob.name)
    return found


INDEX = json.dumps({"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}})
WHOLE = {"config.json": "{}", "tokenizer.model": "x", "pytorch_model.bin.index.json": INDEX}


def test_a_cached_name_is_its_snapshot(cache, capsys):
    found = cached(cache, NAME, WHOLE | {"pytorch_model-1.bin": "1", "pytorch_model-2.bin": "2"})
    assert model_folder(NAME, LLAMA, ADAPTER) == found == snapshot(NAME)
    assert main([NAME]) == 0 and capsys.readouterr().out.strip() == str(found)


def test_what_is_missing_is_listed_with_the_folder_it_belongs_to(cache):
    found = cached(cache, NAME, WHOLE | {"pytorch_model-1.bin": "1"})
    with pytest.raises(FileNotFoundError) as error:
        model_folder(NAME, LLAMA, ADAPTER)
    said = str(error.value)
    assert said.endswith(f"put these files into {found}, or give a folder that has them: pytorch_model-2.bin")
    assert "HF_HUB_OFFLINE is set" in said and "\n" not in said
    assert model_folder(NAME, TOKENIZER) == found, "whoever wants less needs less"


def test_files_put_where_the_error_says_are_found(cache):
    with pytest.raises(FileNotFoundError) as error:
        model_folder("utter-project/mHuBERT-147", ENCODER)
    said = str(error.value)
    target = cache / "models--utter-project--mHuBERT-147" / "snapshots" / "main"
    assert f"into {target}, or" in said and said.endswith(
        "config.json, preprocessor_config.json or encoder.json, model.safetensors or pytorch_model.bin"
    )
    target.mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (target / name).write_text("{}")
    assert model_folder("utter-project/mHuBERT-147", ENCODER) == target


def test_folders_come_first_and_other_paths_are_left_alone(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fnlp" / "SpeechGPT-7B-cm").mkdir(parents=True)
    assert model_folder(NAME, LLAMA) == Path(NAME) and not is_hub_name(NAME)
    for path in ("work/km400/lm", "/etc/none", "./a/b", "../a/b", "mini", "a/..", "a/b\n"):
        assert model_folder(path, LLAMA) == Path(path)


def test_a_ref_that_leads_elsewhere_is_not_followed(cache):
    cached(cache, NAME, WHOLE)
    (cache / "models--fnlp--SpeechGPT-7B-cm" / "refs" / "main").write_text("../../../elsewhere")
    assert snapshot(NAME) is None


def command(cache: Path, *argv: str, **environment: str) -> tuple[subprocess.CompletedProcess, float]:
    names = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_OFF"))}
    names = {k: v for k, v in names.items() if "proxy" not in k.lower()}
    started = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-m", "speechgpt.cli", *argv], capture_output=True, text=True, timeout=120,
        env={**names, "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return found, time.perf_counter() - started


@pytest.fixture
def silent():
    """A hub that accepts connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(20)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub cannot be reached: [Errno 111] Connection refused"),
    ],
)
def test_without_a_network_the_error_is_one_line_at_once(environment, says, tmp_path):
    for argv in (["talk", "--text", "hi", "--model", NAME], ["tokenizer", "--from", NAME, "--out", "x"]):
        found, seconds = command(tmp_path / "hub", *argv, **environment)
        assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
        assert (
            says in found.stderr and str(tmp_path / "hub" / "models--fnlp--SpeechGPT-7B-cm") in found.stderr
        )
        assert "tokenizer.model or tokenizer.json" in found.stderr
        assert seconds < 30, "measured 1 s; the slack is for a loaded machine"


def test_a_silent_hub_is_given_up(silent, cache, monkeypatch):
    """With the real limit of 10 s the command took 13.5 s; the hub's own calls wait for ever."""
    from huggingface_hub import constants

    from speechgpt.data import hub

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    monkeypatch.setattr(hub, "SECONDS_TO_ANSWER", 1)
    started = time.perf_counter()
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached: timed out"):
        model_folder(NAME, LLAMA)
    assert 0.9 < time.perf_counter() - started < 20


def test_names_reach_the_encoder_and_the_language_model(cache, tiny_parts, tmp_path, capsys):
    from speechgpt.model import load_llama
    from speechgpt.text_tokenizer import import_tokenizer
    from speechgpt.units.encoder import Encoder

    for part, name in (("llm", "own/llama"), ("encoder", "own/hubert")):
        found = cached(cache, name, {})
        for file in tiny_parts[part].iterdir():
            shutil.copy(file, found / file.name)
    assert load_llama("own/llama").config.model_type == "llama"
    assert import_tokenizer("own/llama", tmp_path / "tokenizer") > 0
    assert Encoder.load("own/hubert").fingerprint == Encoder.load(tiny_parts["encoder"]).fingerprint


def test_nothing_but_a_hub_name_asks_the_network(tiny_model, tmp_path, recording, monkeypatch, capsys):
    """With the hub's libraries online, a local model answers without as much as looking up a host."""
    from huggingface_hub import constants

    from speechgpt.cli import main as command_line

    asked = []

    def refuse(*address, **_):
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    argv = ["talk", recording, "--model", tiny_model, "--out-dir", tmp_path, "--device", "cpu"]
    assert command_line([str(a) for a in argv]) == 0 and not asked
    assert command_line(["fetch", NAME]) == 2 and asked, "or this test would prove nothing"
