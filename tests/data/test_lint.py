"""Every kind of fault is found with its line, clean files are clean, and nothing stops the linter."""

import json
import random
import time

import numpy as np
import pytest

from speechgpt.data import files
from speechgpt.data.dialogue_rows import ChainRow, InstructRow, write_chain, write_instruct
from speechgpt.data.files import write_jsonl
from speechgpt.data.lint import Linter, LintOptions, least_tokens, split_of_name
from speechgpt.data.lint_rows import INJECTED, read_line, short
from speechgpt.data.published import PREFIX, parse, write_published, write_unit_lines
from speechgpt.data.rows import UnitRow, Utterance, write_manifest, write_units

ROWS = [
    InstructRow("a", "asr", "Write it down.", "the bird rode", [661, 588]),
    InstructRow("b", "tts", "Speak this out.", "Naïve words.", [1, 2, 3]),
    InstructRow("c", "chat", question="Who was first?", answer="Nobody knows,\nor tells."),
]
CHAINS = [
    ChainRow("d", "speech-speech", "What is it?", "It is late.", [661, 987], [497, 63]),
    ChainRow("e", "speech-text", "And now; then?", "Wait; see.", [1, 2]),
    ChainRow("f", "text-speech", "How much is it?", "Three.", [], [5, 6]),
    ChainRow("g", "text-text", "How are you?", "Fine; and you?"),
]


def findings(*files, **options) -> list[tuple[str, int, str]]:
    """(file name, line, kind) of each finding, and the linter."""
    linter = Linter(LintOptions(**options))
    return [(f.file.rsplit("/", 1)[-1], f.line, f.kind) for f in linter.run(list(files))]


def published(path, *plains, prefix=PREFIX):
    path.write_text("".join(json.dumps({"prefix": prefix, "plain_text": p}) + "\n" for p in plains))
    return path


@pytest.mark.parametrize("ascii", [True, False])
def test_clean_files_of_every_kind_are_clean(ascii, tmp_path):
    files = [tmp_path / f"{n}.jsonl" for n in range(6)]
    write_published(files[0], ROWS, ascii)
    write_published(files[1], CHAINS, ascii)
    own = [
        InstructRow("h", "asr", "Write.", "other words", [9, 8]),
        InstructRow("i", "chat", question="Q", answer="A"),
    ]
    write_instruct(files[2], own)
    write_chain(files[3], [ChainRow("j", "text-text", "And own rows?", "Too.")])
    write_units(files[4], [UnitRow("k", [4, 5], [1, 2], text="something else")])
    write_manifest(files[5], [Utterance("l", "l.wav", 1.0, text="a recording")])
    write_unit_lines(tmp_path / "u.txt", [[7, 8, 9]])
    write_jsonl(tmp_path / "qa.jsonl", [{"question": "Own notes?", "answer": "Yes.", "source": "me"}])
    (tmp_path / "plain.txt").write_text("a line of text, a < b\nanother [see 3]\n\n")
    linter = Linter(LintOptions(num_units=1000, max_length=200))
    assert list(linter.run([*files, tmp_path / "u.txt", tmp_path / "qa.jsonl", tmp_path / "plain.txt"])) == []
    assert linter.rows["chat"] == 2 and linter.rows["units"] == 2 and linter.rows["text"] == 2
    assert sum(linter.rows.values()) == 16


GOOD = "[Human]: Speak. This is input: Hi there.<eoh> [SpeechGPT]: <sosp><1><2><eosp><eoa> "
CHAIN = "[Human]: <sosp><1><eosp><eoh>. [SpeechGPT]: Who?; [ta] Me.; [ua] <sosp><5><eosp><eoa>."


