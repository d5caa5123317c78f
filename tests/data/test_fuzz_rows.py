"""Mutated row files are read, or refused in one line that names file and line. FUZZ=10000 mutates more."""

import functools
import json
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from speechgpt.data.dialogue_rows import ChainRow, InstructRow, read_chain, read_instruct
from speechgpt.data.lint import Linter, LintOptions
from speechgpt.data.published import read_published, read_unit_lines, write_published
from speechgpt.data.qa_file import read_questions
from speechgpt.data.rows import UnitRow, Utterance, read_manifest, read_units, write_rows
from speechgpt.row_files import read_lines

from ..fuzzing import COUNT, Watch, with_bytes_changed

MOST_BYTES = 64 << 20  # the longest lines here take 4 MB
INSTRUCT = [
    InstructRow("a", "asr", "Write it down.", "naïve birds", [3, 1, 2]),
    InstructRow("b", "tts", "Say it.", 'he said "no"', [7, 8], split="dev"),
    InstructRow("c", "chat", question="who are you", answer="nobody\nat all"),
]
CHAIN = [
    ChainRow("a", "speech-speech", "what is it", "it is late", [5, 6, 5], [1, 2]),
    ChainRow("b", "speech-text", "and now; then", "wait; see", [9, 1]),
    ChainRow("c", "text-speech", "how are you", "well", answer_units=[4, 5], split="test"),
]
UNITS = [UnitRow("a", [3, 1, 3], [1, 5, 2], "me", "toy", "moss"), UnitRow("b", [9], [40], split="dev")]
UTTERANCES = [
    Utterance("a", "a.wav", 1.5, "me", "toy", "one moss", phones=[["W", 0.5], ["AH", 1.25]]),
    Utterance("b", "b/b.flac", 2, split="test", slots="size=small"),
]
QUESTIONS = ['{"id": "a", "question": "who", "answer": "me", "split": "dev", "note": [1, {"a": null}]}'] * 2
NUMBERS = ("1e999", "-1e999", "NaN", "-Infinity", "1" * 4000, "1" * 5000, "1e400", "-1", "0", "0.5", "1e-320")
TEXTS = (r'"\ud800"', r'"a\udfff\u0000"', r'"\u001b[2J\r\n"', '"\x00"', '""', '" "', '"<sosp><12><eosp>"')
OTHERS = ("null", "true", "[]", "{}", "[1.5]", '["a"]', "[-1, 2]", "[99999999999999999999]", "[[]]", "[true]")
SIGNS = (" This is input: ", "<eoh> [SpeechGPT]: ", "<eoh>. [SpeechGPT]: ", "; [ta] ", "; [ua] ", "<sosp><1>")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[tuple]:
    """(a file's bytes, its own reader)."""
    folder = tmp_path_factory.mktemp("whole")
    made = [
        (lambda path: write_published(path, INSTRUCT), functools.partial(read_published, kind=InstructRow)),
        (lambda path: write_published(path, CHAIN, False), functools.partial(read_published, kind=ChainRow)),
        (lambda path: write_rows(path, INSTRUCT), read_instruct),
        (lambda path: write_rows(path, CHAIN), read_chain),
        (lambda path: write_rows(path, UNITS), read_units),
        (lambda path: write_rows(path, UTTERANCES), read_manifest),
        (lambda path: path.write_text("\n".join(QUESTIONS).replace('"a"', '"b"', 1)), read_questions),
        (lambda path: path.write_text("<sosp><1><2><eosp>\n<sosp><3><eosp>\n"), read_unit_lines),
    ]
    files = []
    for number, (write, read) in enumerate(made):
        write(folder / f"{number}.jsonl")
        files.append(((folder / f"{number}.jsonl").read_bytes(), read))
    return files


def odd_value(random: np.random.Generator) -> str:
    """JSON, or nearly, that no row holds there."""
    kind = random.integers(7)
    if kind == 0:
        opened, depth = ("[", '{"a":')[random.integers(2)], (40, 300, 900, 980, 99_999)[random.integers(5)]
        closed = {"[": "]", '{"a":': "}"}[opened] * depth
        return opened * depth + ("1" if opened != "[" else "") + closed * int(random.integers(4) > 0)
    if kind == 1:
        return json.dumps("".join(random.choice(SIGNS, 4)) + "x")
    if kind == 2 and not random.integers(8):
        piece = ("a ", "<sosp>", "<1>", "<1", "\x01", *SIGNS)[random.integers(5 + len(SIGNS))]
        return json.dumps(piece * (300_000 // len(piece)))
    return str(random.choice((NUMBERS, TEXTS, OTHERS)[kind % 3]))


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    if not random.integers(4):
        return with_bytes_changed(data, random, len(data))
    lines = data.decode().splitlines()
    at = int(random.integers(len(lines)))
    kind = random.integers(8)
    if kind < 4 and lines[at].startswith("{"):
        row = json.loads(lines[at])
        name = str(random.choice([*row, "kind", "units", "plain_text", "\x1b\ud800", "a" * 5000]))
        if kind == 3:  # a key twice
            lines[at] = f"{lines[at][:-1]}, {json.dumps(name)}: {odd_value(random)}}}"
        elif kind == 2 and isinstance(row.get(name), str):  # a text that goes on
            place = int(random.integers(len(row[name]) + 1))
            text = (*SIGNS, "\ud800", "\0", "<12>" * 9, "é" * 9999)[random.integers(len(SIGNS) + 4)]
            row[name] = (
                row[name][:place] + text * int(random.choice([1, 2, 20_000 // len(text)])) + row[name][place:]
            )
            lines[at] = json.dumps(row)
        else:
            row[name] = "@"
            lines[at] = json.dumps(row, ensure_ascii=False).replace('"@"', odd_value(random))
    elif kind == 4:
        lines[at] = ("\ufeff", "\0", "\x85", "[", "\u2028")[random.integers(5)] + lines[at]
    elif kind == 5:
        lines.insert(at, lines[int(random.integers(len(lines)))])
    elif kind == 6:
        lines[at] = lines[at][: int(random.integers(len(lines[at])))] + lines[at - 1]
    else:
        text = odd_value(random)
        return "\n".join((*lines[:at], text, *lines[at:])).encode("utf-16" if random.integers(2) else "utf-8")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def lint(path: Path) -> None:
    for finding in Linter(LintOptions(num_units=10, max_length=300)).run([path]):
        assert str(finding).isprintable() and len(str(finding)) < 500, str(finding)[:2000]


@pytest.mark.timeout(3600)
def test_mutated_rows_end_in_clear_errors(whole, tmp_path):
    random, path, refused = np.random.default_rng(0), tmp_path / "x.jsonl", 0
    with Watch(path, MOST_BYTES) as watch:
        for number in range(COUNT):
            data, read = whole[number % len(whole)]
            path.write_bytes(mutated(data, random))
            other = read_lines if random.integers(2) else whole[random.integers(len(whole))][1]
            what = f"file {number}"
            refused += watch.refuses(lambda read=read: deque(read(path), 0), what)
            watch.refuses(lambda other=other: deque(other(path), 0), what)
            assert not watch.refuses(lambda: lint(path), what), f"{what}: the linter reports, and goes on"
    print(f"{watch}, {refused} by their own readers")
    assert COUNT // 3 < refused < COUNT
