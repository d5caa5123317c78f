"""Training steps per second on made-up data: of `speechgpt bench`, and `speechgpt vocoder --benchmark N`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.data.rows import UnitRow
from speechgpt.units.machine import Machine
from speechgpt.vocoder.architecture import VocoderConfig
from speechgpt.vocoder.benchmark_speaking import multiplications
from speechgpt.vocoder.discriminators import DiscriminatorConfig, build_discriminators
from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.losses import feature_loss
from speechgpt.vocoder.pool import Pool
from speechgpt.vocoder.replay import measured_kernels
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.steps import Steps

UTTERANCES, UTTERANCE_FRAMES = 40, 200  # of noise
FIRST_STEPS = 8  # not timed: kernel choice, optimizer states, capture
PROFILED, NAME = 15, 70  # kernels shown, letters of their names
STEPS, EAGER_STEPS = 20, 5  # timed, of `speechgpt bench`; of the released way, which is slow
COMPARED = 3  # first steps whose losses are shown side by side
SECONDS = 110  # after which `speechgpt bench` starts no further variant


def made_up_pool(config: TrainConfig, device: torch.device) -> Pool:
    """Noise in place of speech, random units."""
    random, rows = np.random.default_rng(0), []
    for number in range(UTTERANCES):
        units = np.arange(UTTERANCE_FRAMES // 2) % config.generator.num_units
        samples = UTTERANCE_FRAMES * config.generator.hop
        waveform = random.normal(0, 0.1, samples).astype(np.float32)
        rows.append((UnitRow(str(number), units.tolist(), [2] * len(units)), waveform))
    pool = Pool(rows, config.generator.hop, [""], device)
    pool.weigh(config.data)
    return pool


def benchmark(config: TrainConfig, count: int, device: torch.device) -> list[dict]:
    """Prints one line a variant as it is measured, then all of them as one JSON line; returns them."""
    config = _without_data(config)
    eager = replace(config, cuda_graphs=False, compile=False)
    graphs = replace(config, cuda_graphs=True, compile=False)
    variants = [
        ("mel only, eager", eager, "warm"),
        ("mel only, graph", graphs, "warm"),
        ("adversarial, eager", eager, "gan"),
        ("adversarial, graph", graphs, "gan"),
    ]
    if config.compile:
        variants.append(("adversarial, compiled and graph", replace(graphs, compile=True), "gan"))
    if device.type == "cpu":
        variants = [v for v in variants if "graph" not in v[0]]
    pool, results = made_up_pool(config, device), []
    for name, variant, kind in variants:
        results.append({"variant": name, **_time(variant, pool, kind, count, device)})
        print(" | ".join(f"{k} {v}" for k, v in results[-1].items()), file=sys.stderr, flush=True)
    print(json.dumps(results))
    return results


def _without_data(config: TrainConfig) -> TrainConfig:
    """The same training on made-up units and speakers."""
    speakers = {"num_speakers": 4} if config.multi_speaker else {}
    generator = replace(config.generator, num_units=config.generator.num_units or 100, **speakers)
    return replace(config, generator=generator, data=replace(config.data, weights={}))


def profile_step(config: TrainConfig, device: torch.device) -> None:
    """Prints the kernels that take the time of one captured adversarial step, on made-up data."""
    from torch.profiler import ProfilerActivity, profile

    config = replace(_without_data(config), cuda_graphs=True)
    _, step = _stepper(config, made_up_pool(config, device), "gan", device)
    on_cuda = device.type == "cuda"
    with measured_kernels() if on_cuda else nullcontext():
        for number in range(FIRST_STEPS if on_cuda else 1):
            step(number)
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as trace:
        step(FIRST_STEPS)
        if on_cuda:
            torch.cuda.synchronize()
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    kernels = sorted(trace.key_averages(), key=lambda event: -getattr(event, key))
    whole = sum(getattr(event, key) for event in kernels)
    print(f"one adversarial step: {whole / 1e3:.2f} ms in {sum(event.count for event in kernels)} kernels")
    for event in kernels[:PROFILED]:
        taken = getattr(event, key)
        print(f"{taken / 1e3:8.3f} ms {taken / whole:6.1%} {event.count:5d} x  {event.key[:NAME]}")


def _stepper(
    config: TrainConfig, pool: Pool, kind: str, device: torch.device, judges: nn.Module | None = None
) -> tuple[Steps, Callable[[int], None]]:
    """The training and its step; `judges` replaces the config's discriminators."""
    torch.manual_seed(0)
    model = UnitVocoder(config.generator).add_weight_norm().to(device)
    judges = build_discriminators(config.discriminator) if judges is None else judges
    steps = Steps(model, judges.to(device), config)

    def step(number: int) -> None:
        batch = pool.draw(config.batch_size, config.segment_frames, config.duration_window, (0, number))
        (steps.warm if kind == "warm" else steps.adversarial)(batch, config.learning_rate)

    return steps, step


