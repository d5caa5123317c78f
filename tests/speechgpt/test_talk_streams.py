"""talk and chat while they answer: sound on standard output or in a player, and what may go wrong."""

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from speechgpt.cli import INTERRUPTED, PIPE_CLOSED, main
from speechgpt.wav_stream import wav_header

KEEP = "import sys; open(sys.argv[1], 'ab').write(sys.stdin.buffer.read())"


def python(code: str, *arguments: object) -> str:
    return shlex.join([sys.executable, "-c", code, *map(str, arguments)])


@pytest.fixture
def talk(tiny_model, tmp_path, capsysbinary):
    """talk(*arguments) gives (exit code, standard output as bytes, lines of standard error)."""

    def call(*arguments):
        code = main(
            ["talk", *map(str, arguments), "--model", str(tiny_model), "--out-dir", str(tmp_path / "out")]
        )
        found = capsysbinary.readouterr()
        return code, found.out, found.err.decode().splitlines()

    return call


def samples(wav: Path) -> bytes:
    return soundfile.read(wav, dtype="int16")[0].astype("<i2").tobytes()


def test_sound_on_standard_output_is_one_wav_and_text_goes_aside(talk, recording, tmp_path):
    code, out, err = talk(recording, recording, "--stream", "-")
    wavs = sorted((tmp_path / "out").iterdir(), key=lambda wav: len(wav.name))
    assert code == 0 and len(wavs) == 2
    assert out == wav_header(16_000) + b"".join(samples(wav) for wav in wavs)
    assert [line.split()[0] for line in err[1:5]] == ["heard", "answer", "speech", "took"]
    assert err[0] == str(recording) and len(err) == 10


def test_json_beside_sound(talk, recording):
    code, out, err = talk(recording, "--stream", "-", "--json")
    assert code == 0 and out.startswith(b"RIFF") and len(err) == 1
    row = json.loads(err[0])
    assert len(out) == 44 + 2 * round(16_000 * row["seconds_out"])
    assert row["timings"]["first_sound"] <= row["timings"]["total"] and row["stalls"] >= 0


def test_a_player_hears_what_is_written(talk, recording, tmp_path):
    code, out, err = talk(recording, "--play", python(KEEP, tmp_path / "heard"), "--low-latency")
    (wav,) = (tmp_path / "out").iterdir()
    assert code == 0 and err == [] and out.decode().splitlines()[1].split()[0] == "heard"
    assert (tmp_path / "heard").read_bytes() == wav_header(16_000) + samples(wav)


def test_a_player_that_fails_costs_one_line(talk, recording, tmp_path):
    code, _, err = talk(recording, "--play", "no-such-player", "--json")
    assert code == 2 and len(err) == 1 and "no such file" in err[0] and str(recording) in err[0]
    assert not (tmp_path / "out").exists()
    # One that was started costs its sound alone: played to the end or closed half-way, the answer is there.
    for does in ("import sys; sys.stdin.buffer.read(); sys.exit(3)", "raise SystemExit(3)"):
        code, out, err = talk(recording, "--play", python(does), "--json")
        assert code == 2 and len(err) == 1 and str(recording) in err[0]
        assert "exit code 3" in err[0] or "went away" in err[0]
        (wav,) = (tmp_path / "out").iterdir()
        assert json.loads(out)["wav"] == str(wav)


def test_standard_output_and_a_player_hear_the_same(talk, recording, tmp_path):
    code, out, _ = talk(recording, "--stream", "-", "--play", python(KEEP, tmp_path / "heard"))
    (wav,) = (tmp_path / "out").iterdir()
    assert code == 0 and out == (tmp_path / "heard").read_bytes() == wav_header(16_000) + samples(wav)


@pytest.mark.parametrize("option", [["--stream", "-"], ["--play", "aplay"]])
def test_nothing_is_played_without_speech(talk, recording, option):
    code, out, err = talk(recording, "--no-speech", *option)
    assert code == 2 and out == b"" and len(err) == 1 and "nothing to play" in err[0]


def test_a_terminal_gets_no_samples(talk, recording, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, err = talk(recording, "--stream", "-")
    assert code == 2 and out == b"" and len(err) == 1 and "is a terminal" in err[0]


def test_an_interrupted_answer_leaves_no_wav(talk, recording, tmp_path, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechgpt.paced_speech.PacedSpeech.finish", interrupt)
    code, out, _ = talk(recording)
    assert code == INTERRUPTED and not (tmp_path / "out").exists()
    assert out.decode().splitlines()[1].split()[0] == "heard"  # what was known was said


def test_a_player_behind_a_pipe_that_goes_away_ends_it_quietly(tiny_model, recording, tmp_path):
    command = [sys.executable, "-m", "speechgpt.cli", "talk", *[str(recording)] * 40, "--stream", "-"]
    given = ["--model", str(tiny_model), "--out-dir", str(tmp_path)]
    running = subprocess.Popen([*command, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False)
    assert running.stdout.read(4) == b"RIFF"
    running.stdout.close()
    said = running.stderr.read().decode()
    running.stderr.close()
    assert running.wait(timeout=60) == PIPE_CLOSED and "Traceback" not in said
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_chat_plays_every_turn(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is three\nno moss\n"))
    given = ["--model", str(tiny_model), "--out-dir", str(tmp_path / "chat")]
    assert main(["chat", *given, "--play", python(KEEP, tmp_path / "heard")]) == 0
    wavs = sorted((tmp_path / "chat").iterdir())
    assert (tmp_path / "heard").read_bytes() == b"".join(wav_header(16_000) + samples(w) for w in wavs)
    assert main(["chat", *given, "--no-speech", "--play", "aplay"]) == 2
    assert "nothing to play" in capsys.readouterr().err


def test_a_conversation_outlives_its_player(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("what is three\nno moss\n"))
    given = ["--model", str(tiny_model), "--out-dir", str(tmp_path / "chat")]
    assert main(["chat", *given, "--play", python("import sys; sys.stdin.buffer.read(); sys.exit(4)")]) == 2
    assert sorted(path.name for path in (tmp_path / "chat").iterdir()) == ["turn-1.wav", "turn-2.wav"]
    assert capsys.readouterr().err.count("exit code 4") == 2
