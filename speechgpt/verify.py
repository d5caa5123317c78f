"""`speechgpt convert FILE... --out DIR --verify`: fairseq runs the original files, we run what was converted.

The limits: features within 1e-5 of a layer's largest value, waveforms within 1e-5 of their peak, units equal
wherever the features' error cannot move them (`units/margins.py`), durations equal but within 1e-4 frames of
a rounding edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.cli import BAD_INPUT, OK
from speechgpt.convert import PARTS
from speechgpt.data.audio import read_audio
from speechgpt.model_dir import ModelConfig, ModelDir
from speechgpt.originals import CODEBOOK, ENCODER, VOCODER, VOCODER_CONFIG, Original, identify, vocoder_config
from speechgpt.units.codebook import Codebook
from speechgpt.units.encoder import Encoder
from speechgpt.units.fairseq_backend import FairseqHubert, FairseqUnits, import_fairseq
from speechgpt.units.kmeans_file import read_centroids
from speechgpt.units.margins import UnitAgreement, compare_units
from speechgpt.units.precision import exact_convolutions
from speechgpt.vocoder.fairseq_backend import FairseqVocoder
from speechgpt.vocoder.synthesize import Synthesizer

FEATURE_LIMIT = 1e-5  # of a layer's largest value
WAVEFORM_LIMIT = 1e-5  # of the peak
EDGE = 1e-4  # frames from a rounding edge (k + 1/2), where a duration may differ by one
SAMPLES = (400, 401, 719, 720, 16_000, 48_123, 160_000)  # of the synthetic waveforms
UNITS = (1, 2, 40, 120)  # of the rows that vocoders speak
LONGEST = 500  # frames of a row, whatever durations are predicted


@dataclass(frozen=True)
class Verdict:
    """One line of the table."""

    part: str
    passed: bool
    error: float | None = None  # the largest, relative
    compared: str = ""  # how much of what
    different: str = ""


def verify(files: Sequence[Path], folder: Path, audio: Sequence[Path] = ()) -> int:
    """Prints the table for the original `files` and their conversion in `folder`; returns the exit code.

    `audio`: recordings that are compared beside the synthetic waveforms. Raises ValueError where there is
    nothing to compare, which proves nothing.
    """
    import_fairseq()
    found: dict[str, Original] = {}
    for path in files:
        original = identify(path)
        found[original.kind] = original
    model = ModelDir(folder, ModelConfig("converted"))
    verdicts: list[Verdict] = []
    if ENCODER in found:
        verdicts += verify_encoder(found[ENCODER], found.get(CODEBOOK), model, audio)
    if VOCODER in found:
        config = vocoder_config(found[VOCODER], found.get(VOCODER_CONFIG))
        verdicts += verify_vocoder(found[VOCODER].path, config.path, model.vocoder)
    judged = {ENCODER, VOCODER} | ({CODEBOOK} if ENCODER in found else set())
    if verdicts:
        print(table(verdicts))
    for kind in PARTS:
        if kind in found and kind not in judged:
            why = "give the HuBERT checkpoint too" if kind == CODEBOOK else "fairseq has no such model"
            print(f"{kind}: not compared ({why})")
    if failed := [verdict.part for verdict in verdicts if not verdict.passed]:
        print(f"NOT what fairseq computes: {', '.join(failed)}")
        return BAD_INPUT
    if not verdicts:
        raise ValueError(
            f"--verify: nothing could be compared, for fairseq computes {ENCODER}s and {VOCODER}s alone; "
            f"{folder} was written. Give their original files too, or leave --verify out"
        )
    print("what fairseq computes")
    return OK


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in columns."""
    rows = [("part", "largest error", "compared", "different", "")]
    for v in verdicts:
        error = "" if v.error is None else f"{v.error:.1e}"
        rows.append((v.part, error, v.compared, v.different, "ok" if v.passed else "FAILED"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


# ---- HuBERT
def verify_encoder(
    original: Original, kmeans: Original | None, model: ModelDir, audio: Sequence[Path] = ()
) -> list[Verdict]:
    """A verdict on each layer's features, and with a k-means on the units."""
    theirs, ours = FairseqHubert.load(original.path, "cpu"), Encoder.load(model.encoder, "cpu")
    waveforms = [synthetic(samples, seed) for seed, samples in enumerate(SAMPLES)]
    waveforms += [read_audio(path, ours.sample_rate) for path in audio]
    codebook = Codebook.load(model.codebook) if kmeans else None
    judge = None
    if codebook:
        centroids = read_centroids(kmeans.value, str(kmeans.path))
        judge = FairseqUnits(theirs, centroids, codebook.provenance.layer)
    errors, agreement = np.zeros(theirs.num_layers), UnitAgreement(0, 0, 0, 0)
    for waveform in waveforms:
        reference, found = theirs.features(waveform), all_features(ours, waveform)
        errors = np.maximum(errors, [relative_error(r, f) for r, f in zip(reference, found, strict=True)])
        if judge:
            r, f = reference[judge.layer - 1], found[judge.layer - 1]
            agreement += compare_units(r, f, judge.centroids, judge.assign(r), codebook.assign(f))
    compared = f"{len(waveforms)} waveforms, {sum(map(len, waveforms)) / ours.sample_rate:.1f} s"
    verdicts = [
        Verdict(f"encoder, layer {number}", bool(error <= FEATURE_LIMIT), float(error), compared)
        for number, error in enumerate(errors, 1)
    ]
    return verdicts + ([units_verdict(agreement, judge)] if judge else [])


def units_verdict(agreement: UnitAgreement, judge: FairseqUnits) -> Verdict:
    """Fails too where no frame is beyond the margin: an error that could excuse any unit proves none."""
    return Verdict(
        f"units, layer {judge.layer}, K {len(judge.centroids)}",
        agreement.over == 0 and agreement.decided > 0,
        compared=f"{agreement.frames} frames, {agreement.decided} beyond the margin",
        different=f"{agreement.over} beyond, {agreement.within} within",
    )


def all_features(encoder: Encoder, waveform: np.ndarray) -> list[Tensor]:
    """Waveform (T,) to features (N, D) of every layer."""
    layers = tuple(range(1, encoder.num_layers + 1))
    with torch.no_grad(), exact_convolutions():
        return [features[0] for features in encoder(encoder.pad([waveform])[0], None, layers)]


def relative_error(reference: Tensor, found: Tensor) -> float:
    """The largest difference, as a share of the reference's largest value; infinite where shapes differ."""
    if reference.shape != found.shape:
        return float("inf")
    error = ((reference - found).abs().max() / reference.abs().max().clamp(min=1e-30)).item()
    return error if np.isfinite(error) else float("inf")


def synthetic(samples: int, seed: int = 0) -> np.ndarray:
    """(T,) float32: voiced and hissing stretches of changing pitch and loudness, with an offset."""
    generator = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    pitch = 120 + 40 * np.sin(2 * np.pi * 0.7 * time + seed)  # Hz
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 12))
    mix = 0.5 + 0.5 * np.sin(2 * np.pi * 2.3 * time)
    loud = 0.05 + 0.95 * np.abs(np.sin(2 * np.pi * 0.9 * time))
    waveform = 0.1 * loud * (mix * voice + (1 - mix) * generator.standard_normal(samples)) + 0.01
    return waveform.astype(np.float32)


