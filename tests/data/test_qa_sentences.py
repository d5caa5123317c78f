import json

import pytest

from speechgpt.data.chain import main as chain
from speechgpt.data.dialogue_rows import read_chain
from speechgpt.data.files import read_jsonl, write_jsonl
from speechgpt.data.qa_file import read_questions
from speechgpt.data.qa_sentences import draw_voices, main
from speechgpt.data.rows import UnitRow, write_units
from speechgpt.data.synthesize import read_sentences

ROWS = [
    {"id": "q1", "question": "Is it late?", "answer": "Yes.", "split": "test", "note": "kept out"},
    {"id": "q2", "question": "Is it dark?", "answer": "Yes."},
    {"id": "q3", "question": "Is it cold?", "answer": "No.", "answer_id": "no", "split": "dev"},
    {"id": "q4", "question": "Is it hot?", "answer": "No."},
]


def qa_file(folder, rows=ROWS, name="mine.jsonl"):
    write_jsonl(folder / name, rows)
    return folder / name


def run(folder, *options, rows=ROWS):
    assert main(["--qa", str(qa_file(folder, rows)), "--out", str(folder / "out"), *options]) == 0
    return folder / "out"


def test_each_question_and_each_distinct_answer_is_spoken_once(tmp_path):
    out = run(tmp_path, "--question-voices", "rms,awb", "--answer-voice", "kal")
    asked, answered = (read_sentences(out / f"{name}.jsonl") for name in ("questions", "answers"))
    assert [(s.id, s.text, s.split) for s in asked] == [
        ("q1.q", "Is it late?", "test"),
        ("q2.q", "Is it dark?", "train"),
        ("q3.q", "Is it cold?", "dev"),
        ("q4.q", "Is it hot?", "train"),
    ]
    assert {s.voice for s in asked} <= {"rms", "awb"}
    rows = read_questions(out / "qa.jsonl")
    assert [row.id for row in rows] == ["q1", "q2", "q3", "q4"]
    assert rows[0].answer_id == rows[1].answer_id and rows[2].answer_id == rows[3].answer_id == "no"
    assert [(s.id, s.text, s.voice, s.split) for s in answered] == [
        (f"{rows[0].answer_id}.a", "Yes.", "kal", "train"),  # a training question has it too
        ("no.a", "No.", "kal", "train"),
    ]


def test_copies_are_in_different_voices_that_other_rows_do_not_change(tmp_path):
    out = run(tmp_path, "--question-voices", "flite", "--copies", "3", "--seed", "5")
    asked = read_sentences(out / "questions.jsonl")
    assert len(asked) == 12 and len({s.id for s in asked}) == 12
    assert all(s.id == f"{s.id[:2]}.q.{s.voice}" for s in asked)
    (tmp_path / "fewer").mkdir()
    fewer = run(
        tmp_path / "fewer", "--question-voices", "flite", "--copies", "3", "--seed", "5", rows=ROWS[2:]
    )
    assert read_sentences(fewer / "questions.jsonl") == asked[6:]
    assert {v for n in range(20) for v in draw_voices(["slt", "rms", "slt"], 1, str(n))} == {"slt", "rms"}


def test_a_shared_question_is_spoken_once_under_its_question_id(tmp_path):
    rows = [
        {"id": "a", "question": "who", "answer": "me", "question_id": "who", "split": "dev"},
        {"id": "b", "question": "who", "answer": "you", "question_id": "who"},
    ]
    asked = read_sentences(run(tmp_path, rows=rows) / "questions.jsonl")
    assert [(s.id, s.split) for s in asked] == [("who.q", "train")]


@pytest.mark.parametrize("copies", ["1", "2"])
def test_chain_joins_the_units_of_what_was_spoken(tmp_path, copies):
    out = run(tmp_path, "--question-voices", "flite", "--copies", copies)
    spoken = [s for name in ("questions", "answers") for s in read_sentences(out / f"{name}.jsonl")]
    units = [UnitRow(s.id, [n, n + 1], [1, 1], text=s.text, split=s.split) for n, s in enumerate(spoken)]
    write_units(tmp_path / "units.jsonl", units)
    written = ["--units", str(tmp_path / "units.jsonl"), "--out", str(tmp_path / "chain.jsonl")]
    assert chain(["--qa", str(out / "qa.jsonl"), *written, "--proportions", "speech-speech=1"]) == 0
    rows = list(read_chain(tmp_path / "chain.jsonl"))
    assert len(rows) == 4 * int(copies)
    assert {row.split for row in rows} == {"train", "dev", "test"}
    by_id = {u.id: u.units for u in units}
    assert rows[-1].answer_units == by_id["no.a"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, ["--copies", "3", "--question-voices", "slt,rms,slt"], "--copies 3; expected 1 to 2"),
        (ROWS, ["--copies", "0"], "--copies 0; expected 1 to"),
        (ROWS, ["--answer-voice", "flite"], "--answer-voice 'flite'"),
        (ROWS, ["--question-voices", "nobody"], "unknown voice 'nobody'"),
        ([ROWS[0] | {"id": "a b"}], [], "mine.jsonl: id 'a b' cannot be a file name"),
        ([ROWS[2], ROWS[0] | {"answer_id": "no"}], [], "mine.jsonl: 'no' is 'No.' and also 'Yes.'"),
        ([ROWS[0], ROWS[1] | {"question_id": "q1"}], [], "'q1' is 'Is it late[?]' and also 'Is it dark[?]'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *options, rows=rows)
    assert not (tmp_path / "out").exists()


def test_several_files_must_not_share_an_id(tmp_path):
    files = [str(qa_file(tmp_path, name=name)) for name in ("a.jsonl", "b.jsonl")]
    with pytest.raises(ValueError, match="b.jsonl: id 'q1' is also in another"):
        main(["--qa", *files, "--out", str(tmp_path / "out")])


def test_qa_sentences_of_its_own_output_changes_nothing(tmp_path):
    out = run(tmp_path)
    assert main(["--qa", str(out / "qa.jsonl"), "--out", str(tmp_path / "again")]) == 0
    for name in ("questions", "answers", "qa"):
        assert (tmp_path / "again" / f"{name}.jsonl").read_bytes() == (out / f"{name}.jsonl").read_bytes()
    assert [json.dumps(row) for _, row in read_jsonl(out / "qa.jsonl")][1].count("answer.") == 1
