"""Scores, intervals, judges and the two reports."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from speechgpt.cli import main
from speechgpt.data.files import write_jsonl
from speechgpt.data.rows import UnitRow, Utterance, write_manifest, write_units
from speechgpt.judge import SelfJudge, load_judge, word_errors
from speechgpt.measures import bootstrap, measure, perplexity
from speechgpt.report_page import figure, render

TEXTS = ["no less moss", "see me soon", "men lean low", "what is three plus four"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_tone):
    """A manifest, unit rows and questions, with dev rows of every sort."""
    folder = tmp_path_factory.mktemp("corpus")
    rows, units = [], []
    for number, text in enumerate(TEXTS):
        split = "train" if number == 0 else "dev"
        name = "q1.q" if number == 3 else f"u{number}"
        soundfile.write(folder / f"{name}.wav", make_tone(0.6 + 0.1 * number, 100 + 20 * number), 16_000)
        rows.append(Utterance(name, f"{name}.wav", 0.6 + 0.1 * number, "a", "toy", text, split))
        sequence = [(7 * number + k * (k + 1) // 2) % 12 for k in range(9)]
        sequence = [u for i, u in enumerate(sequence) if i == 0 or u != sequence[i - 1]]
        units.append(UnitRow(name, sequence, [2] * len(sequence), "a", "toy", text, split))
    write_manifest(folder / "manifest.jsonl", rows)
    write_units(folder / "units.jsonl", units)
    questions = [
        {"id": "q1", "question": TEXTS[3], "answer": "seven", "split": "dev"},
        {"id": "q2", "question": "see moo", "answer": "no lawn", "split": "train"},
    ]
    write_jsonl(folder / "qa.jsonl", questions)
    (folder / "eval.yaml").write_text(
        "judge: self\nasr_rows: 3\ntts_rows: 2\nresynthesis_rows: 2\nturn_rows: 2\n"
    )
    return folder


def test_eval_writes_both_reports(corpus, tiny_model, tiny_parts, tmp_path, capsys):
    stage = shutil.copytree(tiny_parts["llm"], tmp_path / "stage1")
    (stage / "done.json").write_text('{"identity": "x", "dev": {"loss": 2.5}, "steps": 10}')
    quality = tmp_path / "quality.json"
    quality.write_text('{"purity": 0.5, "pnmi": 0.4}')
    given = ["--config", corpus / "eval.yaml", "--model", tiny_model, "--manifest", corpus / "manifest.jsonl"]
    given += ["--units", corpus / "units.jsonl", "--qa", corpus / "qa.jsonl", "--stage", f"stage1={stage}"]
    given += ["--unit-quality", quality, "--out", tmp_path / "eval"]
    assert main(["eval", *map(str, given)]) == 0
    printed, _ = capsys.readouterr()
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    titles = [section["title"] for section in report["sections"]]
    assert titles == [
        "Hearing", "Speaking", "Resynthesis", "Turns", "Units as a language", "Training", "Unit quality"
    ]  # fmt: skip
    measures = {m["name"]: m for s in report["sections"] for m in s.get("measures", [])}
    for name, row in measures.items():
        assert row["low"] <= row["value"] <= row["high"] and row["n"] >= 1, name
        assert name in printed
    assert measures["ASR word error rate"]["n"] == 3
    assert measures["units with true durations"]["ceiling"] == measures["natural recordings"]["value"]
    assert measures["spoken questions answered right"]["n"] == 1
    stages = [m for name, m in measures.items() if "perplexity" in name]
    assert [m["floor"] for m in stages] == [stages[0]["floor"]] * 2 and stages[0]["floor"] > 1
    assert stages[0]["value"] == pytest.approx(stages[1]["value"])  # the same weights
    values = {k: v for s in report["sections"] for k, v in s.get("values", {}).items()}
    assert values == {"stage1: dev.loss": 2.5, "stage1: steps": 10, "purity": 0.5, "pnmi": 0.4}
    page = (tmp_path / "eval" / "report.html").read_text()
    HTMLParser().feed(page)
    assert all(title in page for title in titles) and "<script" not in page and "http" not in page


def test_eval_hears_recordings_as_often_as_asked(corpus, tiny_model, tmp_path, monkeypatch):
    from speechgpt.generate import Generator

    asked, answer_all = set(), Generator._answer_all
    monkeypatch.setattr(
        Generator, "_answer_all", lambda self, all, size: (
            asked.update((kind, len(prompts)) for kind, prompts in all) or answer_all(self, all, size)
        ),
    )  # fmt: skip
    given = ["--model", tiny_model, "--manifest", corpus / "manifest.jsonl", "--hearings", 3]
    settings = tmp_path / "eval.yaml"
    settings.write_text("judge: self\nasr_rows: 2\ntts_rows: 0\nresynthesis_rows: 0\nfigures: {sentences: }\n"
                        "figures_split: dev\n")  # fmt: skip
    assert main(["eval", *map(str, given), "--config", str(settings), "--out", str(tmp_path / "eval")]) == 0
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["facts"]["hearings"] == 3 and asked == {("asr", 3)}
    assert [section["title"] for section in report["sections"]] == ["Sentences", "Hearing"]


def test_eval_says_what_is_missing(corpus, tiny_model, tmp_path, capsys):
    call = ["eval", "--model", str(tiny_model), "--out", str(tmp_path / "eval")]
    assert main([*call, "--config", str(corpus / "eval.yaml")]) == 2
    assert "nothing to score" in capsys.readouterr().err
    assert main([*call, "--stage", "stage1"]) == 2
    assert "NAME=DIR" in capsys.readouterr().err
    (tmp_path / "eval.yaml").write_text("asr_row: 3\n")
    assert main([*call, "--config", str(tmp_path / "eval.yaml")]) == 2
    assert "asr_row" in capsys.readouterr().err
    assert not (tmp_path / "eval").exists()


def test_word_errors():
    assert word_errors("It's 3 o'clock!", "its three oclock") == (2, 3)
    assert word_errors("one two three", "one three") == (1, 3)
    assert word_errors("one two", "") == (2, 2)
    assert word_errors("", "one two") == (2, 0)


def test_a_rate_is_pooled_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    errors, words = rng.integers(0, 3, 200), np.full(200, 10)
    found = measure("x", errors, words, better="lower")
    assert found.value == errors.sum() / 2000
    assert found.low < found.value < found.high and found.high - found.low < 0.04
    assert bootstrap(errors, words, seed=1) == bootstrap(errors, words, seed=1)
    with pytest.raises(ValueError, match="nothing to score"):
        measure("x", [], [], better="lower")


def test_perplexity_of_a_uniform_guess():
    found = perplexity("x", [10 * np.log(12)] * 5, [10] * 5)
    assert found.value == pytest.approx(12) and found.low == pytest.approx(12)


def test_judges(make_tone):
    judge = SelfJudge(lambda waveform: f"I heard {len(waveform)}!", longest=2.0)
    assert judge.hear(make_tone(3.0), 16_000) == judge.hear(make_tone(2.0), 16_000)  # a model that rambles
    assert judge.hear(np.zeros(0, np.float32), 16_000) == judge.hear(np.zeros(4000, np.float32), 16_000) == ""
    heard = judge.hear(make_tone(1.0, rate=8000), 8000)
    assert heard == "i heard sixteen thousand"
    with pytest.raises(ValueError, match="unknown judge 'nobody'; known: pocketsphinx, self"):
        load_judge("nobody", str)


def test_pocketsphinx_hears_speech(tmp_path):
    import subprocess

    pytest.importorskip("pocketsphinx")
    if shutil.which("flite") is None:
        pytest.skip("needs flite to speak")
    wav = tmp_path / "said.wav"
    subprocess.run(
        ["flite", "-voice", "slt", "-t", "please open the window and close the door", "-o", str(wav)],
        check=True,
    )
    waveform, rate = soundfile.read(wav, dtype="float32")
    heard = load_judge("pocketsphinx", str).hear(waveform, rate)
    assert word_errors("please open the window and close the door", heard)[0] <= 4


def test_the_page_escapes_what_models_say():
    section = {"title": "T", "samples": {"columns": ["<b>"], "rows": [["<script>alert(1)</script>"]]}}
    page = render({"title": "x & y", "facts": {"model": "<m>"}, "sections": [section]})
    assert "<script>" not in page and "x &amp; y" in page and "&lt;m&gt;" in page


def test_figures():
    assert figure(0.125, "%") == "12.5 %" and figure(12.345, "") == "12.3" and figure(12345.6, "") == "12,346"
