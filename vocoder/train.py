"""Training of the unit HiFi-GAN: the `speechgpt vocoder` command."""

import argparse
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from speechgpt.data.files import atomic_path, read_json, write_json
from speechgpt.units.codebook import Codebook
from speechgpt.units.devices import choose_device, on_device
from speechgpt.units.settings import file_hash
from speechgpt.vocoder.check import measure
from speechgpt.vocoder.discriminators import build_discriminators
from speechgpt.vocoder.generator import UnitVocoder, VocoderConfig
from speechgpt.vocoder.pool import Pool, load_rows, read_rows
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.steps import Steps

CHECKPOINT = "checkpoint.pt"
SEED_STRIDE = 1_000_003  # between the seeds of two runs: more steps than any run has


def resolve_generator(
    config: TrainConfig, speakers: list[str], codebook: str | Path | None, where: str | Path
) -> VocoderConfig:
    """The generator's config once codebook and speakers are known; ValueError names what does not fit."""
    plan = replace(config.generator)
    if codebook is not None:
        book = Codebook.load(codebook)
        for name, theirs in (("hop", book.provenance.hop), ("sample_rate", book.provenance.sample_rate)):
            if theirs != getattr(plan, name):
                raise ValueError(f"{codebook}: {name} {theirs}, but the vocoder's is {getattr(plan, name)}")
        if plan.num_units not in (0, book.size):
            raise ValueError(f"{codebook}: K = {book.size}, but generator.num_units is {plan.num_units}")
        plan.num_units = book.size
        plan.codebook = {"K": book.size, "sha256": file_hash(codebook), **asdict(book.provenance)}
    if plan.num_units == 0:
        raise ValueError("generator.num_units is 0: give --codebook, or the codebook's size in the config")
    if config.multi_speaker:
        plan.num_speakers, plan.speakers = len(speakers), speakers
        plan.default_speaker = plan.default_speaker or speakers[0]
    elif len(speakers) > 1:
        shown = ", ".join(speakers[:5]) + (", ..." if len(speakers) > 5 else "")
        raise ValueError(
            f"{where}: {len(speakers)} speakers ({shown}) for a vocoder of one voice: set multi_speaker: "
            "true, or name one in data.speakers"
        )
    plan.training = {"target_dbfs": config.data.target_dbfs, "config": config.fingerprint()}
    plan.check()
    return plan


def load_pool(
    config: TrainConfig,
    manifest: str | Path,
    units: str | Path,
    codebook: str | Path | None,
    device: torch.device,
) -> tuple[VocoderConfig, Pool]:
    """The generator's config and the training data on the device."""
    pairs = read_rows(manifest, units, config.data, config.data.splits)
    if not pairs:
        raise ValueError(f"{units}: no row of split {', '.join(config.data.splits)} and the wanted speakers")
    frames: Counter = Counter()
    for _, row in pairs:
        frames[row.speaker] += sum(row.durations)
    speakers = sorted(frames)
    plan = resolve_generator(config, speakers, codebook, manifest)
    if config.multi_speaker and not config.generator.default_speaker:
        plan.default_speaker = max(speakers, key=frames.__getitem__)  # the one with the most to learn from
    for _, row in pairs:
        if min(row.units) < 0 or max(row.units) >= plan.num_units:
            raise ValueError(
                f"{units}: row {row.id} holds unit {max(row.units)}; the codebook has K = {plan.num_units}"
            )
    rows = load_rows(pairs, manifest, plan.hop, plan.sample_rate, config.data)
    pool = Pool(rows, plan.hop, speakers, device, plan.sample_rate)
    pool.weigh(config.data)
    return plan, pool