@pytest.mark.parametrize(
    ("plain", "kinds"),
    [
        (GOOD[:-1], {"template"}),
        (GOOD.replace("<eoh> ", "<eoh>. "), {"template"}),
        (GOOD.replace("<1><2>", "<1> <2>"), {"template"}),
        (GOOD.replace("<2><eosp>", "<007><eosp>"), {"template"}),
        (GOOD.replace("Hi there.", " "), {"template"}),
        (GOOD.replace("Hi there.", "Hi <12> there."), {"injection"}),
        (GOOD.replace("Hi there.", "Hi <eosp> there."), {"injection"}),
        (GOOD.replace("Hi there.", "[Human]: hi"), {"injection"}),
        (GOOD.replace("<eoa> ", ""), {"template"}),  # an answer that was cut
        (CHAIN[:-1], {"template"}),
        (CHAIN.replace("; [ta] ", " [ta] "), {"template"}),
        (CHAIN.replace("; [ua] <sosp>", "; [ua] <sosp> "), {"template"}),
        (CHAIN.replace("Me.", "Me <3>"), {"injection"}),
        (CHAIN.replace("Me.", "Me; [ua] no"), {"template", "injection"}),
        (GOOD.replace("<2>", "<1000>"), {"range"}),
    ],
)
def test_faults_of_a_line_are_named_with_it(plain, kinds, tmp_path):
    path = published(tmp_path / "x.jsonl", CHAIN.replace("Me", "You"), plain)
    found = findings(path, num_units=1000)
    assert {kind for _, _, kind in found} == kinds
    assert {(name, line) for name, line, _ in found} == {("x.jsonl", 2)}


def test_what_the_reader_refuses_the_linter_reports(tmp_path):
    """Random damage: `published.parse` is the judge of the template, the linter may only be stricter."""
    rng = random.Random(3)
    pieces = [
        "<eoh>",
        " ",
        ".",
        "<eoa>",
        "; [ta] ",
        "; [ua] ",
        "<sosp>",
        "<eosp>",
        "<12>",
        " This is input: ",
        "x",
    ]
    clean = refused = 0
    for _ in range(3000):
        plain = rng.choice(
            [GOOD, CHAIN, "[Human]: Who?<eoh> [SpeechGPT]: Me.<eoa> ", GOOD.replace("Speak", "So so")]
        )
        for _ in range(rng.randrange(3)):
            at, end = sorted(rng.randrange(len(plain) + 1) for _ in range(2))
            damage = [plain[:at] + rng.choice(pieces) + plain[at:], plain[:at] + plain[min(end, at + 6) :]]
            plain = rng.choice(damage)
        found = read_line(json.dumps({"prefix": PREFIX, "plain_text": plain}).encode(), True)
        kinds = {kind for kind, _ in found.problems}
        row = None
        for kind in (InstructRow, ChainRow):
            try:
                row = row or parse(plain, kind, "x")
            except ValueError:
                continue
        if row is None:
            refused += 1
            assert kinds, plain
        else:
            clean += 1
            assert "template" not in kinds and "broken" not in kinds, (plain, found.problems)
            assert found.kind == row.kind, plain
    assert clean > 500 and refused > 500


