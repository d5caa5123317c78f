"""A random HuBERT base with a codebook of its own features, for measurements."""

from collections.abc import Sequence

import numpy as np
import torch

from speechgpt.units.codebook import PUBLISHED_LAYER, Codebook, Provenance
from speechgpt.units.encoder import Encoder
from speechgpt.units.machine import Machine

ROUNDS = 8  # of k-means
SMALL = {  # same plan, toy widths
    "conv_dim": [32] * 7,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_conv_pos_embedding_groups": 4,
}


def fitted(encoder: Encoder, layer: int, waveforms: Sequence[np.ndarray], k: int) -> Codebook:
    """k-means of the encoder's own float32 features of the waveforms."""
    sample = torch.cat(encoder.features(waveforms, layer))
    generator = torch.Generator().manual_seed(0)
    centroids = sample[torch.randperm(len(sample), generator=generator)[:k].to(sample.device)].clone()
    provenance = Provenance(encoder.fingerprint, layer, encoder.sample_rate, encoder.hop, encoder.normalize)
    for _ in range(ROUNDS):
        units = Codebook(centroids, provenance).assign(sample)
        counts = torch.bincount(units, minlength=len(centroids))[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, units, sample)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return Codebook(centroids, provenance)


def base_encoder(machine: Machine, quick: bool) -> tuple[Encoder, int]:
    """A random HuBERT base and the published layer."""
    encoder = Encoder.create(SMALL if quick else {}, False, 0).eval()
    encoder._fingerprint = encoder.compute_fingerprint()  # once, as of an encoder that is loaded
    encoder = encoder.to(machine.device)
    return encoder, 2 if quick else PUBLISHED_LAYER
