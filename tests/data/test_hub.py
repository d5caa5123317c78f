"""Models by name, in a cache of the hub's true layout; the network is off, refused or silent."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speechgpt.data.hub import (
    ADAPTER,
    ENCODER,
    LLAMA,
    TOKENIZER,
    is_hub_name,
    main,
    model_folder,
    named_path,
    snapshot,
)

ROOT = Path(__file__).parents[2]
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
    for path in ("work/km400/lm", "/etc/none", "../a/b", "mini", "a/..", "a/b\n"):
        assert model_folder(path, LLAMA) == Path(path)


def test_what_is_spelled_as_a_path_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    for path in ("runs/hubert.pt", "runs/LM.BIN", "a/x.safetensors", "a/config.json", "a/b.wav", "work/lm"):
        assert not is_hub_name(path) and named_path(path) == Path(path), path
    for path in ("./a/b", "a/b/", ".//a/b"):
        assert named_path(path) == model_folder(path, LLAMA) == tmp_path / "a" / "b", path
        assert not is_hub_name(named_path(path)), "however often it is asked"
    for name in (NAME, "utter-project/mHuBERT-147", "lmsys/vicuna-7b-v1.5", "meta-llama/Llama-3.2"):
        assert is_hub_name(name) and named_path(name) == Path(name), name
    (tmp_path / "a").mkdir()
    assert named_path("./a/b") == Path("a/b"), "no name any more: messages show what was typed"


def test_a_ref_that_leads_elsewhere_is_not_followed(cache):
    cached(cache, NAME, WHOLE)
    (cache / "models--fnlp--SpeechGPT-7B-cm" / "refs" / "main").write_text("../../../elsewhere")
    assert snapshot(NAME) is None


def command(
    cache: Path, *argv: str, cwd: Path | None = None, preexec_fn=None, **environment: str
) -> tuple[subprocess.CompletedProcess, float]:
    names = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_OFF"))}
    names = {k: v for k, v in names.items() if "proxy" not in k.lower()}
    started = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-m", "speechgpt.cli", *argv], capture_output=True, text=True, timeout=120,
        env={**names, "HF_HUB_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd, preexec_fn=preexec_fn,
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
    ("environment", "lines", "says"),
    [
        ({"HF_HUB_OFFLINE": "1"}, 1, "HF_HUB_OFFLINE is set"),
        (
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            2,
            "the hub cannot be reached: [Errno 111] Connection refused",
        ),
    ],
)
def test_without_a_network_the_error_is_one_line_at_once(environment, lines, says, tmp_path):
    """Before a request a line says that it is made."""
    for argv in (["talk", "--text", "hi", "--model", NAME], ["tokenizer", "--from", NAME, "--out", "x"]):
        found, seconds = command(tmp_path / "hub", *argv, **environment)
        assert found.returncode == 2 and found.stderr.count("\n") == lines, found.stderr
        assert (
            says in found.stderr and str(tmp_path / "hub" / "models--fnlp--SpeechGPT-7B-cm") in found.stderr
        )
        assert "tokenizer.model or tokenizer.json" in found.stderr
        assert seconds < 30, "measured 1 s; the slack is for a loaded machine"


class Hub(BaseHTTPRequestHandler):
    """One model, `own/encoder`, as the hub serves it; everything asked for is kept in `server.asked`."""

    FILES = {"config.json": b"{}", "preprocessor_config.json": b"{}", "model.safetensors": b"w" * 50_000}

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.rsplit("/", 1)[-1]
        if self.path == "/api/models/own/encoder":
            listed = [{"rfilename": file} for file in self.FILES]
            body = json.dumps({"id": "own/encoder", "sha": REVISION, "siblings": listed}).encode()
        elif self.path == f"/own/encoder/resolve/main/{name}" and name in self.FILES:
            body = self.FILES[name]
        else:
            body = None
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", REVISION)
        if body is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body or b"")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.address = f"http://127.0.0.1:{server.server_port}"
        yield server
        server.shutdown()


def test_a_mistyped_path_asks_nobody(hub, tmp_path, recording):
    (tmp_path / "work").mkdir()
    (tmp_path / "x.jsonl").write_text('{"id": "a", "units": [1, 2], "durations": [1, 1]}\n')
    stage = ROOT / "speechgpt/presets/toy/stage1.yaml"
    train = ["train", "--config", str(stage), "--data", "x.jsonl", "--out", "out", "--model"]
    for argv, named in (
        (["encode", recording, "--encoder", "./runs/hubert.pt"], "runs/hubert.pt: no such encoder folder"),
        (["encode", recording, "--encoder", "./a/b"], f"{tmp_path}/a/b: no such encoder folder"),
        (["talk", "--text", "hi", "--encoder", "runs/hubert.pt"], "--encoder runs/hubert.pt: no such file"),
        (["talk", "--text", "hi", "--lora", "./a/b"], f"--lora {tmp_path}/a/b: no such file or folder"),
        ([*train, "work/lm"], "work/lm: no such model folder"),
        ([*train, "./a/b"], f"{tmp_path}/a/b"),
        (["fetch", "work/lm"], "work/lm: no such folder, and taken for a path here"),
        (["talk", "--text", "hi", "--model", "work/lm"], "no such model or folder"),
    ):
        book = ["--codebook", "km.safetensors"] if argv[0] == "encode" else []
        found, _ = command(tmp_path / "hub", *map(str, argv), *book, cwd=tmp_path, HF_ENDPOINT=hub.address)
        assert found.returncode == 2 and named in found.stderr and found.stderr.count("\n") == 1, found.stderr
        assert not hub.asked, argv


def test_a_hub_is_asked_once_and_after_saying_so(hub, tmp_path):
    cache, fetch = tmp_path / "hub", ("fetch", "own/encoder", "--kind", "encoder")
    found, _ = command(cache, *fetch, HF_ENDPOINT=hub.address)
    target = cache / "models--own--encoder"
    says = f"own/encoder: not here; fetching an encoder from {hub.address} into {target}\n"
    assert found.returncode == 0 and found.stderr.startswith(says), found.stderr
    assert found.stdout.strip() == str(target / "snapshots" / REVISION)
    assert (target / "snapshots" / REVISION / "model.safetensors").read_bytes() == Hub.FILES[
        "model.safetensors"
    ]
    hub.asked.clear()
    found, _ = command(cache, *fetch, HF_ENDPOINT=hub.address)
    assert found.returncode == 0 and found.stderr == "" and not hub.asked, "the cache comes first"
    found, _ = command(cache, "fetch", "own/none", HF_ENDPOINT=hub.address)
    assert found.returncode == 2 and "the hub has no such model, or not for everybody" in found.stderr


def test_a_disk_that_takes_no_more_is_not_the_networks_fault(hub, tmp_path):
    """A limit on the size of files stands for the full disk: both are an OSError of a write."""
    import resource

    def no_file_over_10_kb():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    argv = ("fetch", "own/encoder", "--kind", "encoder")
    found, _ = command(
        tmp_path / "hub",
        *argv,
        preexec_fn=no_file_over_10_kb,
        HF_ENDPOINT=hub.address,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert found.returncode == 2 and "Traceback" not in found.stderr, found.stderr
    assert "cannot be written: File too large" in found.stderr and "reached" not in found.stderr, found.stderr
    (tmp_path / "file").write_text("")
    found, _ = command(tmp_path / "file", *argv, HF_ENDPOINT=hub.address)
    assert found.returncode == 2 and "cannot be written: " in found.stderr, found.stderr


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
