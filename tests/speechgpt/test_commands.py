"""talk, transcribe, speak, encode, decode and chat on a tiny model, as a user calls them."""

import io
import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt.cli import main
from speechgpt.commands import answer_names
from speechgpt.data.unit_text import text_to_units
from speechgpt.turn_lines import one_row

LINE = re.compile(r"<sosp>(<\d+>)+<eosp>")


@pytest.fixture
def run(tiny_model, capsys):
    """run(name, *arguments) gives (exit code, lines of standard output, lines of standard error)."""

    def call(name: str, *arguments, model: Path | None = tiny_model):
        given = ["--model", str(model)] if model else []
        code = main([name, *map(str, arguments), *given])
        found = capsys.readouterr()
        return code, found.out.splitlines(), found.err.splitlines()

    return call


@pytest.fixture
def recordings(tmp_path, make_tone) -> list[Path]:
    """Three recordings of different lengths, rates, channels and formats."""
    paths = [tmp_path / "a.wav", tmp_path / "b.flac", tmp_path / "c.ogg"]
    soundfile.write(paths[0], make_tone(0.7), 16_000)
    soundfile.write(paths[1], make_tone(0.9, 120, 8_000), 8_000)
    stereo = np.stack([make_tone(0.5, 200, 44_100), make_tone(0.5, 90, 44_100)], axis=1)
    soundfile.write(paths[2], stereo, 44_100)
    return paths


def test_talk_prints_one_object_a_line(run, recordings, tmp_path):
    code, out, err = run("talk", *recordings, "--json", "--out-dir", tmp_path / "out")
    assert code == 0 and err == []
    rows = [json.loads(line) for line in out]
    assert [row["path"] for row in rows] == [str(p) for p in recordings]
    for row, seconds in zip(rows, (0.7, 0.9, 0.5), strict=True):
        assert list(row) == [
            "path",
            "transcript",
            "answer",
            "wav",
            "seconds_in",
            "seconds_out",
            "timings",
            "stalls",
        ]
        assert row["seconds_in"] == pytest.approx(seconds, abs=0.01)
        assert soundfile.info(row["wav"]).duration == pytest.approx(row["seconds_out"], abs=1e-3)
        assert list(row["timings"]) == ["encode", "first_token", "first_sound", "total"]
        assert all(isinstance(t, float) for t in row["timings"].values())


def test_talk_in_words(run, recordings, tmp_path):
    code, out, err = run("talk", recordings[0], "--out-dir", tmp_path / "out")
    assert code == 0 and err == []
    assert out[0] == str(recordings[0])
    words = [line.split()[0] for line in out[1:]]
    assert words[0] == "heard" and words[-1] == "took" and "speech" in words


def test_talk_without_speech_writes_nothing(run, recordings, tmp_path):
    code, out, _ = run("talk", recordings[0], "--no-speech", "--json", "--out-dir", tmp_path / "out")
    row = json.loads(out[0])
    assert code == 0 and row["wav"] is None and row["seconds_out"] == 0
    assert row["timings"]["first_sound"] is None
    assert not (tmp_path / "out").exists()


def test_talk_to_a_typed_question(run, tmp_path):
    code, out, _ = run("talk", "--text", "what is three", "--json", "--out-dir", tmp_path)
    row = json.loads(out[0])
    assert code == 0 and row["path"] is None and row["transcript"] == "what is three"
    assert row["seconds_in"] == 0 and row["timings"]["encode"] is None
    assert Path(row["wav"]) == tmp_path / "text.answer.wav" and Path(row["wav"]).exists()


@pytest.mark.parametrize("arguments", [[], ["x.wav", "--text", "hello"], ["--text", " "]])
def test_talk_needs_one_kind_of_question(run, arguments):
    code, out, err = run("talk", *arguments)
    assert code == 2 and out == [] and len(err) == 1 and "--text" in err[0]


