"""`speechgpt convert`, and the commands that take original files, as a user calls them."""

import json
import os
import shutil
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from speechgpt import convert
from speechgpt.cli import main
from speechgpt.conversion_cache import ready_encoder
from speechgpt.convert import RECORD_FILE
from speechgpt.data.files import read_jsonl
from speechgpt.model_dir import find_model
from speechgpt.originals import identify, source_hash
from speechgpt.units.codebook import Codebook
from speechgpt.units.encoder import Encoder
from speechgpt.vocoder.generator import UnitVocoder

from ..conftest import TINY_LAYER, TINY_UNITS, tiny_codebook, tiny_encoder, tiny_vocoder
from ..foreign_files import save_codehifigan, save_fairseq, save_kmeans


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SPEECHGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """The tiny parts as their projects would have published them, under names that say nothing."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("originals")
    encoder = tiny_encoder()
    save_fairseq(folder / "a.pt", encoder)
    save_kmeans(folder / f"b_L{TINY_LAYER}.bin", tiny_codebook(encoder).centroids.numpy(), compress=3)
    config = replace(tiny_vocoder().config, resblock_dilations=[[1, 3, 5]])
    torch.manual_seed(0)
    path = save_codehifigan(folder / "vocoder", UnitVocoder(config).eval(), name="c")
    return {"encoder": folder / "a.pt", "codebook": folder / f"b_L{TINY_LAYER}.bin", "vocoder": path}


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = main([*map(str, arguments)])
        found = capsys.readouterr()
        return code, found.out.splitlines(), found.err.splitlines()

    return call


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_become_one_folder_told_apart_by_content(originals, run, tmp_path):
    out = tmp_path / "out"
    code, lines, err = run("convert", *originals.values(), "--out", out)
    assert code == 0 and err == []
    assert lines == [f"{out}: encoder, codebook, vocoder", lines[1]] and "also needs llm" in lines[1]
    encoder, codebook = Encoder.load(out / "encoder", "cpu"), Codebook.load(out / "codebook.safetensors")
    codebook.check(encoder, TINY_LAYER)
    assert encoder.fingerprint == tiny_encoder().fingerprint
    assert UnitVocoder.load(out / "vocoder", "cpu").config.num_units == TINY_UNITS
    sha = source_hash(originals["encoder"])
    assert encoder.provenance["converted_from"] == {"file": "a.pt", "sha256": sha}
    record = json.loads((out / RECORD_FILE).read_text())["parts"]
    assert record["encoder"] == [{"file": "a.pt", "sha256": sha}]
    assert [s["file"] for s in record["vocoder"]] == ["c", "config.json"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_running_twice_changes_nothing_and_parts_may_come_one_by_one(originals, run, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    run("convert", *originals.values(), "--out", whole)
    before = snapshot(whole)
    stamps = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    code, lines, _ = run("convert", *originals.values(), "--out", whole)
    assert code == 0 and "nothing new" in lines[0]
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == stamps
    for name in originals:
        assert run("convert", originals[name], "--out", out)[0] == 0
    found = snapshot(out)
    assert found.pop(RECORD_FILE) and before.pop(RECORD_FILE) and found == before


def test_two_at_once_into_one_folder_lose_nothing(originals, tmp_path, monkeypatch):
    """Without the lock both read the record before either has written it."""
    out, read = tmp_path / "out", convert._old_record

    def slowly(folder):
        record = read(folder)
        time.sleep(0.5)
        return record

    monkeypatch.setattr(convert, "_old_record", slowly)
    calls = ([originals["encoder"], originals["codebook"]], [originals["vocoder"]])
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda files: convert.convert(files, out)[0], calls))
    assert found == [["encoder", "codebook"], ["vocoder"]]
    assert set(json.loads((out / RECORD_FILE).read_text())["parts"]) == {"encoder", "codebook", "vocoder"}
    assert {p.name for p in out.iterdir()} == {"encoder", "codebook.safetensors", "vocoder", RECORD_FILE}
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "the lock is gone"


def test_a_killed_conversion_leaves_the_folder_as_it_was(originals, run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run("convert", originals["encoder"], "--out", out)
    before = snapshot(out)
    monkeypatch.setattr("speechgpt.convert._finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("convert", *originals.values(), "--out", out)[0] == 130
    assert snapshot(out) == before
    assert run("convert", *originals.values(), "--out", tmp_path / "new")[0] == 130
    assert not (tmp_path / "new").exists()


def test_a_whole_model_talks(originals, run, tmp_path, tiny_parts, recording, monkeypatch):
    """The language model goes to the reader of LLaMA files, here one that copies a folder of ours."""
    out = tmp_path / "out"
    reader = types.ModuleType("speechgpt.llama_files")
    reader.convert_llama = lambda paths, place: shutil.copytree(paths[0], place)
    reader.is_llama = lambda path: True
    reader.files_read = lambda paths: sorted(paths[0].iterdir())
    monkeypatch.setitem(sys.modules, "speechgpt.llama_files", reader)
    code, lines, err = run("convert", *originals.values(), tiny_parts["llm"], "--out", out)
    assert code == 0 and err == [] and lines[1] == f"a whole model: speechgpt talk question.wav --model {out}"
    config = json.loads((out / "speechgpt.json").read_text())
    assert config["layer"] == TINY_LAYER and config["profile"] == "native"
    code, units, _ = run("encode", recording, "--model", out)
    assert code == 0 and units[0].startswith("<sosp>")


def test_a_language_model_is_converted_again_when_anything_read_has_changed(
    make_checkpoint, make_lora, run, tmp_path
):
    base = make_checkpoint(tmp_path / "cm")
    shard = sorted(base.glob("*.bin"))[0]
    adapter = make_lora(tmp_path / "com", str(base))
    for number, given in enumerate((shard, adapter, base)):
        arguments = ("convert", given, "--out", tmp_path / f"out{number}")
        assert run(*arguments)[1][0].endswith(": llm")
        assert "nothing new" in run(*arguments)[1][0]
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 10.0 ** -(3 + number)}))
        assert run(*arguments)[1][0].endswith(": llm"), given
        found = json.loads((tmp_path / f"out{number}" / "llm" / "config.json").read_text())
        assert found["rms_norm_eps"] == 10.0 ** -(3 + number)
    record = json.loads((tmp_path / "out1" / RECORD_FILE).read_text())["parts"]["llm"]
    names = {entry["file"] for entry in record}
    assert {"config.json", shard.name, "adapter_config.json", "adapter_model.bin", "tokenizer.model"} <= names


def test_parts_that_do_not_fit_are_refused(originals, run, tmp_path, other_parts):
    out = tmp_path / "out"
    odd = save_codehifigan(tmp_path / "odd", UnitVocoder(tiny_vocoder(size=7).config), name="g")
    code, _, err = run("convert", *list(originals.values())[:2], odd, "--out", out)
    assert code == 2 and "codebook 12, vocoder 7" in err[0]
    assert not out.exists()
    code, _, err = run("convert", originals["codebook"], "--out", out)
    assert code == 2 and "--encoder FOLDER" in err[0] and not out.exists()
    code, _, err = run(
        "convert", originals["encoder"], shutil.copy(originals["encoder"], tmp_path), "--out", out
    )
    assert code == 2 and "each is a whole encoder" in err[0]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    code, _, err = run("convert", originals["encoder"], "--out", tmp_path / "full")
    assert code == 2 and "holds no conversion" in err[0]


def test_a_codebook_with_an_encoder_folder_and_a_layer(originals, run, tmp_path, tiny_parts):
    nameless = shutil.copy(originals["codebook"], tmp_path / "km.bin")
    arguments = ("convert", nameless, "--encoder", tiny_parts["encoder"], "--out", tmp_path / "out")
    code, _, err = run(*arguments)
    assert code == 2 and "give --layer" in err[0]
    assert run(*arguments, "--layer", 1)[0] == 0
    book = Codebook.load(tmp_path / "out" / "codebook.safetensors")
    book.check(Encoder.load(tmp_path / "out" / "encoder", "cpu"), 1)


def test_verify_needs_fairseq(originals, run, tmp_path, monkeypatch):
    monkeypatch.setattr("speechgpt.convert.find_spec", lambda name: None)
    code, _, err = run("convert", originals["encoder"], "--out", tmp_path / "out", "--verify")
    assert code == 2 and "fairseq, which is not installed" in err[0] and not (tmp_path / "out").exists()


def test_what_is_not_known_is_described(run, tmp_path):
    torch.save({"weight": torch.zeros(1), "bias": torch.zeros(1)}, tmp_path / "x.pt")
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.txt").write_text("\0 hello")
    for name, expected in (
        ("x.pt", "holds 'weight', 'bias'; expected"),
        ("x.json", "no model"),
        ("x.txt", "cannot"),
    ):
        code, _, err = run("convert", tmp_path / name, "--out", tmp_path / "out")
        assert code == 2 and len(err) == 1 and expected in err[0] and name in err[0]
    torch.save({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, tmp_path / "y.bin")
    torch.save({"base_model.model.x.lora_A.weight": torch.zeros(2).bfloat16()}, tmp_path / "z.bin")
    assert identify(tmp_path / "y.bin").kind == identify(tmp_path / "z.bin").kind == "llm"


# ---- original files where the commands expect ours
def test_encode_takes_original_files_and_converts_them_once(originals, run, cache, recording, tiny_parts):
    given = ("--encoder", originals["encoder"], "--codebook", originals["codebook"])
    code, units, err = run("encode", recording, *given)
    assert code == 0 and [line.split()[0] for line in err] == ["converting", "converting"]
    assert units == run("encode", recording, "--encoder", tiny_parts["encoder"], "--codebook",
                        tiny_parts["codebook"])[1]  # fmt: skip
    before = snapshot(cache)
    code, again, err = run("encode", recording, *given)
    assert code == 0 and again == units and err == [] and snapshot(cache) == before
    os.utime(originals["encoder"])
    assert run("encode", recording, *given)[2] == []


def test_a_codebook_keeps_the_layer_of_its_name_in_a_model_of_another(originals, run, tmp_path, tiny_model):
    named = Path(shutil.copy(originals["codebook"], tmp_path / f"b_L{TINY_LAYER - 1}.bin"))
    assert find_model(tiny_model).load_encoder("cpu").layer == TINY_LAYER
    assert find_model(tiny_model, codebook=named).load_encoder("cpu").layer == TINY_LAYER - 1


def test_a_layer_against_the_name_is_refused(originals, run, tmp_path, tiny_parts, recording):
    expected = f"its name says layer {TINY_LAYER}, --layer 1"
    parts = ("--encoder", tiny_parts["encoder"], "--codebook", originals["codebook"], "--layer", 1)
    for arguments in (
        ("encode", recording, *parts),
        ("transcribe", recording, "--model", tiny_parts["llm"], *parts),
        ("convert", originals["encoder"], originals["codebook"], "--layer", 1, "--out", tmp_path / "out"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and expected in err[-1]


def test_an_unnamed_codebook_may_be_given_its_layer_where_a_model_listens(
    originals, run, tmp_path, tiny_parts, recording
):
    unnamed = shutil.copy(originals["codebook"], tmp_path / "km.bin")
    asked = ("transcribe", recording, "--model", tiny_parts["llm"], "--encoder", tiny_parts["encoder"])
    code, _, err = run(*asked, "--codebook", unnamed)
    assert code == 2 and "give --layer" in err[-1]
    code, lines, _ = run(*asked, "--codebook", unnamed, "--layer", TINY_LAYER)
    assert code == 0 and lines == run(*asked, "--codebook", tiny_parts["codebook"])[1]


def test_decode_takes_a_generator(originals, run, tmp_path):
    out = tmp_path / "x.wav"
    code, _, err = run("decode", "<sosp><1><3><2><eosp>", "--out", out, "--vocoder", originals["vocoder"])
    assert code == 0 and out.exists() and len(err) == 1
    alone = shutil.copy(originals["vocoder"], tmp_path / "g")
    code, _, err = run("decode", "<sosp><1><eosp>", "--out", out, "--vocoder", alone)
    assert code == 2 and "needs its config.json" in err[-1]
    config = originals["vocoder"].parent / "config.json"
    arguments = ("--vocoder", alone, "--vocoder-config", config)
    assert run("decode", "<sosp><1><eosp>", "--out", out, *arguments)[0] == 0


def test_an_original_in_the_wrong_place_is_named(originals, run, cache, recording):
    wrong = ("--encoder", originals["vocoder"], "--codebook", originals["codebook"])
    code, _, err = run("encode", recording, *wrong)
    assert code == 2 and "a file for --vocoder; expected one for --encoder" in err[-1]
    assert not list((cache / "converted").iterdir())


@pytest.mark.parametrize(
    "contents, expected",
    [
        (b"\x04\x22\x4d\x18" + bytes(20), "joblib compressed with lz4; save it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
        (b"<html>not found</html>", "the download went wrong"),
    ],
)
def test_what_loaders_are_given_is_described_as_by_convert(
    contents, expected, run, tmp_path, tiny_parts, recording
):
    path = tmp_path / "km_L2.bin"
    path.write_bytes(contents)
    for command in (
        ("encode", recording, "--encoder", path, "--codebook", tiny_parts["codebook"]),
        ("encode", recording, "--encoder", tiny_parts["encoder"], "--codebook", path),
        ("decode", "<sosp><1><eosp>", "--out", tmp_path / "x.wav", "--vocoder", path),
        ("convert", path, "--out", tmp_path / "out"),
    ):
        code, _, err = run(*command)
        assert code == 2 and expected in err[-1], command


def test_folders_of_other_models_are_no_language_models(originals, run, tmp_path, tiny_parts):
    (tmp_path / "hubert").mkdir()
    (tmp_path / "hubert" / "config.json").write_text('{"model_type": "hubert"}')
    for folder, expected in (
        (originals["vocoder"].parent, "the config.json of a CodeHiFiGAN; give the files"),
        (tmp_path / "hubert", "a model of type 'hubert'"),
        (tmp_path, "a folder; give the files"),
    ):
        code, _, err = run("convert", folder, "--out", tmp_path / "out")
        assert code == 2 and expected in err[0]


def test_a_vocoder_config_alone_is_refused(originals, run, tmp_path):
    config = originals["vocoder"].parent / "config.json"
    code, _, err = run("decode", "<sosp><1><eosp>", "--out", tmp_path / "x.wav", "--vocoder-config", config)
    assert code == 2 and "give it too, --vocoder" in err[0]


def test_converted_parts_in_the_cache_can_be_read_by_others(originals, cache, tiny_parts):
    ready_encoder(originals["encoder"])
    (folder,) = (cache / "converted").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o644}


def test_a_cache_that_cannot_be_written_stops_no_hash_and_no_conversion(
    originals, run, tmp_path, monkeypatch
):
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setattr("speechgpt.originals.HASH_CHECKED", 10)
    assert len(source_hash(originals["encoder"])) == 64
    assert run("convert", *originals.values(), "--out", tmp_path / "out")[0] == 0


def test_hashes_of_large_files_are_remembered(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("speechgpt.originals.HASH_CHECKED", 10)
    path = tmp_path / "x"
    path.write_bytes(bytes(100))
    first = source_hash(path)
    monkeypatch.setattr("speechgpt.originals.file_hash", lambda path: "computed again")
    assert source_hash(path) == first
    path.write_bytes(bytes(101))
    assert source_hash(path) == "computed again"


def test_nothing_of_a_crafted_checkpoint_runs(run, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "proof"),)

    weights = {k: torch.zeros(1) for k in ("feature_extractor.conv_layers.0.0.weight", "mask_emb")}
    for tree in (
        {"model": Runs(), "cfg": Runs()},
        {"model": weights, "cfg": Runs()},
        {"model": weights | {"x": Runs()}},
    ):
        torch.save(tree, tmp_path / "x.pt")
        code, _, err = run("convert", tmp_path / "x.pt", "--out", tmp_path / "out")
        assert code == 2 and len(err) == 1 and not (tmp_path / "proof").exists()


def test_json_nested_too_deep_is_one_line(run, tmp_path):
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    code, _, err = run("convert", tmp_path / "deep.json", "--out", tmp_path / "out")
    assert code == 2 and len(err) == 1 and "deep.json: JSON nested too deep" in err[0]
    with pytest.raises(ValueError, match="deep.json:1: not valid JSON .nested too deep"):
        next(read_jsonl(tmp_path / "deep.json"))
