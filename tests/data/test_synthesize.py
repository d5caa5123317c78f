import os
import shutil

import numpy as np
import pytest

from speechgpt.data import espeak
from speechgpt.data import synthesize as module
from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.data.files import write_jsonl
from speechgpt.data.rows import read_manifest
from speechgpt.data.speaking import parse_phones, sanitise
from speechgpt.data.synthesize import main, read_sentences
from speechgpt.data.voices import VOICES, resolve

TEXTS = ["good morning", "what is three plus four", "a small latte", "-h --help", "seven", "[[eI]] `rm` <b>"]

STUB = """#!{python}
import os, sys, wave
arguments = sys.argv[1:]
output = arguments[arguments.index("{flag}") + 1]
text = open(arguments[arguments.index("-f") + 1]).read()
with open(os.environ["STUB_LOG"], "a") as log:
    log.write(text)
with wave.open(output, "wb") as wav:
    wav.setparams((1, 2, {rate}, 0, "NONE", ""))
    wav.writeframes(b"".join(((i * 37) % 9000).to_bytes(2, "little") for i in range({rate} // 2)))
print("pau:0.100 ax:0.300 s:0.450 pau:0.600")
sys.exit(3 if "fail" in text else 0)
"""


class StubLibrary:
    """espeak-ng: half a second of a ramp, and three phonemes."""

    sample_rate = 22_050

    def speak(self, text, voice, words_a_minute, pitch):
        with open(os.environ["STUB_LOG"], "a") as log:
            log.write(text + "\n")
        ramp = np.arange(self.sample_rate // 2, dtype=np.float32) % 9000 / 32768
        return ramp, [("k", 2000), ("A@", 4000), ("_:", 9000)]


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """Programs that write half a second of a ramp and log the text that they were given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    stub = folder / "flite"
    # -S: without site packages the interpreter starts in 15 ms.
    stub.write_text(STUB.format(python="/usr/bin/env -S python3 -S", flag="-o", rate=16_000))
    stub.chmod(0o755)
    monkeypatch.setattr(espeak, "library", StubLibrary)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log.txt"))
    return tmp_path / "log.txt"


def sentence_file(tmp_path, rows):
    path = tmp_path / "sentences.jsonl"
    write_jsonl(path, rows)
    return path


def numbered(texts, **more):
    return [{"id": f"s{n}", "text": text, **more} for n, text in enumerate(texts)]


def test_speaks_every_sentence_and_keeps_fields(tmp_path, stubs):
    rows = numbered(TEXTS)
    rows[0] |= {"voice": "espeak-gb-f2", "split": "test", "corpus": "mini"}
    rows[1] |= {"voice": "rms", "slots": "a=b", "speaker": "someone"}
    path = sentence_file(tmp_path, rows)
    assert main(["--sentences", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    manifest = read_manifest(tmp_path / "out/manifest.jsonl")
    assert [r.id for r in manifest] == [r["id"] for r in rows]
    assert [r.text for r in manifest] == TEXTS
    assert (manifest[0].split, manifest[0].corpus, manifest[0].speaker) == ("test", "mini", "espeak-gb-f2")
    assert (manifest[1].slots, manifest[1].speaker) == ("a=b", "someone")
    assert manifest[0].phones[1][0] == "K" and manifest[1].phones[1][0] == "AH"
    for row in manifest:
        waveform = read_audio(row.audio(tmp_path / "out/manifest.jsonl"))
        assert abs(len(waveform) / SAMPLE_RATE - row.seconds) < 1e-3
        if row.phones:
            assert abs(row.phones[-1][1] - row.seconds) < 1e-3


def test_text_is_never_an_option_nor_markup(tmp_path, stubs):
    path = sentence_file(tmp_path, numbered(TEXTS))
    main(["--sentences", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"])
    assert stubs.read_text().splitlines() == [*TEXTS[:5], "eI rm b"]
    assert sanitise("naïve\n\x07 café", "flite") == "naive cafe"
    assert sanitise("naïve", "espeak-ng") == "naïve"


def test_a_killed_run_goes_on_and_ends_with_the_same_rows(tmp_path, stubs, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    path = sentence_file(tmp_path, numbered([f"sentence {n}" for n in range(10)]))
    arguments = ["--sentences", str(path), "--voices", "slt,rms,espeak-us", "--jobs", "1"]
    main([*arguments, "--out", str(tmp_path / "whole")])

    original, calls = module.speak, []

    def dying(text, voice, folder):
        calls.append(text)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(text, voice, folder)

    monkeypatch.setattr(module, "speak", dying)
    with pytest.raises(KeyboardInterrupt):
        main([*arguments, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out/manifest.jsonl").exists()
    main([*arguments, "--out", str(tmp_path / "out")])
    assert len(calls) == 6 + 7  # the first chunk was not spoken again
    wanted = (tmp_path / "whole/manifest.jsonl").read_bytes()
    assert (tmp_path / "out/manifest.jsonl").read_bytes() == wanted
    main([*arguments, "--out", str(tmp_path / "out")])
    assert len(calls) == 13
    assert not list((tmp_path / "out").rglob("*.part*"))


def test_other_voices_or_sentences_are_spoken_anew(tmp_path, stubs):
    out = tmp_path / "out"
    main(["--sentences", str(sentence_file(tmp_path, numbered(TEXTS))), "--out", str(out), "--jobs", "1"])
    path = sentence_file(tmp_path, numbered(TEXTS[:2]))
    main(["--sentences", str(path), "--out", str(out), "--jobs", "1", "--voices", "rms"])
    manifest = read_manifest(out / "manifest.jsonl")
    assert [(r.text, r.speaker) for r in manifest] == [(TEXTS[0], "rms"), (TEXTS[1], "rms")]
    assert len(list((out / "rows").iterdir())) == 1


def test_parallel_equals_serial(tmp_path, stubs, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    path = sentence_file(tmp_path, numbered([f"sentence {n}" for n in range(8)]))
    for jobs in ("1", "3"):
        arguments = ["--sentences", str(path), "--voices", "slt,awb,espeak-all", "--jobs", jobs]
        main([*arguments, "--out", str(tmp_path / jobs)])
    one, three = ((tmp_path / j / "manifest.jsonl").read_bytes() for j in ("1", "3"))
    assert one == three


def test_unspeakable_sentences_are_counted_and_named(tmp_path, stubs):
    path = sentence_file(tmp_path, numbered(["fine", "please fail", "..."]))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="2 of 3 sentences could not be spoken .at most 0 may., first s1"):
        main(["--sentences", str(path), "--out", str(out), "--jobs", "1"])
    reasons = (out / "rejects.jsonl").read_text()
    assert "flite ended with 3" in reasons and "nothing to say" in reasons
    assert not (out / "manifest.jsonl").exists()
    main(["--sentences", str(path), "--out", str(out), "--jobs", "1", "--max-bad", "2"])
    assert [r.id for r in read_manifest(out / "manifest.jsonl")] == ["s0"]


def test_missing_program_is_one_line_with_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(espeak, "LIBRARY", "no-such-library.so")
    monkeypatch.setattr(espeak, "library", espeak.Library)
    for voice, message in (
        ("slt", "flite: program not found.*apt-get install flite"),
        ("espeak-us-m1", "no-such-library.so.*apt-get install libespeak-ng1"),
        ("ked", "festival: program not found.*apt-get install festival"),
    ):
        path = sentence_file(tmp_path, numbered(["hello"], voice=voice))
        with pytest.raises(FileNotFoundError, match=message):
            main(["--sentences", str(path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "../x", "text": "a"}, "cannot be a file name"),
        ({"id": "-x", "text": "a"}, "cannot be a file name"),
        ({"id": "a"}, "no text"),
        ({"id": "a", "text": "a", "voice": "nobody"}, "unknown voice 'nobody'"),
        ({"id": "a", "text": "a", "voice": "flite"}, "is a group"),
        ({"id": "a", "text": "a", "voise": "slt"}, "unknown field voise"),
    ],
)
def test_bad_sentences_name_their_line(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_sentences(sentence_file(tmp_path, [row]))
    with pytest.raises(ValueError, match="appears twice"):
        read_sentences(sentence_file(tmp_path, [{"id": "a", "text": "b"}] * 2))


def test_phone_times_are_scaled_and_several_sentences_joined():
    assert parse_phones("pau:0.1 kal_x:0.2".replace("kal_x", "ax"), 0.4) == [["SIL", 0.2], ["AH", 0.4]]
    joined = parse_phones("pau:0.1 s:0.2\npau:0.1 z:0.3", 0.5)
    assert joined == [["SIL", 0.1], ["S", 0.2], ["SIL", 0.3], ["Z", 0.5]]
    with pytest.raises(ValueError, match="unknown phone 'qq'"):
        parse_phones("qq:1.0", 1.0)


def test_voice_names_resolve():
    assert resolve("slt,rms") == ["slt", "rms"]
    assert resolve("slt,slt,rms") == ["slt", "slt", "rms"]
    assert "kal16" not in resolve("flite-all,-kal*") and "slt-deep" in resolve("flite-all,-kal*")
    assert len(set(resolve("espeak-all"))) > 300
    for voice in VOICES.values():
        assert all(isinstance(part, str) for part in voice.command("in.txt", "out.wav"))


@pytest.mark.skipif(not (shutil.which("flite") and shutil.which("espeak-ng")), reason="no flite, espeak-ng")
def test_the_real_programs(tmp_path):
    names = ["slt", "rms-small", "kal16", "kal", "espeak-us-f1", "espeak-scot-linda"]
    rows = [{"id": name, "text": "Say six, then seven. Don't!", "voice": name} for name in names]
    main(["--sentences", str(sentence_file(tmp_path, rows)), "--out", str(tmp_path / "out"), "--jobs", "1"])
    spoken = {r.id: r for r in read_manifest(tmp_path / "out/manifest.jsonl")}
    for name, row in spoken.items():
        waveform = read_audio(row.audio(tmp_path / "out/manifest.jsonl"))
        assert 1.0 < row.seconds < 5.0 and np.abs(waveform).max() > 0.05
        if not name.startswith("espeak"):
            labels = [label for label, _ in row.phones if label != "SIL"]
            assert labels[:6] == ["S", "EY", "S", "IH", "K", "S"] and labels[-1] == "T"
