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
    sample = torch.cat([encoder.features([waveform], layer)[0] for waveform in waveforms])
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


def fairseq_pair(quick: bool) -> tuple:
    """(a random HuBERT base of fairseq's, behind `FairseqHubert`; our encoder with its weights)."""
    from speechgpt.units.fairseq_backend import FairseqHubert, import_fairseq, quiet
    from speechgpt.units.fairseq_hubert import renamed_arrays

    import_fairseq()
    with quiet():
        from fairseq.data.dictionary import Dictionary
        from fairseq.models.hubert.hubert import HubertConfig, HubertModel
        from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

        torch.manual_seed(0)
        config = HubertConfig(label_rate=50)
        if quick:
            config.encoder_layers, config.encoder_embed_dim, config.encoder_ffn_embed_dim = 3, 64, 128
            config.encoder_attention_heads, config.conv_pos_groups, config.final_dim = 4, 4, 32
            config.conv_feature_layers = "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2"
        model = HubertModel(config, HubertPretrainingConfig(data="", labels=["km"]), [Dictionary()]).eval()
    architecture = SMALL | {"num_hidden_layers": 3} if quick else {}
    encoder = Encoder.create(architecture, False, 0).eval()
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    own = encoder.model.state_dict().keys()
    weights = {n: torch.from_numpy(a) for n, a in renamed_arrays(arrays).items() if n in own}
    encoder.model.load_state_dict(weights)
    return FairseqHubert(model, False, encoder.sample_rate), encoder
