import json

import numpy as np
import pytest
import soundfile

from speechgpt.data.files import read_jsonl
from speechgpt.data.readers import main
from speechgpt.data.rows import read_manifest

RATE = 16_000


def tone(path, seconds=0.2, rate=RATE, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = 0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)  # T
    soundfile.write(path, np.repeat(waveform[:, None], channels, axis=1), rate)  # T C
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def manifest(tmp_path, reader, *options):
    out = tmp_path / "work" / "manifest.jsonl"
    assert main(["--reader", reader, "--root", str(tmp_path / "corpus"), "--out", str(out), *options]) == 0
    rows = read_manifest(out)
    assert all(row.audio(out).exists() for row in rows)
    return {row.id: row for row in rows}


def test_librispeech(tmp_path):
    root = tmp_path / "corpus"
    for part, name in (("train-clean-100", "19-198-0000"), ("dev-other", "700-1-0003")):
        folder = root / part / name.split("-")[0] / name.split("-")[1]
        tone(folder / f"{name}.flac")
        write(folder / f"{name[:-5]}.trans.txt", f"{name} NORTHANGER ABBEY\n")
    rows = manifest(tmp_path, "librispeech")
    assert {r.id: (r.speaker, r.text, r.split) for r in rows.values()} == {
        "19-198-0000": ("librivox-19", "NORTHANGER ABBEY", "train"),
        "700-1-0003": ("librivox-700", "NORTHANGER ABBEY", "dev"),
    }
    assert rows["19-198-0000"].seconds == 0.2 and rows["19-198-0000"].corpus == "librispeech"
    rows = manifest(tmp_path, "librispeech", "--splits", "dev-other", "--plain", "--corpus", "ls", "--decode")
    assert [(r.text, r.corpus) for r in rows.values()] == [("northanger abbey", "ls")]
    with pytest.raises(ValueError, match="no part dev-clean; found dev-other, train-clean-100"):
        manifest(tmp_path, "librispeech", "--splits", "dev-clean")


def test_a_line_without_audio_is_named_with_its_line(tmp_path):
    folder = tmp_path / "corpus" / "train" / "1" / "2"
    tone(folder / "1-2-0.flac")
    write(folder / "1-2.trans.txt", "1-2-0 ONE\n1-2-1 TWO\n1-2-0 AGAIN\n")
    with pytest.raises(ValueError, match=r"1-2\.trans\.txt:2: 1-2-1: no audio file"):
        manifest(tmp_path, "librispeech")
    assert not (tmp_path / "work").exists() or not list((tmp_path / "work").iterdir())
    assert list(manifest(tmp_path, "librispeech", "--max-bad", "2")) == ["1-2-0"]
    rejects = [row for _, row in read_jsonl(tmp_path / "work" / "manifest.rejects.jsonl")]
    assert len(rejects) == 2 and "was there already" in rejects[1]["reason"]


def test_ljspeech(tmp_path):
    tone(tmp_path / "corpus" / "wavs" / "LJ001-0001.wav", rate=22_050)
    write(tmp_path / "corpus" / "metadata.csv", 'LJ001-0001|In 1899, "Printing"|In eighteen, "Printing"\n')
    row = manifest(tmp_path, "ljspeech")["LJ001-0001"]
    assert (row.speaker, row.text, row.seconds) == ("ljspeech", 'In eighteen, "Printing"', 0.2)


def test_common_voice(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "clips" / "cv_1.mp3", 0.5)
    tone(root / "clips" / "cv_2.mp3", 0.5)
    header = "client_id\tpath\tsentence\tage\n"
    write(root / "train.tsv", header + 'ab12cd34ab12cd34ffff\tcv_1.mp3\t"Hello, you.\t\n')
    write(root / "test.tsv", header + "ffff\tcv_2.mp3\tGood day.\ttwenties\n")
    rows = manifest(tmp_path, "common-voice")
    assert (rows["cv_1"].speaker, rows["cv_1"].text) == ("cv-ab12cd34ab12cd34", '"Hello, you.')
    assert (rows["cv_2"].split, rows["cv_2"].text) == ("test", "Good day.")
    write(root / "validated.tsv", header + "ffff\tcv_2.mp3\n")
    with pytest.raises(ValueError, match=r"validated\.tsv:2: 2 columns; the header has 4"):
        manifest(tmp_path, "common-voice", "--splits", "validated")
    write(root / "validated.tsv", "client_id\tfile\n")
    with pytest.raises(ValueError, match="no column path, sentence"):
        manifest(tmp_path, "common-voice", "--splits", "validated")


