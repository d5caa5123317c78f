"""The command: its report, its exit codes, and what only a model's tokens can say."""

import json

import pytest

from speechgpt import cli
from speechgpt.data.dialogue_rows import ChainRow, InstructRow, write_chain
from speechgpt.data.lint import least_tokens
from speechgpt.data.lint_rows import read_line
from speechgpt.data.published import PREFIX, plain_text, write_published
from speechgpt.lint_data import PlainTokens, VocabularyTokens, tokens_of
from speechgpt.prompts import PromptFormat
from speechgpt.vocabulary import Vocabulary

ROWS = [
    InstructRow("a", "asr", "Write it down.", "the bird rode", [661, 588, 3]),
    InstructRow("b", "tts", "Speak this out.", "the capital of france", [1, 2, 3]),
    InstructRow("c", "chat", question="Who was first?", answer="Nobody knows."),
    ChainRow("d", "speech-speech", "What is it?", "It is late.", [661, 987], [497, 63]),
    ChainRow("g", "text-text", "How are you?", "Fine; and you?"),
]


def run(capsys, *argv) -> tuple[int, list[str]]:
    code = cli.main(["lint-data", *map(str, argv)])
    return code, capsys.readouterr().out.splitlines()


@pytest.fixture
def clean(tmp_path):
    write_published(tmp_path / "train.jsonl", ROWS)
    return tmp_path / "train.jsonl"


def test_clean_is_0_and_findings_are_2(clean, tmp_path, capsys):
    code, lines = run(capsys, clean, "--units", 1000, "--max-length", 512)
    assert (
        code == 0
        and len(lines) == 1
        and lines[0].startswith("no findings in 5 rows of 1 files (1 asr, 1 chat")
    )
    code, lines = run(capsys, clean, "--units", 900)
    assert code == 2 and lines[0] == f"{clean}:4: range: question_units holds unit 987; K is 900"
    assert lines[-2].split()[:2] == ["range", "1"] and lines[-1].startswith("1 finding in 5 rows")
    assert run(capsys, clean, "--units", 900, "--ignore", "range")[0] == 0
    code, lines = run(capsys, clean, "--units", 900, "--json")
    first, last = map(json.loads, lines)
    assert first == {
        "file": str(clean),
        "line": 4,
        "kind": "range",
        "what": "question_units holds unit 987; K is 900",
    }
    assert last["summary"]["findings"] == {"range": 1} and last["summary"]["rows_per_second"] > 0
    assert cli.main(["lint-data", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: no such file of rows" in capsys.readouterr().err


def test_the_published_model_has_markers_in_pieces(clean, published, capsys):
    code, lines = run(capsys, clean, "--model", published / "SpeechGPT-7B-cm")
    found = [line for line in lines if ": marker: " in line]
    assert code == 2 and len(found) == 3 and all("tokens in" in line for line in found)
    assert f"{clean}:1: marker: <eoa> is " in found[0] and found[0].endswith("in 4 more rows of this file")
    assert f"{clean}:4: marker: [ta]" in "\n".join(found)
    assert run(capsys, clean, "--model", published / "SpeechGPT-7B-cm", "--ignore", "marker")[0] == 0


def test_lengths_are_those_that_training_sees(published, upstream, native, clean):
    """With a model the count is exact, in both profiles; without one it is never more."""
    lines = clean.read_bytes().splitlines()
    small = [InstructRow("a", "asr", "Write.", "the capital", [1, 2]), *ROWS[2:3], ROWS[4]]
    for vocabulary, rows in ((upstream, ROWS), (native, small)):
        prefix = PREFIX if vocabulary is upstream else ""
        tokens = VocabularyTokens(vocabulary, prefix, 0)
        for row in rows:
            line = json.dumps({"prefix": PREFIX, "plain_text": plain_text(row)}).encode()
            own = json.dumps({name: value for name, value in vars(row).items() if value}).encode()
            rendered = PromptFormat(vocabulary, prefix).render(row)
            assert tokens(read_line(own, True)) == (rendered.prompt_length, len(rendered.ids))
            assert tokens(read_line(line, True))[1] == len(rendered.ids), row
            if vocabulary is upstream:
                assert least_tokens(read_line(line, True))[1] <= len(rendered.ids)
    assert len(lines) == len(ROWS)


def test_a_limit_is_met_exactly(clean, published, capsys):
    cm = published / "SpeechGPT-7B-cm"
    lengths = [len(PromptFormat(Vocabulary.load(cm), PREFIX).render(row).ids) for row in ROWS]
    longest = max(lengths)
    assert run(capsys, clean, "--model", cm, "--ignore", "marker", "--max-length", longest)[0] == 0
    code, lines = run(capsys, clean, "--model", cm, "--ignore", "marker", "--max-length", longest - 1)
    row = lengths.index(longest) + 1
    assert code == 2 and lines[0].startswith(
        f"{clean}:{row}: truncated: {longest} tokens, {longest - 1} fit:"
    )


def test_a_plain_tokenizer_knows_no_marker(published, native, tmp_path, clean, capsys):
    (tmp_path / "llama").mkdir()
    model = (published / "SpeechGPT-7B-cm" / "tokenizer.model").read_bytes()
    (tmp_path / "llama" / "tokenizer.model").write_bytes(model)
    assert isinstance(tokens_of(tmp_path / "llama", 10), PlainTokens)
    code, lines = run(capsys, clean, "--model", tmp_path / "llama", "--max-length", 100)
    marked = [line for line in lines if ": marker: " in line]
    assert code == 2 and len(marked) == 8, "all that stand in the rows; <eos> does not"
    assert any(": truncated: " in line for line in lines)
    native.save(tmp_path / "native")
    assert tokens_of(tmp_path / "native", 10).markers() == {}
    with pytest.raises(FileNotFoundError, match="holds no vocabulary"):
        tokens_of(tmp_path, 10)


def test_own_rows_and_a_model_directory(tiny_model, tmp_path, capsys):
    write_chain(tmp_path / "chain.jsonl", [ChainRow("x", "speech-text", "Hi", "Ho", [1, 99])])
    code, lines = run(capsys, tmp_path / "chain.jsonl", "--model", tiny_model, "--max-length", 512)
    assert code == 2 and lines[0].endswith("1: range: question_units holds unit 99; K is 12")
    assert len(lines) == 3, "a row that the model cannot render is counted by the fewest tokens"


def test_a_surrogate_ends_no_run(tmp_path, capsys):
    """Half a surrogate pair is no character, and a row that holds one no row."""
    path = tmp_path / "x.jsonl"
    rows = [{"id": "a", "kind": "chat", "question": "\ud800 <12>", "answer": "b"}]
    rows.append({"id": "b", "kind": "chat", "question": "q", "answer": "<12>"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for as_json in ([], ["--json"]):
        code, lines = run(capsys, path, *as_json)
        text = "\n".join(lines)
        assert code == 2 and text.isascii() and "surrogate" in text and "injection" in text, text