def _time(
    config: TrainConfig,
    pool: Pool,
    kind: str,
    count: int,
    device: torch.device,
    judges: nn.Module | None = None,
) -> dict:
    """Steps per second over `count` steps, after the first ones, whose losses are in `first_losses`.

    Eager steps take cuDNN's first guess of kernels; captured ones those that it measured.
    """
    on_cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if on_cuda else lambda: None
    try:
        started = time.monotonic()
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        steps, step = _stepper(config, pool, kind, device, judges)
        seen = []
        with measured_kernels() if on_cuda and config.cuda_graphs else nullcontext():
            for number in range(FIRST_STEPS if on_cuda else COMPARED):
                step(number)
                if number < COMPARED:
                    seen.append(steps.read())
        wait()
        first = time.monotonic()
        for number in range(count):
            step(FIRST_STEPS + number)
        wait()
        seconds = time.monotonic() - first
        phases = steps.warm_phases if kind == "warm" else steps.adversarial_phases
        memory = torch.cuda.max_memory_allocated() / 2**30 if on_cuda else 0.0
        steps.check(count)
    except (RuntimeError, ValueError) as error:  # one variant that fails must not hide the others
        return {"failed": " ".join(str(error).split())[:400]}
    return {
        "steps_per_second": round(count / seconds, 2),
        "captured": phases.captured,
        "start_seconds": round(first - started, 1),
        "memory_gib": round(memory, 1),
        "first_losses": [{name: round(value, 4) for name, value in losses.items()} for losses in seen],
    }


# Reflection is SpeechBrain's padding: the very losses of its own modules. The paper's zeros find others.
REFLECTION = DiscriminatorConfig(zero_padding=False)
VARIANTS = {  # the best first
    "captured": {"discriminator": REFLECTION},
    "captured, zeros": {"discriminator": DiscriminatorConfig()},
    "eager": {"discriminator": REFLECTION, "cuda_graphs": False},
}


def training(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """Steps of the published sizes on batches of 32 x 0.64 s, beside SpeechBrain's modules run eagerly."""
    if machine.kind != "cuda" and not quick:
        raise NotMeasuredError("a step takes minutes on a CPU")
    began = time.monotonic()
    small = {"num_units": 50, "embedding_dim": 8, "initial_channels": 32} if quick else {}
    generator = VocoderConfig(**small, duration_dropout=0.0)  # so that every variant draws the same
    config = TrainConfig(
        generator=generator,
        batch_size=2 if quick else 32,
        segment_frames=8 if quick else 32,
        precision="bf16",
    )
    narrow = {"period_width": 1 / 16, "scale_width": 1 / 16} if quick else {}
    count, pool = 1 if quick else STEPS, made_up_pool(config, machine.device)
    eager = replace(config, discriminator=REFLECTION, cuda_graphs=False)
    judges = Released(narrow)
    weights = {name: value.clone() for name, value in judges.state_dict().items()}
    limit = machine.matrix_flops(torch.bfloat16) / step_flops(eager, judges)
    released = _time(eager, pool, "gan", 1 if quick else EAGER_STEPS, machine.device, judges)
    if "failed" in released:
        raise RuntimeError(released["failed"])
    print(f"training, released modules: {released}", file=sys.stderr, flush=True)
    del judges
    for name, changes in VARIANTS.items():
        if time.monotonic() - began > SECONDS:
            print(f"training, {name}: left out, {SECONDS} s are over", file=sys.stderr, flush=True)
            continue
        machine.forget()
        plan = replace(config, **changes)
        judges = build_discriminators(replace(plan.discriminator, **narrow))
        judges.load_state_dict(weights)
        found = _time(plan, pool, "gan", count, machine.device, judges)
        print(f"training, {name}: {found}", file=sys.stderr, flush=True)
        if "failed" in found:
            continue
        note = (
            f"{name}{'' if found['captured'] else ' (not captured)'}; first {COMPARED} steps beside the "
            f"released ones: {_losses(found, released)}; {found['memory_gib']} GiB"
        )
        yield Measurement(
            "training of the vocoder, published sizes",
            "step/s",
            released["steps_per_second"],
            found["steps_per_second"],
            limit,
            note=note,
        )


class Released(nn.Module):
    """SpeechBrain's discriminators, computed as they are; of another width for tests."""

    def __init__(self, narrow: dict):
        super().__init__()
        from speechbrain.lobes.models.HifiGAN import HifiganDiscriminator

        torch.manual_seed(1)
        judges = build_discriminators(replace(REFLECTION, **narrow)) if narrow else HifiganDiscriminator()
        self.mpd, self.msd = judges.mpd, judges.msd

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """(B, 1, T) -> scores and features, as HifiganDiscriminator."""
        one, two = self.mpd(x), self.msd(x)
        return one[0] + two[0], one[1] + two[1]

    def scores(self, x: Tensor) -> list[Tensor]:
        return self(x)[0]

    def compare(self, fake: Tensor, real: Tensor) -> tuple[list[Tensor], Tensor]:
        """As `Judges.compare`."""
        with torch.no_grad():
            wanted = self(real)[1]
        scores, features = self(fake)
        return scores, feature_loss(features, wanted)


def _losses(found: dict, released: dict) -> str:
    """Each loss over the first steps, the released way's in brackets."""
    parts = []
    for key in ("mel", "discriminator", "adversarial", "features"):
        one, two = (", ".join(f"{s[key]:.4g}" for s in run["first_losses"]) for run in (found, released))
        parts.append(f"{key} {one} ({two})")
    return "; ".join(parts)


def step_flops(config: TrainConfig, judges: nn.Module) -> int:
    """Floating-point operations of one adversarial step's convolutions.

    Forward passes are counted, and gradients taken as another one each: the counter takes the gradient of a
    grouped convolution's weight for that of a dense one. Discriminators: real and made sound, forward with
    both gradients, then both forward and the made one's gradient; the generator: forward with both gradients.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = next(judges.parameters()).device
    sound = torch.zeros(1, 1, config.segment_frames * config.generator.hop, device=device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        judges.eval()(sound)  # in training mode spectral norm would go on
    judges.train()
    speaking = 2 * multiplications(config.generator) * config.segment_frames
    return config.batch_size * (9 * counter.get_total_flops() + 3 * speaking)


parts = {"training of the vocoder": training}
