"""What faster precisions change: the share of units that stay float32's."""

import os
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from speechgpt.data.audio import read_audio
from speechgpt.data.measurement import Measurement
from speechgpt.units.codebook import PUBLISHED_K
from speechgpt.units.machine import Machine
from speechgpt.units.made_up_encoder import base_encoder, fitted
from speechgpt.units.made_up_speech import speech
from speechgpt.units.precision import HALF
from speechgpt.units.unit_encoder import UnitEncoder

MINI = Path(str(files("speechgpt"))) / "models" / "mini"
AUDIO = "SPEECHGPT_BENCH_AUDIO"  # a folder of recordings for the agreement on mini's encoder
FAST = {"cpu": "int8", "cuda": HALF}  # the precision whose units are compared with float32's


def agreement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Share of frames (N,) with the same unit."""
    return float((np.concatenate(first) == np.concatenate(second)).mean())


def precision_agreement(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """What share of the units of a faster precision are float32's."""
    encoder, layer = base_encoder(machine, quick)
    # A CPU has no time for the frames that 1000 centroids need: some 40 each.
    fit_seconds, k = (12, 16) if quick else (900, PUBLISHED_K) if machine.kind == "cuda" else (60, 75)
    random = UnitEncoder(encoder, fitted(encoder, layer, speech(fit_seconds, 5), k), layer)
    waveforms = speech(6 if quick else 300 if machine.kind == "cuda" else 30, 1005)
    mini = UnitEncoder.load(MINI / "encoder", MINI / "codebook.safetensors", device=machine.device)
    recordings, where = _recordings(mini.encoder.sample_rate, 6 if quick else 600)
    ways = ("float16", "bfloat16") if machine.kind == "cuda" else (FAST[machine.kind],)
    for name, units, given, source in (
        ("mini", mini, recordings, where),
        (
            "random base",
            random,
            waveforms,
            f"made-up speech; k-means of {fit_seconds} s of its own features",
        ),
    ):
        exact = units.encode(given)
        for how in ways:
            faster = UnitEncoder(units.encoder, units.codebook, units.layer, how).encode(given)
            note = f"{sum(map(len, exact))} frames of {source}, K {units.num_units}"
            part = f"units of {how} that are float32's, {name}"
            yield Measurement(part, "% of frames", None, 100 * agreement(exact, faster), note=note)


def _recordings(rate: int, seconds: float) -> tuple[list[np.ndarray], str]:
    """Of the folder that the environment names, if it does; else the shipped question and made-up speech."""
    if not (folder := os.environ.get(AUDIO)):
        return [read_audio(MINI / "question.wav", rate), *speech(seconds / 3, 7)], "made-up speech"
    found, total = [], 0.0
    for path in sorted(p for p in Path(folder).rglob("*") if p.suffix in (".wav", ".flac", ".ogg", ".opus")):
        found.append(read_audio(path, rate, check=False))
        total += len(found[-1]) / rate
        if total > seconds:
            break
    return found, "recordings"
