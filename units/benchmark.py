"""Speech to units beside the released way: the model alone, from FLAC files to unit files, and what faster
precisions change. `python -m speechgpt.units.benchmark --device cuda` prints these figures alone."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from speechgpt.data.audio import read_audio
from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.data.rows import read_manifest
from speechgpt.units.benchmark_precision import FAST, agreement, precision_agreement
from speechgpt.units.codebook import PUBLISHED_K, Codebook
from speechgpt.units.devices import choose_device
from speechgpt.units.encode import encode_manifest
from speechgpt.units.encoder import Encoder
from speechgpt.units.extraction import BATCH_SECONDS
from speechgpt.units.growth import extraction_growth
from speechgpt.units.half_hubert import HalfHubert
from speechgpt.units.half_kernels import Kernels
from speechgpt.units.machine import Machine, alternate, seconds_of
from speechgpt.units.made_up_encoder import base_encoder, fairseq_pair, fitted
from speechgpt.units.made_up_speech import speech, write_corpus
from speechgpt.units.margins import compare_units
from speechgpt.units.operations import flops_a_second
from speechgpt.units.precision import HALF
from speechgpt.units.unit_encoder import UnitEncoder

X = "x real time"
PASSES = 3  # over the made-up speech on a GPU, so that the first batch's wait for the host hardly counts
VARIANTS = ("triton0", "triton1", "fused", "cudnn", "plain")


def _seconds(waveforms: Sequence[np.ndarray]) -> float:
    return sum(map(len, waveforms)) / 16_000


def _batches(waveforms: Sequence[np.ndarray], budget: float) -> list[list[np.ndarray]]:
    found, filled = [[]], 0.0
    for waveform in waveforms:
        if found[-1] and filled + len(waveform) / 16_000 > budget:
            found.append([])
            filled = 0.0
        found[-1].append(waveform)
        filled += len(waveform) / 16_000
    return found


def run_batches(
    units: UnitEncoder, plan: Callable | None, batches: Sequence[Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """As extraction does it: a batch's units are fetched while the device works on the next."""
    pending, found = None, []
    for batch in [*batches, None]:
        fetch = None
        if batch is not None:
            features = plan(batch) if plan else units.encoder.frames_of(batch, units.layer, units.precision)
            fetch = units.start(*features)
        if pending is not None:
            found += pending()
        pending = fetch
    return found


def model_speed(machine: Machine, quick: bool, variants: bool = False) -> Iterator[Measurement]:
    """Decoded audio in memory to units on the host."""
    if machine.kind == "cpu":
        yield from _cpu_speed(machine, quick)
        return
    encoder, layer = base_encoder(machine, quick)
    waveforms = speech(20 if quick else 2600)
    codebook = fitted(encoder, layer, waveforms[:40], 16 if quick else PUBLISHED_K)
    waveforms = waveforms * (1 if quick else PASSES)
    units = UnitEncoder(encoder, codebook, layer, HALF)
    batches = _batches(waveforms, BATCH_SECONDS[machine.kind])
    few = waveforms[: 2 if quick else 16]
    repeats = 1 if quick else 3

    def one_at_a_time() -> None:
        for waveform in few:
            codebook.assign(encoder.features([waveform], layer)[0]).cpu()

    slow, fast = alternate([one_at_a_time, lambda: run_batches(units, None, batches)], machine, repeats, 2)
    limit = machine.matrix_flops(torch.float16) / flops_a_second(encoder, layer)
    baseline = _seconds(few) / slow
    part = f"speech to units, {'toy' if quick else 'HuBERT base'} to layer {layer}"
    note = f"{_seconds(waveforms):.0f} s in {len(waveforms)} rows, batches of {BATCH_SECONDS['cuda']:.0f} s"
    yield Measurement(f"{part}, {HALF}", X, baseline, _seconds(waveforms) / fast, limit, note=note)
    if not variants:
        return
    for name in VARIANTS:
        for dtype in (torch.float16, torch.bfloat16) if name == "triton0" else (torch.float16,):
            plan = HalfHubert(encoder, layer, dtype, Kernels.of(machine.device, name))
            taken = seconds_of(lambda plan=plan: run_batches(units, plan, batches), machine, repeats)
            label = f"{part}, convolutions {name}, {str(dtype)[6:]}"
            yield Measurement(label, X, baseline, _seconds(waveforms) / taken, limit)
    for budget in (160.0, 320.0, 640.0, 1280.0):
        others = _batches(waveforms, budget)
        taken = seconds_of(lambda others=others: run_batches(units, None, others), machine, repeats)
        yield Measurement(
            f"{part}, batches of {budget:.0f} s", X, baseline, _seconds(waveforms) / taken, limit
        )


