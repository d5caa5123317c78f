"""Training of the unit HiFi-GAN: the `speechgpt vocoder` command."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechgpt.data.files import atomic_path, read_json, write_json
from speechgpt.data.hashes import file_hash
from speechgpt.units.devices import choose_device, on_device
from speechgpt.units.processes import World
from speechgpt.vocoder.check import measure
from speechgpt.vocoder.discriminators import build_discriminators
from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.pool import Pool, load_rows, read_rows
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.steps import Steps
from speechgpt.vocoder.training_data import load_pool

CHECKPOINT = "checkpoint.pt"
SEED_STRIDE = 1_000_003  # between the seeds of two runs: more steps than any run has


class Run:
    """One training in one folder: resumes from its checkpoint, stops at its steps or its minutes."""

    def __init__(
        self,
        config: TrainConfig,
        plan: VocoderConfig,
        pool: Pool,
        out: Path,
        world: World,
        units_hash: str = "",
    ):
        self.config, self.plan, self.pool, self.out = config, plan, pool, out
        self.world, device = world, world.device
        if config.batch_size % world.size:
            raise ValueError(f"batch_size {config.batch_size} cannot be shared by {world.size} processes")
        torch.manual_seed(config.seed)
        model = UnitVocoder(plan).add_weight_norm().to(device)
        self.steps = Steps(model, build_discriminators(config.discriminator).to(device), config)
        self.step, self.seconds, self.log = 0, 0.0, []
        self.captures = device.type == "cuda" and config.cuda_graphs
        self.every = config.log_every if device.type == "cuda" else 1
        # Anything that would make the continuation another run.
        self.identity = {
            "config": config.fingerprint(),
            "num_units": plan.num_units,
            "codebook": plan.codebook.get("sha256", ""),
            "speakers": plan.speakers,
            "frames": int(pool.frame_start[-1]),
            "units": units_hash,
            "processes": world.size,
        }

    def resume(self) -> None:
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.steps.device, weights_only=True)
        differing = [k for k, v in self.identity.items() if state["identity"].get(k) != v]
        if differing:  # a changed config or corpus is another training, as it is for the encoder
            self.world.say(f"{path}: of another training ({', '.join(differing)} differ): starting afresh")
            return
        self.steps.load_state_dict(state["steps"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def save(self) -> None:
        """The checkpoint, and beside it a vocoder folder that already speaks."""
        self.steps.check(self.step)
        if not self.world.first:
            return
        state = {
            "identity": self.identity,
            "steps": self.steps.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
        }
        with atomic_path(self.out / CHECKPOINT) as part:
            torch.save(state, part)
        self.vocoder().save(self.out)
        write_json(self.out / "train_log.json", self.log)

    def vocoder(self) -> UnitVocoder:
        """A copy of the generator that is to be kept: averaged where it is, weight norm folded."""
        model = UnitVocoder(self.plan).add_weight_norm().to(self.steps.device)
        model.load_state_dict(self.steps.averaged_state())
        return model.remove_weight_norm().eval()

    def finished(self) -> bool:
        limit = self.config.max_minutes * 60
        return self.step >= self.config.steps or bool(limit and self.seconds >= limit)

    def train(self) -> None:
        config = self.config
        saved = last = time.monotonic()
        hidden = None if self.world.first else True
        bar = tqdm(total=config.steps, initial=self.step, desc="vocoder", disable=hidden)
        with bar:
            while not self.finished():
                self.one_step()
                bar.update()
                if self.step % self.every == 0 or self.step >= config.steps:
                    self.steps.check(self.step)
                    now = time.monotonic()
                    # By the first process's clock, so that all stop at the same step.
                    self.seconds, last = self.world.agree(self.seconds + now - last), now
                if self.step % config.log_every == 0:
                    values = self.steps.read()
                    self.log.append({"step": self.step, "seconds": round(self.seconds, 1), **values})
                    bar.set_postfix({k[:4]: f"{v:.3g}" for k, v in values.items()}, refresh=False)
                    if self.world.first and now - saved > config.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
        self.save()

    def one_step(self) -> None:
        config, step, world = self.config, self.step, self.world
        if not self.captures:
            # The predictor's dropout: the same in a run that was cut and continued.
            torch.manual_seed(config.seed * SEED_STRIDE + step * world.size + world.rank)
        batch = self.pool.draw(
            config.batch_size // world.size,
            config.segment_frames,
            config.duration_window,
            (config.seed, step, world.rank),
        )
        if step < config.warmup_steps:
            self.steps.warm(batch, config.rate(step))
        else:
            if step == config.warmup_steps:
                self.steps.restart_average()
            self.steps.adversarial(batch, config.rate(step))
        self.step += 1


def train(
    config: TrainConfig,
    manifest: str | Path,
    units: str | Path,
    out: str | Path,
    codebook: str | Path | None = None,
    device: str = "auto",
) -> dict:
    """Trains until done and returns what done.json holds. The same call goes on where a killed one was."""
    out, world = Path(out), World.join(device)
    with on_device(world.device):
        if world.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        plan, pool = load_pool(config, manifest, units, codebook, world.device)
        run = Run(config, plan, pool, out, world, file_hash(units))
        run.resume()
        if world.first:
            (out / "done.json").unlink(missing_ok=True)
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "train_config.json", config.to_dict())
        run.train()
        world.leave()
        if not world.first:
            return {}
        report = _report(run, manifest, units)
    write_json(out / "done.json", report)
    return report


def _report(run: Run, manifest: str | Path, units: str | Path) -> dict:
    """What done.json says of a run that is over, with how near it comes to recordings of the split dev."""
    config, plan = run.config, run.plan
    dev = read_rows(manifest, units, config.data, ["dev"])
    chosen = np.random.default_rng(config.seed).permutation(len(dev))[: config.check_rows]
    rows = load_rows([dev[i] for i in chosen], manifest, plan.hop, plan.sample_rate, config.data)
    return {
        "config": config.fingerprint(),
        "steps": run.step,
        "stopped_by": "steps" if run.step >= config.steps else "max_minutes",
        "train_minutes": round(run.seconds / 60, 2),
        "train_hours_of_audio": round(run.pool.hours, 3),
        "utterances": len(run.pool.rows),
        "K": plan.num_units,
        "units": file_hash(units),
        "speakers": plan.speakers,
        "last_losses": run.log[-1] if run.log else {},
        "dev": measure(run.vocoder(), rows),
    }


def already_done(config: TrainConfig, out: str | Path, units: str | Path | None = None) -> bool:
    """Whether done.json is of this config, and of these units, and its steps or minutes are reached."""
    path = Path(out) / "done.json"
    if not path.exists():
        return False
    done = read_json(path)
    if units is not None and done.get("units") != file_hash(units):
        return False
    reached = done["steps"] >= config.steps or 0 < config.max_minutes <= done["train_minutes"]
    return done["config"] == config.fingerprint() and reached


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt vocoder", description="Trains the unit vocoder.")
    parser.add_argument("--config", required=True, help="vocoder.yaml")
    parser.add_argument("--manifest", help="manifest.jsonl of the audio")
    parser.add_argument("--units", help="units.jsonl of the same audio")
    parser.add_argument("--codebook", help="codebook.safetensors of the units: gives K and the provenance")
    parser.add_argument("--out", help="folder for the vocoder; the same command goes on with what is there")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--benchmark", type=int, metavar="N", help="time N steps of each kind on made-up data"
    )
    parser.add_argument(
        "--profile", action="store_true", help="show the kernels of one adversarial step on made-up data"
    )
    options = parser.parse_args(argv)
    config = TrainConfig.load(options.config)
    if options.benchmark:
        from speechgpt.vocoder.benchmark_training import benchmark

        with on_device(device := choose_device(options.device)):
            benchmark(config, options.benchmark, device)
        return 0
    if options.profile:
        from speechgpt.vocoder.benchmark_training import profile_step

        with on_device(device := choose_device(options.device)):
            profile_step(config, device)
        return 0
    if missing := [n for n in ("manifest", "units", "out") if getattr(options, n) is None]:
        parser.error(f"needed: {', '.join('--' + n for n in missing)}")
    if already_done(config, options.out, options.units):
        (Path(options.out) / "done.json").touch()  # newer than its inputs again, so that make rests
        print(f"{options.out}: already trained")
        return 0
    report = train(config, options.manifest, options.units, options.out, options.codebook, options.device)
    if report:
        print(f"{options.out}: {report['steps']} steps in {report['train_minutes']} minutes")
    return 0


if __name__ == "__main__":  # for `torchrun --nproc_per_node=N -m speechgpt.vocoder.train`
    sys.exit(main(sys.argv[1:]))
