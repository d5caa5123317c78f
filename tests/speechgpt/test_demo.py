"""The demo, on the tiny model."""

import shutil
import sys

import pytest
import soundfile

from speechgpt.cli import main


@pytest.fixture
def model(tiny_model, recording, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(recording, folder / "question.wav")
    return folder


def test_the_demo_answers_its_own_question(model, tmp_path, capsys):
    wav = tmp_path / "new folder" / "answer.wav"
    assert main(["demo", "--model", str(model), "--out-dir", str(wav.parent)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = {line[:10].strip(): line[10:] for line in out.splitlines()}
    assert set(lines) >= {"question", "heard", "answer", "speech", "timings"}
    assert "model loaded in" in lines["timings"] and "first sound" in lines["timings"]
    assert soundfile.info(wav).duration > 0
    picture = wav.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG") and str(wav.with_suffix(".png")) in lines["picture"]


def test_the_demo_takes_another_question(model, recording, tmp_path, capsys):
    wav = tmp_path / "answer.wav"
    given = ["--question", str(recording), "--out-dir", str(tmp_path), "--no-picture"]
    assert main(["demo", "--model", str(model), *given]) == 0
    assert wav.exists() and not wav.with_suffix(".png").exists()


def test_without_matplotlib_there_is_no_picture(model, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "speechgpt.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    wav = tmp_path / "answer.wav"
    assert main(["demo", "--model", str(model), "--out-dir", str(tmp_path)]) == 0
    assert wav.exists() and not wav.with_suffix(".png").exists()
    assert "picture" not in capsys.readouterr().out


def test_a_model_without_a_question_says_so(tiny_model, tmp_path, capsys):
    assert main(["demo", "--model", str(tiny_model), "--out-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "question.wav" in err
