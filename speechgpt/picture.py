"""Pictures: a turn (waveform, spectrogram and units, question above answer), or one sound."""

from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed

from matplotlib import pyplot  # noqa: E402

from speechgpt.data.audio import SAMPLE_RATE  # noqa: E402
from speechgpt.data.files import atomic_path  # noqa: E402
from speechgpt.turn_lines import one_row  # noqa: E402
from speechgpt.units.dedup import deduplicate, expand  # noqa: E402

WINDOW = 400  # samples of a spectrogram column at 16 kHz
INK = "#1c2430"
TEAL = "#12908a"  # seen on light and on dark ground
WIDTH, HEIGHT = 480, 150  # pixels of one sound's picture
PEAK = 0.6  # of a waveform that fills its part of that picture
LABEL = {"ha": "center", "va": "center", "fontsize": 5, "rotation": 90, "color": "white"}


def draw_turn(path: Path, model, question: np.ndarray, reply) -> None:
    """Writes a PNG of the question (T,) at 16 kHz and of `reply`."""
    spoken = expand(reply.units, model.synthesizer.durations([reply.units])[0])  # N
    sides = [
        (f"heard: {one_row(reply.transcript)}", question, SAMPLE_RATE, reply.question_frames),
        (f"answer: {one_row(reply.answer)}", reply.waveform, reply.sample_rate, spoken),
    ]
    figure, axes = pyplot.subplots(
        6, 1, figsize=(11, 9), gridspec_kw={"height_ratios": [1, 2, 1] * 2}, layout="constrained"
    )
    for side, (title, waveform, rate, frames) in enumerate(sides):
        top, middle, bottom = axes[3 * side : 3 * side + 3]
        seconds = len(waveform) / rate
        _draw_sound(top, middle, waveform, rate, INK)
        top.set_title(title if len(title) <= 100 else title[:99] + "…", loc="left", fontsize=11, color=INK)
        middle.set_ylabel("Hz", fontsize=8)
        _draw_units(bottom, frames, seconds)
        for axis in (top, middle, bottom):
            axis.set_xlim(0, seconds)
            axis.tick_params(labelsize=7)
            for edge in ("top", "right"):
                axis.spines[edge].set_visible(False)
        for axis in (top, bottom):
            axis.set_yticks([])
    with atomic_path(path) as part:
        figure.savefig(part, dpi=110)
    pyplot.close(figure)


def draw_sound(waveform: np.ndarray, rate: int, span: float) -> bytes:
    """A WebP of WIDTH by HEIGHT pixels: waveform (T,) above spectrogram, on an axis of `span` seconds.

    Without ground and letters, for a page that may be light or dark.
    """
    figure, axes = pyplot.subplots(2, 1, figsize=(WIDTH / 100, HEIGHT / 100), height_ratios=[1, 2])
    _draw_sound(*axes, waveform, rate, TEAL)
    for axis in axes:
        axis.set_xlim(0, span)
        axis.set_axis_off()
    axes[0].set_ylim(-PEAK, PEAK)
    figure.subplots_adjust(0, 0, 1, 1, hspace=0)
    image = BytesIO()
    figure.savefig(image, dpi=100, transparent=True, format="webp", pil_kwargs={"quality": 60})
    pyplot.close(figure)
    return image.getvalue()


def _draw_sound(top, middle, waveform: np.ndarray, rate: int, ink: str) -> None:
    """Waveform and log-spectrogram; (T,) of any length."""
    top.plot(np.arange(len(waveform)) / rate, waveform, color=ink, linewidth=0.4)
    middle.specgram(waveform, NFFT=WINDOW, Fs=rate, noverlap=WINDOW * 3 // 4, cmap="magma", vmin=-140)


def _draw_units(axis, frames: np.ndarray, seconds: float) -> None:
    """One coloured box a unit, as wide as it lasts; equal units have equal colours."""
    units, durations = deduplicate(frames)
    if not len(units):
        return
    frame = seconds / len(frames)
    starts = (np.cumsum(durations) - durations) * frame
    # The golden ratio spreads neighbouring unit numbers over the colour map.
    colours = pyplot.get_cmap("viridis")((units * 0.618034) % 1.0)
    axis.bar(
        starts, np.ones(len(units)), durations * frame, align="edge", color=colours, edgecolor="white", lw=0.3
    )
    if len(units) <= 90:
        for start, unit, lasts in zip(starts, units, durations, strict=True):
            middle = start + lasts * frame / 2
            axis.text(middle, 0.5, str(unit), **LABEL)
    axis.set_xlabel("seconds", fontsize=8)
    axis.set_ylabel("units", fontsize=8)
