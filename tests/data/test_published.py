"""The published lines, byte for byte. The units are invented; the spelling is the published one."""

import json

import pytest

from speechgpt.data.dialogue_rows import ChainRow, InstructRow, read_chain, read_instruct, write_chain
from speechgpt.data.published import (
    PREFIX,
    main,
    parse,
    plain_text,
    read_published,
    read_unit_lines,
    write_published,
    write_unit_lines,
)

# Typed here once more, on purpose: the two spaces and "a intrinsic" must survive every edit of PREFIX.
LINE_START = (
    r'{"prefix": "You are an AI assistant whose name is SpeechGPT.\n- SpeechGPT is a intrinsic cross-modal '
    r"conversational language model that is developed by Fudan University.  SpeechGPT can understand and "
    r"communicate fluently with human through speech or text chosen by the user.\n- It can perceive "
    r'cross-modal inputs and generate cross-modal outputs.\n", "plain_text": "'
)
INSTRUCT_LINES = [
    "[Human]: Speak this out. This is input: The bird rode.<eoh> [SpeechGPT]: <sosp><661><588><eosp><eoa> ",
    "[Human]: Write it down. This is input: <sosp><661><588><eosp><eoh> [SpeechGPT]: THE BIRD<eoa> ",
    "[Human]: Who was first?<eoh> [SpeechGPT]: Nobody knows,\\nor tells.<eoa> ",
    '[Human]: Say. This is input: Naïve \\"quotes\\", <12> and [ua].<eoh> [SpeechGPT]: <sosp><0><eosp><eoa> ',
]
CHAIN_LINES = [
    "[Human]: <sosp><661><987><eosp><eoh>. [SpeechGPT]: What is it?; [ta] It is late.; [ua] "
    "<sosp><497><63><eosp><eoa>.",
    "[Human]: <sosp><1><eosp><eoh>. [SpeechGPT]: Which index?; [ta] Take <12> or <3>, not [ua].; [ua] "
    "<sosp><5><eosp><eoa>.",
    "[Human]: <sosp><1><2><eosp><eoh>. [SpeechGPT]: And now; then?; [ta] Wait; see.<eoa>.",
    "[Human]: What is <12>?<eoh>. [SpeechGPT]: [ta] A unit.; [ua] <sosp><5><6><eosp><eoa>.",
    "[Human]: How are you?<eoh>. [SpeechGPT]: [ta] Fine; and <12>?<eoa>.",
]
KINDS = ["speech-speech", "speech-speech", "speech-text", "text-speech", "text-text"]


def published(path, lines, ascii=True):
    text = "".join(f'{LINE_START}{line}"}}\n' for line in lines)
    path.write_text(text.replace("ï", r"\u00ef") if ascii else text, encoding="utf-8")
    return path


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("kind, lines", [(InstructRow, INSTRUCT_LINES), (ChainRow, CHAIN_LINES)])
def test_read_and_written_byte_for_byte(tmp_path, kind, lines, ascii):
    source, out = published(tmp_path / "in.jsonl", lines, ascii), tmp_path / "out.jsonl"
    rows = read_published(source, kind)
    assert write_published(out, rows, ascii) == len(lines)
    assert out.read_bytes() == source.read_bytes()


def test_what_the_rows_hold(tmp_path):
    tts, asr, chat, odd = read_published(published(tmp_path / "i.jsonl", INSTRUCT_LINES), InstructRow)
    assert tts == InstructRow("i-0000001", "tts", "Speak this out.", "The bird rode.", [661, 588])
    assert asr == InstructRow("i-0000002", "asr", "Write it down.", "THE BIRD", [661, 588])
    assert (chat.question, chat.answer) == ("Who was first?", "Nobody knows,\nor tells.")
    assert odd.text == 'Naïve "quotes", <12> and [ua].' and odd.units == [0]
    rows = read_published(published(tmp_path / "c.jsonl", CHAIN_LINES), ChainRow)
    assert [row.kind for row in rows] == KINDS
    assert rows[0] == ChainRow(
        "c-0000001", "speech-speech", "What is it?", "It is late.", [661, 987], [497, 63]
    )
    assert (rows[2].question, rows[2].answer) == ("And now; then?", "Wait; see.")


