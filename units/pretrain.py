"""Pretrains a HuBERT encoder by masked prediction; on one device or, under torchrun, on several."""

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from speechgpt.data.files import read_json
from speechgpt.data.hashes import file_hash, text_hash
from speechgpt.units.devices import choose_device
from speechgpt.units.encoder import Encoder
from speechgpt.units.pretrain_config import WATCHING, PretrainConfig
from speechgpt.units.pretrain_run import Pretraining
from speechgpt.units.processes import World
from speechgpt.units.unit_encoder import UnitEncoder


def _new_encoder(config: PretrainConfig, init: str | Path | None) -> Encoder:
    encoder = Encoder.create(config.architecture, config.normalize, config.training.seed)
    if init is not None:
        start = Encoder.load(init, "cpu")
        if start.normalize != encoder.normalize:
            raise ValueError(f"{init}: normalize is {start.normalize}, the config says {encoder.normalize}")
        try:
            encoder.model.load_state_dict(start.model.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{init}: does not fit the config's architecture: {error}") from error
    return encoder


def run_key(config: PretrainConfig, manifest: str | Path, teacher: UnitEncoder | None, start: str) -> str:
    """A hash of all that decides the result: a run with another key does not continue this one."""
    values = asdict(config)
    values["training"] = {k: v for k, v in values["training"].items() if k not in WATCHING}
    taught = ""
    if teacher is not None:
        centroids = teacher.codebook.centroids.cpu().numpy().tobytes().hex()
        taught = text_hash(teacher.encoder.fingerprint, teacher.layer, centroids)
    return text_hash(values, file_hash(manifest), taught, start)


def pretrain(
    config: PretrainConfig,
    manifest: str | Path,
    out: str | Path,
    device: str = "auto",
    teacher: UnitEncoder | None = None,
    init: str | Path | None = None,
) -> dict:
    """Trains an encoder into the folder `out` and returns the metrics; a finished run is only read."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    encoder = _new_encoder(config, init)
    key = run_key(config, manifest, teacher, encoder.fingerprint)
    done = out / "done.json"
    if done.exists() and (found := read_json(done)).get("key") == key:
        done.touch()  # newer than its inputs again, so that make rests
        return found["metrics"]
    world = World.join(device)
    try:
        return Pretraining(config, encoder, key, manifest, out, world, teacher).run()
    finally:
        world.leave()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt pretrain", description=__doc__)
    parser.add_argument("--config", required=True, help="encoder.yaml")
    parser.add_argument("--manifest", required=True, help="rows of split train are learned, dev is measured")
    parser.add_argument("--out", required=True, help="folder; the same command goes on after a kill")
    parser.add_argument("--teacher", help="encoder of an earlier iteration, for targets of kind units")
    parser.add_argument("--teacher-codebook", help="its codebook.safetensors")
    parser.add_argument("--init", help="encoder folder whose weights to start from")
    parser.add_argument("--max-minutes", type=float, help="instead of the config's")
    parser.add_argument("--steps", type=int, help="instead of the config's")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    config = PretrainConfig.load(options.config)
    changed = {"max_minutes": options.max_minutes, "steps": options.steps}
    config.training = replace(config.training, **{k: v for k, v in changed.items() if v is not None})
    if (options.teacher is None) != (options.teacher_codebook is None):
        raise ValueError("--teacher and --teacher-codebook go together")
    teacher = None
    if options.teacher:
        local = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        device = choose_device(options.device)
        teacher = UnitEncoder.load(
            options.teacher, options.teacher_codebook, device=local if device.type == "cuda" else device
        )
    metrics = pretrain(config, options.manifest, options.out, options.device, teacher, options.init)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(metrics))
    return 0


if __name__ == "__main__":  # torchrun --nproc-per-node N -m speechgpt.units.pretrain ...
    sys.exit(main(sys.argv[1:]))
