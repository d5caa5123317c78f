import json
import random
import shutil
from pathlib import Path

import pytest

from speechgpt.text_tokenizer import import_tokenizer, main
from speechgpt.vocabulary import MARKERS, Vocabulary

GOLDEN = Path(__file__).parent / "golden"
SENTENCES = ["what is the capital of france", "the capital is paris", "turn on the light", "two and two"]
ODD_TEXTS = [
    "hello", " leading", "trailing ", "two  spaces\t\n", "Ünïcödé 你好 🙂 e\u0301", "▁under", "a<b>c",
    "</s>", "<s> <pad>", "'s isn't",
    "<12>", "<eosp>", "[ua]", "<sosp><1><2><eosp>", "<eoa></s>", "\x00\x7f", "x" * 300, "[Human]: hi <eoh>",
]  # fmt: skip


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads((GOLDEN / "upstream.json").read_text(encoding="utf-8"))


def test_native_ids_follow_the_published_order(native):
    base = native.base_size
    assert native.units_to_ids([0, 19]) == [base, base + 19]
    assert [native.single(m) for m in MARKERS] == list(range(base + 20, base + 20 + len(MARKERS)))
    assert native.marker("ta") == native.marker("[ta]") and native.marker("Human") == native.marker("[Human]")
    assert native.size == base + 20 + len(MARKERS) and len(native.new_ids) == 29
    assert native.id_to_unit(base + 3) == 3 and native.is_unit(base + 3) and not native.is_unit(base + 20)
    with pytest.raises(ValueError, match="unit 20 is out of range"):
        native.unit_id(20)
    with pytest.raises(ValueError, match="no unit"):
        native.id_to_unit(3)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_native_text_round_trips_and_never_becomes_a_marker(native, text):
    ids = native.encode_text(text)
    assert native.decode_text(ids) == text
    assert set(ids) <= set(native.text_ids())


def test_native_random_unicode_round_trips(native):
    rng = random.Random(1)
    for _ in range(200):
        codes = [rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(9)]
        text = "".join(map(chr, codes))
        assert native.decode_text(native.encode_text(text)) == text
    with pytest.raises(ValueError, match="surrogate"):
        native.encode_text("a\ud800")


