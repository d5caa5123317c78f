"""How fast units become speech, whole and in chunks, and how far streaming is from the whole sound."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.resources import files
from math import prod
from pathlib import Path

import numpy as np
import torch

from speechgpt.data.audio import read_audio
from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.units.dedup import deduplicate
from speechgpt.units.machine import Machine, alternate, seconds_of
from speechgpt.vocoder.architecture import EDGE_KERNEL, VocoderConfig
from speechgpt.vocoder.generator import UnitVocoder
from speechgpt.vocoder.streaming import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, StreamingSynthesizer
from speechgpt.vocoder.synthesize import PRECISIONS, Synthesizer

GAIN = 0.7  # of random weights: keeps the signal's size from layer to layer under the leaky ReLUs
UNIT_FRAMES = 1.5  # that the random duration predictor gives a unit, about what speech has
LENGTHS = {"cpu": (2, 5, 9, 14, 20), "cuda": (2, 4, 6, 8, 10, 12, 13, 14, 14, 15, 15, 16) * 4}  # s
BATCH, BATCH_SECONDS = 32, 10  # of the batch of equal lengths
COMPARED = 4  # rows of it whose sound is compared
LEAST_NOISE = 1e-16  # of the signal: float32 holds no less
RIGHT_FRAMES = (None, 12, 8, 5, 3, 0)  # of streaming; None is exact


def random_vocoder(machine: Machine, quick: bool) -> UnitVocoder:
    """The published size, or a small one, with random weights that are heard in every layer."""
    config = VocoderConfig()
    if quick:
        config = replace(config, num_units=50, embedding_dim=16, initial_channels=64, duration_width=16)
    generator = torch.Generator().manual_seed(0)
    model = UnitVocoder(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 3:
                # A sample of a transposed convolution sees kernel / rate taps: two as published.
                inputs = 2 * weight.shape[0] if name.startswith("ups") else weight[0].numel()
                weight.normal_(0, GAIN / inputs**0.5, generator=generator)
        heard: list[torch.Tensor] = []
        hook = model.conv_post.register_forward_hook(lambda _, __, sound: heard.append(sound))
        model(torch.randint(config.num_units, (1, 50), generator=generator))
        hook.remove()
        model.conv_post.weight.mul_(0.5 / heard[0].std())
        model.conv_post.bias.sub_(heard[0].mean()).mul_(0.5 / heard[0].std())
        model.dur_predictor.proj.weight.mul_(0.1)
        model.dur_predictor.proj.bias.fill_(float(np.log(1 + UNIT_FRAMES)))
    return model.to(machine.device)


def multiplications(config: VocoderConfig) -> int:
    """Of the generator, a frame: 160.4 M for the published one, 8.02 G a second."""
    channels, rate = config.initial_channels, 1
    width = config.embedding_dim + (config.speaker_dim if config.has_speaker else 0)
    total = EDGE_KERNEL * width * channels
    taps = sum(
        2 * k * len(d) for k, d in zip(config.resblock_kernels, config.resblock_dilations, strict=True)
    )
    for step, kernel in zip(config.upsample_rates, config.upsample_kernels, strict=True):
        total += rate * kernel * channels * channels // 2
        channels, rate = channels // 2, rate * step
        total += rate * taps * channels**2
    return total + EDGE_KERNEL * channels * prod(config.upsample_rates)


def _limit(machine: Machine, config: VocoderConfig, precision: str = "float32") -> float:
    """Times real time at the machine's matrix rate, of the plain sums: fewer products can pass it."""
    second = 2 * multiplications(config) * config.sample_rate / config.hop  # FLOP
    return machine.matrix_flops(PRECISIONS[precision]) / second


def _units(config: VocoderConfig, seconds: list[float]) -> list[np.ndarray]:
    random, rate = np.random.default_rng(0), config.sample_rate / config.hop / UNIT_FRAMES
    return [random.integers(config.num_units, size=max(1, int(s * rate))) for s in seconds]


def _error(found: list[np.ndarray], wanted: list[np.ndarray]) -> tuple[float, float]:
    """(signal to error in dB, largest error as a share of the peak) over all rows."""
    one, two = np.concatenate(found).astype(np.float64), np.concatenate(wanted).astype(np.float64)
    signal = np.square(two).mean()
    noise = max(np.square(one - two).mean(), LEAST_NOISE * signal)
    return 10 * float(np.log10(signal / noise)), float(np.abs(one - two).max() / np.abs(two).max())


