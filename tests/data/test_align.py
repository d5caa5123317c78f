import importlib.util
import shutil

import numpy as np
import pytest

from speechgpt.data import align as module
from speechgpt.data.align import Aligner, main, pronounce, timed
from speechgpt.data.audio import SAMPLE_RATE, write_wav
from speechgpt.data.files import read_jsonl, write_jsonl
from speechgpt.data.rows import Utterance, read_manifest, write_manifest
from speechgpt.data.synthesize import main as synthesize
from speechgpt.data.text_normal import normalise

REAL = bool(shutil.which("flite") and importlib.util.find_spec("pocketsphinx"))
SLOTS = "coffeeDrink=latte; roast=dark roast; size=large; sugarAmount=brown sugar"


@pytest.fixture
def manifest(tmp_path):
    """Seven noises with texts; the third cannot be aligned, the fourth has no words, the last only slots."""
    rng = np.random.default_rng(0)
    rows = []
    for number, text in enumerate(["one", "two", "bad luck", "", "five", "six", ""]):
        path = tmp_path / "in" / f"{number}.wav"
        write_wav(path, 0.1 * rng.standard_normal(SAMPLE_RATE // 2).astype(np.float32))
        row = Utterance(f"u{number}", path.name, 0.5, "someone", "noise", text, "dev")
        row.slots = SLOTS if number == 6 else ""
        rows.append(row)
    write_manifest(tmp_path / "in/manifest.jsonl", rows)
    return tmp_path / "in/manifest.jsonl"


class Stub(Aligner):
    """Says without listening that every word is one vowel."""

    calls = 0

    def words(self, pcm, slots, agreeing):
        return "brew a large dark roast latte with brown sugar"

    def phones(self, pcm, text, seconds):
        Stub.calls += 1
        if "bad" in text or not text:
            raise ValueError("the words do not fit the recording")
        return timed([("SIL", 5), *(("AH", 15 + 10 * n) for n, _ in enumerate(text.split()))], seconds)


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(module, "_ALIGNER", Stub())
    monkeypatch.setattr(module, "CHUNK", 2)
    Stub.calls = 0


def test_rows_keep_all_and_rejects_have_reasons(manifest, stub, tmp_path, capsys):
    out = tmp_path / "elsewhere" / "aligned.jsonl"
    assert main(["--manifest", str(manifest), "--out", str(out), "--jobs", "1", "--jsgf-slots"]) == 0
    before, after = read_manifest(manifest), read_manifest(out)
    assert [row.id for row in after] == [row.id for row in before]
    assert [bool(row.phones) for row in after] == [True, True, False, False, True, True, True]
    assert after[0].phones == [["SIL", 0.05], ["AH", 0.15], ["SIL", 0.5]]
    assert after[6].text == "brew a large dark roast latte with brown sugar" and after[5].text == "six"
    assert all(row.audio(out).exists() and row.split == "dev" for row in after)
    rejects = [row for _, row in read_jsonl(out.with_suffix(".rejects.jsonl"))]
    assert [row["id"] for row in rejects] == ["u2", "u3"] and "do not fit" in rejects[0]["reason"]
    assert "7 rows, 5 with phones, 2 without" in capsys.readouterr().out
    assert not out.with_suffix(".parts").exists()


def test_a_killed_run_goes_on(manifest, stub, tmp_path, monkeypatch):
    out = tmp_path / "aligned.jsonl"
    original = module.align_row

    def dying(row, aligner, options):
        if row.id == "u4":
            raise KeyboardInterrupt
        return original(row, aligner, options)

    monkeypatch.setattr(module, "align_row", dying)
    with pytest.raises(KeyboardInterrupt):
        main(["--manifest", str(manifest), "--out", str(out), "--jobs", "1"])
    assert Stub.calls == 4 and not out.exists()
    monkeypatch.setattr(module, "align_row", original)
    main(["--manifest", str(manifest), "--out", str(out), "--jobs", "1"])
    assert Stub.calls == 7
    main(["--manifest", str(manifest), "--out", str(tmp_path / "whole.jsonl"), "--jobs", "1"])
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_dead_process_is_an_error_and_not_a_wait(manifest, stub, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "align_row", lambda *_: module.shutil.os._exit(1))
    with pytest.raises(OSError, match="one of 2 processes was killed"):
        main(["--manifest", str(manifest), "--out", str(tmp_path / "a.jsonl"), "--jobs", "2"])


def test_rows_with_phones_are_left_alone_and_broken_audio_is_a_reject(tmp_path, stub):
    silent = tmp_path / "silent.wav"
    write_wav(silent, np.zeros(8000, np.float32))
    rows = [
        Utterance("done", "nowhere.wav", 1.0, text="x", phones=[["AA", 1.0]]),
        Utterance("silent", "silent.wav", 0.5, text="six"),
    ]
    write_manifest(tmp_path / "m.jsonl", rows)
    main(["--manifest", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--jobs", "1"])
    done, kept = read_manifest(tmp_path / "out.jsonl")
    assert done.phones == [["AA", 1.0]] and not kept.phones
    assert "all samples are zero" in (tmp_path / "out.rejects.jsonl").read_text()


def test_times_join_silences_and_end_with_the_audio():
    phones = [("SIL", 10), ("+NSN+", 20), ("S", 30), ("IH", 40), ("K", 46), ("S", 60), ("SIL", 70)]
    expected = [["SIL", 0.2], ["S", 0.3], ["IH", 0.4], ["K", 0.46], ["S", 0.6], ["SIL", 0.705]]
    assert timed(phones, 0.705) == expected
    assert timed([("S", 30), ("IH", 40)], 0.41) == [["S", 0.3], ["IH", 0.41]]
    with pytest.raises(ValueError, match="no phone"):
        timed([("SIL", 10)], 0.1)
    with pytest.raises(ValueError, match="as short as can be"):
        timed([("S", 3), ("IH", 6), ("K", 9), ("S", 90)], 0.9)


def test_unknown_words_need_flite(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="flite: program not found.*'zorbax'.*apt-get install flite"):
        pronounce("zorbax")


@pytest.mark.skipif(not REAL, reason="no flite or no pocketsphinx")
def test_real_alignment_finds_the_true_times(tmp_path):
    texts = ["The zorbax sat by the window.", "make me a large dark roast latte with brown sugar", "Seven!"]
    rows = [{"id": f"s{n}", "text": text} for n, text in enumerate(texts)]
    write_jsonl(tmp_path / "s.jsonl", rows)
    synthesize(["--sentences", str(tmp_path / "s.jsonl"), "--out", str(tmp_path / "a"), "--jobs", "1"])
    spoken = read_manifest(tmp_path / "a/manifest.jsonl")
    true = [row.phones for row in spoken]
    for row in spoken:
        row.phones = []
    spoken[1].text, spoken[1].slots = "", SLOTS
    write_manifest(tmp_path / "a/plain.jsonl", spoken)
    for more, name in (([], "words"), (["--agreeing"], "agreeing")):
        arguments = ["--manifest", str(tmp_path / "a/plain.jsonl"), "--jsgf-slots", *more]
        main([*arguments, "--out", str(tmp_path / f"{name}.jsonl"), "--jobs", "1"])
        found = read_manifest(tmp_path / f"{name}.jsonl")
        assert normalise(found[1].text) == texts[1]
        for row, phones in zip(found, true, strict=True):
            times = np.arange(0.005, row.seconds, 0.01)

            def at(phones, times=times):
                which = np.searchsorted([end for _, end in phones], times).clip(max=len(phones) - 1)
                return [phones[i][0] for i in which]

            assert np.mean([a == b for a, b in zip(at(row.phones), at(phones), strict=True)]) > 0.7
