"""Which encoder it is: a hash of all that decides features."""

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from speechgpt.units.hubert_config import HubertConfig

# What changes the features and cannot be read off the weights' shapes.
_FINGERPRINTED = (
    "conv_kernel",
    "conv_stride",
    "do_stable_layer_norm",
    "feat_extract_activation",
    "feat_extract_norm",
    "feat_proj_layer_norm",
    "hidden_act",
    "layer_norm_eps",
    "num_attention_heads",
    "num_conv_pos_embedding_groups",
    "num_conv_pos_embeddings",
)


def fingerprint_of(
    config: HubertConfig, normalize: bool, sample_rate: int, weights: Mapping[str, Tensor]
) -> str:
    """sha256 over the weights, as float32, and the settings that change features, for any layer."""
    settings = {name: getattr(config, name) for name in _FINGERPRINTED}
    settings |= {"normalize": normalize, "sample_rate": sample_rate}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode())
    for name, value in sorted(weights.items()):
        if name != "masked_spec_embed":
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
