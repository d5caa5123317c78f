"""The language model: a new LLaMA, an existing one extended by units and markers, and merged adapters."""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from speechgpt.data.files import read_json
from speechgpt.data.hub import ADAPTER, LLAMA, model_folder, named_path
from speechgpt.data.settings import load_settings
from speechgpt.lora_files import Lora, apply_lora
from speechgpt.vocabulary import PROFILES, Vocabulary, holds_vocabulary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from speechgpt.llama_decoder import LlamaDecoder

SPREAD = 0.1  # of the existing rows' standard deviation: tells new rows apart without making noise of them
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass
class LlamaSettings:
    """Sizes of a LLaMA. With `base` an existing checkpoint is extended, and must have these sizes."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    context: int = 2048  # tokens
    key_value_heads: int = 0  # 0: as many as heads
    tied: bool = True  # the head shares the embedding's rows
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    init_range: float = 0.02  # standard deviation of fresh weights
    dropout: float = 0.0  # on attention
    base: str = ""  # folder (or hub name) of a LLaMA to extend; empty: fresh weights
    profile: str = "native"  # native | upstream, see speechgpt.vocabulary
    dtype: str = "float32"  # of the written weights
    seed: int = 1

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}; expected {' or '.join(PROFILES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if self.heads < 1 or self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} is no multiple of heads {self.heads}")

    @classmethod
    def load(cls, path: str | Path) -> "LlamaSettings":
        return load_settings(cls, path)


def new_llama(settings: LlamaSettings, vocabulary: Vocabulary) -> "LlamaForCausalLM":
    """Fresh weights from the seed, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads or settings.heads,
        intermediate_size=settings.intermediate,
        max_position_embeddings=settings.context,
        tie_word_embeddings=settings.tied,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        rms_norm_eps=settings.norm_epsilon,
        initializer_range=settings.init_range,
        attention_dropout=settings.dropout,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
        pad_token_id=vocabulary.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def load_llama(folder: str | Path, dtype: str | torch.dtype = "float32") -> "LlamaForCausalLM":
    """An ordinary LLaMA checkpoint, from a folder or by its hub name."""
    from transformers import AutoConfig, LlamaForCausalLM

    folder = model_folder(folder, LLAMA)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{folder}: no LLaMA folder here (no readable config.json)") from error
    if config.model_type != "llama":
        raise ValueError(f"{folder}: holds a {config.model_type} model; expected llama")
    wanted = DTYPES.get(dtype, dtype)
    return LlamaForCausalLM.from_pretrained(folder, dtype=wanted, local_files_only=True)


def stored_dtype(folder: Path) -> str:
    """Of a model's weights, by its config.json, where transformers below 5 call it torch_dtype."""
    described = read_json(folder / "config.json")
    return described.get("dtype") or described.get("torch_dtype") or "float32"


def load_trained(folder: str | Path, dtype: str | torch.dtype = "float32", lora: str | Path | None = None):
    """(model, vocabulary) of a folder of ours or a published one; with `lora`, that adapter merged in.

    Raises ValueError when the sizes of model and vocabulary differ.
    """
    folder = model_folder(folder, LLAMA)
    vocabulary = Vocabulary.load(folder) if lora is None else _adapted_vocabulary(folder, Path(lora))
    model = load_llama(folder, dtype)
    if lora is not None:
        apply_lora(model, Lora.read(lora), vocabulary.size)
    rows = model.get_input_embeddings().num_embeddings
    if rows != vocabulary.size:
        raise ValueError(f"{folder}: the model has {rows} rows, its vocabulary {vocabulary.size}")
    return model, vocabulary


