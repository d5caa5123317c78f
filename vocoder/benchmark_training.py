"""Training steps per second on made-up data: of `speechgpt bench`, and `speechgpt vocoder --benchmark N`."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.data.rows import UnitRow
from speechgpt.units.machine import Machine
from speechgpt.vocoder.architecture import VocoderConfig
from speechgpt.vocoder.discriminators import DiscriminatorConfig, build_discriminators
from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.pool import Pool
from speechgpt.vocoder.settings import TrainConfig
from speechgpt.vocoder.steps import Steps

UTTERANCES, UTTERANCE_FRAMES = 40, 200  # of noise
FIRST_STEPS = 8  # not timed: kernel choice, optimizer states, capture
PROFILED = 25  # kernels shown
STEPS = 20  # timed, of `speechgpt bench`


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
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    speakers = {"num_speakers": 4} if config.multi_speaker else {}
    generator = replace(config.generator, num_units=config.generator.num_units or 100, **speakers)
    config = replace(config, generator=generator, data=replace(config.data, weights={}))
    plain = replace(config.discriminator, zero_padding=False, channels_last=False)
    eager = replace(config, cuda_graphs=False, compile=False)
    graphs = replace(config, cuda_graphs=True, compile=False)
    contiguous = replace(config.discriminator, channels_last=False)
    other_layout = replace(graphs, generator_channels_last=not config.generator_channels_last)
    variants = [
        ("mel only, eager", eager, "warm"),
        ("mel only, graph", graphs, "warm"),
        ("mel only, graph, other generator layout", other_layout, "warm"),
        (
            "adversarial, SpeechBrain's discriminators as they are, eager",
            replace(eager, discriminator=plain),
            "gan",
        ),
        ("adversarial, eager", eager, "gan"),
        (
            "adversarial, graph, discriminators not channels-last",
            replace(graphs, discriminator=contiguous),
            "gan",
        ),
        ("adversarial, graph", graphs, "gan"),
        ("adversarial, compiled", replace(eager, compile=True), "gan"),
        ("adversarial, compiled and graph", replace(graphs, compile=True), "gan"),
    ]
    if device.type == "cpu":
        variants = [v for v in variants if "graph" not in v[0] and "compiled" not in v[0]]
    pool, results = made_up_pool(config, device), []
    for name, variant, kind in variants:
        results.append({"variant": name, **_time(variant, pool, kind, count, device)})
        print(" | ".join(f"{k} {v}" for k, v in results[-1].items()), file=sys.stderr, flush=True)
    if device.type == "cuda":
        _profile(eager, pool, device)
    print(json.dumps(results))
    return results


def _stepper(config: TrainConfig, pool: Pool, kind: str, device: torch.device) -> tuple[Steps, Callable]:
    torch.manual_seed(0)
    model = UnitVocoder(config.generator).add_weight_norm().to(device)
    steps = Steps(model, build_discriminators(config.discriminator).to(device), config)

    def step(number: int) -> None:
        batch = pool.draw(config.batch_size, config.segment_frames, config.duration_window, (0, number))
        (steps.warm if kind == "warm" else steps.adversarial)(batch, config.learning_rate)

    return steps, step


def _time(config: TrainConfig, pool: Pool, kind: str, count: int, device: torch.device) -> dict:
    """Steps per second over `count` steps, after the first ones."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    try:
        started = time.monotonic()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        steps, step = _stepper(config, pool, kind, device)
        for number in range(FIRST_STEPS if device.type == "cuda" else 1):
            step(number)
        wait()
        first = time.monotonic()
        for number in range(count):
            step(FIRST_STEPS + number)
        wait()
        seconds = time.monotonic() - first
        phases = steps.warm_phases if kind == "warm" else steps.adversarial_phases
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        steps.check(count)
    except (RuntimeError, ValueError) as error:  # one variant that fails must not hide the others
        return {"failed": " ".join(str(error).split())[:400]}
    return {
        "steps_per_second": round(count / seconds, 2),
        "captured": phases.captured,
        "start_seconds": round(first - started, 1),
        "memory_gib": round(memory, 1),
        "losses": {name: round(value, 4) for name, value in steps.read().items()},
    }


def _profile(config: TrainConfig, pool: Pool, device: torch.device) -> None:
    """The kernels that take the time of two eager adversarial steps."""
    from torch.profiler import ProfilerActivity, profile

    _, step = _stepper(config, pool, "gan", device)
    for number in range(3):
        step(number)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step(3)
        step(4)
        torch.cuda.synchronize()
    table = trace.key_averages().table(
        sort_by="cuda_time_total", row_limit=PROFILED, max_name_column_width=70
    )
    print(table, file=sys.stderr, flush=True)


# Published sizes and SpeechBrain's whole discriminators. Only the first variant pads by reflection in slow
# kernels of its own; `same padding` says which of the others compute the very same losses.
REFLECTION = DiscriminatorConfig(zero_padding=False, channels_last=False)
VARIANTS = {
    "reflected, graph": {"discriminator": REFLECTION},
    "reflected, channels-last, graph": {"discriminator": replace(REFLECTION, channels_last=True)},
    "zeros, graph": {"discriminator": DiscriminatorConfig(channels_last=False)},
    "zeros, channels-last, graph": {"discriminator": DiscriminatorConfig()},
    "zeros, all channels-last, graph": {
        "discriminator": DiscriminatorConfig(),
        "generator_channels_last": True,
    },
    "zeros, compiled, graph": {"discriminator": DiscriminatorConfig(channels_last=False), "compile": True},
}


def training(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """Steps of the published sizes on batches of 32 x 0.64 s, beside SpeechBrain's modules run eagerly."""
    if machine.kind != "cuda" and not quick:
        raise NotMeasuredError("a step takes minutes on a CPU")
    if machine.kind == "cuda":
        torch.backends.cudnn.benchmark = True
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
    eager = replace(config, discriminator=replace(REFLECTION, **narrow), cuda_graphs=False)
    released = _time(eager, pool, "gan", count, machine.device)
    if "failed" in released:
        raise RuntimeError(released["failed"])
    limit = machine.matrix_flops(torch.bfloat16) / _step_flops(eager, pool, machine.device)
    for name, changes in list(VARIANTS.items())[:: 3 if quick else 1]:
        changes = changes | {"discriminator": replace(changes["discriminator"], **narrow)}
        machine.forget()
        found = _time(replace(config, **changes), pool, "gan", count, machine.device)
        if "failed" in found:
            print(f"training, {name}: {found['failed']}", file=sys.stderr, flush=True)
            continue
        losses = "; ".join(
            f"{key} {found['losses'][key]:.3f} ({released['losses'][key]:.3f})"
            for key in ("mel", "discriminator", "features")
        )
        note = (
            f"{name}{'' if found['captured'] else ' (not captured)'}; losses after "
            f"{FIRST_STEPS + count} steps (released): {losses}; {found['memory_gib']} GiB"
        )
        yield Measurement(
            "training of the vocoder, published sizes",
            "step/s",
            released["steps_per_second"],
            found["steps_per_second"],
            limit,
            note=note,
        )


def _step_flops(config: TrainConfig, pool: Pool, device: torch.device) -> int:
    """Floating-point operations of one adversarial step's convolutions and products."""
    from torch.utils.flop_counter import FlopCounterMode

    _, step = _stepper(config, pool, "gan", device)
    with FlopCounterMode(display=False) as counter:
        step(0)
    return counter.get_total_flops()


parts = {"training of the vocoder": training}
