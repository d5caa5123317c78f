import filecmp

import numpy as np
import pytest

from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.data.files import read_jsonl
from speechgpt.data.rows import read_manifest
from speechgpt.data.toy import LEXICON, SOUNDS, main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy corpus")
    assert main(["--out", str(out)]) == 0
    return out


def test_utterances_have_audio_text_and_exact_phones(corpus):
    rows = read_manifest(corpus / "manifest.jsonl")
    assert len(rows) == 48 + 24 * 3 + 8 + 32  # sentences, questions in training and held out, answers
    for row in rows:
        waveform = read_audio(row.audio(corpus / "manifest.jsonl"))
        assert len(waveform) == round(row.seconds * SAMPLE_RATE)
        assert 0.5 < row.seconds < 3.5
        labels = [label for label, _ in row.phones]
        ends = [end for _, end in row.phones]
        assert [p for p in labels if p != "SIL"] == [p for word in row.text.split() for p in LEXICON[word]]
        assert ends == sorted(ends) and abs(ends[-1] - row.seconds) < 1e-3
        assert set(labels) <= set(SOUNDS)


def test_same_seed_same_files(corpus, tmp_path):
    main(["--out", str(tmp_path)])
    for name in ("manifest.jsonl", "qa.jsonl", "wavs/toy0003.wav"):
        assert filecmp.cmp(corpus / name, tmp_path / name, shallow=False)


def test_splits_share_no_speaker_and_no_question(corpus):
    rows = read_manifest(corpus / "manifest.jsonl")
    splits = {}
    for row in rows:
        splits.setdefault(row.speaker, set()).add(row.split)
    assert all(len(s) == 1 for s in splits.values())
    assert {row.split for row in rows} == {"train", "dev", "test"}
    texts = {}
    for row in rows:
        if not row.id.endswith(".a"):
            assert texts.setdefault(row.text, row.split) == row.split


def test_both_sides_of_every_question_are_spoken(corpus):
    spoken = {row.id: row.text for row in read_manifest(corpus / "manifest.jsonl")}
    questions = [row for _, row in read_jsonl(corpus / "qa.jsonl")]
    assert len(questions) == 32
    for row in questions:
        voices = ("toy-a", "toy-b", "toy-c") if row["split"] == "train" else ("toy-d", "toy-e")
        asked = [spoken[name] for v in voices if (name := f"{row['id']}.q.{v}") in spoken]
        assert set(asked) == {row["question"]} and len(asked) == (3 if row["split"] == "train" else 1)
        assert spoken[f"{row['answer_id']}.a"] == row["answer"]


def test_phones_sound_different(corpus):
    """Mean log spectra of two vowels differ more than those of one vowel by chance."""
    spectra = {}
    for row in read_manifest(corpus / "manifest.jsonl"):
        if row.speaker != "toy-a":
            continue
        waveform, start = read_audio(row.audio(corpus / "manifest.jsonl")), 0.0
        for label, end in row.phones:
            middle = int((start + end) / 2 * SAMPLE_RATE)
            piece = waveform[middle - 256 : middle + 256]
            if label in ("IY", "UW", "S") and len(piece) == 512:
                spectrum = np.log(np.abs(np.fft.rfft(piece * np.hanning(512))) + 1e-3)
                spectra.setdefault(label, []).append(spectrum)
            start = end
    means = {label: np.mean(s, axis=0) for label, s in spectra.items()}
    assert np.abs(means["IY"] - means["UW"]).mean() > 0.3
    assert np.abs(means["IY"] - means["S"]).mean() > 1.0