def test_answers_of_files_with_one_name_are_kept_apart(run, recording, tmp_path):
    (tmp_path / "x").mkdir()
    other = shutil.copy(recording, tmp_path / "x" / recording.name)
    code, out, _ = run("talk", recording, other, "--json", "--out-dir", tmp_path / "out")
    wavs = [Path(json.loads(line)["wav"]).name for line in out]
    assert code == 0 and wavs == ["question.answer.wav", "question-2.answer.wav"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(wavs)


def test_answer_names_never_collide():
    names = answer_names(["a.wav", "x/a.flac", "A.wav", "a-2.wav", "a.wav"], Path("o"))
    assert len({str(name).lower() for name in names}) == 5
    assert names[0] == Path("o/a.answer.wav")


def test_an_answer_never_replaces_its_question(run, recording):
    before = recording.read_bytes()
    code, _, _ = run("talk", recording, "--out-dir", recording.parent)
    assert code == 0 and recording.read_bytes() == before


def test_transcribe(run, recordings):
    code, out, _ = run("transcribe", *recordings, "--json")
    rows = [json.loads(line) for line in out]
    assert code == 0 and [row["path"] for row in rows] == [str(p) for p in recordings]
    assert all(set(row) == {"path", "text"} for row in rows)
    code, out, _ = run("transcribe", recordings[0])
    assert code == 0 and out == [one_row(rows[0]["text"])]
    code, out, _ = run("transcribe", *recordings[:2])
    assert out == [f"{row['path']}: {one_row(row['text'])}" for row in rows[:2]]


def test_recordings_are_heard_as_often_as_asked(run, recordings, tmp_path, monkeypatch):
    from speechgpt.units.unit_encoder import UnitEncoder

    heard, encode = [], UnitEncoder.encode
    monkeypatch.setattr(
        UnitEncoder, "encode", lambda self, all, *rest: heard.append(len(all)) or encode(self, all, *rest)
    )
    assert run("transcribe", recordings[0])[0] == 0
    assert run("transcribe", *recordings, "--hearings", 3)[0] == 0
    assert run("talk", recordings[0], "--hearings", 2, "--out-dir", tmp_path / "out")[0] == 0
    assert heard == [1, 3, 3, 3, 2]
    for command in ("talk", "transcribe"):
        code, out, err = run(command, recordings[0], "--hearings", 9)
        assert code == 2 and out == [] and len(err) == 1 and "hearings 9; expected 1 to 5" in err[0]


def test_speak(run, tmp_path):
    wav = tmp_path / "new folder" / "said.wav"
    code, out, err = run("speak", "no less moss", "--out", wav)
    assert code == 0 and err == [] and out[0].startswith(str(wav))
    assert soundfile.info(wav).samplerate == 16_000
    code, out, err = run("speak", " ", "--out", wav)
    assert code == 2 and out == [] and len(err) == 1


def test_encode_gives_a_line_a_file_in_order(run, recordings):
    code, out, err = run("encode", *recordings)
    assert code == 0 and err == [] and len(out) == 3
    assert all(LINE.fullmatch(line) for line in out)
    for line in out:
        units = text_to_units(line)
        assert all(a != b for a, b in zip(units, units[1:], strict=False))
    assert [run("encode", path)[1][0] for path in recordings] == out


def test_encode_frames_are_not_deduplicated(run, recordings):
    _, frames, _ = run("encode", *recordings, "--frames")
    _, units, _ = run("encode", *recordings)
    assert [len(text_to_units(line)) for line in frames] == [34, 44, 24]  # (T - 400) // 320 + 1
    for long, short in zip(frames, units, strict=True):
        values = text_to_units(long)
        collapsed = [v for i, v in enumerate(values) if i == 0 or v != values[i - 1]]
        assert collapsed == text_to_units(short)


def test_encode_with_parts_of_its_own(run, recordings, tiny_parts):
    given = ["--encoder", tiny_parts["encoder"], "--codebook", tiny_parts["codebook"]]
    _, by_model, _ = run("encode", *recordings)
    assert run("encode", *recordings, *given, "--layer", 2, model=None)[1] == by_model


def test_encode_in_the_precision_that_is_asked_for(run, recordings, monkeypatch):
    from speechgpt.units.unit_encoder import UnitEncoder

    used, use = [], UnitEncoder.use
    monkeypatch.setattr(UnitEncoder, "use", lambda self, how: used.append(how) or use(self, how))
    _, exact, _ = run("encode", *recordings, "--frames")
    code, small, _ = run("encode", *recordings, "--frames", "--dtype", "int8")
    assert code == 0 and used[-1] == "int8" and [len(line) > 0 for line in small] == [True] * 3
    frames = [np.concatenate([text_to_units(line) for line in lines]) for lines in (exact, small)]
    assert len(frames[0]) == len(frames[1]) and (frames[0] == frames[1]).mean() > 0.8
    code, _, err = run("encode", recordings[0], "--dtype", "float8")
    assert code == 2 and "precision float8 on cpu: expected one of float32, int8" in err[0]
    code, _, err = run("encode", "-", "--dtype", "int8")
    assert code == 2 and "streams are float32" in err[0]


def test_stereo_channels_are_averaged_never_laid_end_to_end(run, recordings, tmp_path, make_tone):
    left, right = make_tone(0.8, 200), make_tone(0.8, 100)
    stereo, mono = tmp_path / "stereo.wav", tmp_path / "mono.wav"
    soundfile.write(stereo, np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    soundfile.write(mono, (left + right) / 2, 16_000, subtype="FLOAT")
    _, out, _ = run("encode", stereo, mono, "--frames")
    assert out[0] == out[1] and len(text_to_units(out[0])) == 39


def test_decode_units_a_file_and_standard_input(run, tmp_path, monkeypatch):
    units = "<sosp><1><5><2><eosp>"
    argument, from_file, from_pipe = tmp_path / "1.wav", tmp_path / "2.wav", tmp_path / "3.wav"
    assert run("decode", units, "--out", argument)[0] == 0
    file = tmp_path / "units.txt"
    file.write_text(units + "\n")
    assert run("decode", file, "--out", from_file)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(units))
    code, out, _ = run("decode", "-", "--out", from_pipe)
    assert code == 0 and out[0].startswith(str(from_pipe))
    assert argument.read_bytes() == from_file.read_bytes() == from_pipe.read_bytes()


def test_a_very_long_argument_is_units_and_no_path(run, tmp_path):
    code, _, err = run("decode", "<sosp>" + "<1><2>" * 700 + "<eosp>", "--out", tmp_path / "long.wav")
    assert code == 0 and err == []


def test_every_line_of_a_file_is_decoded(run, tmp_path):
    """A batch returns all its waveforms, not only its last."""
    file = tmp_path / "units.txt"
    lengths = [2, 5, 3]
    lines = ["<sosp>" + "<3>" * n + "<4><eosp>" for n in lengths]
    file.write_text("\n".join(lines))
    code, out, _ = run("decode", file, "--out", tmp_path / "many.wav")
    assert code == 0 and len(out) == 3
    frames = [soundfile.info(tmp_path / f"many-{n}.wav").frames for n in (1, 2, 3)]
    assert frames == [(n + 1) * 320 for n in lengths]


def test_decoding_frames_keeps_their_timing(run, recordings, tmp_path):
    _, lines, _ = run("encode", recordings[0], "--frames")
    assert run("decode", lines[0], "--out", tmp_path / "same.wav")[0] == 0
    assert soundfile.info(tmp_path / "same.wav").frames == 34 * 320


def test_decode_with_a_vocoder_of_its_own(run, tiny_parts, tmp_path):
    given = ["--vocoder", tiny_parts["vocoder"], "--out", tmp_path / "v.wav"]
    assert run("decode", "<sosp><1><2><eosp>", *given, model=None)[0] == 0
    code, _, err = run("decode", "<sosp><99><eosp>", *given, model=None)
    assert code == 2 and len(err) == 1 and "99" in err[0] and "UNITS" in err[0]
    code, _, err = run("decode", "<sosp><1><eosp>", *given, "--speaker", "nobody", model=None)
    assert code == 2 and len(err) == 1 and "nobody" in err[0]


def test_results_leave_as_they_are_ready(tiny_model, recordings, monkeypatch, tmp_path):
    """A reader sees each answer before the next one is made."""
    flushed = []

    class Out(io.StringIO):
        def flush(self):
            flushed.append(self.getvalue().count("\n"))

    monkeypatch.setattr("sys.stdout", Out())
    assert main(["encode", *map(str, recordings), "--model", str(tiny_model)]) == 0
    assert {1, 2, 3} <= set(flushed)


def test_chat_of_several_turns(run, recording, tmp_path, monkeypatch):
    lines = [
        "what is three",
        "",
        f"/say {recording}",
        "/say gone.wav",
        "/what",
        "/new",
        "/help",
        "again",
        "/quit",
        "x",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    code, out, err = run("chat", "--out-dir", tmp_path / "chat")
    assert code == 2
    said = ["answer", "speech", "heard", "answer", "speech", "answer", "speech"]
    assert [line.split(">")[0] for line in out] == said
    assert sorted(p.name for p in (tmp_path / "chat").iterdir()) == ["turn-1.wav", "turn-2.wav", "turn-3.wav"]
    assert len(err) == 3 and "gone.wav" in err[0] and "/what" in err[1]


def test_chat_ends_with_its_input(run, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO("no moss"))
    code, out, err = run("chat", "--no-speech", "--out-dir", tmp_path / "chat")
    assert code == 0 and len(out) == 1 and err == [] and not (tmp_path / "chat").exists()


def piped(monkeypatch, content: bytes, run, *options):
    """run("encode", "-") with `content` arriving on standard input through a real pipe."""
    inner, outer = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(outer, content), os.close(outer)))
    writer.start()
    with open(inner, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        found = run("encode", "-", *options)
        writer.join(10)
    return found


def test_encode_reads_standard_input_as_it_arrives(run, recordings, monkeypatch):
    code, whole, _ = run("encode", recordings[0], "--frames")
    assert code == 0
    code, out, err = piped(monkeypatch, recordings[0].read_bytes(), run, "--frames")
    assert (code, err) == (0, []) and out == whole  # shorter than the first step: the same computation
    code, out, _ = piped(monkeypatch, recordings[0].read_bytes(), run, "--look-ahead", 0.1, "--step", 0.1)
    assert code == 0 and len(out) == 1 and LINE.fullmatch(out[0])
    units = text_to_units(out[0])
    assert all(a != b for a, b in zip(units, units[1:], strict=False))


def test_encode_takes_raw_samples(run, recordings, monkeypatch):
    pcm, _ = soundfile.read(recordings[0], dtype="int16")
    _, whole, _ = run("encode", recordings[0])
    assert piped(monkeypatch, pcm.astype("<i2").tobytes(), run, "--raw", 16_000)[:2] == (0, whole)


def test_encode_of_a_broken_stream_never_ends_its_line(run, recordings, monkeypatch):
    cut = recordings[0].read_bytes()[:-9000]
    code, out, err = piped(monkeypatch, cut, run, "--look-ahead", 0, "--step", 0.1)
    assert code == 2 and len(err) == 1 and "standard input: truncated" in err[0]
    assert out[0].startswith("<sosp><") and not out[0].endswith("<eosp>")
    code, out, err = piped(monkeypatch, b"", run)
    assert (code, out) == (2, []) and err == ["speechgpt encode: standard input: is empty"]


def test_stream_options_without_a_stream_are_refused(run, recordings):
    for options in (["--raw", 16_000], ["--look-ahead", 1], ["--step", 1]):
        code, out, err = run("encode", recordings[0], *options)
        assert (code, out) == (2, []) and "give - as FILE" in err[0]
    assert "can be read once" in run("encode", "-", "-")[2][0]
