from collections import Counter

import pytest

from speechgpt.data import chain
from speechgpt.data.chain import ChainPlan, Recordings, build_rows, main, read_proportions
from speechgpt.data.dialogue_rows import CHAIN_KINDS, ChainRow, read_chain
from speechgpt.data.files import read_jsonl, write_jsonl
from speechgpt.data.published import read_published
from speechgpt.data.qa_file import QuestionAnswer, read_questions
from speechgpt.data.rejects import Rejects
from speechgpt.data.rows import UnitRow, write_units

SPOKEN = read_proportions("speech-speech=1")


def question(name="q1", **parts):
    return QuestionAnswer(name, f"what is {name}", f"it is <12> {name}", **parts)


def unit_row(name, text="", units=(1, 2), split="train"):
    return UnitRow(name, list(units), [1] * len(units), text=text, split=split)


def recordings_of(questions, voices=("ann", "bob")):
    rows = [
        unit_row(f"{q.id}.q.{v}", q.question.upper() + "?", (n, 5))
        for q in questions
        for n, v in enumerate(voices)
    ]
    return rows + [unit_row(f"{q.id}.a", q.answer, (7, 8)) for q in questions]


def build(questions, rows, plan=ChainPlan(), max_bad=0, speak=None):  # noqa: B008
    rejects = Rejects("unused.jsonl", max_bad)
    return list(build_rows(questions, Recordings(rows), plan, rejects, speak)), rejects


def test_quadruplets_of_every_kind():
    questions = [question()]
    rows, _ = build(questions, recordings_of(questions), ChainPlan(every_kind=True))
    by_id = {row.id: row for row in rows}
    assert set(by_id) == {
        "q1.speech-speech.ann", "q1.speech-speech.bob", "q1.speech-text.ann", "q1.speech-text.bob",
        "q1.text-speech", "q1.text-text",
    }  # fmt: skip
    text, answer = "what is q1", "it is <12> q1"
    assert by_id["q1.speech-speech.bob"] == ChainRow(
        "q1.speech-speech.bob", "speech-speech", text, answer, [1, 5], [7, 8]
    )
    assert by_id["q1.text-speech"] == ChainRow("q1.text-speech", "text-speech", text, answer, [], [7, 8])
    assert by_id["q1.text-text"] == ChainRow("q1.text-text", "text-text", text, answer)


def test_units_by_an_encoder_that_has_not_heard_the_question_ask_it_once_more():
    """The ids of `speechgpt folds`, also of copies: rows beside those that they were made of."""
    names = ("q1.q", "q1.q.x0", "q1.q.f0", "q1.q.x0.f0")
    rows = [unit_row(name, "what is q1", (n, 5)) for n, name in enumerate(names)]
    found, _ = build([question()], [*rows, unit_row("q1.a", "", (7, 8))], ChainPlan(SPOKEN))
    assert sorted((row.id, *row.question_units) for row in found) == [
        ("q1.speech-speech", 0, 5),
        ("q1.speech-speech.f0", 2, 5),
        ("q1.speech-speech.x0", 1, 5),
        ("q1.speech-speech.x0.f0", 3, 5),
    ]
    assert all(row.answer_units == [7, 8] for row in found)


def test_kinds_are_drawn_in_proportion_and_each_question_for_itself():
    questions = [question(f"q{n}") for n in range(400)]
    plan = ChainPlan(read_proportions("speech-speech=2, speech-text=1,text-text=1"))
    rows, _ = build(questions, recordings_of(questions, ("ann",)), plan)
    counts = Counter(row.kind for row in rows)
    assert 160 < counts["speech-speech"] < 240 and 70 < counts["speech-text"] < 130
    assert counts["text-speech"] == 0 and len(rows) == 400
    again, _ = build(questions[::-7], recordings_of(questions, ("ann",)), plan)
    assert {row.id: row for row in again}.items() <= {row.id: row for row in rows}.items()
    other, _ = build(questions, recordings_of(questions, ("ann",)), ChainPlan(plan.proportions, seed=1))
    assert other != rows