def test_native_save_load_and_transformers_agree(native, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig

    native.save(tmp_path)
    LlamaConfig(vocab_size=native.size).save_pretrained(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.describe() == native.describe()
    assert again.encode_text("so <12> it is") == native.encode_text("so <12> it is")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == native.size
    for name in MARKERS:
        assert tokenizer.convert_tokens_to_ids(name) == native.single(name)
    assert tokenizer.convert_tokens_to_ids("<7>") == native.unit_id(7)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (native.bos_id, native.eos_id)
    assert tokenizer.pad_token_id == native.pad_id
    assert tokenizer.encode("the capital", add_special_tokens=False) == native.encode_text("the capital")
    assert tokenizer.decode(native.encode_text("the capital")) == "the capital"
    again.save(tmp_path)  # onto itself
    assert Vocabulary.load(tmp_path).describe() == native.describe()


def test_load_refuses_what_does_not_fit(native, tmp_path):
    with pytest.raises(FileNotFoundError, match="init-lm"):
        Vocabulary.load(tmp_path)
    native.save(tmp_path)
    spec = json.loads((tmp_path / "speechgpt_vocab.json").read_text())
    bad = [({"format": 9}, "format 9"), ({"profile": "x"}, "profile"), ({"num_units": 5}, "differ")]
    for change, message in bad:
        (tmp_path / "speechgpt_vocab.json").write_text(json.dumps({**spec, **change}))
        with pytest.raises(ValueError, match=message):
            Vocabulary.load(tmp_path)
    with pytest.raises(ValueError, match="plain text tokenizer"):
        Vocabulary.create(tmp_path, 20)


def test_upstream_ids_are_those_of_transformers_4_33_1(upstream, golden):
    assert upstream.size == golden["size"]
    for name, token in golden["markers"].items():
        assert upstream.marker(name) == [token]
    for unit, token in golden["units"].items():
        assert upstream.unit_id(int(unit)) == token
    assert len(golden["cases"]) > 90
    for case in golden["cases"]:
        assert upstream.encode_template(case["text"]) == case["ids"], case["text"]


@pytest.mark.parametrize("text", ["<12>", "a <eosp>", "[ua]", "[ta]", "x<eoa>", "<5000>", "</s>", "[Human]"])
def test_upstream_refuses_text_that_it_cannot_keep_text(upstream, text):
    with pytest.raises(ValueError, match="native profile"):
        upstream.encode_text(text)


def test_upstream_keeps_other_brackets(upstream):
    text = "a < b, b > a; [see 3] <b> <12 >"
    assert upstream.decode_text(upstream.encode_text(text)) == text
    assert len(upstream.marker("<eoa>")) > 1 and len(upstream.marker("[ta]")) > 1


def test_upstream_save_load_and_published_folder(upstream, tmp_path):
    upstream.save(tmp_path)
    assert Vocabulary.load(tmp_path).describe() == upstream.describe()
    (tmp_path / "speechgpt_vocab.json").unlink()  # as published
    assert Vocabulary.load(tmp_path).describe() == upstream.describe()
    added = json.loads((tmp_path / "added_tokens.json").read_text())
    (tmp_path / "added_tokens.json").write_text(json.dumps({**added, "<eoh>": 5}))
    with pytest.raises(ValueError, match="<eoh> is 5"):
        Vocabulary.load(tmp_path)


def test_a_llama_tokenizer_model_is_taken_over_exactly(upstream, golden, tmp_path, capsys):
    shutil.copy(GOLDEN / "upstream.model", tmp_path / "tokenizer.model")
    assert main(["--from", str(tmp_path), "--out", str(tmp_path / "base")]) == 0
    assert str(upstream.base_size) in capsys.readouterr().out
    native = Vocabulary.create(tmp_path / "base", 10)
    assert native.base_size == upstream.base_size and (native.bos_id, native.eos_id) == (1, 2)
    odd = ["", 'Unless required by applicable law; "(c)" 2004  ☃🙂', " lead", "12<34> [ta] </s>"]
    for text in [*SENTENCES, *odd]:
        ids = native.encode_text(text)
        assert ids == upstream.pieces.encode(text)
        assert native.decode_text(ids) == text
    again = tmp_path / "again"
    assert import_tokenizer(tmp_path / "base", again) == upstream.base_size
    assert (again / "tokenizer.json").read_text() == (tmp_path / "base" / "tokenizer.json").read_text()


def test_command_trains_on_text_and_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES))
    (tmp_path / "b.jsonl").write_text('{"id": "x", "text": "seven seven seven", "units": [1]}\n')
    texts = [str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert main(["--text", *texts, "--size", "300", "--out", str(tmp_path)]) == 0
    vocabulary = Vocabulary.create(tmp_path, 4)
    assert vocabulary.base_size == 300
    assert len(vocabulary.encode_text("seven")) < 6
    config = tmp_path / "tokenizer.yaml"
    config.write_text("size: 280\n")
    assert main(["--config", str(config), "--text", *texts, "--out", str(tmp_path)]) == 0
    assert Vocabulary.create(tmp_path, 4).base_size == 280
    config.write_text("sise: 280\n")
    with pytest.raises(ValueError, match="unknown setting sise"):
        main(["--config", str(config), "--text", *texts, "--out", str(tmp_path)])
    with pytest.raises(ValueError, match="too small"):
        main(["--text", str(tmp_path / "a.txt"), "--size", "100", "--out", str(tmp_path)])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="no text"):
        main(["--text", str(tmp_path / "empty.txt"), "--out", str(tmp_path)])
    with pytest.raises(FileNotFoundError):
        main(["--from", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
