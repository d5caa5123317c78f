"""LoRA files as peft writes them, 0.3's adapter_model.bin and today's safetensors, merged without peft.

An update of a linear layer W (out, in) is `scale * B @ A` with A (r, in) and B (out, r), where `scale` is
lora_alpha / r (Hu et al. 2021, arXiv 2106.09685). Beside it a file may hold whole tables (an embedding that
was trained or resized) or single rows of them (peft's trainable tokens), which replace the base's.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from speechgpt.data.checkpoint_fields import describe
from speechgpt.data.files import read_json
from speechgpt.data.hub import ADAPTER, LLAMA, is_hub_name, model_folder
from speechgpt.units.weight_files import read_tensors

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CONFIG_FILE = "adapter_config.json"
MAX_ROWS = 1 << 24  # ids of tokens; the largest vocabularies have 2**18
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
# peft 0.3 names no adapter in its keys; state dicts saved otherwise may (`lora_A.default.weight`).
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")
_ROWS = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")
_WHOLE = re.compile(r"(?:base_model\.model\.)?(?P<module>.+?)(?:\.modules_to_save(?:\.\w+)?)?\.weight")
# Variants whose arithmetic is another one.
_REFUSED = {"use_dora": "DoRA", "fan_in_fan_out": "transposed weights", "use_qalora": "QALoRA"}
# Ways to begin that leave the base as it was. PiSSA, OLoRA, CorDA and LoftQ take their B @ A out of its
# weights, so what they wrote is no update of the base that the config names.
_PLAIN_BEGINNINGS = (None, True, False, "gaussian")


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter alone, and not a whole model."""
    folder = Path(folder)
    return (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file()


@dataclass
class Lora:
    """An adapter that was read. Names are those of the base's state dict, `model...q_proj.weight`."""

    folder: Path
    settings: dict = field(repr=False)  # adapter_config.json
    pairs: dict[str, dict[str, torch.Tensor]] = field(repr=False)  # name -> {"A": (r, in), "B": (out, r)}
    tables: dict[str, torch.Tensor] = field(repr=False)  # name -> the whole weight that replaces the base's
    rows: dict[str, torch.Tensor] = field(repr=False)  # name -> (n, D), which replace the rows `row_ids`
    row_ids: dict[str, list[int]] = field(repr=False)

    @classmethod
    def read(cls, folder: str | Path) -> "Lora":
        """Raises FileNotFoundError or ValueError for what is missing, empty, or no plain LoRA."""
        folder = model_folder(folder, ADAPTER)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder}: holds no {CONFIG_FILE}; expected a LoRA folder of peft")
        settings = read_json(folder / CONFIG_FILE)
        _check_settings(settings, folder / CONFIG_FILE)
        found = cls(folder, settings, {}, {}, {}, {})
        path = found.weights_file
        for key, tensor in read_tensors(path).items():
            if not tensor.is_floating_point():
                raise ValueError(f"{path}: {key} holds {tensor.dtype}; expected floating point weights")
            found._take(key, tensor, path)
        if halves := [name for name, pair in found.pairs.items() if len(pair) < 2]:
            raise ValueError(f"{path}: {halves[0]} has lora_{next(iter(found.pairs[halves[0]]))} alone")
        if not found.pairs and not found.tables and not found.rows:
            raise ValueError(f"{path}: holds no tensor at all; the training run that wrote it saved nothing")
        return found

    @property
    def weights_file(self) -> Path:
        files = [self.folder / name for name in ADAPTER.weights]
        for path in files:
            if path.is_file():
                return path
        raise FileNotFoundError(f"{self.folder}: holds neither {' nor '.join(ADAPTER.weights)}")

    def _take(self, key: str, tensor: torch.Tensor, path: Path) -> None:
        match = _KEY.fullmatch(key)
        if not tensor.dim() or tensor.dim() != 2 and (match or _ROWS.fullmatch(key)):
            raise ValueError(f"{path}: {key} has shape {tuple(tensor.shape)}; expected two dimensions")
        if match:
            self.pairs.setdefault(f"{match['module']}.weight", {})[match["part"]] = tensor
        elif match := _ROWS.fullmatch(key):
            name = f"{match['module']}.weight"
            self.rows[name] = tensor
            self.row_ids[name] = self._trained_ids(name, len(tensor), path)
        elif (match := _WHOLE.fullmatch(key)) and "lora_" not in key:
            self.tables[f"{match['module']}.weight"] = tensor
        else:
            raise ValueError(
                f"{path}: {key} is no tensor of a plain LoRA; expected ...lora_A.weight and the like"
            )

    def _trained_ids(self, name: str, count: int, path: Path) -> list[int]:
        given = self.settings.get("trainable_token_indices")
        if isinstance(given, dict):
            given = given.get(name.split(".")[-2])
        if not isinstance(given, list) or len(given) != count:
            raise ValueError(
                f"{path}: {count} rows of {name}; {CONFIG_FILE} does not say which tokens they are"
            )
        if wrong := [n for n in given if type(n) is not int or not 0 <= n < MAX_ROWS]:
            raise ValueError(
                f"{self.folder / CONFIG_FILE}: trainable_token_indices holds {describe(wrong[0])}; expected "
                "ids of tokens"
            )
        return given

    @property
    def names(self) -> set[str]:
        """Of every weight that merging changes."""
        return {*self.pairs, *self.tables, *self.rows}

    def scale(self, name: str) -> float:
        """What `B @ A` is multiplied by."""
        module, rank = name.removesuffix(".weight"), len(self.pairs[name]["A"])
        alpha = _of_pattern(self.settings.get("alpha_pattern"), module, self.settings["lora_alpha"])
        expected = _of_pattern(self.settings.get("rank_pattern"), module, self.settings["r"])
        if rank != expected:
            raise ValueError(f"{self.folder}: {name} has rank {rank}, {CONFIG_FILE} says {expected}")
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight` with everything that this adapter says of it, in its own dtype, summed in float32."""
        if name in self.tables:
            table, first = self.tables[name], 1 if name in TABLES else 0  # which may have got rows
            if table.dim() != weight.dim() or table.shape[first:] != weight.shape[first:]:
                raise ValueError(
                    f"{self.folder}: {name} is {tuple(weight.shape)} in the base, {tuple(table.shape)} here: "
                    "this adapter belongs to another base"
                )
            weight = table.to(weight.dtype)
        if name in self.rows:
            weight = self._with_rows(name, weight)
        if name not in self.pairs:
            return weight
        a, b = self.pairs[name]["A"], self.pairs[name]["B"]  # r in, out r
        if (len(b), a.shape[-1]) != tuple(weight.shape) or b.shape[-1] != len(a):
            raise ValueError(
                f"{self.folder}: {name} is {tuple(weight.shape)} in the base; A is {tuple(a.shape)}, B "
                f"{tuple(b.shape)}: this adapter belongs to another base"
            )
        return (weight.float() + self.scale(name) * (b.float() @ a.float())).to(weight.dtype)

    def _with_rows(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """`weight` (N, D) with the rows that were trained by themselves."""
        rows, ids = self.rows[name], torch.tensor(self.row_ids[name], dtype=torch.long)
        if weight.dim() != 2 or weight.shape[1] != rows.shape[1]:
            raise ValueError(
                f"{self.folder}: trained rows of {name} are {rows.shape[1]} wide, the base's is "
                f"{tuple(weight.shape)}: this adapter belongs to another base"
            )
        if len(ids) and ids.max() >= len(weight):
            raise ValueError(
                f"{self.folder}: trained row {int(ids.max())} of {name}, which has {len(weight)}"
            )
        return weight.index_copy(0, ids, rows.to(weight.dtype))

    def check_names(self, known: set[str]) -> None:
        """Raises ValueError when the base has no such weights."""
        if unknown := sorted(self.names - known):
            raise ValueError(f"{self.folder}: adapts {unknown[0]}, which the base does not have")

    def check_rows(self, rows: int, needed: int, base: str | Path) -> None:
        """`rows`: of the base. Raises ValueError when the rows of new tokens would be missing or random."""
        for name in TABLES:
            found = len(self.tables[name]) if name in self.tables else rows
            if found != needed:
                raise ValueError(
                    f"{self.folder}: the vocabulary has {needed} tokens, {name} {found} rows: the rows of "
                    f"tokens that were added in training are neither in the adapter nor in {base}; give the "
                    "base that it was trained on"
                )


def _check_settings(settings: object, path: Path) -> None:
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        found = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise ValueError(f"{path}: peft_type {found!r}; expected 'LORA'")
    for name, what in _REFUSED.items():
        if settings.get(name):
            raise ValueError(f"{path}: {name} is set ({what}); only plain LoRA is read here")
    if (begun := settings.get("init_lora_weights")) not in _PLAIN_BEGINNINGS:
        raise ValueError(
            f"{path}: init_lora_weights is {describe(begun)}, which may change the base before it "
            "trains; only true, false and 'gaussian' are read here: save the adapter again converted to a "
            "plain LoRA (peft's path_initial_model_for_weight_conversion)"
        )
    for name in ("r", "lora_alpha"):
        _check_number(settings.get(name), f"{path}: {name}")
    for name in ("rank_pattern", "alpha_pattern"):
        _check_patterns(settings.get(name), f"{path}: {name}")
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {settings['bias']!r}; a LLaMA has no biases to train")


def _check_number(value: object, where: str) -> None:
    if type(value) not in (int, float) or not 0 < value < 1 << 31:
        raise ValueError(f"{where} is {describe(value)}; expected a number above 0")


def _check_patterns(patterns: object, where: str) -> None:
    """Names of modules, or regular expressions that match them, with a number each."""
    if patterns is not None and not isinstance(patterns, dict):
        raise ValueError(f"{where} is a {type(patterns).__name__}; expected numbers by names of modules")
    for pattern, value in (patterns or {}).items():
        try:
            re.compile(_whole_name(pattern))
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{where}: {pattern[:40]!r} is no regular expression ({error})") from error
        _check_number(value, f"{where}: {pattern[:40]!r}")


def _whole_name(pattern: str) -> str:
    return rf"(?:.*\.)?(?:{pattern})"


def _of_pattern(patterns: dict | None, module: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(_whole_name(pattern), module):
            return value
    return default


def base_of(adapter: str | Path) -> Path:
    """The folder of the base that an adapter's config names: as a path, beside the adapter, or on the hub."""
    adapter = Path(adapter)
    settings = read_json(adapter / CONFIG_FILE)
    named = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
    if not isinstance(named, str) or not named:
        raise ValueError(
            f"{adapter / CONFIG_FILE}: names no base_model_name_or_path; give --model BASE --lora {adapter}"
        )
    for folder in _candidates(adapter, named):
        if (folder / "config.json").is_file():
            return folder
    if is_hub_name(named):
        return model_folder(named, LLAMA)
    raise FileNotFoundError(
        f"{adapter}: an adapter of {named}, which is not here (nor is a folder {Path(named).name} beside "
        f"it); give --model BASE --lora {adapter}"
    )


def _candidates(adapter: Path, named: str) -> Iterator[Path]:
    yield from (Path(named), adapter / named)
    yield adapter.resolve().parent / Path(named).name


def apply_lora(model: "LlamaForCausalLM", adapter: Lora, rows: int) -> "LlamaForCausalLM":
    """Merges the adapter into `model` in place; `rows`: tokens that its vocabulary has."""
    adapter.check_rows(
        model.get_input_embeddings().num_embeddings, rows, model.config.name_or_path or "its base"
    )
    if model.get_input_embeddings().num_embeddings != rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    weights = dict(model.named_parameters())
    if model.config.tie_word_embeddings:
        weights.setdefault("lm_head.weight", model.get_output_embeddings().weight)
    adapter.check_names(set(weights))
    with torch.no_grad():
        for name in sorted(adapter.names):
            weights[name].copy_(adapter.merged(name, weights[name]))
    return model
