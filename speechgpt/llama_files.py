"""Upstream LLaMA checkpoints to safetensors, shard by shard, with a LoRA merged where one is given.

Reads `pytorch_model.bin`, its shards, and safetensors. Weights keep their dtype unless another is asked for.
About two output shards (of 1 GB) are in memory, besides pages of mapped inputs that the system may drop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from speechgpt import __version__
from speechgpt.data.files import read_json, write_json
from speechgpt.data.hashes import file_hash
from speechgpt.data.hub import ADAPTER, LLAMA, model_folder
from speechgpt.llama_config import checked_config
from speechgpt.lora_files import CONFIG_FILE, TABLES, Lora, base_of, is_adapter
from speechgpt.model import DTYPES, whole_folder
from speechgpt.units.weight_files import read_tensors
from speechgpt.vocabulary import VOCABULARY_FILE, Vocabulary, holds_vocabulary

SHARD_BYTES = 1 << 30
PROVENANCE_FILE = "conversion.json"
LEFT_OVER = ".rotary_emb.inv_freq"  # a buffer that transformers before 4.31 saved; it follows from the config
TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    VOCABULARY_FILE,
)


@dataclass(frozen=True)
class Source:
    """What was given: the checkpoint's folder and weight files, and the adapter's folder if any."""

    folder: Path
    files: list[Path]  # in order
    config: dict
    adapter: Path | None


def is_llama(path: str | Path) -> bool:
    """Whether a file or folder is (part of) a LLaMA checkpoint in Hugging Face layout, or a LoRA on one."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if is_adapter(folder):
        return path.is_dir() or path.name == CONFIG_FILE or path.name in ADAPTER.weights
    config = folder / "config.json"
    if not config.is_file() or (path.is_file() and not _is_weights(path) and path != config):
        return False
    try:
        found = read_json(config)
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("model_type") == "llama"


def _is_weights(path: Path) -> bool:
    stem = path.name.removesuffix(".index.json")
    return stem.startswith(("pytorch_model", "model")) and stem.endswith((".bin", ".safetensors"))