def test_numbers_in_angle_brackets_of_an_answer_are_text(tmp_path):
    """The released code makes units of them."""
    rows = read_published(published(tmp_path / "c.jsonl", CHAIN_LINES), ChainRow)
    assert rows[1].answer == "Take <12> or <3>, not [ua]." and rows[1].answer_units == [5]
    assert rows[3].question == "What is <12>?" and rows[3].question_units == []
    assert rows[4].answer == "Fine; and <12>?" and rows[4].answer_units == []


@pytest.mark.parametrize(
    "line, reason",
    [
        ("[Human]: Speak. This is input: Hi.<eoh> [SpeechGPT]: <sosp><1><eosp><eoa>", "not a published"),
        ("[Human]: Speak. This is input: Hi.<eoh>. [SpeechGPT]: <sosp><1><eosp><eoa> ", "not a published"),
        ("[Human]: Speak. This is input: Hi.<eoh> [SpeechGPT]: <sosp><1> <2><eosp><eoa> ", "holds ' This is"),
        ("[Human]: Write. This is input: <sosp><1><eosp> <eoh> [SpeechGPT]: Hi.<eoa> ", "holds ' This is"),
        ("[Human]: Write. This is input: <sosp><eosp><eoh> [SpeechGPT]: Hi.<eoa> ", "holds ' This is"),
        (
            "[Human]: Write. This is input: <sosp><007><eosp><eoh> [SpeechGPT]: Hi.<eoa> ",
            "written back otherwise",
        ),
        (
            "[Human]: One?<eoh> [SpeechGPT]: Two.<eoa> [Human]: Three?<eoh> [SpeechGPT]: Four.<eoa> ",
            "holds '<eoh>'",
        ),
        ("Human: One?<eoh> [SpeechGPT]: Two.<eoa> ", "not a published"),
    ],
)
def test_drift_of_instructions_is_named_with_its_line(tmp_path, line, reason):
    source = published(tmp_path / "in.jsonl", [INSTRUCT_LINES[0], line])
    with pytest.raises(ValueError, match=rf"in\.jsonl:2: .*{reason}"):
        read_published(source, InstructRow)


@pytest.mark.parametrize(
    "line, reason",
    [
        (CHAIN_LINES[0][:-1], "not a published ChainRow"),
        (CHAIN_LINES[0].replace("<eoh>.", "<eoh>"), "not a published ChainRow"),
        (CHAIN_LINES[0].replace("; [ta] ", " [ta] "), "not a published ChainRow"),
        (CHAIN_LINES[0].replace("; [ua] ", " [ua] "), "answer of this speech-text row holds '<sosp>'"),
        (CHAIN_LINES[0].replace("<63>", "<sixty>"), "holds '; \\[ua\\] '"),
        (CHAIN_LINES[0].replace("<987><eosp>", "<987>"), "not a published ChainRow"),
    ],
)
def test_drift_of_chains_is_named_with_its_line(tmp_path, line, reason):
    source = published(tmp_path / "in.jsonl", [CHAIN_LINES[0], line])
    with pytest.raises(ValueError, match=rf"in\.jsonl:2: .*{reason}"):
        read_published(source, ChainRow)


def test_drift_of_the_json_is_named_with_its_line(tmp_path):
    source = tmp_path / "in.jsonl"
    whole = json.dumps({"prefix": PREFIX, "plain_text": INSTRUCT_LINES[0]})
    for line, reason in (
        (whole[:-1], "not valid JSON"),
        ("[]", "expected a JSON object"),
        (whole.replace("  SpeechGPT", " SpeechGPT"), "prefix is not the published one"),
        (json.dumps({"plain_text": "x"}), "fields plain_text; expected prefix, plain_text"),
        (json.dumps({"prefix": PREFIX, "plain_text": 3}), "plain_text is int"),
        (whole.replace('", "', '","'), "not spelled as json.dumps"),
    ):
        source.write_text(f"{whole}\n\n{line}\n", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"in\.jsonl:3: .*{reason}"):
            read_published(source, InstructRow)


