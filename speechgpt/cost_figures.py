"""Figures of what a turn and the weights cost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.held_out import Figure, FigureSettings, HeldOut, needed
from speechgpt.measures import Measure, median

CORES = 2  # that a turn gets
ORDER_SECONDS = 3.0  # of the question that is timed
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
MEGABYTE = 1_000_000


def turn_time(held: HeldOut, settings: FigureSettings) -> Figure:
    """One spoken order, `rows` times. The goal is seconds until the whole answer is a waveform."""
    rows = needed(held.orders or held.held, "recordings")
    row, path = min(rows, key=lambda pair: (abs(pair[0].seconds - ORDER_SECONDS), pair[0].id))
    waveform = read_audio(path, SAMPLE_RATE)
    with cpu_threads(CORES):
        held.model.warm_up().reply(waveform)
        replies = [held.model.reply(waveform) for _ in range(settings.rows)]
        threads = torch.get_num_threads()
    length = len(replies[0].waveform) / replies[0].sample_rate
    note = f"{threads} threads on {held.model.device}; question {row.seconds:.2f} s, answer {length:.2f} s"
    more = {"unit": "s", "better": "lower", "seed": held.seed, "note": note, "goal": settings.goal}
    spoken = median("whole answer spoken", [r.timings["total"] for r in replies], **more)
    stalled = max(r.stalls for r in replies)
    more |= {"goal": None, "note": f"played as it comes it stalls for {stalled:.2f} s at most"}
    sooner = median("first sound", [r.timings["first_sound"] for r in replies], **more)
    text = (
        "One recorded order, answered aloud again and again by a model that is loaded: the median of the "
        "runs, from the question's end until the whole answer is a waveform, and until its first piece is."
    )
    return Figure("A turn's time", text, (spoken, sooner))


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """As many threads as a machine of `count` cores would use."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, len(os.sched_getaffinity(0))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def size(held: HeldOut, settings: FigureSettings) -> Figure:
    """All weights. The goal is megabytes."""
    folder = held.model.model_dir
    parts = {"encoder": folder.encoder, "codebook": folder.codebook, "language model": folder.llm}
    parts["vocoder"] = folder.vocoder
    sizes = {}
    for name, part in parts.items():
        files = [part] if part.is_file() else [p for kind in WEIGHTS for p in part.rglob(kind)]
        sizes[name] = sum(p.stat().st_size for p in files) / MEGABYTE
    total = sum(sizes.values())
    note = ", ".join(f"{name} {value:.1f}" for name, value in sizes.items())
    found = Measure(
        "all weights", total, total, total, len(sizes), "MB", "lower", goal=settings.goal, note=note
    )
    return Figure("Size", "What has to be shipped; counted, so that there is no interval.", (found,))