def convert_llama(
    paths: Sequence[str | Path],
    out: str | Path,
    lora: str | Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Writes the folder `out` (whole or as it was) and returns what conversion.json says of it.

    `paths`: the checkpoint's folder, hub name, or its files; a LoRA folder or file may be among them, and one
    alone names its base. Raises ValueError or FileNotFoundError for whatever does not fit.
    """
    source = _source([Path(p) for p in paths], Path(lora) if lora else None)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype}: expected one of {', '.join(DTYPES)}")
    adapter = Lora.read(source.adapter) if source.adapter else None
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / PROVENANCE_FILE).exists():
        raise ValueError(f"{out}: is not empty and holds no conversion; give another --out")
    with whole_folder(out) as part:
        config = checked_config(source.config, source.folder, adapter, _shapes(source, adapter))
        written = _write_shards(source, adapter, DTYPES[dtype] if dtype else None, part, shard_bytes)
        config["torch_dtype"] = str(written[TABLES[0]].dtype).removeprefix("torch.")
        _write_rest(source, adapter, config, part)
        provenance = _provenance(source, adapter, len(written), part)
        write_json(part / PROVENANCE_FILE, provenance)
    return provenance


def read_llama(
    folder: str | Path, lora: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> tuple[dict, dict[str, torch.Tensor]]:
    """(config.json, checked against the weights; every tensor, mapped from its file), an adapter merged.

    What the adapter changes has `dtype`, the rest what it is stored in: no sum is rounded twice.
    Raises ValueError or FileNotFoundError for whatever does not fit.
    """
    source = _source([Path(folder)], Path(lora) if lora else None)
    adapter = Lora.read(source.adapter) if source.adapter else None
    config = checked_config(source.config, source.folder, adapter, _shapes(source, adapter))
    tensors = dict(_tensors(source))
    if adapter is not None:
        tensors |= {name: adapter.merged(name, tensors[name].to(dtype)) for name in sorted(adapter.names)}
    return config, tensors


def files_read(paths: Sequence[str | Path]) -> list[Path]:
    """Every file that `convert_llama` reads for these paths, and whose change may change its result."""
    source = _source([Path(p) for p in paths], None)
    names = ["config.json", *TOKENIZER_FILES]
    found = [source.folder / name for name in names] + source.files
    if source.adapter is not None:
        adapter = source.adapter
        found += [adapter / name for name in (CONFIG_FILE, *ADAPTER.weights, *TOKENIZER_FILES)]
    return [path for path in found if path.is_file()]


def _source(paths: list[Path], lora: Path | None) -> Source:
    folders: list[Path] = []
    files: list[Path] = []
    for path in paths:
        found = model_folder(path, LLAMA, ADAPTER)
        if not found.exists():
            raise FileNotFoundError(f"{found}: no such file or folder")
        folder = found if found.is_dir() else found.parent
        if is_adapter(folder):
            lora = _one(lora, folder)
            continue
        if folder not in folders:
            folders.append(folder)
        if found.is_file() and _is_weights(found) and not found.name.endswith(".index.json"):
            files.append(found)
    if lora is not None:
        lora = model_folder(lora, ADAPTER)
        folders = folders or [base_of(lora)]
    if len(folders) != 1:
        listed = ", ".join(map(str, folders)) or "none"
        raise ValueError(f"expected the files of one LLaMA; found folders {listed}")
    folder = folders[0]
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no config.json; expected a LLaMA in Hugging Face layout")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or config.get("model_type") != "llama":
        found = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{folder / 'config.json'}: model_type {found!r}, expected 'llama'")
    return Source(folder, _weight_files(folder, files), config, lora)


def _one(lora: Path | None, folder: Path) -> Path:
    if lora is not None and lora.resolve() != folder.resolve():
        raise ValueError(f"two adapters, {lora} and {folder}; merge one after the other")
    return folder


def _weight_files(folder: Path, given: list[Path]) -> list[Path]:
    """The weight files of a folder; of several kinds, the one that was named, or safetensors."""
    kinds = sorted(LLAMA.weights, key=lambda kind: not any(p.suffix == Path(kind).suffix for p in given))
    for kind in kinds:
        names = LLAMA.weight_files(folder, kind)
        there = [name for name in names if (folder / name).is_file()]
        if len(there) == len(names):
            return [folder / name for name in names]
        if there or (folder / f"{kind}.index.json").is_file():
            missing = ", ".join(sorted(set(names) - set(there)))
            raise FileNotFoundError(f"{folder}: the index names {missing}, not there; fetch or copy the rest")
    found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
    raise FileNotFoundError(f"{folder}: holds no {' or '.join(LLAMA.weights)}, nor an index; found {found}")


def _tensors(source: Source) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor once, file by file; a file is let go before the next one is opened."""
    seen: dict[str, str] = {}
    for path in source.files:
        shard = read_tensors(path)
        for name in list(shard):
            tensor = shard.pop(name)
            if name.endswith(LEFT_OVER):
                continue
            if name in seen:
                raise ValueError(f"{path}: {name} stands in {seen[name]} as well")
            seen[name] = path.name
            yield name, tensor


def _shapes(source: Source, adapter: Lora | None) -> dict[str, tuple[int, ...]]:
    """What each tensor will have, the adapter's whole tables among them; no number is read."""
    tables = adapter.tables if adapter else {}
    found = {}
    for name, tensor in _tensors(source):
        if not tensor.is_floating_point():
            raise ValueError(f"{source.folder}: {name} holds {tensor.dtype}; expected floating point weights")
        found[name] = tuple(tables.get(name, tensor).shape)
    return found


def _write_shards(
    source: Source, adapter: Lora | None, dtype: torch.dtype | None, part: Path, limit: int
) -> dict[str, torch.Tensor]:
    """Writes model-*.safetensors and their index; returns each tensor without its numbers."""
    described: dict[str, torch.Tensor] = {}
    written: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    total = 0

    def flush() -> None:
        save_file(shard, part / f"{len(written)}.safetensors", metadata={"format": "pt"})
        written.append(list(shard))
        shard.clear()

    for name, tensor in _tensors(source):
        if adapter is not None and name in adapter.names:
            tensor = adapter.merged(name, tensor)
        # A clone: tensors of one file may share their storage, which safetensors refuses.
        tensor = tensor.to(dtype or tensor.dtype, memory_format=torch.contiguous_format).clone()
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > limit:
            flush()
        described[name], shard[name] = tensor.to("meta"), tensor
        total += tensor.nbytes
    if shard:
        flush()
    _name_shards(part, written, total)
    return described


def _name_shards(part: Path, written: list[list[str]], total: int) -> None:
    if len(written) == 1:
        (part / "0.safetensors").rename(part / "model.safetensors")
        return
    names = [f"model-{n + 1:05d}-of-{len(written):05d}.safetensors" for n in range(len(written))]
    for number, name in enumerate(names):
        (part / f"{number}.safetensors").rename(part / name)
    weight_map = {tensor: name for name, tensors in zip(names, written, strict=True) for tensor in tensors}
    write_json(
        part / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )


def _write_rest(source: Source, adapter: Lora | None, config: dict, part: Path) -> None:
    """config.json, and the tokenizer of the base, or the adapter's where the base knows no units."""
    config.pop("dtype", None)
    config.pop("_name_or_path", None)  # a path on the machine that trained it
    write_json(part / "config.json", config)
    folder = source.folder
    if adapter is not None and holds_vocabulary(adapter.folder):
        if not holds_vocabulary(folder):
            folder = adapter.folder
        elif Vocabulary.load(folder).describe() != Vocabulary.load(adapter.folder).describe():
            raise ValueError(f"{adapter.folder}: was trained with another vocabulary than {folder} has")
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            (part / name).write_bytes((folder / name).read_bytes())
    if holds_vocabulary(part) and (size := Vocabulary.load(part).size) != config["vocab_size"]:
        if adapter is not None:
            adapter.check_rows(config["vocab_size"], size, source.folder)
        raise ValueError(
            f"{folder}: the vocabulary has {size} tokens, the weights {config['vocab_size']} rows"
        )


def _provenance(source: Source, adapter: Lora | None, tensors: int, part: Path) -> dict:
    described = {"base": [_described(path) for path in (source.folder / "config.json", *source.files)]}
    if adapter is not None:
        files = (adapter.folder / CONFIG_FILE, adapter.weights_file)
        described["lora"] = [_described(path) for path in files]
    return {
        "format": 1,
        "kind": "llama",
        "made_by": f"speechgpt {__version__} convert",
        "inputs": described,
        "tensors": tensors,
        "merged": len(adapter.names) if adapter else 0,
        "outputs": [_described(path) for path in sorted(part.iterdir())],
    }


def _described(path: Path) -> dict:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)}