def _cpu_speed(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """fairseq's own model, one file at a time, beside ours with its weights."""
    try:
        hubert, encoder = fairseq_pair(quick)
    except ImportError as error:
        raise NotMeasuredError(str(error)) from error
    layer = encoder.num_layers - 1
    # Units of other speech than the codebook's, which has some 40 frames for each centroid.
    fit_seconds, k = (12, 16) if quick else (240, 300)
    waveforms = speech(4 if quick else 40, 1005)
    codebook = fitted(encoder, layer, speech(fit_seconds), k)
    exact, small = (UnitEncoder(encoder, codebook, layer, how) for how in ("float32", "int8"))
    found: dict[str, list[np.ndarray]] = {}

    def theirs() -> None:
        with torch.no_grad():
            found["fairseq"] = [codebook.assign(hubert.features(w, (layer,))[0]).numpy() for w in waveforms]

    def ours(units: UnitEncoder) -> None:
        found[units.precision] = units.encode(waveforms)

    ways = [theirs, lambda: ours(exact), lambda: ours(small)]
    slow, fast, faster = (_seconds(waveforms) / s for s in alternate(ways, machine, 1 if quick else 3, 1))
    limit = machine.matrix_flops(torch.float32) / flops_a_second(encoder, layer)
    part = f"speech to units, {'toy' if quick else 'HuBERT base'} to layer {layer}"
    over = _beyond_rounding(hubert, encoder, codebook, waveforms, layer)
    for how, speed in (("float32", fast), ("int8", faster)):
        same = agreement(found["fairseq"], found[how])
        note = f"{same:.2%} of {sum(map(len, found[how]))} units are fairseq's"
        if how == "float32":
            note += f", {over} differ by more than rounding; k-means of {fit_seconds} s, K {k}"
        yield Measurement(f"{part}, {how}", X, slow, speed, limit if how == "float32" else None, note=note)


def _beyond_rounding(
    hubert, encoder: Encoder, codebook: Codebook, waveforms: Sequence[np.ndarray], layer: int
) -> int:
    """Frames with another unit than fairseq's that the features' measured difference does not explain."""
    over = 0
    for waveform in waveforms:
        with torch.no_grad():
            (theirs,) = hubert.features(waveform, (layer,))
        (ours,) = encoder.features([waveform], layer)
        units = codebook.assign(theirs), codebook.assign(ours)
        over += compare_units(theirs, ours, codebook.centroids, *units).over
    return over


def _fairseq_or_none(quick: bool):
    try:
        return fairseq_pair(quick)[0]
    except ImportError:
        return None


def files_speed(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """From FLAC files on disk to unit files, on all cores."""
    encoder, layer = base_encoder(machine, quick)
    cuda = machine.kind == "cuda"
    how = HALF if cuda else "float32"
    codebook = fitted(encoder, layer, speech(12 if quick else 60), 16 if quick or not cuda else PUBLISHED_K)
    units = UnitEncoder(encoder, codebook, layer, how)
    theirs = encoder if cuda else _fairseq_or_none(quick)
    with tempfile.TemporaryDirectory() as folder:
        count, rows = (4, 6) if quick else (64, 4000) if cuda else (8, 8)
        manifest, seconds = write_corpus(Path(folder), count, rows)
        few = read_manifest(manifest)[: 2 if quick or not cuda else 16]

        def one_at_a_time() -> None:
            for row in few:
                waveform = read_audio(row.audio(manifest), encoder.sample_rate)
                given = [waveform] if cuda else waveform
                codebook.assign(theirs.features(given, layer if cuda else (layer,))[0]).cpu()

        encode_manifest(units, manifest, Path(folder) / "warm.jsonl", (0, max(1, rows // 60)))
        slow = None
        if theirs is not None:
            slow = sum(row.seconds for row in few) / seconds_of(one_at_a_time, machine, 1, 1)
        # A shard a run, as several GPUs or nodes would take them.
        times = []
        for shard in range(2):
            started = time.perf_counter()
            encode_manifest(units, manifest, Path(folder) / f"units-{shard}.jsonl", (shard, 2))
            times.append(time.perf_counter() - started)
        fast = seconds / sum(times)
    part = f"FLAC files to sharded unit files, {'toy' if quick else 'HuBERT base'}, {how}"
    note = f"{seconds / 3600:.2f} h in {rows} rows, {os.cpu_count()} cores; "
    note += f"shards of {times[0]:.2f} and {times[1]:.2f} s"
    yield Measurement(part, X, slow, fast, note=note)


parts = {
    "speech to units": model_speed,
    "units of faster precisions": precision_agreement,
    "FLAC files to unit files": files_speed,
}
growth = {"speech to units by hours": extraction_growth}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m speechgpt.units.benchmark", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it runs")
    parser.add_argument("--variants", action="store_true", help="on a GPU also the other kernels and batches")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="parts whose name holds a word")
    parser.add_argument(
        "--profile", action="store_true", help="on a GPU: which kernels a batch's time goes to"
    )
    options = parser.parse_args(argv)
    machine = Machine(choose_device(options.device), options.quick)
    if options.profile:
        print(profiled(machine, options.quick))
    chosen = {n: p for n, p in parts.items() if not options.only or any(w in n for w in options.only)}
    for name, part in chosen.items():
        started = time.monotonic()
        try:
            given = (
                (machine, options.quick, options.variants)
                if part is model_speed
                else (machine, options.quick)
            )
            for m in part(*given):
                baseline = "" if m.baseline is None else f", baseline {m.baseline:,.0f}"
                share = "" if m.limit_share is None else f", {m.limit_share:.0%} of the limit"
                print(f"{m.part}: {m.ours:,.2f} {m.unit}{baseline}{share} {m.note}", flush=True)
        except NotMeasuredError as error:
            print(f"{name}: not measured: {error}", flush=True)
        print(f"({name}: {time.monotonic() - started:.1f} s)", flush=True)
    return 0


def profiled(machine: Machine, quick: bool) -> str:
    """A table of the kernels of three batches."""
    from torch.profiler import ProfilerActivity, profile

    encoder, layer = base_encoder(machine, quick)
    batches = _batches(speech(20 if quick else 1900), BATCH_SECONDS[machine.kind])
    units = UnitEncoder(encoder, fitted(encoder, layer, batches[0][:20], 16), layer, FAST[machine.kind])
    run_batches(units, None, batches)
    kind = ProfilerActivity.CUDA if machine.kind == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as trace:
        run_batches(units, None, batches)
        machine.synchronize()
    order = f"self_{machine.kind}_time_total"
    return trace.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=80)


if __name__ == "__main__":
    raise SystemExit(main())
