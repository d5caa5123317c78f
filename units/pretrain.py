"""Pretrains a HuBERT encoder by masked prediction; on one device or, under torchrun, on several."""

import argparse
import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from speechgpt.data.files import atomic_path, read_json, write_json
from speechgpt.units.devices import choose_device
from speechgpt.units.encoder import Encoder
from speechgpt.units.kept_codebook import CODEBOOK_FILE, check_kept, kept_heads
from speechgpt.units.masked_prediction import MaskedPrediction, describe
from speechgpt.units.pretrain_batches import Batches
from speechgpt.units.pretrain_config import WATCHING, PretrainConfig
from speechgpt.units.pretrain_data import load_data
from speechgpt.units.pretrain_log import TrainingLog, as_text
from speechgpt.units.processes import World
from speechgpt.units.settings import file_hash, text_hash
from speechgpt.units.unit_encoder import UnitEncoder

CLOCK_STEPS = 10  # between looks at the clock, which all processes share


class Pretraining:
    """One run: what it learns from, its model and optimiser, and how far it is."""

    def __init__(
        self,
        config: PretrainConfig,
        encoder: Encoder,
        key: str,
        manifest: str | Path,
        out: str | Path,
        world: World,
        teacher: UnitEncoder | None = None,
    ) -> None:
        self.config, self.training, self.encoder, self.key = config, config.training, encoder, key
        self.world, self.device, self.out = world, world.device, Path(out)
        self.labels_path, self.checkpoint = self.out / "labels.safetensors", self.out / "checkpoint.pt"
        self.train, self.dev, classes = load_data(
            config, encoder, manifest, self.labels_path, key, world, teacher
        )
        self.teacher, fixed = teacher, []
        if config.head.kind == "codebook":
            check_kept(config.head, self.kinds(), teacher, encoder.num_layers)
            fixed = kept_heads(teacher, self.kinds(), config.head.group, self.train, self.dev)
        torch.manual_seed(self.training.seed)  # the heads start alike in every process
        weights = [target.weight for target in config.targets]
        self.model = MaskedPrediction(
            encoder, classes, weights, config.head, self.training.feature_grad_mult, fixed
        ).to(self.device)
        # Layers past the last predicted one would never get a gradient.
        for layer in encoder.model.encoder.layers[self.model.layers[-1] :]:
            layer.requires_grad_(False)
        self.batches = Batches(config, encoder, world)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()
        self.stepper = self._stepper()
        self.step = 0
        self.minutes_before = 0.0  # spent before this process started
        self.bad = torch.zeros((), dtype=torch.bool, device=self.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = [
            {
                "params": [p for p in self.parameters if p.ndim > 1],
                "weight_decay": self.training.weight_decay,
            },
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = tuple(self.training.betas)
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=self.training.eps, fused=True)

    def _stepper(self) -> torch.nn.Module:
        stepper: torch.nn.Module = self.model
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            stepper = DistributedDataParallel(stepper, device_ids=ids, gradient_as_bucket_view=True)
        if self.training.compile:
            torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
            stepper = torch.compile(stepper)
        return stepper

    def run(self) -> dict:
        """Trains to the end, from the last checkpoint if there is one, and returns the metrics."""
        self._resume()
        if self.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
        self.started = self.saved = time.monotonic()
        crop_seconds = self.train.crop_samples / self.encoder.sample_rate
        step_seconds = self.training.batch_size * self.world.size * crop_seconds
        log = TrainingLog(self.kinds(), step_seconds)
        done = self._share_done()
        pending: tuple[int, Tensor] | None = None
        self.model.train()
        while done < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.training.rate(done)
            loss, statistics, bad = self._update()
            # Looking at the step before lets the device work on this one meanwhile. A bad step's update,
            # and any that follows it, has been skipped on the device.
            self._stop_if_bad(pending)
            self.step += 1
            pending = (self.step, bad)
            log.add(loss, statistics)
            done = self._share_done() if self.step % CLOCK_STEPS == 0 or self._by_steps() else done
            if self.step % self.training.log_every == 0 or done >= 1:
                line = log.line()
                self.world.say(
                    f"step {self.step} ({100 * done:.1f} %, {self.minutes():.1f} min) "
                    f"lr={self.training.rate(done):.2e} {line}"
                )
            if self.training.evaluation_every and self.step % self.training.evaluation_every == 0:
                self.world.say(f"dev {as_text(self.evaluate())}")
            if self._checkpoint_due():
                self._stop_if_bad(pending)
                self._save()
        self._stop_if_bad(pending)
        self._save()
        return self._finish(log)

    def _by_steps(self) -> bool:
        return self.training.max_minutes is None

    def _share_done(self) -> float:
        shares = []
        if self.training.steps is not None:
            shares.append(self.step / self.training.steps)
        if self.training.max_minutes is not None:
            shares.append(self.world.agree(self.minutes()) / self.training.max_minutes)
        return max(shares)

    def minutes(self) -> float:
        return self.minutes_before + (time.monotonic() - self.started) / 60

    def _update(self) -> tuple[Tensor, Tensor, Tensor]:
        """One step: loss (), statistics (S, 6) and whether it was not finite (), all on the device."""
        waveforms, lengths, mask, labels = self.batches.draw(self.train, self.step)
        with self._autocast():
            loss, statistics = self.stepper(waveforms, lengths, mask, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # Gradients are averaged over processes, so that one's bad loss is bad for all.
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.training.gradient_clip)
        bad = ~(torch.isfinite(norm) & torch.isfinite(loss.detach()))
        self.bad = self.bad | bad  # nothing is learned after a bad step
        # The fused optimiser leaves everything as it is where `found_inf` is 1, without asking the host.
        self.optimizer.found_inf = self.bad.float()
        self.optimizer.grad_scale = torch.ones((), device=self.device)
        self.optimizer.step()
        return loss.detach(), statistics, bad

    def _stop_if_bad(self, pending: tuple[int, Tensor] | None) -> None:
        if pending is not None and bool(pending[1]):
            raise ValueError(
                f"step {pending[0]}: the loss or its gradient is not finite; stopped before that update. "
                f"The checkpoint in {self.out} is older: lower training.learning_rate or check the audio"
            )

    def _autocast(self):
        precision = self.training.precision
        if precision == "auto":
            precision = "bf16" if self.device.type == "cuda" else "float32"
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Accuracies on fixed crops of the dev rows: clean, once masked and once whole."""
        if self.dev is None:
            return {}
        self.model.eval()
        sums = None
        for number in range(self.training.evaluation_batches):
            waveforms, lengths, mask, labels = self.batches.draw(self.dev, number, evaluating=True)
            with self._autocast():
                _, masked = self.model(waveforms, lengths, mask, labels)
                _, whole = self.model(waveforms, lengths, torch.zeros_like(mask), labels)
            both = torch.cat([masked[:, :3], whole[:, 3:]], dim=1)
            sums = both if sums is None else sums + both
        self.model.train()
        return {f"dev_{k}": v for k, v in describe(sums, self.kinds()).items()}

    def kinds(self) -> list[str]:
        return [target.kind for target in self.config.targets]

    def _checkpoint_due(self) -> bool:
        by_step = self.training.checkpoint_steps and self.step % self.training.checkpoint_steps == 0
        return bool(by_step) or time.monotonic() - self.saved > 60 * self.training.checkpoint_minutes

    def _save(self) -> None:
        self.saved = time.monotonic()
        if not self.world.first:
            return
        state = {
            "key": self.key,
            "step": self.step,
            "minutes": self.minutes(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "config": json.dumps(asdict(self.config)),
        }
        with atomic_path(self.checkpoint) as part:
            torch.save(state, part)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["key"] != self.key:
            self.world.say(f"{self.checkpoint} is of another configuration or manifest: starting afresh")
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.minutes_before = state["step"], state["minutes"]
        self.world.say(f"going on from step {self.step}, {self.minutes_before:.1f} min")

    def _finish(self, log: TrainingLog) -> dict:
        metrics = log.last | self.evaluate()
        metrics |= {
            "steps": self.step,
            "minutes": round(self.minutes(), 2),
            "hours_of_audio": round(self.train.pool.hours, 3),
            "processes": self.world.size,
        }
        if self.world.first:
            encoder = self.encoder.cpu().eval()
            encoder.provenance = {"made_by": "speechgpt pretrain", "key": self.key, "metrics": metrics}
            if self.training.save_dtype == "float16":
                encoder.half().float()  # rounded for good: what is used later is exactly what was saved
                encoder.save(self.out, torch.float16)
            else:
                encoder.save(self.out)
            saved = Encoder.load(self.out, "cpu")
            if self.config.head.kind == "codebook":
                self.teacher.codebook.kept_for(saved).save(self.out / CODEBOOK_FILE)
            done = {"key": self.key, "fingerprint": saved.fingerprint, "metrics": metrics}
            write_json(self.out / "done.json", done | {"config": asdict(self.config)})
            for leftover in (self.checkpoint, self.labels_path):
                leftover.unlink(missing_ok=True)
        self.world.barrier()
        return metrics


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
