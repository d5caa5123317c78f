"""What pretraining learns from: all audio in memory, and every frame's labels, made once and kept."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from speechgpt.data.files import atomic_path
from speechgpt.data.rows import read_manifest
from speechgpt.units.audio_pool import AudioPool, CropSampler, load_pool
from speechgpt.units.encoder import Encoder
from speechgpt.units.labels import make_labels
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.processes import World
from speechgpt.units.unit_encoder import UnitEncoder

POOL_SHARE = 1 / 3  # of a GPU's memory that audio may take
DECODERS = 32  # threads at most
SPLITS = ("train", "dev")


def load_data(
    config: PretrainConfig,
    encoder: Encoder,
    manifest: str | Path,
    labels_path: Path,
    key: str,
    world: World,
    teacher: UnitEncoder | None,
) -> tuple[CropSampler, CropSampler | None, list[int]]:
    """Crops to train on, crops to measure on if there are dev rows, and the classes of each label source."""
    pools = _load_pools(config, encoder, manifest, world)
    if world.first and not _is_of(labels_path, key):
        _make_labels(config, encoder, pools, labels_path, key, teacher)
    world.barrier()
    with safe_open(str(labels_path), "pt") as file:
        classes = json.loads(file.metadata()["classes"])
        labels = [
            [file.get_tensor(f"{source}.{number}").to(pool.samples.device) for source in range(len(classes))]
            for number, pool in enumerate(pools)
        ]
    hop, field = encoder.hop, encoder.receptive_field
    frames = max(1, round(config.training.crop_seconds * encoder.sample_rate / hop))
    train = CropSampler(pools[0], labels[0], hop, field, frames, config.sampling, config.augment.trim)
    dev = CropSampler(pools[1], labels[1], hop, field, frames, {}) if len(pools) > 1 else None
    return train, dev, classes


def _load_pools(
    config: PretrainConfig, encoder: Encoder, manifest: str | Path, world: World
) -> list[AudioPool]:
    rows = read_manifest(manifest)
    if all(target.kind == "phones" for target in config.targets):
        # Rows without labels would only be waited for.
        rows = [row for row in rows if row.phones] or rows
    workers = min(DECODERS, max(1, (os.cpu_count() or 1) // world.size))
    pools = []
    for split in SPLITS:
        mine = [row for row in rows if row.split == split]
        if split == "train" and not mine:
            raise ValueError(f"{manifest}: no rows of split 'train'")
        if mine:
            progress = f"decoding {split}" if world.first else ""
            pools.append(
                load_pool(mine, manifest, encoder.sample_rate, config.training.max_bad, workers, progress)
            )
    place = _pool_device(config.training.pool_device, pools, world.device)
    return [pool.to(place) for pool in pools]


def _pool_device(asked: str, pools: list[AudioPool], device: torch.device) -> torch.device:
    if device.type != "cuda" or asked == "cpu":
        return torch.device("cpu")
    size = sum(pool.samples.numel() * pool.samples.element_size() for pool in pools)
    room = torch.cuda.get_device_properties(device).total_memory * POOL_SHARE
    return device if asked == "cuda" or size < room else torch.device("cpu")


def _is_of(path: Path, key: str) -> bool:
    if not path.exists():
        return False
    with safe_open(str(path), "pt") as file:
        return (file.metadata() or {}).get("key") == key


def _make_labels(
    config: PretrainConfig,
    encoder: Encoder,
    pools: list[AudioPool],
    path: Path,
    key: str,
    teacher: UnitEncoder | None,
) -> None:
    tensors: dict[str, Tensor] = {}
    classes = []
    for source, target in enumerate(config.targets):
        labels, count = make_labels(
            target, pools, encoder.hop, encoder.receptive_field, config.training.seed, teacher
        )
        classes.append(count)
        tensors |= {f"{source}.{number}": found.contiguous() for number, found in enumerate(labels)}
    with atomic_path(path) as part:
        save_file(tensors, str(part), metadata={"key": key, "classes": json.dumps(classes)})
