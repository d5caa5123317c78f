"""Fresh and extended LLaMA checkpoints."""

import pytest
import torch

from speechgpt.model import LlamaSettings, extend_llama, load_llama, load_trained, main, make_llama, new_llama
from speechgpt.text_tokenizer import train_tokenizer
from speechgpt.vocabulary import Vocabulary

UNITS = 7
SIZES = "hidden: 16\nlayers: 2\nheads: 2\nintermediate: 24\ncontext: 64\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["the human says see moo", "low lawn soon"] * 3, 300, folder)
    return folder


def settings(**changes) -> LlamaSettings:
    return LlamaSettings(hidden=16, layers=2, heads=2, intermediate=24, context=64, **changes)


def base_llama(folder, vocabulary, tied):
    """An ordinary LLaMA with the rows of the text tokenizer alone."""
    model = new_llama(settings(tied=tied), vocabulary)
    model.resize_token_embeddings(vocabulary.base_size, mean_resizing=False)
    model.save_pretrained(folder)
    return model


def test_a_fresh_model_has_a_row_for_each_token_and_the_same_weights_each_time(tokenizer):
    vocabulary = Vocabulary.create(tokenizer, UNITS)
    first, second = (new_llama(settings(), vocabulary) for _ in range(2))
    assert first.get_input_embeddings().num_embeddings == vocabulary.size
    assert (first.config.bos_token_id, first.config.eos_token_id) == (vocabulary.bos_id, vocabulary.eos_id)
    weights = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("tied", [True, False])
def test_extending_keeps_old_rows_and_starts_new_ones_near_the_mean(tokenizer, tmp_path, tied):
    vocabulary = Vocabulary.create(tokenizer, UNITS)
    base = base_llama(tmp_path, vocabulary, tied)
    model = extend_llama(load_llama(tmp_path), vocabulary)
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old, table = getattr(base, part)().weight, getattr(model, part)().weight
        assert len(table) == vocabulary.size
        assert torch.equal(table[: vocabulary.base_size], old)
        fresh = table[vocabulary.base_size :]
        assert len(torch.unique(fresh, dim=0)) == len(fresh), "new rows must differ from each other"
        mean, deviation = old.mean(dim=0), old.std(dim=0)
        units = fresh[:UNITS]
        assert ((units - mean).abs() < 0.5 * deviation).all(), "units must start at the mean, not from noise"
    assert extend_llama(model, vocabulary) is model  # a second time nothing changes


def test_a_marker_starts_near_the_pieces_of_its_name(tokenizer, tmp_path):
    vocabulary = Vocabulary.create(tokenizer, UNITS)
    base_llama(tmp_path, vocabulary, tied=True)
    table = extend_llama(load_llama(tmp_path), vocabulary).get_input_embeddings().weight
    mean = table[: vocabulary.base_size].mean(dim=0)
    spelled = table[vocabulary.encode_text("Human")].mean(dim=0) - mean
    marker = table[vocabulary.single("[Human]")] - mean
    unit = table[vocabulary.unit_id(0)] - mean
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(marker, spelled, dim=0) > 0.8 > similarity(unit, spelled, dim=0)


def test_a_model_of_another_size_is_refused(tokenizer):
    vocabulary = Vocabulary.create(tokenizer, UNITS)
    model = new_llama(settings(), vocabulary)
    with pytest.raises(ValueError, match=f"has {vocabulary.size} embedding rows; expected"):
        extend_llama(model, Vocabulary.create(tokenizer, UNITS + 5))


def test_init_lm_writes_a_fresh_and_an_extended_checkpoint(tokenizer, tmp_path, capsys):
    (tmp_path / "llama.yaml").write_text(SIZES)
    common = ["--config", str(tmp_path / "llama.yaml"), "--tokenizer", str(tokenizer), "--units", str(UNITS)]
    assert main([*common, "--out", str(tmp_path / "fresh")]) == 0
    assert main([*common, "--out", str(tmp_path / "fresh")]) == 0  # replaces its own
    model, vocabulary = load_trained(tmp_path / "fresh")
    assert model.config.tie_word_embeddings and vocabulary.num_units == UNITS
    base_llama(tmp_path / "base", vocabulary, tied=False)
    assert main([*common, "--base", str(tmp_path / "base"), "--out", str(tmp_path / "more")]) == 0
    assert load_trained(tmp_path / "more")[0].get_output_embeddings().out_features == vocabulary.size
    assert "7 units, native" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob(".*.part"))


def test_init_lm_says_what_is_wrong(tokenizer, tmp_path):
    config = tmp_path / "llama.yaml"
    common = ["--config", str(config), "--tokenizer", str(tokenizer), "--units", "7"]
    config.write_text(SIZES + "hiden: 3\n")
    with pytest.raises(ValueError, match="unknown setting hiden; known: hidden, layers"):
        main([*common, "--out", str(tmp_path / "out")])
    config.write_text(SIZES)
    with pytest.raises(FileNotFoundError, match="no LLaMA folder"):
        main([*common, "--base", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep me")
    with pytest.raises(ValueError, match="holds no model of ours"):
        main([*common, "--out", str(tmp_path / "mine")])
    vocabulary = Vocabulary.create(tokenizer, UNITS)
    base_llama(tmp_path / "base", vocabulary, tied=True)
    with pytest.raises(ValueError, match="layers 3 .config. and 2 .checkpoint"):
        make_llama(
            LlamaSettings(hidden=16, layers=3, heads=2, intermediate=24, base=str(tmp_path / "base")),
            vocabulary,
        )


@pytest.mark.parametrize("preset", ["toy", "mini", "own", "speechgpt-7b"])
def test_the_presets_load(preset):
    from importlib.resources import files

    found = LlamaSettings.load(files("speechgpt") / "presets" / preset / "llama.yaml")
    assert found.hidden // found.heads in (16, 64, 128)
