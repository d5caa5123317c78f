"""The files of an encoder folder in Hugging Face layout: written, and read with errors that name a fault."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from speechgpt.data.files import atomic_path, read_json, write_json
from speechgpt.units.hubert import Hubert
from speechgpt.units.hubert_config import HubertConfig
from speechgpt.units.weight_files import read_tensors

if TYPE_CHECKING:
    import numpy as np

    from speechgpt.units.encoder import Encoder

ENCODER_FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE = "config.json", "model.safetensors", "encoder.json"
OLD_WEIGHTS_FILE, HUB_FILE = "pytorch_model.bin", "preprocessor_config.json"
# Left over from pretraining in conversions of fairseq's files; features do not need them.
LEFT_OVER = ("label_embs_concat", "final_proj.weight", "final_proj.bias", "mask_emb")
WEIGHT_NORM_NAMES = {  # how fairseq and older transformers name the positional convolution's weight norm
    "pos_conv_embed.conv.weight_g": "pos_conv_embed.conv.parametrizations.weight.original0",
    "pos_conv_embed.conv.weight_v": "pos_conv_embed.conv.parametrizations.weight.original1",
}


_DRAWS = (Tensor.uniform_, Tensor.normal_, init.uniform_, init.normal_, init.kaiming_uniform_)


class Undrawn(TorchFunctionMode):
    """Modules made inside hold whatever was in memory: for those whose weights come from a file, which is
    read sooner than others are drawn. Not the meta device: its arithmetic imports for seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _DRAWS:  # which nn.init calls with the tensor by name
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_configs(path: Path) -> tuple[HubertConfig, dict]:
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
        if not (path / HUB_FILE).exists():
            raise FileNotFoundError(
                f"{path}: holds no {HUB_FILE}, which says whether waveforms are normalised first; write "
                '{"do_normalize": false, "sampling_rate": 16000} for mHuBERT and HuBERT base, true for large'
            )
        values_of_hub = read_json(path / HUB_FILE)
        extra = {  # what the file does not say is as in transformers' Wav2Vec2FeatureExtractor
            "normalize": bool(values_of_hub.get("do_normalize", True)),
            "sample_rate": int(values_of_hub.get("sampling_rate", 16_000)),
        }
    return HubertConfig.from_values(values), extra


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of model.safetensors or else pytorch_model.bin, float32, under today's names."""
    weights = _read_tensors(path)
    if any(name.startswith("hubert.") for name in weights):  # saved with a head on top
        weights = {k.removeprefix("hubert."): v for k, v in weights.items() if k.startswith("hubert.")}
    for old, new in WEIGHT_NORM_NAMES.items():
        if f"encoder.{old}" in weights:
            weights[f"encoder.{new}"] = weights.pop(f"encoder.{old}")
    return {name: value.float() for name, value in weights.items() if name not in LEFT_OVER}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    for name in (WEIGHTS_FILE, OLD_WEIGHTS_FILE):
        if (path / name).exists():
            return read_tensors(path / name)
    other = ", ".join(sorted(p.name for p in path.iterdir())) or "nothing"
    raise FileNotFoundError(f"{path}: holds no {WEIGHTS_FILE} or {OLD_WEIGHTS_FILE}; found {other}")


def load_weights(model: Hubert, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    if issues := misfits(weights, expected, optional={"masked_spec_embed"}):
        raise ValueError(f"{path / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: {issues}")
    drawn = {name: torch.rand(expected[name].shape) for name in expected.keys() - weights.keys()}
    model.load_state_dict(weights | drawn)


def misfits(
    weights: Mapping[str, "Tensor | np.ndarray"], expected: dict[str, Tensor], optional: Collection[str] = ()
) -> str:
    """What is missing, unexpected or of another shape, five at most; empty when the weights fit."""
    issues = [f"missing {n}" for n in expected.keys() - weights.keys() if n not in optional]
    issues += [f"unexpected {n}" for n in weights.keys() - expected.keys()]
    issues += [
        f"{n} has shape {tuple(weights[n].shape)}, its settings mean {tuple(expected[n].shape)}"
        for n in expected.keys() & weights.keys()
        if weights[n].shape != expected[n].shape
    ]
    return "; ".join(sorted(issues)[:5]) + ("; ..." if len(issues) > 5 else "")


def write_encoder(encoder: "Encoder", path: Path, dtype: torch.dtype | None, layers: int) -> None:
    """The folder of `encoder`; a copy of other dtype or fewer layers names its original."""
    copy = encoder
    if dtype not in (None, torch.float32) or layers != encoder.num_layers:
        copy = _derived(encoder, dtype, layers)
    path.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().contiguous() for k, v in copy.model.state_dict().items()}
    if dtype is not None:
        weights = {k: v.to(dtype) for k, v in weights.items()}
    with atomic_path(path / WEIGHTS_FILE) as part:
        part.write_bytes(save(weights, metadata={"format": "pt"}))
    write_json(path / CONFIG_FILE, copy.config.to_values())
    extra = {
        "format": ENCODER_FORMAT,
        "normalize": encoder.normalize,
        "sample_rate": encoder.sample_rate,
        "fingerprint": copy.compute_fingerprint(),
        "provenance": encoder.provenance,
    }
    if copy.derived_from:
        extra["derived_from"] = copy.derived_from
    write_json(path / ENCODER_FILE, extra)


def _derived(encoder: "Encoder", dtype: torch.dtype | None, layers: int) -> "Encoder":
    if not 1 <= layers <= encoder.num_layers:
        raise ValueError(f"layers {layers}: the encoder has layers 1 to {encoder.num_layers}")
    config = replace(encoder.config, num_hidden_layers=layers)
    copy = type(encoder)(config, encoder.normalize, encoder.sample_rate, encoder.provenance)
    kept = copy.model.state_dict().keys()
    weights = {k: v.detach().cpu() for k, v in encoder.model.state_dict().items() if k in kept}
    copy.model.load_state_dict({k: v.to(dtype or v.dtype).float() for k, v in weights.items()})
    original = encoder.derived_from or encoder.fingerprint
    copy.derived_from = original if original != copy.compute_fingerprint() else ""
    return copy