def gigaspeech_json(segments):
    audio = {"aid": "POD1", "path": "audio/podcast/P0/POD1.flac", "subsets": ["{XL}"], "speaker": "N/A"}
    return json.dumps({"dataset": "GigaSpeech", "audios": [audio | {"segments": segments}]}, indent=1)


def segment(sid, begin, end, text, subsets):
    return {"sid": sid, "begin_time": begin, "end_time": end, "text_tn": text, "subsets": subsets}


def test_gigaspeech_cuts_its_segments_and_resumes(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "audio" / "podcast" / "P0" / "POD1.flac", 2.0, channels=2)
    segments = [
        segment("S1", 0.0, 0.5, "AS THEY'RE LEAVING <COMMA> STOP <PERIOD>", ["{XL}", "{XS}"]),
        segment("S2", 0.5, 1.25, "<MUSIC>", ["{XL}"]),
        segment("S3", 1.25, 2.0, "WHAT <QUESTIONMARK>", ["{DEV}"]),
    ]
    write(root / "GigaSpeech.json", gigaspeech_json(segments))
    with pytest.raises(ValueError, match="give --cut-to DIR"):
        manifest(tmp_path, "gigaspeech")
    cut = tmp_path / "work" / "cut"
    rows = manifest(tmp_path, "gigaspeech", "--cut-to", str(cut))
    assert {i: (r.text, r.seconds, r.split, r.speaker) for i, r in rows.items()} == {
        "S1": ("AS THEY'RE LEAVING, STOP.", 0.5, "train", ""),
        "S3": ("WHAT?", 0.75, "dev", ""),
    }
    samples, rate = soundfile.read(cut / "POD1" / "S3.flac")
    whole, _ = soundfile.read(root / "audio" / "podcast" / "P0" / "POD1.flac")
    assert rate == RATE and np.allclose(samples, whole[20_000:].mean(axis=1), atol=1e-4)

    kept, moved = (cut / "POD1" / f"{name}.flac" for name in ("S1", "S3"))
    before = kept.stat().st_mtime_ns, moved.stat().st_mtime_ns
    segments[2]["begin_time"], segments[2]["end_time"] = 1.0, 1.75
    write(root / "GigaSpeech.json", gigaspeech_json(segments))
    assert manifest(tmp_path, "gigaspeech", "--cut-to", str(cut))["S3"].seconds == 0.75
    assert kept.stat().st_mtime_ns == before[0] and moved.stat().st_mtime_ns != before[1]
    assert list(manifest(tmp_path, "gigaspeech", "--cut-to", str(cut), "--splits", "XS")) == ["S1"]


def test_gigaspeech_faults(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "audio" / "podcast" / "P0" / "POD1.flac", 1.0)
    write(root / "GigaSpeech.json", gigaspeech_json([segment("S1", 0.5, 3.0, "A", [])]))
    with pytest.raises(ValueError, match=r"S1: 0\.5 to 3\.0 s of .*POD1\.flac, which has 1\.000 s"):
        manifest(tmp_path, "gigaspeech", "--cut-to", str(tmp_path / "cut"))
    write(root / "GigaSpeech.json", gigaspeech_json([{"sid": "S1"}]))
    with pytest.raises(ValueError, match="POD1.*not as GigaSpeech"):
        manifest(tmp_path, "gigaspeech", "--cut-to", str(tmp_path / "cut"))
    write(root / "GigaSpeech.json", gigaspeech_json([])[:-20])
    with pytest.raises(ValueError, match="cut short"):
        manifest(tmp_path, "gigaspeech")
    write(root / "GigaSpeech.json", "{}")
    with pytest.raises(ValueError, match="no list 'audios'"):
        manifest(tmp_path, "gigaspeech")