def test_answers_and_questions_may_share_recordings():
    questions = [question("q1", answer_id="yes"), question("q2", answer_id="yes", question_id="real-7")]
    rows = [
        unit_row("q1.q", "What is q1?", (1,)),
        unit_row("real-7", "", (2,)),
        unit_row("yes.a.slt", "", (3,)),
        unit_row("yes.a.rms", "", (4,)),
    ]
    built, _ = build(questions, rows, ChainPlan(SPOKEN, answer_voice="rms"))
    assert [(r.id, r.question_units, r.answer_units) for r in built] == [
        ("q1.speech-speech.rms", [1], [4]),
        ("q2.speech-speech.rms", [2], [4]),
    ]
    drawn = {tuple(build(questions, rows, ChainPlan(SPOKEN, seed=s))[0][0].answer_units) for s in range(20)}
    assert drawn == {(3,), (4,)}


def test_the_question_is_never_taken_for_the_answer():
    """A real recording bears the question's own id, and nobody has spoken the answer."""
    with pytest.raises(ValueError, match=r"nobody answers: there is no unit row order-1\.a"):
        build([question("order-1")], [unit_row("order-1")], ChainPlan(SPOKEN))


@pytest.mark.parametrize(
    "asked, recorded, built",
    [("", "test", "test"), ("train", "test", "test"), ("dev", "train", "dev"), ("", "train", "train")],
)
def test_the_split_that_is_held_back_more_wins(asked, recorded, built):
    rows = [unit_row("q1.q", split=recorded), unit_row("q1.a", split="train")]
    assert build([question(split=asked)], rows, ChainPlan(SPOKEN))[0][0].split == built


@pytest.mark.parametrize(
    "rows, reason",
    [
        ([unit_row("q1.a")], r"q1\.speech-speech: nobody asks it: there is no unit row q1\.q"),
        (
            [unit_row("q1.q", "what was q1"), unit_row("q1.a")],
            "says 'what was q1'; the question is 'what is q1'",
        ),
        ([unit_row("q1.q"), unit_row("q1.a", "it is 12 q2")], "says 'it is 12 q2'; the answer is"),
        ([unit_row("q1.q", units=()), unit_row("q1.a")], r"unit row q1\.q has no units"),
        ([unit_row("q1.q", units=range(9)), unit_row("q1.a")], r"unit row q1\.q has 9 units, more than 8"),
    ],
)
def test_what_does_not_fit_is_rejected_with_the_reason(rows, reason):
    plan = ChainPlan(SPOKEN, max_units=8)
    with pytest.raises(ValueError, match=reason):
        build([question()], rows, plan)
    built, rejects = build([question()], rows, plan, max_bad=1)
    assert built == [] and len(rejects) == 1


def test_answers_spoken_by_a_model():
    questions = [question(f"q{n}") for n in range(3)]
    asked = [row for row in recordings_of(questions) if ".q." in row.id]
    built, _ = build(questions, asked, ChainPlan(SPOKEN), speak=lambda text: [len(text), 3])
    assert len(built) == 6 and all(row.answer_units == [len(row.answer), 3] for row in built)
    with pytest.raises(ValueError, match="the spoken answer has no units"):
        build(questions, asked, ChainPlan(SPOKEN), speak=lambda text: [])


def files(tmp_path, count=8):
    questions = [question(f"q{n}") for n in range(count)]
    write_jsonl(
        tmp_path / "qa.jsonl",
        [
            {"id": q.id, "question": q.question, "answer": q.answer, "topic": "kept by its maker"}
            for q in questions
        ],
    )
    write_units(tmp_path / "units.jsonl", recordings_of(questions))
    out = tmp_path / "chain.jsonl"
    return [
        "--qa",
        str(tmp_path / "qa.jsonl"),
        "--units",
        str(tmp_path / "units.jsonl"),
        "--out",
        str(out),
    ], out


def test_command(tmp_path, capsys):
    command, out = files(tmp_path)
    assert main([*command, "--published", str(tmp_path / "lines.jsonl")]) == 0
    rows = read_chain(out)
    assert 8 <= len(rows) <= 16 and {row.kind for row in rows} == set(CHAIN_KINDS)
    back = read_published(tmp_path / "lines.jsonl", ChainRow)
    assert [(r.kind, r.answer, r.answer_units) for r in back] == [
        (r.kind, r.answer, r.answer_units) for r in rows
    ]
    first = out.read_bytes()
    assert main(command) == 0 and out.read_bytes() == first
    with pytest.raises(ValueError, match="no rows in test"):
        main([*command, "--splits", "test"])
    with pytest.raises(ValueError, match="no rows in train, dev, test"):
        main([*command, "--max-answer-words", "2"])
    for wrong in ("speech=1", "text-text=some", "text-text=0"):
        with pytest.raises(ValueError, match="--proportions"):
            main([*command, "--proportions", wrong])