def cpu(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """A list of utterances, durations predicted, beside fairseq's CodeHiFiGAN with the same weights."""
    if machine.kind != "cpu":
        raise NotMeasuredError("fairseq's vocoder is the baseline on a CPU")
    model = random_vocoder(machine, quick)
    units = _units(model.config, [0.5, 1.0] if quick else list(LENGTHS["cpu"]))
    ours, theirs = Synthesizer(model), _fairseq(model)
    sounds, expected = ours.synthesize(units), theirs.synthesize(units)
    _, largest = _error(sounds, expected)
    audio = sum(map(len, sounds)) / ours.sample_rate  # s
    slow, fast = alternate(
        [lambda: theirs.synthesize(units), lambda: ours.synthesize(units)], machine, 1 if quick else 5
    )
    lengths = sorted(round(len(s) / ours.sample_rate) for s in sounds)
    note = f"float32, {lengths} s one after the other; differ by {largest:.1e} of the peak"
    part = "units to speech, published size"
    yield Measurement(
        part, "x real time", audio / slow, audio / fast, _limit(machine, model.config), note=note
    )


def _fairseq(model: UnitVocoder):
    """fairseq's vocoder with the weights of ours."""
    from speechgpt.vocoder.fairseq_backend import FairseqVocoder, codehifigan_files

    with tempfile.TemporaryDirectory() as folder:
        try:
            return FairseqVocoder.load(*codehifigan_files(model, Path(folder)), device="cpu")
        except ImportError as error:
            raise NotMeasuredError(str(error)) from error


def _variants(machine: Machine) -> list[tuple[str, str]]:
    """(precision, way) worth a figure, the fastest first; each costs a GPU some ten seconds of compiling and
    of choosing kernels. cuDNN's half precision has half the speed of the fused one, bf16 that of fp16."""
    if machine.kind != "cuda":
        return [("float32", "folded")]
    return [("fp16", "fused"), ("tf32", "folded"), ("float32", "folded")]


def _each(
    machine: Machine, model: UnitVocoder, part: str, figure: Callable[[Synthesizer], Measurement]
) -> Iterator[Measurement]:
    """One figure a variant; one that fails says why on stderr, and the others go on."""
    for precision, way in _variants(machine):
        name = f"{part}, {precision}, {way}"
        try:
            synthesizer = Synthesizer(model, precision, way)
            found = figure(synthesizer)
        except Exception as error:  # Triton's errors are of no common kind
            print(f"{name}: failed: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
            continue
        used = {"FoldedGenerator": "cuDNN"} if machine.kind == "cuda" else {}
        kernels = used.get(type(synthesizer.generator).__name__, type(synthesizer.generator).__name__)
        found = replace(found, part=part, note=f"{precision}, {kernels}: {found.note}")
        print(f"{name}: {found.ours:.5g} {found.unit}", file=sys.stderr, flush=True)
        yield found
        del synthesizer
        machine.forget()


def gpu(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """A batch of equal lengths and a list of mixed ones, beside one utterance at a time."""
    if machine.kind != "cuda" and not quick:
        raise NotMeasuredError("batches pay on a GPU")
    model = random_vocoder(machine, quick)
    config, repeats = model.config, 1 if quick else 3
    rate = config.sample_rate // config.hop
    count, seconds = (2, 1) if quick else (BATCH, BATCH_SECONDS)
    even = torch.randint(config.num_units, (count, seconds * rate), device=machine.device)  # B N
    with torch.inference_mode():
        baseline = seconds / seconds_of(lambda: model(even[:1]).cpu(), machine, repeats)
    exact = Synthesizer(model).speak(list(even[:COMPARED].cpu().numpy()))

    def of_batch(synthesizer: Synthesizer) -> Measurement:
        with torch.inference_mode(), synthesizer.arithmetic():
            x = model.embed(even)
            sound = synthesizer.generator(x)[:COMPARED].cpu().numpy()
            taken = seconds_of(lambda: synthesizer.generator(x), machine, repeats, warmup=1)
        ratio, largest = _error(list(sound), exact)
        note = f"{count} x {seconds} s, {ratio:.0f} dB from float32, {largest:.1e} of the peak"
        limit = _limit(machine, config, synthesizer.precision)
        return Measurement("", "x real time", baseline, count * seconds / taken, limit, note=note)

    yield from _each(machine, model, "units to speech, published size, even batch", of_batch)
    units = _units(config, [0.5, 1.0] if quick else list(LENGTHS["cuda"]))

    def of_list(synthesizer: Synthesizer) -> Measurement:
        audio = sum(map(len, synthesizer.synthesize(units))) / config.sample_rate  # s
        taken = seconds_of(lambda: synthesizer.synthesize(units), machine, repeats - 1 or 1, warmup=0)
        note = f"{len(units)} utterances of mixed lengths, durations predicted, samples on the host"
        limit = _limit(machine, config, synthesizer.precision)
        return Measurement("", "x real time", baseline, audio / taken, limit, note=note)

    yield from _each(machine, model, "units to speech, published size, mixed lengths", of_list)


def chunk(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """Half a second with its exact context, beside waiting for ten seconds' whole sound."""
    model = random_vocoder(machine, quick)
    config = model.config
    length = sum(config.frame_reach) + CHUNK_FRAMES
    frames = np.random.default_rng(0).integers(config.num_units, size=length)
    whole = torch.randint(config.num_units, (1, 50 if quick else 500), device=machine.device)
    exact = Synthesizer(model).speak([frames])
    with torch.inference_mode():
        slow = seconds_of(lambda: model(whole).cpu(), machine, 1 if quick else 5)
    second = config.sample_rate / config.hop

    def figure(synthesizer: Synthesizer) -> Measurement:
        synthesizer.prepare([length])
        ratio, largest = _error(synthesizer.speak([frames]), exact)
        taken = seconds_of(lambda: synthesizer.speak([frames]), machine, 1 if quick else 20)
        note = (
            f"{length} frames{'' if synthesizer.replay.captured else ', not captured'}, {ratio:.0f} dB from "
            f"float32, {largest:.1e} of the peak; the released way waits for all of "
            f"{len(whole[0]) / second:.0f} s"
        )
        limit = length / second / _limit(machine, config, synthesizer.precision)
        return Measurement("", "s", slow, taken, limit, lower_is_better=True, note=note)

    yield from _each(machine, model, f"{CHUNK_FRAMES / second:g} s chunk of speech, published size", figure)


def streaming(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """The joined stream beside the whole sound, unit by unit, on units of the shipped question."""
    from speechgpt.units.unit_encoder import UnitEncoder

    model = Path(str(files("speechgpt"))) / "models" / "mini"
    if not model.exists():
        raise NotMeasuredError(f"{model}: this installation has no shipped model")
    encoder = UnitEncoder.load(model / "encoder", model / "codebook.safetensors", device=machine.device)
    units, _ = deduplicate(encoder.encode([read_audio(model / "question.wav", 16_000)])[0])
    synthesizer = Synthesizer.load(model / "vocoder", str(machine.device))
    units = units[: 20 if quick else None]
    whole = synthesizer.synthesize([units])[0]
    for right_frames in RIGHT_FRAMES[:2] if quick else RIGHT_FRAMES:
        stream = StreamingSynthesizer(synthesizer, right_frames=right_frames)
        pieces = [stream.push([unit]) for unit in units]
        first = next((n + 1 for n, piece in enumerate(pieces) if len(piece)), len(units))
        joined = np.concatenate([*pieces, stream.finish()])
        ratio, largest = _error([joined], [whole])
        name = "exact" if right_frames is None else f"{right_frames} frames to the right"
        note = (
            f"largest error {largest:.1e} of the peak; first sound after {first} units "
            f"({FIRST_CHUNK_FRAMES} frames first)"
        )
        yield Measurement(f"streaming, {name}", "dB of signal to error", None, ratio, note=note)
    for precision in ("bf16", "fp16"):
        half = Synthesizer.load(model / "vocoder", str(machine.device), precision).synthesize([units])[0]
        ratio, largest = _error([half], [whole])
        note = f"the shipped vocoder; largest error {largest:.1e} of the peak"
        yield Measurement(f"speech in {precision}", "dB of signal to error", None, ratio, note=note)


parts = {
    "units to speech on a CPU": cpu,
    "units to speech on a GPU": gpu,
    "chunk of speech": chunk,
    "streaming beside the whole": streaming,
}