def test_librilight_and_even_cuts(tmp_path):
    tone(tmp_path / "corpus" / "small" / "100" / "book_one" / "chapter_1.flac", 2.5)
    row = manifest(tmp_path, "librilight")["small-100-book_one-chapter_1"]
    assert (row.speaker, row.text, row.seconds) == ("librivox-100", "", 2.5)
    cut = ("--cut-every", "1", "--cut-to", str(tmp_path / "cut"))
    rows = manifest(tmp_path, "librilight", *cut, "--splits", "small")
    assert len(rows) == 3 and abs(sum(r.seconds for r in rows.values()) - 2.5) < 1e-3
    tone(tmp_path / "corpus" / "stray.flac")
    with pytest.raises(ValueError, match="stray.flac: expected SPEAKER/BOOK/FILE"):
        manifest(tmp_path, "librilight")


def test_audio_tree(tmp_path):
    tone(tmp_path / "corpus" / "test" / "ann" / "a.wav")
    tone(tmp_path / "corpus" / "b.ogg")
    tone(tmp_path / "corpus" / ".hidden.wav")
    rows = manifest(tmp_path, "audio-tree", "--speaker-level", "2")
    assert {r.id: (r.speaker, r.split) for r in rows.values()} == {
        "test-ann-a": ("ann", "test"),
        "b": ("", "train"),
    }
    rows = manifest(tmp_path, "audio-tree", "--split", "dev")
    assert {(r.speaker, r.split) for r in rows.values()} == {("", "dev")}


def test_wav_txt(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "ann" / "a.wav")
    write(root / "ann" / "a.txt", "Mr. A\n")
    write(root / "ann" / "a.normalized.txt", "Mister  A\n")
    tone(root / "bob" / "b.flac")
    write(root / "bob" / "b.lab", "b\n")
    rows = manifest(tmp_path, "wav-txt", "--speaker-level", "1")
    assert {r.id: (r.speaker, r.text) for r in rows.values()} == {
        "ann-a": ("ann", "Mister A"),
        "bob-b": ("bob", "b"),
    }
    tone(root / "c.wav")
    with pytest.raises(ValueError, match=r"c\.wav: no c\.txt beside it"):
        manifest(tmp_path, "wav-txt")


def kaldi_folder(folder, wav="long.wav"):
    tone(folder / "long.wav", 1.0)
    write(folder / "wav.scp", f"rec1 {wav}\n")
    write(folder / "segments", "u1 rec1 0.0 0.25\nu2 rec1 0.5 -1\n")
    write(folder / "text", "u1 hello there\nu2 yes\n")
    write(folder / "utt2spk", "u1 s1\nu2 s2\n")


def test_kaldi(tmp_path):
    for part in ("train", "dev"):
        kaldi_folder(tmp_path / "corpus" / part)
    write(tmp_path / "corpus" / "dev" / "segments", "v1 rec1 0.0 0.25\n")
    write(tmp_path / "corpus" / "dev" / "text", "v1 no\n")
    rows = manifest(tmp_path, "kaldi", "--cut-to", str(tmp_path / "cut"))
    assert {r.id: (r.speaker, r.text, r.seconds, r.split) for r in rows.values()} == {
        "u1": ("s1", "hello there", 0.25, "train"),
        "u2": ("s2", "yes", 0.5, "train"),
        "v1": ("", "no", 0.25, "dev"),
    }


def test_kaldi_runs_no_commands(tmp_path):
    kaldi_folder(tmp_path / "corpus", wav=f"touch {tmp_path / 'owned'} |")
    with pytest.raises(ValueError, match=r"wav\.scp:1: .* is a command; commands are not run"):
        manifest(tmp_path, "kaldi", "--cut-to", str(tmp_path / "cut"))
    assert not (tmp_path / "owned").exists()
    kaldi_folder(tmp_path / "corpus", wav="raw.ark:1024")
    with pytest.raises(ValueError, match=r"wav\.scp:1: .*expected NAME and the path"):
        manifest(tmp_path, "kaldi", "--cut-to", str(tmp_path / "cut"))


