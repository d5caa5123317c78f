"""What pretraining learns from: all audio in memory, and every frame's labels, made once and kept."""

import json
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from speechgpt.data.files import atomic_path
from speechgpt.data.rows import read_manifest
from speechgpt.units.audio_pool import AudioPool, CropSampler
from speechgpt.units.audio_shares import load_pools
from speechgpt.units.encoder import Encoder
from speechgpt.units.labels import make_labels
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.processes import World
from speechgpt.units.unit_encoder import UnitEncoder

POOL_SHARE = 1 / 3  # of a GPU's memory that audio may take
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
    """Crops to train on, crops to measure on if there are dev rows, and the classes of each label source.

    Decoded and labelled by all processes together; each then holds all of it. Beside `labels_path` lie what
    they tell each other meanwhile.
    """
    pools = _load_pools(config, encoder, manifest, labels_path.parent, world)
    labels, classes = _labels(config, encoder, pools, labels_path, key, teacher, world)
    place = _pool_device(config.training.pool_device, pools, world.device)
    pools = [pool.to(place) for pool in pools]
    labels = [[source.to(place) for source in sources] for sources in labels]
    hop, field = encoder.hop, encoder.receptive_field
    frames = max(1, round(config.training.crop_seconds * encoder.sample_rate / hop))
    train = CropSampler(pools[0], labels[0], hop, field, frames, config.sampling, config.augment.trim)
    dev = CropSampler(pools[1], labels[1], hop, field, frames, {}) if len(pools) > 1 else None
    return train, dev, classes


def _load_pools(
    config: PretrainConfig, encoder: Encoder, manifest: str | Path, folder: Path, world: World
) -> list[AudioPool]:
    started = time.monotonic()
    rows = read_manifest(manifest)
    if all(target.kind == "phones" for target in config.targets):
        # Rows without labels would only be waited for.
        rows = [row for row in rows if row.phones] or rows
    splits = [[row for row in rows if row.split == split] for split in SPLITS]
    if not splits[0]:
        raise ValueError(f"{manifest}: no rows of split 'train'")
    pools = load_pools(
        [split for split in splits if split],
        manifest,
        encoder.sample_rate,
        folder,
        world,
        config.training.max_bad,
    )
    files, hours = sum(len(pool.rows) for pool in pools), sum(pool.hours for pool in pools)
    world.say(f"decoded {files} files, {hours:.2f} h, in {time.monotonic() - started:.1f} s")
    return pools


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


def _labels(
    config: PretrainConfig,
    encoder: Encoder,
    pools: list[AudioPool],
    path: Path,
    key: str,
    teacher: UnitEncoder | None,
    world: World,
) -> tuple[list[list[Tensor]], list[int]]:
    """Each pool's labels (sum of N,) int16 of every source, and the sources' classes; kept in `path`."""
    if world.agree(float(_is_of(path, key))):
        return _read_labels(path, len(pools))
    started = time.monotonic()
    found, classes = [], []
    for target in config.targets:
        labels, count = make_labels(
            target, pools, encoder.hop, encoder.receptive_field, config.training.seed, teacher, world
        )
        found.append(labels)
        classes.append(count)
    with world.together():
        if world.first:
            _keep_labels(path, key, found, classes)
    frames = sum(len(labels) for labels in found[0])
    world.say(f"labelled {frames} frames in {time.monotonic() - started:.1f} s")
    return [list(sources) for sources in zip(*found, strict=True)], classes


def _keep_labels(path: Path, key: str, found: list[list[Tensor]], classes: list[int]) -> None:
    tensors = {
        f"{source}.{number}": labels
        for source, of_pools in enumerate(found)
        for number, labels in enumerate(of_pools)
    }
    with atomic_path(path) as part:
        save_file(tensors, str(part), metadata={"key": key, "classes": json.dumps(classes)})


def _read_labels(path: Path, pools: int) -> tuple[list[list[Tensor]], list[int]]:
    with safe_open(str(path), "pt") as file:
        classes = json.loads(file.metadata()["classes"])
        return [
            [file.get_tensor(f"{source}.{number}") for source in range(len(classes))]
            for number in range(pools)
        ], classes
