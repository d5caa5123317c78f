"""Centroids of a pickled scikit-learn KMeans (joblib's file or a plain pickle) to our `Codebook`."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechgpt.data.checkpoint_fields import describe
from speechgpt.data.inert import Inert
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.encoder import Encoder

CENTRES = "cluster_centers_"
# ..._L11_km1000.bin, km500_layer9.bin: how published codebooks name their layer.
LAYER_IN_NAME = re.compile(r"(?:^|[_\-.])(?:L|l|layer)_?(\d{1,3})(?=[_\-.]|$)")


def is_kmeans(tree: Any) -> bool:
    return _state(tree) is not None


def _state(tree: Any) -> dict | None:
    state = tree.state if isinstance(tree, Inert) else tree
    return state if isinstance(state, dict) and CENTRES in state else None


def read_centroids(tree: Any, where: str) -> np.ndarray:
    """(K, D) float32, as fitted; `where` names the file in errors."""
    found = (_state(tree) or {}).get(CENTRES)
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f" or found.ndim != 2 or not found.size:
        raise ValueError(f"{where}: {CENTRES} is {describe(found)}; expected numbers of shape (K, D)")
    centroids = np.array(found, np.float32)
    if not np.isfinite(centroids).all():
        raise ValueError(f"{where}: {CENTRES} holds numbers that are not finite")
    return centroids


def layer_in_name(path: Path) -> int | None:
    """11 for mhubert_base_vp_en_es_fr_it3_L11_km1000.bin."""
    found = LAYER_IN_NAME.search(path.stem)
    return int(found[1]) if found else None


def kmeans_layer(path: Path, layer: int | None) -> int:
    """The layer that was given or that the file's name says. ValueError where none or they differ."""
    named = layer_in_name(path)
    if layer is not None and named is not None and layer != named:
        raise ValueError(
            f"{path}: its name says layer {named}, --layer {layer}; rename it or leave --layer out"
        )
    found = named if layer is None else layer
    if found is None:
        raise ValueError(
            f"{path}: neither its contents nor its name say which layer its features are of; give --layer"
        )
    return found


def convert_kmeans(
    tree: Any, path: Path, encoder: Encoder, layer: int | None, source: dict | None = None
) -> Codebook:
    """The codebook of `encoder`'s features of `layer`, or of the layer that the file's name says."""
    centroids = read_centroids(tree, str(path))
    layer = kmeans_layer(path, layer)
    encoder.check_layer(layer)
    if centroids.shape[1] != encoder.width:
        raise ValueError(
            f"{path}: centroids of {centroids.shape[1]} numbers, the encoder's features have {encoder.width}"
        )
    provenance = Provenance(encoder.fingerprint, layer, encoder.sample_rate, encoder.hop, encoder.normalize)
    return Codebook(torch.from_numpy(centroids), provenance, source)