def load_decoder(
    folder: str | Path,
    dtype: str | torch.dtype = "float32",
    lora: str | Path | None = None,
    device: "str | torch.device" = "cpu",
) -> tuple["LlamaDecoder", Vocabulary]:
    """The same as `load_trained`, for inference alone: on `device`, and without transformers.

    Raises ValueError when the sizes of model and vocabulary differ.
    """
    from speechgpt.llama_decoder import LlamaDecoder
    from speechgpt.llama_files import read_llama
    from speechgpt.llama_sizes import LlamaSizes

    folder = model_folder(folder, LLAMA)
    vocabulary = Vocabulary.load(folder) if lora is None else _adapted_vocabulary(folder, Path(lora))
    dtype = DTYPES.get(dtype, dtype)
    config, tensors = read_llama(folder, lora, dtype)
    sizes = LlamaSizes.from_config(config, str(folder / "config.json"))
    if sizes.vocabulary != vocabulary.size:
        raise ValueError(f"{folder}: the model has {sizes.vocabulary} rows, its vocabulary {vocabulary.size}")
    return LlamaDecoder.of_tensors(sizes, tensors, dtype, device), vocabulary


def _adapted_vocabulary(base: Path, lora: Path) -> Vocabulary:
    """The base's, or the adapter's where the base has none; both must be the same."""
    if not holds_vocabulary(lora):
        return Vocabulary.load(base)
    trained_with = Vocabulary.load(lora)
    if holds_vocabulary(base) and Vocabulary.load(base).describe() != trained_with.describe():
        raise ValueError(f"{lora}: was trained with another vocabulary than {base} has")
    return trained_with


def extend_llama(model: "LlamaForCausalLM", vocabulary: Vocabulary, seed: int = 1) -> "LlamaForCausalLM":
    """Gives `model` a row for each unit and marker, in place. A model that has them already stays as it is.

    New rows start at the mean of the existing ones, markers half way to the mean of the pieces that spell
    their name, plus a small spread from the seed. Old rows stay bit-equal.
    """
    rows = model.get_input_embeddings().num_embeddings
    if rows == vocabulary.size:
        return model
    if rows != vocabulary.base_size:
        raise ValueError(
            f"the model has {rows} embedding rows; expected {vocabulary.base_size} (its text tokenizer's) or "
            f"{vocabulary.size} (with {vocabulary.num_units} units and the markers)"
        )
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    tables = [model.get_input_embeddings().weight]  # V D
    if not model.config.tie_word_embeddings:
        tables.append(model.get_output_embeddings().weight)  # V D
    for number, table in enumerate(tables):
        _fill_new_rows(table, vocabulary, seed + number)
    for name in ("bos", "eos", "pad"):
        setattr(model.config, f"{name}_token_id", getattr(vocabulary, f"{name}_id"))
        setattr(model.generation_config, f"{name}_token_id", getattr(vocabulary, f"{name}_id"))
    return model


@torch.no_grad()
def _fill_new_rows(table: torch.Tensor, vocabulary: Vocabulary, seed: int) -> None:
    """Fills rows from base_size on of `table` (V, D)."""
    old = table[: vocabulary.base_size].float()  # base D
    mean, deviation = old.mean(dim=0), old.std(dim=0)  # D
    draws = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(vocabulary.new_ids), old.shape[1], generator=draws).to(table.device)
    fresh = mean + SPREAD * deviation * noise  # new D
    for name, ids in vocabulary.markers().items():
        if len(ids) == 1 and ids[0] >= vocabulary.base_size:
            spelling = [i for i in vocabulary.encode_text(name[1:-1]) if i < vocabulary.base_size]
            if spelling:
                fresh[ids[0] - vocabulary.base_size] += (old[spelling].mean(dim=0) - mean) / 2
    table[vocabulary.base_size :] = fresh.to(table.dtype)