# ---- vocoder
def verify_vocoder(checkpoint: Path, config: Path, folder: Path) -> list[Verdict]:
    """A verdict on the durations, where they are predicted, and one on the waveforms."""
    theirs, ours = FairseqVocoder.load(checkpoint, config, "cpu"), Synthesizer.load(folder, "cpu")
    rows, verdicts = unit_rows(ours.vocoder.config.num_units), []
    frames = [np.full(len(row), 2) for row in rows]
    if theirs.predicts:
        log = [theirs.log_durations(row) for row in rows]
        frames, found = theirs.durations(rows), ours.durations(rows, speakers(ours)[0])
        over = within = 0
        for x, f, o in zip(log, frames, found, strict=True):
            edge = near_an_edge(x).numpy()
            within += int(((f != o) & edge).sum())
            over += int((f != o).sum()) - int(((f != o) & edge).sum())
        count = sum(map(len, rows))
        verdicts.append(
            Verdict("durations", not over, None, f"{count} units", f"{over} off, {within} at an edge")
        )
    error = spoken = 0.0
    for row, durations in zip(rows, frames, strict=True):
        keep = max(1, int((np.cumsum(durations) <= LONGEST).sum()))
        row, durations = row[:keep], np.minimum(durations[:keep], LONGEST)
        for speaker in speakers(ours):
            reference = theirs.synthesize([row], [durations], speaker)[0]
            found = ours.synthesize([row], [durations], speaker)[0]
            error = max(error, relative_error(torch.from_numpy(reference), torch.from_numpy(found)))
            spoken += len(reference) / ours.sample_rate
    return verdicts + [Verdict("waveforms", error <= WAVEFORM_LIMIT, error, f"{spoken:.1f} s")]


def unit_rows(size: int) -> list[np.ndarray]:
    """Rows of deduplicated units (U,) below `size`."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, size, count) for count in UNITS]
    return [row[np.insert(np.diff(row) != 0, 0, True)] for row in rows]


def speakers(ours: Synthesizer) -> list:
    """What to ask of a vocoder: the first and the last voice of a table, a vector, or its one voice."""
    config = ours.vocoder.config
    if config.speaker_vector_dim:
        return [np.random.default_rng(1).standard_normal(config.speaker_vector_dim).astype(np.float32)]
    return sorted({0, config.num_speakers - 1}) if config.num_speakers else [None]


def near_an_edge(log_durations: Tensor) -> Tensor:
    """log(1 + frames) (U,): where (U,) bool the frames are within EDGE of rounding the other way."""
    frames = log_durations.double().exp() - 1
    return ((frames - frames.floor() - 0.5).abs() <= EDGE) & (frames > 1)