def test_broken_lines_stop_nothing(tmp_path, monkeypatch):
    good = json.dumps({"prefix": PREFIX, "plain_text": GOOD}).encode()
    lines = [
        good,
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"a": ' * 9999,
        b'{"prefix": 3, "plain_text": "x"}',
        b'{"id": "x"}',
        b'{"plain_text": "\\ud800"}',
        b'{"n": ' + b"9" * 5000 + b"}",
        b"x" * 3000,
        good.replace(b"Hi", b"Ho"),
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    monkeypatch.setattr(files, "LONGEST_LINE", 70_000)
    found = findings(path)
    assert {line for _, line, _ in found} == set(range(2, 11)), "all but the first and the last"
    path.write_bytes(good + b"\n" + b"y" * 200_000 + b"\n" + good.replace(b"Hi", b"Ho") + b"\n")
    assert findings(path) == [("x.jsonl", 2, "broken")], (
        "a line that is too long is left out, the next is read"
    )


def test_the_prefix_and_the_json_must_be_the_published_ones(tmp_path):
    path = published(tmp_path / "x.jsonl", GOOD, prefix=PREFIX.replace("  ", " "))
    assert findings(path) == [("x.jsonl", 1, "template")]
    line = json.dumps({"prefix": PREFIX, "plain_text": GOOD})
    path.write_text(line.replace('", "plain', '","plain') + "\n" + line[:-1] + ', "x": 1}')
    assert findings(path)[:2] == [("x.jsonl", 1, "template"), ("x.jsonl", 2, "template")]


def test_own_rows_are_checked_by_their_fields(tmp_path):
    path = tmp_path / "own.jsonl"
    write_jsonl(path, [
        {"id": "a", "kind": "asr", "description": "D", "text": "t", "units": [3]},
        {"id": "b", "kind": "asr", "description": "D", "text": "t2"},
        {"id": "c", "kind": "chat", "question": "q", "answer": "a", "colour": 1},
        {"id": "d", "units": [3, 3], "durations": [1, 1]},
        {"id": "e", "kind": "text-text", "question": "see <12>", "answer": "a"},
        {"id": "f", "units": [12], "durations": [1]},
        {"id": "g", "path": "g.wav", "seconds": 0.0},
        {"nothing": "known"},
    ])  # fmt: skip
    kinds = {line: kind for _, line, kind in findings(path, num_units=12)}
    assert kinds == {
        2: "fields",
        3: "fields",
        4: "fields",
        5: "injection",
        6: "range",
        7: "fields",
        8: "fields",
    }


def test_duplicates_point_at_the_first(tmp_path):
    one = published(tmp_path / "one.jsonl", GOOD, CHAIN, GOOD)
    two = published(tmp_path / "two.jsonl", CHAIN)
    found = [
        str(f) for f in Linter(LintOptions(ignore=frozenset({"leak-text", "leak-units"}))).run([one, two])
    ]
    assert found == [
        f"{one}:3: duplicate: the same row as {one}:1",
        f"{two}:1: duplicate: the same row as {one}:2",
    ]
    rows = [UnitRow("x", [1], [1], text="one"), UnitRow("x", [2], [1], text="two")]
    write_jsonl(tmp_path / "units.jsonl", [vars(row) for row in rows])
    assert findings(tmp_path / "units.jsonl") == [("units.jsonl", 2, "duplicate")]


def test_leaks_are_reported_in_the_split_that_is_held_back(tmp_path):
    train = published(tmp_path / "train.jsonl", GOOD, CHAIN)
    same_text = GOOD.replace("Hi there.", "HI, there").replace("<1><2>", "<8><9>")
    same_units = "[Human]: Write. This is input: <sosp><1><2><eosp><eoh> [SpeechGPT]: no<eoa> "
    test = published(
        tmp_path / "test.jsonl", same_text, same_units, GOOD.replace("Hi there.", "New").replace("<2>", "<9>")
    )
    assert findings(test, train) == [("test.jsonl", 1, "leak-text"), ("test.jsonl", 2, "leak-units")]
    again = published(tmp_path / "train-2.jsonl", same_text)
    assert findings(train, again) == [], "two files of one split share what they like"
    rows = [UnitRow("x", [1], [1], text="one"), UnitRow("y", [2], [1], text="One!", split="dev")]
    write_units(tmp_path / "units.jsonl", rows)
    assert findings(tmp_path / "units.jsonl") == [("units.jsonl", 2, "leak-text")]


def test_splits_of_file_names(tmp_path):
    names = {
        "a/train.jsonl": "train",
        "a/cm-valid_2.jsonl": "dev",
        "TEST.txt": "test",
        "a/trainer.txt": "a/trainer.txt",
    }
    assert {name: split_of_name(tmp_path.__class__(name)) for name in names} == names


def test_answers_that_would_be_cut_are_counted_by_the_fewest_tokens(tmp_path):
    units = "".join(f"<{n}>" for n in range(600))
    heard = f"[Human]: Write. This is input: <sosp>{units}<eosp><eoh> [SpeechGPT]: a bird<eoa> "
    path = published(tmp_path / "x.jsonl", GOOD, heard, GOOD.replace("<1>", f"<1>{units}"))
    said = [f.what for f in Linter(LintOptions(max_length=512)).run([path])]
    assert len(said) == 2 and "all of its answer" in said[0] and "its answer's end" in said[1]
    assert findings(path, max_length=900) == []


def test_memory_holds_hashes_and_not_rows():
    linter = Linter()
    for row in range(1000):
        linter._keys["row"].add("x" * 10_000 + str(row % 500), row)
    keys = linter._keys["row"]
    assert keys.hashes.itemsize * len(keys.hashes) + keys.rows.itemsize * len(keys.rows) == 12_000
    groups = list(keys.groups())
    assert len(groups) == 500 and all(np.array_equal(g, [g[0], g[0] + 500]) for g in groups)


def test_fewest_tokens_of_own_and_published_rows_agree():
    for row in ROWS + CHAINS:
        from speechgpt.data.published import plain_text

        line = json.dumps({"prefix": PREFIX, "plain_text": plain_text(row)}).encode()
        own = {name: value for name, value in vars(row).items() if value}
        both = [read_line(line, True), read_line(json.dumps(own).encode(), True)]
        counts = [least_tokens(found) for found in both]
        prefix = len(PREFIX.split())
        assert counts[0] == (counts[1][0] + prefix, counts[1][1] + prefix), row


def test_injections_are_what_the_upstream_vocabulary_forbids():
    from speechgpt.upstream_vocabulary import FORBIDDEN

    for text in (
        "<12>",
        "<sosp>",
        "[ua]",
        "<eos>",
        "</s>",
        "<unk>",
        "[SpeechGPT]",
        "<b>",
        "[see 3]",
        "<12 >",
    ):
        assert bool(INJECTED.search(text)) == bool(FORBIDDEN.search(text)), text


def test_as_many_splits_as_rows_take_no_longer(tmp_path):
    """70,000 took 37 s when each was looked for in a list, and did not fit 16 bits; now 1 s, writing too."""
    path = tmp_path / "x.jsonl"
    write_jsonl(path, ({"text": f"t{n % 69_999}", "split": f"s{n}"} for n in range(70_000)))
    started = time.perf_counter()
    found = [f for f in Linter().run([path]) if f.kind == "leak-text"]
    assert [f.line for f in found] == [70_000]
    assert found[0].what == f"the same text as {path}:1 (s0), here in s69999"
    assert time.perf_counter() - started < 10


def test_nothing_of_a_row_reaches_the_terminal_as_it_is(tmp_path):
    hostile = "\x1b]0;pwned\x07\u202e"
    rows = [
        {"text": f"{hostile} <12>"},
        {"text": "same", "split": hostile},
        {"text": "same"},
        {hostile: 1},
        {"kind": "asr", hostile: 1},
        {"id": hostile, "path": "x", "seconds": 0.0},
        {"id": "a", "path": "x", "seconds": hostile},
        {"prefix": hostile, "plain_text": hostile},
    ]
    path = tmp_path / "x\x1b.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [str(finding) for finding in Linter().run([path])]
    assert {line.split(":")[1] for line in said} >= set("1245678"), said
    assert all(line.isprintable() and line.encode() for line in said)
    assert said[0].endswith(r"\x1b]0;pwned\x07\u202e <12>"), "and can still be told"
    assert short("naïve 鳥 \t\n \u3000x") == "naïve 鳥 x"


def test_a_row_without_units_lacks_a_field(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"id": "a", "units": [], "durations": []}])
    found = list(Linter(LintOptions(num_units=10)).run([tmp_path / "x.jsonl"]))
    assert [(f.kind, f.what) for f in found] == [("fields", "units is empty")]


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_is_one_finding(indent, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"prefix": PREFIX, "plain_text": GOOD}] * 3, indent=indent))
    found = list(Linter().run([path]))
    assert [(f.line, f.kind) for f in found] == [(1, "broken")] and "a JSON array" in found[0].what
    path.write_text("[laughter] and then\nno array\n[\n")
    linter = Linter()
    assert list(linter.run([path])) == [] and linter.rows == {"text": 3}


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_length_that_the_model_cannot_say_is_the_fewest(error, tmp_path):
    def measure(found):
        raise error("no such text")

    path = published(tmp_path / "x.jsonl", GOOD)
    said = [f.what for f in Linter(LintOptions(max_length=5, measure=measure)).run([path])]
    assert len(said) == 1 and said[0].startswith("at least ")
    said = [f.what for f in Linter(LintOptions(max_length=5, measure=lambda found: (3, 9))).run([path])]
    assert said == ["9 tokens, 5 fit: its answer's end would be lost"]
