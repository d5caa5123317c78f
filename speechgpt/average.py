"""A language model whose weights are the means of others' that were trained from each other.

Each of them has learnt some of its rows by heart, and not the same ones: the mean errs less than any of them
(stochastic weight averaging, Izmailov et al. 2018, arXiv:1803.05407; model soups, Wortsman et al. 2022,
arXiv:2203.05482). Models that do not descend from each other have no such mean.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from speechgpt.data.files import read_json, write_json
from speechgpt.data.hashes import text_hash
from speechgpt.data.hub import LLAMA, model_folder, named_path
from speechgpt.model import DTYPES, check_replaceable, load_trained, save_llama, stored_dtype

# In config.json: how a model is stored and trained, not what its weights mean.
MAY_DIFFER = {
    "_name_or_path",
    "attention_dropout",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def average_models(folders: Sequence[str | Path]):
    """(model in float32, vocabulary), each weight the mean of the folders'.

    Raises ValueError for models of other sizes or vocabularies than the first.
    """
    model, vocabulary = load_trained(folders[0])
    means = model.state_dict()  # the model's own tensors
    for number, folder in enumerate(folders[1:], 2):
        other, its = load_trained(folder)
        if its.describe() != vocabulary.describe():
            raise ValueError(f"{folder}: has another vocabulary than {folders[0]}")
        _check_alike(other.config.to_dict(), model.config.to_dict(), folder, folders[0])
        weights = other.state_dict()
        with torch.no_grad():
            for name in _once(means):
                means[name] += (weights[name] - means[name]) / number
    return model, vocabulary


def _check_alike(config: dict, expected: dict, folder: str | Path, first: str | Path) -> None:
    for name in sorted((config.keys() | expected.keys()) - MAY_DIFFER):
        if config.get(name) != expected.get(name):
            raise ValueError(f"{folder}: {name} is {config.get(name)}, in {first} {expected.get(name)}")


def _once(tensors: dict[str, torch.Tensor]) -> list[str]:
    """A name of each tensor: a tied head is the embedding, and must not be averaged twice."""
    return list({tensor.data_ptr(): name for name, tensor in tensors.items()}.values())


def _identities(folders: Sequence[Path]) -> list[str]:
    """What names each run, for the models that it makes to name theirs; empty where one has none."""
    runs = [folder / "done.json" for folder in folders]
    return [read_json(run)["identity"] for run in runs] if all(run.is_file() for run in runs) else []


def main(argv: list[str]) -> int:
    """`speechgpt average`"""
    parser = argparse.ArgumentParser(prog="speechgpt average", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "models", nargs="+", type=named_path, help="model folders, one trained from the other"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the written weights; default: the first model's own"
    )
    args = parser.parse_args(argv)
    folders = [model_folder(path, LLAMA) for path in args.models]
    check_replaceable(args.out)
    model, vocabulary = average_models(folders)
    save_llama(model.to(DTYPES[args.dtype or stored_dtype(folders[0])]), vocabulary, args.out)
    if identities := _identities(folders):
        write_json(args.out / "done.json", {"identity": text_hash(*identities), "mean_of": identities})
    print(f"{args.out}: the mean of {len(folders)} models")
    return 0
