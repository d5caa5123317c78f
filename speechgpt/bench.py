"""`speechgpt bench`: every speed beside the released way and the machine's limit, measured in one run."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from speechgpt.data.files import one_line, write_json, write_text
from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.units.devices import choose_device, on_device

if TYPE_CHECKING:
    from speechgpt.units.machine import Machine

# Each module has `parts` (name -> function of machine and quick that yields Measurements) and may have
# `growth` (the same, yielding Growth).
AREAS = (
    "speechgpt.units.benchmark",
    "speechgpt.vocoder.benchmark",
    "speechgpt.decoding_benchmark",
    "speechgpt.latency_benchmark",
    "speechgpt.training_benchmark",
    "speechgpt.training_growth",
)


def main(argv: list[str]) -> int:
    """Measures, prints a table, writes DEVICE.json, .md and .png; exit code 2 if a part failed."""
    parser = argparse.ArgumentParser(
        prog="speechgpt bench", description="measure speeds beside the released way"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("work/bench"), help="folder (default: work/bench)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="parts whose name holds a word")
    parser.add_argument("--list", action="store_true", help="name the parts and stop")
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes: shows that it runs, figures mean nothing"
    )
    args = parser.parse_args(argv)
    jobs, curves = _jobs("parts", args.only), _jobs("growth", args.only)
    if not jobs and not curves:
        raise ValueError(f"--only {' '.join(args.only)}: no part is called so; --list names them")
    if args.list:
        print("\n".join([*jobs, *curves]))
        return 0
    from speechgpt.units.machine import Machine

    machine = Machine(choose_device(args.device), args.quick)
    with on_device(machine.device):  # for counters of memory and waits that name no device
        found, failed = _measure(machine, jobs, args.quick, args.out / f"{machine.kind}.json")
        points, more = _measure(machine, curves, args.quick, args.out / f"{machine.kind}-growth.json")
    failed |= more
    report = _report(machine, found, failed)
    write_text(args.out / f"{machine.kind}.md", report)
    print(report)
    from speechgpt.bench_plot import draw_growth, draw_ratios

    if found:
        draw_ratios(args.out / f"{machine.kind}.png", found, machine.name)
    if points:
        draw_growth(args.out / f"{machine.kind}-growth.png", points, machine.name)
    return 2 if failed else 0


def _jobs(table: str, words: list[str]) -> dict[str, Callable]:
    jobs = {}
    for area in AREAS:
        jobs |= getattr(import_module(area), table, {})
    return {name: job for name, job in jobs.items() if not words or any(word in name for word in words)}


def _measure(
    machine: "Machine", jobs: Mapping[str, Callable], quick: bool, path: Path
) -> tuple[list, dict[str, str]]:
    """(what was measured, the parts that failed and why). The file is written anew after each figure, so that
    a run that is stopped half-way leaves what it had."""
    found: list = []
    failed: dict[str, str] = {}
    for name, job in jobs.items():
        started = time.monotonic()
        try:
            for entry in job(machine, quick):
                found.append(entry)
                write_json(path, [e.to_dict() for e in found])
        except NotMeasuredError as error:
            _say(f"{name}: not measured: {error}")
        except Exception as error:  # whatever it is: an hour of other figures must not go with it
            failed[name] = f"{type(error).__name__}: {one_line(error)}"
            _say(f"{name}: FAILED: {failed[name]}\n{traceback.format_exc()}")
        machine.forget()
        _say(f"{name}: {time.monotonic() - started:.1f} s")
    return found, failed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(found: Sequence[Measurement]) -> str:
    """Markdown: a line a figure."""
    lines = [
        "| part | unit | released way | ours | ratio | of the limit | |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in found:
        share = "" if m.limit_share is None else f"{m.limit_share:.0%}"
        ratio = "" if m.ratio is None else f"{m.ratio:.2f}"
        lines.append(
            f"| {m.part} | {m.unit} | {_digits(m.baseline)} | {_digits(m.ours)} | {ratio} | {share} "
            f"| {m.note} |"
        )
    return "\n".join(lines)


def _digits(value: float | None) -> str:
    """Three significant digits, thousands in full."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _report(machine: "Machine", found: Sequence[Measurement], failed: Mapping[str, str]) -> str:
    import torch

    rates = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if machine.kind == "cuda" else {})
    limits = [f"{name} {machine.matrix_flops(dtype) / 1e12:.3g} TFLOP/s" for name, dtype in rates.items()]
    lines = [
        f"{machine.name}; matrix products {', '.join(limits)}; copies {machine.bandwidth() / 1e9:.3g} GB/s; "
        f"torch {torch.__version__}",
        "",
        table(found),
        "",
    ]
    return "\n".join(lines + [f"{name}: FAILED: {why}" for name, why in failed.items()])
