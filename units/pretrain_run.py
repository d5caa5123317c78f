"""One run of masked prediction: its steps from the last checkpoint to the end, and what it leaves."""

import json
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from speechgpt.data.files import atomic_path, write_json
from speechgpt.units.encoder import Encoder
from speechgpt.units.kept_codebook import CODEBOOK_FILE, check_kept, kept_heads
from speechgpt.units.masked_prediction import MaskedPrediction, describe
from speechgpt.units.pretrain_batches import Batches
from speechgpt.units.pretrain_config import PretrainConfig
from speechgpt.units.pretrain_data import load_data
from speechgpt.units.pretrain_log import TrainingLog, as_text
from speechgpt.units.processes import World
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
            if pending is None:
                loss.item()  # waits for the device
                self.world.say(f"first step in {time.monotonic() - self.started:.1f} s")
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
