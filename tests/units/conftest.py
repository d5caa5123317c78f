"""Tiny encoders and a tiny corpus on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch

from speechgpt.data.audio import SAMPLE_RATE, write_wav
from speechgpt.data.rows import Utterance, write_manifest
from speechgpt.units.audio_pool import AudioPool
from speechgpt.units.audio_shares import load_pools
from speechgpt.units.encoder import Encoder
from speechgpt.units.processes import World

TINY = {
    "conv_dim": [8] * 7,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}
GROUP = TINY | {"feat_extract_norm": "group", "conv_bias": False}
LAYER = TINY | {"feat_extract_norm": "layer", "conv_bias": True}
STABLE = LAYER | {"do_stable_layer_norm": True}
PHONES = ["SIL", "AA", "S", "IY"]
ALONE = World(0, 1, torch.device("cpu"))


def make_encoder(architecture: dict, normalize: bool = True, seed: int = 0) -> Encoder:
    return Encoder.create(architecture, normalize, seed).eval()


def transformers_model(encoder: Encoder) -> "transformers.HubertModel":  # noqa: F821
    """transformers' own model with the encoder's settings and weights."""
    from transformers import HubertConfig, HubertModel

    model = HubertModel(HubertConfig(**encoder.config.to_values()))
    model.load_state_dict(encoder.model.state_dict())
    return model.train(encoder.training)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """(T,) float32: noise whose loudness and colour change, so that frames differ."""
    generator = np.random.default_rng(seed)
    white = generator.standard_normal(samples)
    place = np.arange(samples) / SAMPLE_RATE
    slow = np.convolve(white, np.ones(8) / 8, mode="same")
    mix = 0.5 + 0.5 * np.sin(2 * np.pi * (2 + seed % 3) * place)
    return (0.1 * (mix * white + (1 - mix) * slow)).astype(np.float32)


def four_sounds(samples: int, seed: int) -> np.ndarray:
    """(T,) float32: near silence, a low hum, a hiss and a high tone, a quarter each: what `PHONES` says."""
    place = np.arange(samples) / SAMPLE_RATE
    hiss = noise(samples, seed)
    sounds = [
        0.01 * hiss,
        0.2 * np.sin(2 * np.pi * (200 + 5 * seed) * place) + 0.05 * hiss,
        3 * np.diff(hiss, prepend=0),
        0.2 * np.sin(2 * np.pi * 1500 * place) + 0.05 * hiss,
    ]
    quarter = np.minimum(np.arange(samples) * 4 // samples, 3)
    return np.choose(quarter, sounds).astype(np.float32)


def pool_of(rows: list[Utterance], manifest: Path, max_bad: int = 0) -> AudioPool:
    """All rows in one pool, decoded by one process."""
    (pool,) = load_pools([rows], manifest, SAMPLE_RATE, manifest.parent, ALONE, max_bad)
    return pool


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A manifest of 14 short files, two of them dev, most with phones."""
    rows = []
    for index in range(14):
        seconds = 0.4 + 0.13 * index
        path = tmp_path / "audio" / f"{index}.wav"
        write_wav(path, four_sounds(round(seconds * SAMPLE_RATE), index))
        ends = np.linspace(0, seconds, 5)[1:]
        phones = [[name, float(end)] for name, end in zip(PHONES, ends, strict=True)] if index % 5 else []
        rows.append(
            Utterance(
                f"row{index}",
                f"audio/{index}.wav",
                seconds,
                f"s{index % 2}",
                "even" if index % 2 == 0 else "odd",
                "text",
                "dev" if index > 11 else "train",
                phones=phones,
            )
        )
    write_manifest(tmp_path / "manifest.jsonl", rows)
    return tmp_path / "manifest.jsonl"