class Run:
    """One training in one folder: resumes from its checkpoint, stops at its steps or its minutes."""

    def __init__(
        self,
        config: TrainConfig,
        plan: VocoderConfig,
        pool: Pool,
        out: Path,
        device: torch.device,
        units_hash: str = "",
    ):
        self.config, self.plan, self.pool, self.out = config, plan, pool, out
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        if config.batch_size % self.world:
            raise ValueError(f"batch_size {config.batch_size} cannot be shared by {self.world} processes")
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
            "processes": self.world,
        }

    def resume(self) -> None:
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.steps.device, weights_only=True)
        differing = [k for k, v in self.identity.items() if state["identity"].get(k) != v]
        if differing:  # a changed config or corpus is another training, as it is for the encoder
            if not self.rank:
                print(f"{path}: of another training ({', '.join(differing)} differ): starting afresh",
                      file=sys.stderr)  # fmt: skip
            return
        self.steps.load_state_dict(state["steps"])
        self.step, self.seconds, self.log = state["step"], state["seconds"], state["log"]

    def save(self) -> None:
        """The checkpoint, and beside it a vocoder folder that already speaks."""
        self.steps.check(self.step)
        if self.rank:
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
        bar = tqdm(
            total=config.steps, initial=self.step, desc="vocoder", disable=None if self.rank == 0 else True
        )
        with bar:
            while not self.finished():
                self.one_step()
                bar.update()
                if self.step % self.every == 0 or self.step >= config.steps:
                    self.steps.check(self.step)
                    now = time.monotonic()
                    self.seconds, last = self.seconds + now - last, now
                    self.share_clock()
                if self.step % config.log_every == 0:
                    values = self.steps.read()
                    self.log.append({"step": self.step, "seconds": round(self.seconds, 1), **values})
                    bar.set_postfix({k[:4]: f"{v:.3g}" for k, v in values.items()}, refresh=False)
                    if self.rank == 0 and now - saved > config.checkpoint_seconds:
                        self.save()
                        saved = time.monotonic()
        self.save()

    def one_step(self) -> None:
        config, step = self.config, self.step
        if not self.captures:
            # The predictor's dropout: the same in a run that was cut and continued.
            torch.manual_seed(config.seed * SEED_STRIDE + step * self.world + self.rank)
        batch = self.pool.draw(
            config.batch_size // self.world,
            config.segment_frames,
            config.duration_window,
            (config.seed, step, self.rank),
        )
        if step < config.warmup_steps:
            self.steps.warm(batch, config.rate(step))
        else:
            if step == config.warmup_steps:
                self.steps.restart_average()
            self.steps.adversarial(batch, config.rate(step))
        self.step += 1

    def share_clock(self) -> None:
        """All processes go by the first one's clock, so that they stop at the same step."""
        if self.world > 1:
            clock = torch.tensor(self.seconds, dtype=torch.float64, device=self.steps.device)
            dist.broadcast(clock, 0)
            self.seconds = float(clock)


def train(
    config: TrainConfig,
    manifest: str | Path,
    units: str | Path,
    out: str | Path,
    codebook: str | Path | None = None,
    device: str = "auto",
) -> dict:
    """Trains until done and returns what done.json holds. The same call goes on where a killed one was."""
    out = Path(out)
    target = _start_processes(choose_device(device))
    if target.type == "cuda":
        torch.backends.cudnn.benchmark = True
    plan, pool = load_pool(config, manifest, units, codebook, target)
    run = Run(config, plan, pool, out, target, file_hash(units))
    run.resume()
    if run.rank == 0:
        (out / "done.json").unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "train_config.json", config.to_dict())
    run.train()
    if dist.is_initialized():
        dist.destroy_process_group()
    if run.rank:
        return {}
    dev = read_rows(manifest, units, config.data, ["dev"])
    chosen = np.random.default_rng(config.seed).permutation(len(dev))[: config.check_rows]
    rows = load_rows([dev[i] for i in chosen], manifest, plan.hop, plan.sample_rate, config.data)
    report = {
        "config": config.fingerprint(),
        "steps": run.step,
        "stopped_by": "steps" if run.step >= config.steps else "max_minutes",
        "train_minutes": round(run.seconds / 60, 2),
        "train_hours_of_audio": round(pool.hours, 3),
        "utterances": len(pool.rows),
        "K": plan.num_units,
        "units": file_hash(units),
        "speakers": plan.speakers,
        "last_losses": run.log[-1] if run.log else {},
        "dev": measure(run.vocoder(), rows),
    }
    write_json(out / "done.json", report)
    return report


def _start_processes(device: torch.device) -> torch.device:
    """Joins the other processes under torchrun; returns this one's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # streams, captures and kernels are of the current one
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


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
