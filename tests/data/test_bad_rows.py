"""Rows that mutation found: each crashed its reader, hung it, or was refused without its place."""

import time

import pytest

from speechgpt.data import files
from speechgpt.data.dialogue_rows import InstructRow, read_chain
from speechgpt.data.lint import Linter
from speechgpt.data.published import parse, read_published, read_unit_lines
from speechgpt.data.qa_file import read_questions
from speechgpt.data.rows import read_manifest, read_units
from speechgpt.data.unit_text import text_to_units
from speechgpt.row_files import read_lines

DEEP = b"[" * 99_999
MANIFEST = b'{"id": "a", "path": "a.wav", "seconds": %b}'
UNITS = b'{"id": "a", "units": %b, "durations": [1]}'
QUESTION = b'{"id": "a", "question": "q", "answer": %b}'
PUBLISHED = b'{"prefix": %b, "plain_text": "x"}'


@pytest.mark.parametrize(
    "read, line, said",
    [
        (read_manifest, MANIFEST % (b"[" * 99_999), "nested too deep"),
        (read_manifest, MANIFEST % (b"9" * 5000), "not valid JSON"),
        (read_manifest, MANIFEST % (b"9" * 4000), "seconds of audio"),
        (read_manifest, MANIFEST % b"1e999", "inf seconds"),
        (read_manifest, MANIFEST % b"Infinity", "inf seconds"),
        (read_manifest, MANIFEST % b"NaN", "nan seconds"),
        (read_manifest, MANIFEST % b'1, "phones": [["AH", "x"]]', "phones are not"),
        (read_manifest, MANIFEST % b'1, "phones": [[[[[]]]]]', "phones are not"),
        (read_manifest, MANIFEST % b'1, "text": "\\ud800"', "surrogate"),
        (read_manifest, MANIFEST % b'1, "text": "\xed\xa0\x80"', "not UTF-8"),
        (read_manifest, MANIFEST % b'1, "\\u001b[2J": 1', r"unknown field \x1b[2J"),
        (read_manifest, MANIFEST % b'1, "speaker": [1, 2]', "speaker is a list of 2; expected str"),
        (read_units, UNITS % b"[-1]", "negative unit -1"),
        (read_units, UNITS % b"[99999999999999999999]", "expected less than 2147483648"),
        (read_questions, QUESTION % (b"[" * 900 + b"]" * 900), "answer is list; expected text"),
        (read_questions, QUESTION % (b'" ", "%b": 1' % (b"a" * 99_999)), "answer is missing or blank"),
        (read_lines, b'{"id": "a\xff"}', "not UTF-8"),
        (read_lines, UNITS % DEEP, "nested too deep"),
        (read_unit_lines, b"<sosp><1\xff><eosp>", "not UTF-8"),
        (read_unit_lines, b"<sosp><" + b"9" * 5000 + b"><eosp>", "not units"),
        (lambda path: read_published(path, InstructRow), PUBLISHED % (b"[" * 900 + b"]" * 900), "is list"),
    ],
)  # fmt: skip
def test_refused_in_a_line_with_its_place(read, line, said, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes((b"<sosp><1><eosp>\n" if line.startswith(b"<") else b"\n") + line + b"\n")
    with pytest.raises(ValueError) as caught:
        list(read(path))
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ") and said in message
    assert message.isprintable() and len(message) < 1000
    findings = list(Linter().run([path]))
    assert findings and all(f.line == 2 and str(f).isprintable() for f in findings)


def test_a_line_without_end_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"{" + b" " * 5000)
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    for read in (read_chain, read_lines, read_unit_lines):
        with pytest.raises(ValueError, match="x.jsonl:1: more than 0 MB in a line"):
            list(read(path))


def test_a_byte_order_mark_and_pairs_of_surrogates_are_text(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + QUESTION % rb'"\ud83d\ude00 \\ud800"')
    assert read_questions(path)[0].answer == "\N{GRINNING FACE} \\ud800"
    assert [line.row for line in read_lines(path)] == ["q", "\N{GRINNING FACE} \\ud800"]


def test_units_are_ascii_digits():
    with pytest.raises(ValueError, match="not units"):
        text_to_units("<sosp><\N{ARABIC-INDIC DIGIT ONE}><eosp>")


def test_a_row_of_many_templates_is_refused_at_once():
    """The patterns try each sign with each other: 30,000 of them took hours."""
    plain = "[Human]: " + " This is input: <sosp><1>x<eoh> [SpeechGPT]: " * 30_000 + "<eoa>"
    started = time.process_time()
    with pytest.raises(ValueError, match="30000 times"):
        parse(plain, InstructRow, "a")
    assert time.process_time() - started < 1


def test_more_splits_than_two_bytes_count(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(f'{{"text": "t{i}", "split": "s{i}"}}\n' for i in range(66_000)) + '{"text": "t1"}'
    )
    assert [(f.line, f.kind) for f in Linter().run([path])] == [(66_001, "duplicate"), (2, "leak-text")]
