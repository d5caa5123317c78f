"""Files as other projects published them: which part of a model each is, by its contents, and converting."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt.data.checkpoint_fields import describe
from speechgpt.data.files import read_json, write_json
from speechgpt.data.hashes import file_hash
from speechgpt.data.inert import is_safetensors, read_inert

CONVERTER = 1  # goes up when the same file would be converted to something else
ENCODER, CODEBOOK, VOCODER, VOCODER_CONFIG, LLM = "encoder", "codebook", "vocoder", "vocoder config", "llm"
KNOWN = (
    "a fairseq HuBERT, a joblib k-means, a CodeHiFiGAN generator and its config.json, or a LLaMA or its LoRA"
)
LARGEST_HEADER = 100_000_000  # bytes of a safetensors header, as its format says
LLAMA_WEIGHTS = ("embed_tokens.weight", ".self_attn.q_proj.", ".self_attn.v_proj.", ".lora_A.")
HASH_CHECKED = 1 << 26  # bytes; the hash of a larger file is remembered by its size and time


@dataclass(frozen=True)
class Original:
    """A file that was told apart. `value`: its tree or JSON; None for a LLaMA's, which has its own reader."""

    path: Path
    kind: str
    value: Any = None

    def source(self) -> dict[str, str]:
        """What provenance says of it: a name without folders of this machine, and the sha256 of now."""
        return {"file": self.path.name, "sha256": file_hash(self.path)}


def identify(path: Path) -> Original:
    """Raises FileNotFoundError, or ValueError that says what was found in the file."""
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        magic = file.read(16)
    if is_safetensors(magic):
        return _of_names(path, _safetensors_names(path))
    if magic.lstrip().startswith(b"{"):
        return _of_json(path)
    return _of_tree(path)


def _of_folder(path: Path) -> Original:
    from speechgpt.llama_files import is_llama
    from speechgpt.vocoder.published import is_generator_config

    if is_llama(path):
        return Original(path, LLM)
    what = "a folder"
    if (path / "config.json").is_file():
        values = read_json(path / "config.json")
        named = values.get("model_type") if isinstance(values, dict) else None
        what = f"a folder with the config.json of a model of type {describe(named)}"
        if is_generator_config(values):
            what = "a folder with the config.json of a CodeHiFiGAN"
    raise ValueError(f"{path}: {what}; give the files in it, or a LLaMA folder")


def _of_json(path: Path) -> Original:
    from speechgpt.vocoder.published import is_generator_config

    values = read_json(path)
    if is_generator_config(values):
        return Original(path, VOCODER_CONFIG, values)
    if values.get("model_type") == "llama" or "peft_type" in values or "weight_map" in values:
        return Original(path, LLM)
    raise ValueError(f"{path}: a JSON file that describes no model known here; expected {KNOWN}")


def _of_tree(path: Path) -> Original:
    from speechgpt.units.fairseq_hubert import is_fairseq_speech
    from speechgpt.units.kmeans_file import is_kmeans
    from speechgpt.vocoder.published import is_generator

    tree = read_inert(path, bits=True)
    kinds = {ENCODER: is_fairseq_speech, CODEBOOK: is_kmeans, VOCODER: is_generator}
    for kind, fits in kinds.items():
        if fits(tree):
            return Original(path, kind, read_inert(path))
    if isinstance(tree, dict):
        return _of_names(path, [name for name in tree if isinstance(name, str)])
    raise ValueError(f"{path}: holds {describe(tree)}; expected {KNOWN}")


def _of_names(path: Path, names: list[str]) -> Original:
    if any(part in name for name in names for part in LLAMA_WEIGHTS):
        return Original(path, LLM)
    shown = ", ".join(describe(name) for name in names[:5]) or "nothing"
    raise ValueError(f"{path}: holds {shown}{', ...' if len(names) > 5 else ''}; expected {KNOWN}")


def _safetensors_names(path: Path) -> list[str]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, LARGEST_HEADER))
    try:
        return list(json.loads(header))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: a safetensors file with a broken header") from error


def is_original(path: Path) -> bool:
    """Whether a loader was given a foreign file where it expects a folder or a safetensors file of ours."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return not is_safetensors(file.read(16))


def of_kind(path: Path, kind: str) -> Original:
    found = identify(path)
    if found.kind != kind:
        raise ValueError(f"{path}: a file for --{found.kind.split()[0]}; expected one for --{kind}")
    return found


# ---- conversion of single parts
def write_encoder(original: Original, folder: Path) -> None:
    """fairseq HuBERT to an encoder folder."""
    from speechgpt.units.fairseq_hubert import convert_hubert

    provenance = {"converted_from": original.source(), "converter": CONVERTER}
    convert_hubert(original.value, str(original.path), provenance).save(folder)


def write_codebook(original: Original, encoder_folder: Path, layer: int | None, out: Path) -> None:
    """k-means to a codebook of the encoder in `encoder_folder`."""
    from speechgpt.units.encoder import Encoder
    from speechgpt.units.kmeans_file import convert_kmeans

    encoder = Encoder.load(encoder_folder, "cpu")
    source = original.source() | {"converter": CONVERTER}
    convert_kmeans(original.value, original.path, encoder, layer, source).save(out)


def write_vocoder(original: Original, config: Original | None, folder: Path) -> None:
    """CodeHiFiGAN to a vocoder folder; `config` None is for generators that are refused anyway."""
    from speechgpt.vocoder.published import convert_generator

    values, where = (config.value, str(config.path)) if config else ({}, "config.json")
    vocoder = convert_generator(original.value, values, str(original.path), where)
    sources = [original.source(), *([config.source()] if config else [])]
    vocoder.config.training = {"converted_from": sources, "converter": CONVERTER}
    vocoder.save(folder)


def vocoder_config(vocoder: Original, given: Original | None = None) -> Original | None:
    """The config.json given, or the one beside the generator. Raises FileNotFoundError that names it."""
    from speechgpt.vocoder.published import is_speechbrain

    if given is not None or is_speechbrain(vocoder.value):
        return given
    beside = vocoder.path.parent / "config.json"
    if not beside.is_file():
        raise FileNotFoundError(
            f"{beside}: no such file; a CodeHiFiGAN generator needs its config.json, beside it or given too"
        )
    return of_kind_config(beside)


def of_kind_config(path: Path) -> Original:
    found = identify(path)
    if found.kind != VOCODER_CONFIG:
        raise ValueError(f"{path}: no CodeHiFiGAN config (upsample_rates, num_embeddings, ...)")
    return found


# ---- hashes
def cache_folder() -> Path:
    """$SPEECHGPT_CACHE, by default ~/.cache/speechgpt."""
    return Path(os.environ.get("SPEECHGPT_CACHE") or Path.home() / ".cache" / "speechgpt")


def source_hash(path: Path) -> str:
    """sha256 of a file; that of a large one is remembered by its path, size and modification time."""
    status = path.stat()
    if status.st_size < HASH_CHECKED:
        return file_hash(path)
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    remembered = cache_folder() / "hashes" / f"{place}.json"
    now = [status.st_size, status.st_mtime_ns]
    if remembered.is_file():
        found = read_json(remembered)
        if isinstance(found, dict) and found.get("status") == now:
            return found["sha256"]
    found = file_hash(path)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time alone
        write_json(remembered, {"status": now, "sha256": found})
    return found
