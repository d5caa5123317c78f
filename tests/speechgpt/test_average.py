"""The mean of models: weight by weight, of one family alone, and nothing written where they do not fit."""

from pathlib import Path

import pytest
import torch

from speechgpt.average import average_models, main
from speechgpt.data.files import read_json, write_json
from speechgpt.model import LlamaSettings, load_trained, new_llama, save_llama
from speechgpt.text_tokenizer import train_tokenizer
from speechgpt.vocabulary import Vocabulary

TEXTS = ["see moo low lawn", "you may say no more"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    for number in (0, 1):
        train_tokenizer([TEXTS[number]], 280, folder / str(number))
    return folder


def model(folder: Path, tokenizers: Path, seed: int, tokenizer: int = 0, tied: bool = True, layers: int = 2):
    vocabulary = Vocabulary.create(tokenizers / str(tokenizer), 6)
    sizes = LlamaSettings(
        hidden=16, layers=layers, heads=2, intermediate=24, context=64, tied=tied, seed=seed
    )
    made = new_llama(sizes, vocabulary)
    save_llama(made, vocabulary, folder)
    return made.state_dict()


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_the_mean_of_three(tmp_path, tokenizers, tied, capsys):
    folders = [tmp_path / name for name in "abc"]
    weights = [model(folder, tokenizers, seed, tied=tied) for seed, folder in enumerate(folders)]
    assert main([*map(str, folders), "--out", str(tmp_path / "mean")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mean'}: the mean of 3 models\n"
    found, vocabulary = load_trained(tmp_path / "mean")
    assert vocabulary.describe() == Vocabulary.load(folders[0]).describe()
    assert found.state_dict().keys() == weights[0].keys()
    for name, mean in found.state_dict().items():
        expected = torch.stack([each[name].double() for each in weights]).mean(0)
        assert torch.allclose(mean.double(), expected, rtol=0, atol=1e-7), name


def test_the_mean_of_one_is_itself_and_its_numbers_are_stored_as_they_were(tmp_path, tokenizers):
    model(tmp_path / "a", tokenizers, 0)
    half, vocabulary = load_trained(tmp_path / "a")
    save_llama(half.to(torch.float16), vocabulary, tmp_path / "half")
    assert main([str(tmp_path / "half"), "--out", str(tmp_path / "mean")]) == 0
    stored, mean = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "mean"))
    assert stored == mean
    assert main([str(tmp_path / "half"), "--out", str(tmp_path / "mean"), "--dtype", "float32"]) == 0
    assert (tmp_path / "mean" / "model.safetensors").stat().st_size > 1.8 * len(stored)


def test_the_mean_of_runs_is_named_after_them(tmp_path, tokenizers):
    for seed, name in enumerate("ab"):
        model(tmp_path / name, tokenizers, seed)
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    write_json(tmp_path / "a" / "done.json", {"identity": "first"})
    assert main([*both, "--out", str(tmp_path / "mean")]) == 0
    assert not (tmp_path / "mean" / "done.json").exists()  # the other is no run's
    write_json(tmp_path / "b" / "done.json", {"identity": "second"})
    named = {}
    for order in (both, both[::-1]):
        assert main([*order, "--out", str(tmp_path / "mean")]) == 0
        done = read_json(tmp_path / "mean" / "done.json")
        named[done["identity"]] = done["mean_of"]
    assert sorted(named.values()) == [["first", "second"], ["second", "first"]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokenizer": 1}, "has another vocabulary than"),
        ({"layers": 3}, r"b: num_hidden_layers is 3, in .*a 2$"),
        ({"tied": False}, r"b: tie_word_embeddings is False, in .*a True$"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(tmp_path, tokenizers, other, message):
    model(tmp_path / "a", tokenizers, 0)
    model(tmp_path / "b", tokenizers, 1, **other)
    with pytest.raises(ValueError, match=message):
        average_models([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ValueError, match="is not empty and holds no model of ours"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").touch()
        main([str(tmp_path / "a"), "--out", str(tmp_path / "full")])