def test_a_config_says_which_kinds_and_questions(tmp_path):
    command, out = files(tmp_path)
    config = tmp_path / "chain.yaml"
    config.write_text("proportions: text-text=1\nseed: 3\n")
    assert main([*command, "--config", str(config)]) == 0
    everything = {row.id for row in read_chain(out)}
    assert {row.kind for row in read_chain(out)} == {"text-text"}
    left_out = sorted(everything)[0].rpartition(".")[0]
    assert main([*command, "--config", str(config), "--exclude", left_out]) == 0
    assert {row.id for row in read_chain(out)} == {i for i in everything if not i.startswith(left_out + ".")}


class Voice:
    """Stands for the stage 2 model."""

    def __init__(self, fails_after=1000):
        self.said, self.fails_after = [], fails_after

    def load(self, model, stage_config=None):
        return self.speak_batch

    def speak_batch(self, texts):
        if len(self.said) >= self.fails_after:
            raise KeyboardInterrupt
        self.said += texts
        return [[len(text), 1] for text in texts]


def test_a_killed_run_does_not_speak_the_same_answers_again(tmp_path, monkeypatch):
    command, out = files(tmp_path, 40)
    model = tmp_path / "stage2"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"x")
    command += ["--speak-with", str(model), "--every-kind"]

    def run(voice):
        monkeypatch.setattr(chain, "load_speaker", voice.load)
        assert main(command) == 0
        assert not (tmp_path / "chain.spoken.jsonl").exists()
        return out.read_bytes()

    whole = Voice()
    straight = run(whole)
    assert len(whole.said) == len(set(whole.said)) == 40  # once each, whatever the number of voices
    out.unlink()

    killed, second = Voice(fails_after=20), Voice()
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    assert not out.exists()
    assert run(second) == straight
    assert 20 <= len(killed.said) < 40 and sorted(killed.said + second.said) == sorted(whole.said)

    other = Voice()
    write_jsonl(
        tmp_path / "chain.spoken.jsonl", [{"model": "another", "changed": 1}, {"text": "it", "units": [1]}]
    )
    assert run(other) == straight and len(other.said) == 40


def test_only_the_answers_of_drawn_kinds_are_spoken(tmp_path, monkeypatch):
    command, out = files(tmp_path, 30)
    voice = Voice()
    monkeypatch.setattr(chain, "load_speaker", voice.load)
    command += ["--speak-with", str(tmp_path), "--proportions", "speech-speech=1,text-text=1"]
    assert main(command) == 0
    assert set(voice.said) == {row.answer for row in read_chain(out) if row.answer_units} != set()
    assert len(voice.said) < 30


@pytest.mark.parametrize("folder", ["llm", "assembled"])
def test_answers_spoken_by_a_real_model(tmp_path, tiny_parts, tiny_model, folder):
    command, out = files(tmp_path, 2)
    model = tiny_parts["llm"] if folder == "llm" else tiny_model
    assert main([*command, "--speak-with", str(model), "--proportions", "speech-speech=1"]) == 0
    assert all(row.answer_units for row in read_chain(out))


def test_a_model_that_is_not_there(tmp_path):
    command, _ = files(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        main([*command, "--speak-with", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"id": "a", "question": "q"}', "answer is missing or blank"),
        ('{"id": "a", "question": " ", "answer": "a"}', "question is missing or blank"),
        ('{"id": "a", "question": "q", "answer": 3}', "answer is 3; expected text"),
        ('{"id": "a", "question": "q", "answer": "a", "split": "eval"}', "split is 'eval'"),
        ('{"id": "ok", "question": "q", "answer": "a"}', "id 'ok' appears twice"),
        ('{"id": ', "not valid JSON"),
    ],
)
def test_broken_question_files_are_named_with_their_line(tmp_path, line, reason):
    path = tmp_path / "qa.jsonl"
    path.write_text('{"id": "ok", "question": "q", "answer": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"qa\.jsonl:2: {reason}"):
        read_questions(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no rows"):
        read_questions(path)


def test_rejects_go_to_a_file(tmp_path):
    command, out = files(tmp_path)
    write_units(tmp_path / "units.jsonl", recordings_of([question(f"q{n}") for n in range(7)]))
    assert main([*command, "--proportions", "speech-speech=1", "--max-bad", "1"]) == 0
    rejects = [row for _, row in read_jsonl(tmp_path / "chain.rejects.jsonl")]
    assert [row["id"] for row in rejects] == ["q7.speech-speech"] and len(read_chain(out)) == 14