def save_llama(model: "LlamaForCausalLM", vocabulary: Vocabulary, folder: str | Path) -> None:
    """Writes an ordinary checkpoint (safetensors) with its vocabulary; `folder` is whole or absent."""
    with whole_folder(folder) as part:
        model.config.use_cache = True  # training switches it off
        model.save_pretrained(part)
        vocabulary.save(part)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder`; on success it replaces `folder`, on any error it is removed."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        yield part
        make_readable(part)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """For everybody: mkdtemp makes its folders private, and safetensors its files."""
    folder.chmod(0o755)
    for entry in folder.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)


def check_replaceable(out: Path) -> None:
    """A folder is only replaced if it holds nothing, or a model of ours."""
    if out.is_dir() and any(out.iterdir()) and not (out / "speechgpt_vocab.json").exists():
        raise ValueError(f"{out}: is not empty and holds no model of ours; give another --out")


def make_llama(settings: LlamaSettings, vocabulary: Vocabulary) -> "LlamaForCausalLM":
    """The model that a llama.yaml asks for: fresh, or a base extended."""
    if not settings.base:
        return new_llama(settings, vocabulary)
    model = load_llama(settings.base, settings.dtype)
    found = model.config
    pairs = {
        "hidden": (settings.hidden, found.hidden_size),
        "layers": (settings.layers, found.num_hidden_layers),
        "heads": (settings.heads, found.num_attention_heads),
        "intermediate": (settings.intermediate, found.intermediate_size),
    }
    if wrong := [f"{k} {a} (config) and {b} (checkpoint)" for k, (a, b) in pairs.items() if a != b]:
        raise ValueError(f"{settings.base}: sizes differ from llama.yaml: {', '.join(wrong)}")
    return extend_llama(model, vocabulary, settings.seed)


def main(argv: list[str]) -> int:
    """`speechgpt init-lm`"""
    parser = argparse.ArgumentParser(
        prog="speechgpt init-lm", description="make or extend a LLaMA checkpoint"
    )
    parser.add_argument("--config", required=True, help="llama.yaml")
    parser.add_argument("--tokenizer", required=True, help="folder with the text tokenizer")
    parser.add_argument("--units", required=True, type=int, help="size K of the codebook")
    parser.add_argument(
        "--base", help="folder of a LLaMA to extend, before the config's; 'none': fresh weights"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    args = parser.parse_args(argv)
    settings = LlamaSettings.load(args.config)
    if args.base:
        settings.base = "" if args.base == "none" else args.base
    if args.units < 1:
        raise ValueError(f"--units {args.units}: expected at least one unit")
    check_replaceable(args.out)
    vocabulary = Vocabulary.create(args.tokenizer, args.units, settings.profile)
    model = make_llama(settings, vocabulary).to(DTYPES[settings.dtype])
    save_llama(model, vocabulary, args.out)
    print(
        f"{args.out}: {model.num_parameters() / 1e6:.2f} M parameters, {vocabulary.size} tokens "
        f"({vocabulary.num_units} units, {vocabulary.profile})"
    )
    return 0


def merge_main(argv: list[str]) -> int:
    """`speechgpt merge-lora`"""
    parser = argparse.ArgumentParser(
        prog="speechgpt merge-lora", description="merge an adapter into its base"
    )
    parser.add_argument("--adapter", required=True, type=named_path, help="folder that stage 3 or peft wrote")
    parser.add_argument("--base", required=True, type=named_path, help="model folder that it was trained on")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights; default: the base's own")
    args = parser.parse_args(argv)
    adapter, args.base = model_folder(args.adapter, ADAPTER), model_folder(args.base, LLAMA)
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{config} is missing: expected an adapter, as `speechgpt train` writes it")
    if not (args.base / "config.json").is_file():
        raise FileNotFoundError(f"{args.base}/config.json is missing: {args.base} is no model folder")
    check_replaceable(args.out)
    model, vocabulary = load_trained(args.base, lora=adapter)
    save_llama(model.to(DTYPES[args.dtype or stored_dtype(args.base)]), vocabulary, args.out)
    print(f"{args.out}: {args.adapter} merged into {args.base}, rank {read_json(config).get('r')}")
    return 0
