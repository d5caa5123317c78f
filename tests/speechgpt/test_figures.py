"""The figures of held-out speech: all of them on tiny rows, and what is said where rows are missing."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from speechgpt import cost_figures, order_figures, word_figures
from speechgpt import judge as judges
from speechgpt.answers import Turn
from speechgpt.babble import LOUDEST, VOICES, add_babble, babble, loudest
from speechgpt.cli import main
from speechgpt.data.files import write_jsonl
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.data.qa_file import QuestionAnswer
from speechgpt.data.questions import UNKNOWN_ANSWER
from speechgpt.data.rows import Utterance, write_manifest
from speechgpt.figures import FIGURES, read_figures
from speechgpt.held_out import FigureSettings, HeldOut, wrong_first
from speechgpt.judge import Pocketsphinx, SelfJudge
from speechgpt.measures import accuracy, bootstrap, measure, median
from speechgpt.question_figures import kind_of
from speechgpt.report_page import figure, reached, render

LATTE = "coffeeDrink=latte; size=large"
MOCHA = "coffeeDrink=mocha"
NUMBERS = ("one", "two", "three", "four", "five")
ROWS = [  # id, corpus, text, split, slots
    ("o1", "coffee", "give me a large latte", "train", LATTE),
    ("o2", "coffee", "i want a large latte", "train", LATTE),
    ("o3", "coffee", "brew a mocha", "train", MOCHA),
    ("o4", "coffee", "brew a mocha", "test", MOCHA),
    ("o5", "coffee", "can i get a large latte", "test", LATTE),
    ("d1", "digits", "seven", "test", ""),
    ("d2", "digits", "two", "test", ""),
    ("s1", "reader", "no less moss", "test", ""),
    ("s2", "reader", "see me soon", "test", ""),
    ("s3", "other", "men lean low", "test", ""),
    ("talk.name.3.q", "asked", "what is three plus four", "test", ""),
    ("talk.name.0.q", "asked", "see moo", "train", ""),
    ("unknown.1.q", "asked", "say the word see after me", "test", ""),
    *((f"s{number}", "reader", f"men lean {word}", "test", "") for number, word in enumerate(NUMBERS, 4)),
]
QA = [
    {"id": "talk.name.0", "question": "see moo", "answer": "seven", "split": "train"},
    {"id": "talk.name.3", "question": "what is three plus four", "answer": "seven", "split": "test"},
    {"id": "unknown.1", "question": "say the word see after me", "answer": UNKNOWN_ANSWER, "split": "test"},
]
ALL = (
    "judge: self\nunit_rows: 0\nturn_rows: 0\nasr_rows: 0\ntts_rows: 0\nresynthesis_rows: 0\nfigures:\n"
    + "".join(f"  {name}: {{rows: 2, goal: 0.5}}\n" for name in FIGURES)
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_tone):
    folder = tmp_path_factory.mktemp("held out")
    rows = []
    for number, (name, corpus, text, split, slots) in enumerate(ROWS):
        soundfile.write(folder / f"{name}.wav", make_tone(0.6 + 0.05 * number, 100 + 15 * number), 16_000)
        rows.append(Utterance(name, f"{name}.wav", 0.6 + 0.05 * number, "a", corpus, text, split, slots))
    write_manifest(folder / "manifest.jsonl", rows)
    write_manifest(folder / "sentences.jsonl", [row for row in rows if row.corpus == "reader"])
    write_jsonl(folder / "qa.jsonl", QA)
    (folder / "eval.yaml").write_text(ALL)
    return folder


@pytest.fixture(scope="module")
def evaluated(corpus, tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    given = ["--model", tiny_model, "--manifest", corpus / "manifest.jsonl", "--qa", corpus / "qa.jsonl"]
    assert main(["eval", "--config", *map(str, [corpus / "eval.yaml", *given, "--out", out])]) == 0
    return json.loads((out / "report.json").read_text())


def test_every_figure_is_measured_or_says_why(evaluated):
    titles = [section["title"] for section in evaluated["sections"]]
    assert titles[:5] == ["Orders", "Orders in noise", "Single digits", "Questions", "Sentences"]
    assert titles[-4:] == ["Resynthesis", "A turn's time", "Size", "Not measured"]
    assert "none of 2 orders was answered right" in evaluated["not_measured"]["spoken_answers"]
    assert set(evaluated["figure_seconds"]) == set(FIGURES)
    for section in evaluated["sections"]:
        for row in section.get("measures", []):
            assert row["low"] <= row["value"] <= row["high"] and row["n"] >= 1, row["name"]


def test_figures_stand_between_floor_and_ceiling(evaluated):
    rows = {m["name"]: m for s in evaluated["sections"] for m in s.get("measures", [])}
    sections = {section["title"]: section for section in evaluated["sections"]}
    orders = rows["orders with every slot right"]
    assert orders["n"] == 2 and orders["goal"] == 0.5
    assert orders["floor"] == 0.5  # the latte is the train split's commonest, and one of two
    assert orders["ceiling_name"] == "the same orders, typed"
    noisy = rows["noisy orders with every slot right"]
    assert noisy["beside"]["Picovoice Rhino"] == 0.976 and "dB 0 of 1" in noisy["note"]
    assert noisy["ceiling"] == orders["value"]
    assert rows["single digits right"]["floor"] == 0.5
    assert rows["small talk"]["floor"] == 1.0 and rows["small talk"]["n"] == 1
    assert "1 questions of the other kinds" in rows["what is outside"]["note"]
    assert rows["word error rate on other"]["n"] == 1 and rows["word error rate on reader"]["n"] == 2
    assert rows["word error rate of spoken sentences"]["ceiling_name"] == "recordings of the same texts"
    natural = rows["natural recordings"]["value"]
    assert rows["units with true durations"]["goal"] == pytest.approx(0.5 * natural)
    spoken = rows["word error rate of spoken sentences"]
    assert spoken["goal"] is None and "goal not applied: the judge is self" in spoken["note"]
    timed = [m["name"] for m in sections["A turn's time"]["measures"]]
    assert timed == ["whole answer spoken", "first sound"]
    assert rows["whole answer spoken"]["goal"] == 0.5
    assert rows["all weights"]["unit"] == "MB" and rows["all weights"]["value"] > 0


def test_a_figure_without_its_data_says_so(corpus, tiny_model, tmp_path, capsys):
    given = ["--model", tiny_model, "--manifest", corpus / "sentences.jsonl", "--out", tmp_path]
    assert main(["eval", "--config", *map(str, [corpus / "eval.yaml", *given])]) == 0
    printed, _ = capsys.readouterr()
    missing = json.loads((tmp_path / "report.json").read_text())["not_measured"]
    assert list(missing) == ["orders", "noisy_orders", "digits", "questions", "spoken_answers"]
    assert "no recorded orders" in missing["orders"] and "--qa" in missing["questions"]
    assert all(f"{name}: not measured: {why}" in printed for name, why in missing.items())
    assert "no recorded orders" in (tmp_path / "report.html").read_text()


def test_where_nothing_is_measured_every_reason_is_said(corpus, tiny_model, tmp_path, capsys):
    (tmp_path / "eval.yaml").write_text(
        "judge: self\nunit_rows: 0\nturn_rows: 0\nasr_rows: 0\ntts_rows: 0\nresynthesis_rows: 0\n"
        "corpora: [somebody]\n"
        "figures: {orders: {}, noisy_orders: {}, sentences: {corpora: [nobody]}}\n"
    )
    given = ["--model", tiny_model, "--manifest", corpus / "sentences.jsonl", "--out", tmp_path / "out"]
    assert main(["eval", "--config", *map(str, [tmp_path / "eval.yaml", *given])]) == 2
    said = capsys.readouterr().err
    assert "nothing to score" in said and "orders: the manifests have no recorded orders" in said
    assert "noisy_orders: the" in said and "sentences: no rows with a text of corpus nobody" in said
    assert "corpus somebody: the manifests have no rows of it in split 'dev'" in said


def test_a_turn_lasts_until_its_whole_answer_is_spoken(corpus):
    totals = iter([9.0, 0.3, 0.5, 0.4])  # the first warms the model up

    def reply(waveform):
        total = next(totals)
        timings = {"first_sound": total - 0.2, "total": total}
        return SimpleNamespace(timings=timings, waveform=np.zeros(24_000), sample_rate=16_000, stalls=total)

    config = SimpleNamespace(max_question_seconds=9.0)
    model = SimpleNamespace(reply=reply, device="cpu", model_dir=SimpleNamespace(config=config))
    model.warm_up = lambda: model
    rows = [(Utterance("s1", "s1.wav", 1.0, split="test"), corpus / "s1.wav")]
    held = HeldOut(model, SelfJudge(lambda _: ""), rows, [], "test", 0)
    found, first = cost_figures.turn_time(held, FigureSettings(3, goal=0.5)).measures
    assert (found.name, found.value, found.n, found.goal) == ("whole answer spoken", 0.4, 3, 0.5)
    assert found.low == 0.3 and found.high == 0.5 and "answer 1.50 s" in found.note
    assert (first.name, first.goal, first.unit, first.better) == ("first sound", None, "s", "lower")
    assert first.value == pytest.approx(0.2) and "stalls for 0.50 s at most" in first.note


def babble_behind(folder, make_tone, count, monkeypatch):
    """The voices behind each of `count` orders, where nothing but orders is held out."""
    rows = []
    for number in range(count):
        soundfile.write(folder / f"{number}.wav", make_tone(0.6, 100 + 15 * number), 16_000)
        row = Utterance(f"o{number}", f"{number}.wav", 0.6, "a", "coffee", "", "test", MOCHA)
        rows.append((row, folder / f"{number}.wav"))
    behind = []
    monkeypatch.setattr(order_figures, "answer_all", lambda model, waveforms, out="text": [Turn()] * count)
    monkeypatch.setattr(order_figures, "add_babble", lambda w, voices, *_: behind.append((w, voices)) or w)
    model = SimpleNamespace(model_dir=SimpleNamespace(config=SimpleNamespace(max_question_seconds=9.0)))
    held = HeldOut(model, SelfJudge(lambda _: ""), rows, [], "test", 0)
    order_figures.noisy_orders(held, FigureSettings(count))
    return behind


def test_no_order_talks_behind_itself(tmp_path, make_tone, monkeypatch):
    behind = babble_behind(tmp_path, make_tone, VOICES + 1, monkeypatch)
    assert len(behind) == VOICES + 1
    for waveform, voices in behind:
        assert len(voices) == VOICES
        assert not any(np.array_equal(waveform, voice) for voice in voices)


def test_too_few_voices_are_no_babble(tmp_path, make_tone, monkeypatch):
    with pytest.raises(NotMeasuredError, match=f"{VOICES} recordings talk behind an order; {VOICES - 1}"):
        babble_behind(tmp_path, make_tone, VOICES, monkeypatch)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{order: {}}", "unknown order; known: orders, noisy_orders"),
        (
            "{orders: {row: 3}}",
            "unknown setting figures.orders.row; known in figures.orders: rows, corpora, goal",
        ),
        ("{orders: {rows: 0}}", "figures.orders: rows is 0; expected a whole number from 1"),
        ("{orders: {goal: high}}", "figures.orders.goal: expected float, found 'high'"),
        ("{sentences: {corpora: kathleen}}", "corpora: expected a list of str, found 'kathleen'"),
        ("{orders: {corpora: [coffee]}}", "orders takes no corpora; those that do: noisy_orders, sentences"),
    ],
)
def test_a_wrong_setting_is_named(given, message, tmp_path, capsys):
    (tmp_path / "eval.yaml").write_text(f"figures: {given}\n")
    assert main(["eval", "--config", str(tmp_path / "eval.yaml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and "eval.yaml" in said


def test_figures_keep_the_reports_order():
    assert list(read_figures({"size": None, "orders": {"rows": 3}})) == ["orders", "size"]
    assert read_figures({"orders": {"rows": 3}}) == {"orders": FigureSettings(3)}


def test_intervals_of_known_cases():
    assert bootstrap([1] * 30, [1] * 30) == (1.0, 1.0) and bootstrap([0] * 30, [1] * 30) == (0.0, 0.0)
    half = accuracy("x", [True, False] * 200)
    width = 1.96 * np.sqrt(0.25 / 400)
    assert half.low == pytest.approx(0.5 - width, abs=0.01) and half.high == pytest.approx(
        0.5 + width, abs=0.01
    )
    # One utterance has all the errors: its words go together, so that the rate is as unsure as one utterance.
    lumped = measure("x", [50] + [0] * 9, [50] * 10, better="lower")
    spread = measure("x", [5] * 10, [50] * 10, better="lower")
    assert lumped.value == spread.value == 0.1
    assert (lumped.low, lumped.high) == (0.0, pytest.approx(0.3)) and spread.low == spread.high == 0.1


def test_medians():
    found = median("x", [3.0, 1.0, 2.0, 9.0, 2.5], unit="s", better="lower")
    assert found.value == 2.5 and 1.0 <= found.low <= 2.5 <= found.high <= 9.0
    same = median("x", [0.4] * 10, unit="s", better="lower")
    assert same.low == same.high == 0.4 and same == median("x", [0.4] * 10, unit="s", better="lower")
    with pytest.raises(ValueError, match="nothing to score"):
        median("x", [], unit="s", better="lower")


def test_babble_lies_as_far_below_the_speech_as_asked(make_tone):
    speech = np.concatenate([np.zeros(8000, np.float32), make_tone(1.0), np.zeros(8000, np.float32)])
    voices = [make_tone(0.3 + 0.1 * n, 90 + 30 * n) for n in range(3)]
    for level in (6, 24):
        noisy = add_babble(speech, voices, level, np.random.default_rng(1))
        noise = babble(voices, len(speech), np.random.default_rng(1))
        assert np.abs(noisy).max() == pytest.approx(LOUDEST) and noisy.shape == speech.shape
        gain = (
            noisy[:8000] @ noise[:8000] / (noise[:8000] @ noise[:8000])
        )  # before the speech it is noise alone
        scale = np.abs(speech + gain * noise).max()
        apart = 10 * np.log10(loudest(noisy - gain * noise) / loudest(gain * noise))
        assert apart == pytest.approx(level, abs=0.1) and scale > 0
    assert loudest(np.ones(10, np.float32)) == 10  # shorter than a stretch


def test_goals_and_units_on_the_page():
    good = accuracy("good", [True], goal=0.5, beside={"<another>": 0.25}).to_dict()
    bad = median("slow", [2.0], unit="s", better="lower", goal=1.0).to_dict()
    assert reached(good) and not reached(bad)
    page = render({"title": "t", "facts": {}, "sections": [{"title": "T", "measures": [good, bad]}]})
    assert "&lt;another&gt; 25.0 %" in page and "<span class=wrong>1.00 s</span>" in page
    assert figure(26.54, "MB") == "26.54 MB"


def test_kinds_of_questions():
    assert kind_of(QuestionAnswer("talk.name.3", "q", "a")) == "small talk"
    assert kind_of(QuestionAnswer("qa-000001", "q", "a")) == "questions"


def test_samples_show_what_went_wrong_first():
    assert wrong_first([True, False], ["x"], ["right", "wrong"])["rows"] == [["wrong"], ["right"]]


def test_held_out_rows_are_sorted_by_what_they_hold(corpus, tiny_model):
    from speechgpt.data.rows import read_manifest
    from speechgpt.model_dir import find_model
    from speechgpt.pipeline import SpeechGPT

    model = SpeechGPT(find_model(tiny_model), "cpu", llm=False)
    every = [(row, row.audio(corpus / "manifest.jsonl")) for row in read_manifest(corpus / "manifest.jsonl")]
    held = HeldOut(model, SelfJudge(lambda _: ""), every, [], "test", 0)
    assert [row.id for row, _ in held.orders] == ["o4", "o5"]
    assert [row.id for row, _ in held.digits] == ["d1", "d2"]
    assert [row.id for row, _ in held.sentences(())] == [f"s{number}" for number in range(1, 9)]
    assert [row.id for row, _ in held.sentences(["other"])] == ["s3"]
    with pytest.raises(NotMeasuredError, match="of corpus nobody, readers in split 'test'.*: asked, coffee"):
        held.sentences(["nobody", "reader", "readers"])


def test_the_judge_hears_each_recording_once(corpus):
    heard = []

    def transcribe(waveform):
        heard.append(len(waveform))
        return f"length {len(waveform)}"

    rows = [(Utterance(name, f"{name}.wav", 1.0), corpus / f"{name}.wav") for name in ("s1", "s2", "s3")]
    held = HeldOut(None, SelfJudge(transcribe), rows, [], "test", 0)
    first = held.hear_people(rows[:2])
    assert held.hear_people([rows[2], rows[0]])[1] == first[0] and len(heard) == 3


@pytest.mark.parametrize("grammar", ["", word_figures.DIGIT_JSGF])
def test_pocketsphinx_hears_each_recording_alone(grammar):
    pytest.importorskip("pocketsphinx")
    rng = np.random.default_rng(0)
    clips = [babbled(rng, noise=10 ** (-0.5 * number)) for number in range(6)]
    heard = [Pocketsphinx(grammar).hear(clip, 16_000) for clip in clips]
    assert len(set(heard)) > 3
    for order in (range(6), range(6)[::-1], rng.permutation(6)):
        judge = Pocketsphinx(grammar)
        assert {n: judge.hear(clips[n], 16_000) for n in order} == dict(enumerate(heard))


def babbled(rng, noise):
    """(T,) float32: bursts of noise and vowels of a speaker without words, and noise over all of it."""
    moment = np.arange(3200) / 16_000
    parts = []
    for _ in range(4):
        formants = rng.uniform([300, 900, 2400], [800, 2300, 3000])
        tones = [110 * n for n in range(1, 60)]
        loud = [sum(1 / (1 + ((tone - formant) / 90) ** 2) for formant in formants) for tone in tones]
        vowel = sum(a * np.sin(2 * np.pi * tone * moment) for a, tone in zip(loud, tones, strict=True))
        parts += [0.3 * rng.random() * rng.standard_normal(1600), vowel * np.hanning(3200)]
    clip = np.concatenate(parts)
    return (clip + noise * rng.standard_normal(len(clip))).astype(np.float32)


def test_pocketsphinx_hears_alike_whatever_the_processes(monkeypatch, tmp_path):
    pytest.importorskip("pocketsphinx")
    if shutil.which("flite") is None:
        pytest.skip("needs flite to speak")
    from speechgpt.scores import flite_says

    said = [flite_says(word) for word in ("seven", "two", "nine")]
    grammar = Pocketsphinx(word_figures.DIGIT_JSGF)
    monkeypatch.setattr(judges, "CHUNK", 2)
    heard = grammar.hear_all(said, 16_000)
    assert heard == ["seven", "two", "nine"]
    monkeypatch.setattr(judges, "in_processes", map)
    assert grammar.hear_all(said, 16_000) == heard
    assert grammar.hear_all([], 16_000) == []
    assert Pocketsphinx().hear(np.zeros(0, np.float32), 16_000) == ""
