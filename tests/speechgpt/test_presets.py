"""Every settings file of every preset, by the class that its command reads it with."""

from pathlib import Path

import pytest
import yaml

from speechgpt.assemble import ModelSettings
from speechgpt.data.chain import ChainSettings
from speechgpt.data.folds import FoldsConfig
from speechgpt.data.instruct import InstructSettings
from speechgpt.data.mini import MiniConfig
from speechgpt.data.settings import load_settings
from speechgpt.data.toy import ToyConfig
from speechgpt.evaluate import EvalConfig
from speechgpt.model import LlamaSettings
from speechgpt.stages import StageConfig
from speechgpt.text_tokenizer import TokenizerSettings
from speechgpt.units.codebook_fitting import CodebookConfig
from speechgpt.units.perturb_config import PerturbConfig
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.unit_selection import SelectionConfig
from speechgpt.vocoder.settings import TrainConfig

PRESETS = Path(__file__).parents[2] / "speechgpt" / "presets"
KINDS = {
    "chain": ChainSettings,
    "chain-typed": ChainSettings,
    "codebook": CodebookConfig,
    "encoder": PretrainConfig,
    "eval": EvalConfig,
    "fold-encoder": PretrainConfig,
    "folds": FoldsConfig,
    "instruct": InstructSettings,
    "llama": LlamaSettings,
    "model": ModelSettings,
    "perturb": PerturbConfig,
    "perturb-spoken": PerturbConfig,
    "refine": PretrainConfig,
    "round": StageConfig,
    "stage1": StageConfig,
    "stage2": StageConfig,
    "stage3": StageConfig,
    "tokenizer": TokenizerSettings,
    "unit-selection": SelectionConfig,
    "vocoder": TrainConfig,
    "voices": PretrainConfig,
}
SIZES = "hidden: 6\nlayers: 1\nintermediate: 8\n"
CORPORA = {"mini": MiniConfig, "toy": ToyConfig}  # those of others say where their data come from


def kind_of(path: Path) -> type | None:
    return CORPORA.get(path.parent.name) if path.stem == "corpus" else KINDS[path.stem]


FILES = [path for path in sorted(PRESETS.glob("*/*.yaml")) if kind_of(path)]


def load(kind: type, path: Path):
    return kind.load(path) if hasattr(kind, "load") else load_settings(kind, path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_loads_and_one_name_more_is_refused(path, tmp_path):
    kind, other = kind_of(path), tmp_path / path.name
    assert isinstance(load(kind, path), kind)
    other.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | {"colour": "red"}))
    with pytest.raises(ValueError) as error:
        load(kind, other)
    assert str(error.value).startswith(f"{other}: unknown setting colour; known: ")


@pytest.mark.parametrize("name", ["encoder", "refine", "voices", "fold-encoder"])
def test_minis_encoders_hear_every_corpus_that_its_texts_make(name):
    made = {f"mini-{part}" for part in ("sentences", "questions", "answers", "digits")}
    sampling = PretrainConfig.load(PRESETS / "mini" / f"{name}.yaml").sampling
    assert made <= sampling.keys() or "*" in sampling


@pytest.mark.parametrize(
    ("kind", "text", "refusal"),
    [
        (
            LlamaSettings,
            "hidden: 6\nlayers: 1\nheads: 4\nintermediate: 8\n",
            "hidden 6 is no multiple of heads 4",
        ),
        (
            LlamaSettings,
            "hidden: 6\nlayers: 1\nheads: 0\nintermediate: 8\n",
            "hidden 6 is no multiple of heads 0",
        ),
        (
            StageConfig,
            "stage: 4\nmax_length: 7\n",
            "stage is 4; expected 1, 2 or 3; max_length is 7; ",
        ),
        (StageConfig, "stage: 3\nmax_length: 9\nlora: {r: x}\n", "lora.r: expected int, found 'x'"),
        (StageConfig, "stage: 2\nmax_length: 9\nmix: x\n", "mix: expected int or float, found 'x'"),
        (
            EvalConfig,
            "figures: {orders: {rows: 0}, size: 3}\n",
            "figures.orders: rows is 0; expected",
        ),
        (PerturbConfig, "copies: 1\nspeed: 12\n", "speed is 12; expected [lowest, highest]"),
        (
            PerturbConfig,
            "copies: 1\nrevoice: {tract: [2, 1]}\n",
            "revoice: tract: [2.0, 1.0], expected",
        ),
        (PerturbConfig, "copies: 1\nrevoice: {chance: x}\n", "revoice.chance: expected float, found 'x'"),
    ],
)
def test_what_a_class_refuses_is_refused_by_the_name_of_its_file(tmp_path, kind, text, refusal):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load(kind, path)
    assert str(error.value).startswith(f"{path}: {refusal}")


def test_a_whole_number_stays_one_where_a_finished_run_is_known_by_it(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("stage: 1\nmax_length: 9\nmax_minutes: 90\nmix: 0\n")
    stage = StageConfig.load(path)
    assert repr((stage.max_minutes, stage.mix, stage.text_noise)) == "(90, 0, 0.0)"
    path.write_text("copies: 1\nequalizer_db: 8\nsnr_db: [2, 26]\n")
    copies = load_settings(PerturbConfig, path)
    assert repr((copies.equalizer_db, copies.snr_db, copies.noise_chance)) == "(8, [2, 26], 0.0)"
