"""Every bad input: one line on standard error that names it, exit code 2, nothing on standard output for it,
nothing half-written, and the other files of the call still answered."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt.cli import main


def write(path: Path, waveform: np.ndarray, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, waveform, 16_000, subtype=subtype)
    return path


def empty(folder: Path, tone) -> Path:
    (folder / "empty.wav").touch()
    return folder / "empty.wav"


def no_samples(folder: Path, tone) -> Path:
    return write(folder / "header.wav", np.zeros(0, np.float32))


def truncated(folder: Path, tone) -> Path:
    path = write(folder / "cut.wav", tone(1.0))
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def truncated_flac(folder: Path, tone) -> Path:
    path = folder / "cut.flac"
    soundfile.write(path, tone(2.0), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def no_audio(folder: Path, tone) -> Path:
    path = folder / "letter.wav"
    path.write_text("Dear reader, this is no sound at all.\n" * 50)
    return path


def too_short(folder: Path, tone) -> Path:
    return write(folder / "click.wav", tone(0.5)[:399])


def silence(folder: Path, tone) -> Path:
    return write(folder / "silence.wav", np.zeros(16_000, np.float32))


def not_a_number(folder: Path, tone) -> Path:
    waveform = tone(1.0)
    waveform[5000] = np.nan
    return write(folder / "nan.wav", waveform, "FLOAT")


def missing(folder: Path, tone) -> Path:
    return folder / "missing.wav"


def a_folder(folder: Path, tone) -> Path:
    (folder / "folder.wav").mkdir()
    return folder / "folder.wav"


BAD = [
    empty,
    no_samples,
    truncated,
    truncated_flac,
    no_audio,
    too_short,
    silence,
    not_a_number,
    missing,
    a_folder,
]


def hours_long(path: Path, hours: float) -> Path:
    """A WAV whose header tells the truth and whose samples are a hole in the disk."""
    size = int(hours * 3600 * 8000) * 2
    with open(path, "wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16))
        file.write(struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16) + b"data" + struct.pack("<I", size))
        file.truncate(44 + size)
    return path


@pytest.fixture
def run(tiny_model, capsys):
    def call(*arguments, model: Path = tiny_model):
        code = main([*map(str, arguments), "--model", str(model)])
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return code, found.out.splitlines(), found.err.splitlines()

    return call


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["talk", "transcribe", "encode"])
def test_a_bad_file_costs_one_line_and_the_others_are_answered(
    name, make, run, recording, tmp_path, make_tone
):
    (tmp_path / "in").mkdir()
    bad = make(tmp_path / "in", make_tone)
    out = ["--out-dir", tmp_path / "out", "--json", "--no-speech"] if name == "talk" else []
    code, printed, complaints = run(name, bad, recording, *out)
    assert code == 2
    assert (
        len(complaints) == 1 and complaints[0].startswith(f"speechgpt {name}: ") and str(bad) in complaints[0]
    )
    assert len(printed) == 1
    if name == "talk":
        assert json.loads(printed[0])["path"] == str(recording)
    if name == "encode":
        assert printed[0].startswith("<sosp>")


def test_bad_files_are_refused_before_the_model_is_loaded(run, tmp_path, make_tone, monkeypatch):
    def never(*arguments, **named):
        raise AssertionError("the model was loaded for nothing")

    monkeypatch.setattr("speechgpt.commands.load_model", never)
    files = [make(tmp_path, make_tone) for make in BAD]
    code, printed, complaints = run("talk", *files, "--json")
    assert code == 2 and printed == [] and len(complaints) == len(BAD)


def test_three_hours_are_refused_by_the_header(run, recording, tmp_path, monkeypatch):
    long = hours_long(tmp_path / "long.wav", 3)
    monkeypatch.setattr("soundfile.read", None)  # decoding it would fail loudly
    code, printed, complaints = run("talk", long, "--json")
    assert code == 2 and printed == []
    assert len(complaints) == 1 and "10800 s" in complaints[0] and "limit here is 10 s" in complaints[0]
    assert str(long) in complaints[0]


def test_encode_takes_long_recordings(run, tmp_path, make_tone):
    """Longer than one window: windows join without losing a frame."""
    long = write(tmp_path / "long.wav", np.tile(make_tone(2.5), 30))
    code, printed, _ = run("encode", long, "--frames")
    assert code == 0 and printed[0].count("<") - 2 == (75 * 16_000 - 400) // 320 + 1


@pytest.mark.parametrize("poison", [np.nan, 0.0])
def test_encode_refuses_bad_long_recordings(poison, run, tmp_path, make_tone):
    waveform = np.tile(make_tone(2.5), 26)
    waveform[100_000 if np.isnan(poison) else slice(None)] = poison
    long = write(tmp_path / "long.wav", waveform, "FLOAT")
    code, printed, complaints = run("encode", long)
    assert code == 2 and printed == [] and len(complaints) == 1 and str(long) in complaints[0]


@pytest.mark.parametrize("name", ["talk", "transcribe", "encode", "speak"])
def test_an_unknown_model_lists_the_known(name, run, recording, tmp_path):
    more = ["--out", tmp_path / "o.wav"] if name == "speak" else []
    code, printed, complaints = run(name, recording, *more, model="gpt-nine")
    assert code == 2 and printed == [] and len(complaints) == 1
    assert "'gpt-nine'" in complaints[0] and "known models: " in complaints[0]


def test_a_codebook_of_another_encoder(run, recording, other_parts):
    code, printed, complaints = run("encode", recording, "--codebook", other_parts["codebook"])
    assert code == 2 and printed == [] and len(complaints) == 1
    assert str(other_parts["codebook"]) in complaints[0] and "do not belong together" in complaints[0]


def test_another_layer_than_the_codebooks(run, recording):
    """Any layer could once be paired with the codebook of one."""
    code, printed, complaints = run("encode", recording, "--layer", 1)
    assert code == 2 and printed == [] and len(complaints) == 1
    assert "layer 2" in complaints[0] and "it is 1" in complaints[0]


def test_parts_that_are_no_parts(run, recording, tmp_path):
    for flag in ("--encoder", "--codebook"):
        code, printed, complaints = run("encode", recording, flag, tmp_path)
        assert code == 2 and printed == [] and len(complaints) == 1 and str(tmp_path) in complaints[0]
    code, _, complaints = run("decode", "<sosp><1><eosp>", "--vocoder", tmp_path, "--out", tmp_path / "o.wav")
    assert code == 2 and len(complaints) == 1 and str(tmp_path) in complaints[0]


def test_a_broken_model_directory_ends_the_call_once(run, recording, tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "llm" / "speechgpt_vocab.json").write_text("{ not json")
    code, printed, complaints = run("talk", recording, recording, "--json", model=broken)
    assert code == 2 and printed == [] and len(complaints) == 1 and "speechgpt_vocab.json" in complaints[0]
    shutil.rmtree(broken / "vocoder")
    code, _, complaints = run("talk", recording, model=broken)
    assert code == 2 and len(complaints) == 1 and "vocoder" in complaints[0]


@pytest.mark.parametrize(
    "cut", ["llm/model.safetensors", "encoder/model.safetensors", "vocoder/model.safetensors"]
)
def test_cut_weights_are_one_line(cut, run, recording, tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / cut).write_bytes((broken / cut).read_bytes()[:100])
    code, printed, complaints = run("talk", recording, "--json", "--out-dir", tmp_path, model=broken)
    assert code == 2 and printed == [] and len(complaints) == 1 and Path(cut).parts[0] in complaints[0]


def test_a_full_disk_writes_nothing_and_says_so(run, recording, tmp_path, monkeypatch):
    other = shutil.copy(recording, tmp_path / "second.wav")
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "question" in path.name:
            real(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    out = tmp_path / "out"
    code, printed, complaints = run("talk", recording, other, "--json", "--out-dir", out)
    assert code == 2 and [json.loads(line)["path"] for line in printed] == [str(other)]
    assert len(complaints) == 1 and str(recording) in complaints[0] and "no space left" in complaints[0]
    assert [p.name for p in out.iterdir()] == ["second.answer.wav"]


def test_places_where_no_wav_can_be_written(run, recording, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, printed, complaints = run("talk", recording, "--json", "--out-dir", tmp_path / "file")
    assert code == 2 and printed == [] and len(complaints) == 1 and str(tmp_path / "file") in complaints[0]
    for target in (tmp_path, Path("/dev/full")):
        code, printed, complaints = run("speak", "moss", "--out", target)
        assert code == 2 and printed == [] and len(complaints) == 1 and str(target) in complaints[0]


@pytest.mark.parametrize(
    "text", ["<sosp><1>", "<1><2>", "<sosp><x><eosp>", "<sosp><eosp>", "<sosp><12><eosp>"]
)
def test_what_is_no_units(text, run, tmp_path):
    code, printed, complaints = run("decode", text, "--out", tmp_path / "o.wav")
    assert code == 2 and printed == [] and len(complaints) == 1 and "UNITS" in complaints[0]
    assert not (tmp_path / "o.wav").exists()


def test_a_bad_line_of_units_names_file_and_line(run, tmp_path):
    file = tmp_path / "units.txt"
    file.write_text("<sosp><1><eosp>\n<sosp><1\n<sosp><2><eosp>\n")
    code, printed, complaints = run("decode", file, "--out", tmp_path / "o.wav")
    assert code == 2 and len(printed) == 2 and len(complaints) == 1 and f"{file}:2" in complaints[0]
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["o-1.wav", "o-3.wav"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00binary"])
def test_unit_files_that_hold_none(content, run, tmp_path):
    file = tmp_path / "units.txt"
    file.write_bytes(content)
    code, _, complaints = run("decode", file, "--out", tmp_path / "o.wav")
    assert code == 2 and len(complaints) == 1 and str(file) in complaints[0]
    code, _, complaints = run("decode", tmp_path / "gone.txt", "--out", tmp_path / "o.wav")
    assert code == 2 and len(complaints) == 1 and "gone.txt" in complaints[0]


def test_a_broken_json_line_names_its_line(run, tmp_path, capsys):
    rows = tmp_path / "manifest.jsonl"
    rows.write_text('{"id": "a", "path": "a.wav", "seconds": 1.0, "text": "x"}\n{"id": "b", \n')
    code, printed, complaints = run("eval", "--manifest", rows, "--out", tmp_path / "eval")
    assert code == 2 and printed == [] and len(complaints) == 1 and f"{rows}:2" in complaints[0]
    assert not (tmp_path / "eval").exists()
    rows.write_text("[1, 2]\n")
    assert f"{rows}:1" in run("eval", "--qa", rows, "--out", tmp_path / "eval")[2][0]


@pytest.fixture(scope="module")
def upstream_model(tiny_parts, tmp_path_factory) -> Path:
    """A model whose vocabulary is that of the published checkpoints."""
    from speechgpt.assemble import ModelSettings, Parts, assemble
    from speechgpt.model import LlamaSettings, new_llama, save_llama
    from speechgpt.upstream_vocabulary import UpstreamVocabulary

    folder = tmp_path_factory.mktemp("upstream")
    vocabulary = UpstreamVocabulary(Path(__file__).parent / "golden" / "upstream.model", 12)
    settings = LlamaSettings(hidden=32, layers=1, heads=2, intermediate=32, context=512)
    save_llama(new_llama(settings, vocabulary), vocabulary, folder / "llm")
    short = {"max_text_tokens": 8, "max_units": 20, "max_new_tokens": 100}
    parts = Parts.load({**tiny_parts, "llm": folder / "llm"})
    assemble(parts, ModelSettings("upstream", decoding=short, half=False), "", folder / "model")
    return folder / "model"


@pytest.mark.parametrize("text", ["say <12> now", "stop <eosp>", "hear [ua] this"])
def test_upstream_refuses_text_that_it_cannot_keep_text(text, run, upstream_model, recording, tmp_path):
    given = ["--json", "--out-dir", tmp_path]
    code, printed, complaints = run("talk", "--text", text, *given, model=upstream_model)
    assert code == 2 and printed == [] and len(complaints) == 1 and "--text" in complaints[0]
    code, _, complaints = run("speak", text, "--out", tmp_path / "o.wav", model=upstream_model)
    assert code == 2 and len(complaints) == 1 and not (tmp_path / "o.wav").exists()
    code, printed, _ = run("talk", recording, *given, model=upstream_model)
    assert code == 0 and len(printed) == 1
    code, printed, _ = run("talk", "--text", "plain words", *given, model=upstream_model)
    assert code == 0 and json.loads(printed[0])["transcript"] == "plain words"
