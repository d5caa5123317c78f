"""The files of an encoder folder in Hugging Face layout, read with errors that name what is wrong."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from speechgpt.data.files import read_json

if TYPE_CHECKING:
    from transformers import HubertConfig, HubertModel

ENCODER_FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE = "config.json", "model.safetensors", "encoder.json"
WEIGHT_NORM_NAMES = {  # how fairseq and older transformers name the positional convolution's weight norm
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}


def read_configs(path: Path) -> tuple["HubertConfig", dict]:
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such encoder folder; `speechgpt pretrain` makes one")
    if not (path / CONFIG_FILE).exists():
        raise FileNotFoundError(f"{path}: holds no {CONFIG_FILE}; expected a HuBERT in Hugging Face layout")
    values = read_json(path / CONFIG_FILE)
    if values.get("model_type") != "hubert":
        raise ValueError(f"{path / CONFIG_FILE}: model_type {values.get('model_type')!r}, expected 'hubert'")
    if (path / ENCODER_FILE).exists():
        extra = read_json(path / ENCODER_FILE)
        if extra.get("format") != ENCODER_FORMAT:
            raise ValueError(
                f"{path / ENCODER_FILE}: format {extra.get('format')!r}, this version reads {ENCODER_FORMAT}"
            )
    else:  # a folder from the hub: its feature extractor says the same under other names
        found = path / "preprocessor_config.json"
        values_of_hub = read_json(found) if found.exists() else {}
        extra = {
            "normalize": bool(values_of_hub.get("do_normalize", False)),
            "sample_rate": int(values_of_hub.get("sampling_rate", 16_000)),
        }
    from transformers import HubertConfig

    return HubertConfig(**values), extra


def read_weights(path: Path) -> dict[str, Tensor]:
    file = path / WEIGHTS_FILE
    if not file.exists():
        other = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
        raise FileNotFoundError(f"{path}: holds no {WEIGHTS_FILE}; found {other}")
    try:
        weights = load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: cannot be read as safetensors ({error})") from error
    if any(name.startswith("hubert.") for name in weights):  # saved with a head on top
        weights = {k.removeprefix("hubert."): v for k, v in weights.items() if k.startswith("hubert.")}
    for old, new in WEIGHT_NORM_NAMES.items():
        if f"encoder.{old}" in weights:
            weights[f"encoder.{new}"] = weights.pop(f"encoder.{old}")
    return {name: value.float() for name, value in weights.items()}


def load_weights(model: "HubertModel", weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    if issues := misfits(weights, expected, optional={"masked_spec_embed"}):
        raise ValueError(f"{path / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: {issues}")
    model.load_state_dict(weights, strict=False)


def misfits(weights: dict[str, Tensor], expected: dict[str, Tensor], optional: Collection[str] = ()) -> str:
    """What is missing, unexpected or of another shape, five at most; empty when the weights fit."""
    issues = [f"missing {n}" for n in expected.keys() - weights.keys() if n not in optional]
    issues += [f"unexpected {n}" for n in weights.keys() - expected.keys()]
    issues += [
        f"{n} has shape {tuple(weights[n].shape)}, its settings mean {tuple(expected[n].shape)}"
        for n in expected.keys() & weights.keys()
        if weights[n].shape != expected[n].shape
    ]
    return "; ".join(sorted(issues)[:5]) + ("; ..." if len(issues) > 5 else "")