def test_kaldi_without_segments_and_with_lost_lines(tmp_path):
    kaldi_folder(tmp_path / "corpus")
    (tmp_path / "corpus" / "segments").unlink()
    write(tmp_path / "corpus" / "text", "rec1 all of it\n")
    assert manifest(tmp_path, "kaldi")["rec1"].text == "all of it"
    write(tmp_path / "corpus" / "text", "rec1 all of it\nrec2 lost\n")
    with pytest.raises(ValueError, match="rec2: no audio for this utterance"):
        manifest(tmp_path, "kaldi")
    write(tmp_path / "corpus" / "segments", "u1 rec1 zero one\n")
    with pytest.raises(ValueError, match=r"segments:1: .*expected UTTERANCE RECORDING BEGIN END"):
        manifest(tmp_path, "kaldi")


def test_speech_to_intent(tmp_path):
    root = tmp_path / "corpus"
    label = {"intent": "orderDrink", "slots": {"size": "large", "milkAmount": " some milk"}}
    write(root / "data" / "label" / "label.json", json.dumps({"x.wav": label}))
    for part in ("clean", "cafe_6db"):
        tone(root / "data" / "speech" / part / "x.wav")
    rows = manifest(tmp_path, "speech-to-intent")
    assert [(r.id, r.slots, r.text, r.speaker) for r in rows.values()] == [
        ("x", "milkAmount=some milk; size=large", "", "")
    ]
    assert set(manifest(tmp_path, "speech-to-intent", "--splits", "cafe_6db")) == {"x-cafe_6db"}
    tone(root / "data" / "speech" / "clean" / "y.wav")
    with pytest.raises(ValueError, match=r"y\.wav: no entry with slots in"):
        manifest(tmp_path, "speech-to-intent")


def test_spoken_digits(tmp_path):
    tone(tmp_path / "corpus" / "recordings" / "7_jackson_32.wav", rate=8000)
    row = manifest(tmp_path, "spoken-digits")["7_jackson_32"]
    assert (row.speaker, row.text, row.seconds) == ("fsdd_jackson", "seven", 0.2)


def test_tsv(tmp_path):
    root = tmp_path / "corpus"
    header = "id\tpath\tseconds\tspeaker\tcorpus\ttranscript\tslots\n"
    tone(root / "a" / "1.flac")
    tone(root / "b" / "2.flac")
    lines = 'one\ta/1.flac\t9.9\tann\tA\tSo, "that\'s" it.\t\ntwo\tb/2.flac\t0.2\tunknown\tB\t\tx=1; y= 2\n'
    write(root / "manifest.tsv", header + lines)
    rows = manifest(tmp_path, "tsv")
    assert {r.id: (r.speaker, r.corpus, r.text, r.slots, r.seconds) for r in rows.values()} == {
        "one": ("ann", "A", 'So, "that\'s" it.', "", 0.2),
        "two": ("", "B", "", "x=1; y=2", 0.2),
    }
    assert list(manifest(tmp_path, "tsv", "--splits", "B")) == ["two"]


@pytest.mark.parametrize(
    "content, reason",
    [(b"", "empty"), (b"no audio at all", "not an audio file"), (None, "no such file")],
)
def test_files_that_are_no_audio_are_named(tmp_path, content, reason):
    root = tmp_path / "corpus"
    write(root / "metadata.csv", "L1|Good day\nL2|Good night\n")
    tone(root / "wavs" / "L1.wav")
    if content is not None:
        (root / "wavs" / "L2.wav").write_bytes(content)
    with pytest.raises(ValueError, match=rf"L2\.wav: .*{reason}"):
        manifest(tmp_path, "ljspeech")
    assert list(manifest(tmp_path, "ljspeech", "--max-bad", "1")) == ["L1"]


def test_too_short_silent_and_nothing(tmp_path):
    root = tmp_path / "corpus"
    tone(root / "a.wav", 0.02)
    with pytest.raises(ValueError, match=r"a\.wav: 0\.0200 s of audio"):
        manifest(tmp_path, "audio-tree")
    soundfile.write(root / "a.wav", np.zeros(800), RATE)
    assert len(manifest(tmp_path, "audio-tree")) == 1
    with pytest.raises(ValueError, match="all samples are zero"):
        manifest(tmp_path, "audio-tree", "--decode")
    (root / "a.wav").unlink()
    with pytest.raises(ValueError, match="no utterances found; audio-tree expects Any folder"):
        manifest(tmp_path, "audio-tree")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        main(["--reader", "tsv", "--root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "m.jsonl")])