@pytest.mark.parametrize(
    "row",
    [
        InstructRow("x", "asr", "Write. This is input: it.", "a", [1]),
        InstructRow("x", "tts", "Speak.", "<sosp><1><eosp>", [1]),
        InstructRow("x", "chat", question="<eoh> [SpeechGPT]: ", answer="b"),
        ChainRow("x", "speech-text", "one; [ta] two", "b", [1]),
        ChainRow("x", "text-text", "q", "b; [ua] <sosp><1><eosp>"),
        ChainRow("x", "text-text", "<sosp><1><eosp>", "b"),
    ],
)
def test_a_text_that_would_be_read_as_something_else_is_refused(row):
    with pytest.raises(ValueError, match="row x: cannot be written as published"):
        plain_text(row)


@pytest.mark.parametrize(
    "row, reason",
    [
        (InstructRow("x", "asr", "", "a", [1]), "asr needs description"),
        (InstructRow("x", "tts", "Speak.", "a"), "tts needs units"),
        (InstructRow("x", "chat", question="a", answer=" "), "chat needs answer"),
        (InstructRow("x", "chat", question="a", answer="b", units=[1]), "chat has no use for units"),
        (InstructRow("x", "song"), "kind is 'song'; expected asr, tts, chat"),
        (ChainRow("x", "speech-text", "q", "a"), "speech-text needs question_units"),
        (ChainRow("x", "text-text", "q", "a", [1]), "text-text has no use for question_units"),
        (ChainRow("x", "text-speech", "q", "a", [], [-1]), "the negative unit -1"),
        (ChainRow("x", "text-text", "q", "a", split="valid"), "split is 'valid'; expected train, dev, test"),
    ],
)
def test_rows_that_lack_a_part_are_refused(row, reason):
    with pytest.raises(ValueError, match=reason):
        plain_text(row)


def test_rows_keep_everything_in_their_own_files(tmp_path):
    rows = [
        ChainRow(
            str(n), kind, "train", 'x <12> "\n', [1] * kind.startswith("s"), [2] * kind.endswith("h"), "dev"
        )
        for n, kind in enumerate(KINDS)
    ]
    assert write_chain(tmp_path / "rows.jsonl", rows) == 5
    assert read_chain(tmp_path / "rows.jsonl") == rows
    for row in rows:
        assert parse(plain_text(row), ChainRow, row.id, "dev") == row


def test_unit_lines(tmp_path):
    path = tmp_path / "train.txt"
    assert write_unit_lines(path, [[189, 247], [300]]) == 2
    assert path.read_bytes() == b"<sosp><189><247><eosp>\n<sosp><300><eosp>\n"
    assert list(read_unit_lines(path, 301)) == [[189, 247], [300]]
    with pytest.raises(ValueError, match=r"train\.txt:2: unit 300 is out of range"):
        list(read_unit_lines(path, 300))


def test_command(tmp_path):
    source = published(tmp_path / "in.jsonl", [*INSTRUCT_LINES, "nothing"], ascii=False)
    rows, back = tmp_path / "rows.jsonl", tmp_path / "back.jsonl"
    command = [str(source), "--read", "--kind", "instruct", "--out", str(rows)]
    with pytest.raises(ValueError, match=r"in\.jsonl:5: not a published InstructRow"):
        main(command)
    assert not rows.exists()
    assert main([*command, "--max-bad", "1"]) == 0
    assert len(read_instruct(rows)) == 4 and "in.jsonl:5" in (tmp_path / "rows.rejects.jsonl").read_text()
    assert main([str(rows), "--kind", "instruct", "--out", str(back), "--utf8"]) == 0
    assert back.read_bytes() == b"".join(source.read_bytes().splitlines(keepends=True)[:4])
