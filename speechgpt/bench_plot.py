"""Pictures of a benchmark: how many times faster each part is, and how time and memory grow."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator  # noqa: E402

from speechgpt.data.files import atomic_path  # noqa: E402
from speechgpt.data.measurement import Growth, Measurement  # noqa: E402
from speechgpt.picture import INK, TEAL  # noqa: E402


def draw_ratios(path: Path, found: Sequence[Measurement], machine: str) -> None:
    """Writes a PNG: a bar a figure that has a baseline, its ratio and its share of the machine's limit."""
    shown = [m for m in found if m.ratio is not None]
    figure, axis = pyplot.subplots(figsize=(10, 1.2 + 0.45 * len(shown)), layout="constrained")
    places = range(len(shown))
    axis.barh(places, [m.ratio for m in shown], left=0, color=TEAL, height=0.6)
    axis.axvline(1, color=INK, linewidth=1)
    for place, m in zip(places, shown, strict=True):
        share = "" if m.limit_share is None else f", {m.limit_share:.0%} of the limit"
        axis.text(m.ratio, place, f"  {m.ratio:.2f} times{share}", va="center", fontsize=8, color=INK)
    axis.set_yticks(places, [m.part for m in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(right=8 * max([m.ratio for m in shown], default=1))
    axis.set_xlabel("times faster than the released way, same run", fontsize=8)
    axis.set_title(machine, loc="left", fontsize=10, color=INK)
    _save(figure, axis, path)


def draw_growth(path: Path, points: Sequence[Growth], machine: str) -> None:
    """Writes a PNG: for each job, seconds and memory over its size."""
    parts = list(dict.fromkeys(p.part for p in points))
    figure, axes = pyplot.subplots(
        len(parts), 2, figsize=(10, 3 * len(parts)), squeeze=False, layout="constrained"
    )
    figure.suptitle(machine, x=0, ha="left", fontsize=10, color=INK)
    for part, (left, right) in zip(parts, axes, strict=True):
        own = sorted((p for p in points if p.part == part), key=lambda p: p.size)
        sizes = [p.size for p in own]
        for axis, values, name in (
            (left, [p.seconds for p in own], "seconds"),
            (right, [p.bytes / 2**20 for p in own], "MiB at the peak"),
        ):
            axis.plot(sizes, values, color=TEAL, marker="o")
            axis.set_title(part, fontsize=9, loc="left", color=INK)
            axis.set_xlabel(own[0].size_name, fontsize=8)
            axis.set_ylabel(name, fontsize=8)
            axis.set_ylim(0, 1.1 * max(values))  # what does not grow would lie on the frame
            axis.tick_params(labelsize=7)
    _save(figure, None, path)


def _save(figure, axis, path: Path) -> None:
    if axis is not None:
        for edge in ("top", "right"):
            axis.spines[edge].set_visible(False)
    with atomic_path(path) as part:
        figure.savefig(part, dpi=110)
    pyplot.close(figure)
