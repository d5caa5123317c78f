"""--backend fairseq and --verify without fairseq, and on files that are not fairseq's."""

import sys

import pytest

from speechgpt import convert, verify
from speechgpt.cli import main
from speechgpt.units import fairseq_backend


@pytest.fixture
def no_fairseq(monkeypatch):
    """As where the extra is not installed."""
    for name in [n for n in sys.modules if n.split(".")[0] == "fairseq"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fairseq", None)


def test_without_fairseq_the_command_says_how_to_get_it(no_fairseq, tmp_path, recording, capsys):
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04")
    files = ["--encoder", str(tmp_path / "a.pt"), "--codebook", str(tmp_path / "a.pt")]
    assert main(["encode", str(recording), *files, "--backend", "fairseq"]) == 2
    assert "pip install 'speechgpt[fairseq]'" in capsys.readouterr().err
    out = ["--out", str(tmp_path / "o.wav"), "--vocoder", str(tmp_path / "a.pt")]
    assert main(["decode", "<sosp><1><eosp>", *out, "--backend", "fairseq"]) == 2
    assert "pip install 'speechgpt[fairseq]'" in capsys.readouterr().err


def test_converted_parts_are_refused(tiny_parts, recording, tmp_path, capsys):
    files = ["--encoder", str(tiny_parts["encoder"]), "--codebook", str(tiny_parts["codebook"])]
    assert main(["encode", str(recording), *files, "--backend", "fairseq"]) == 2
    error = capsys.readouterr().err
    assert "--backend fairseq runs original files alone, and --encoder and --codebook is none" in error
    assert main(["decode", "<sosp><1><eosp>", "--out", str(tmp_path / "o.wav"), "--backend", "fairseq"]) == 2
    assert "give --vocoder g_00500000" in capsys.readouterr().err


def test_import_error_names_the_extra(no_fairseq):
    with pytest.raises(ImportError, match="speechgpt.fairseq"):
        fairseq_backend.import_fairseq()


def test_a_verification_of_nothing_does_not_pass(tiny_parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify, "import_fairseq", lambda: None)
    monkeypatch.setattr(convert, "find_spec", lambda name: name)
    monkeypatch.setattr(convert, "convert", lambda *_: (["llm"], []))
    arguments = ["convert", str(tiny_parts["llm"]), "--out", str(tmp_path / "o"), "--verify"]
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert "llm: not compared" in found.out and "nothing could be compared" in found.err
    assert found.err.count("\n") == 1


def test_audio_goes_with_verify(tmp_path, capsys):
    assert main(["convert", "a.pt", "--out", str(tmp_path / "o"), "--audio", "a.wav"]) == 2
    assert "--audio goes with --verify" in capsys.readouterr().err
