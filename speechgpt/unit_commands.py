"""encode and decode: recordings to unit text, and unit text to recordings."""

import argparse
import sys
from pathlib import Path

from speechgpt.backends import OURS, add_backend, encoder_loader, fairseq_vocoder
from speechgpt.command_options import add_model, command_parser
from speechgpt.command_results import Faults, check_target, emit, save_speech
from speechgpt.data.hub import named_path

STREAM_OPTIONS = {
    "look-ahead": "audio heard after a frame before its unit is final (default 1.0; docs/long-audio.md)",
    "step": "audio between two computations (default 0.5); more of it costs less",
}


def encode(argv: list[str]) -> int:
    parser = command_parser(
        "encode",
        "Recordings to units: <sosp>...<eosp> one line a file, in order. The FILE - is audio arriving on "
        "standard input (wav, flac, ogg, or --raw): its units are printed as soon as they are final.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE|-")
    parser.add_argument(
        "--encoder", type=named_path, metavar="PATH", help="encoder, or a fairseq .pt (default: the model's)"
    )
    parser.add_argument(
        "--codebook", type=Path, metavar="PATH", help="codebook, or a joblib k-means (default: the model's)"
    )
    parser.add_argument("--layer", type=int, metavar="N", help="encoder layer (default: the codebook's)")
    parser.add_argument("--frames", action="store_true", help="one unit a frame, not deduplicated")
    parser.add_argument("--raw", type=int, metavar="RATE", help="-: 16 bit little-endian mono PCM of RATE Hz")
    for name, what in STREAM_OPTIONS.items():
        parser.add_argument(f"--{name}", type=float, metavar="SECONDS", help=f"-: {what}")
    parser.add_argument(
        "--dtype", default="float32", metavar="D", help="float32, int8 on a CPU, float16 or bfloat16 on a GPU"
    )
    add_backend(parser)
    add_model(parser, seed=False)
    args = parser.parse_args(argv)
    if args.files.count("-") > 1:
        raise ValueError("standard input (-) can be read once")
    if "-" not in args.files and (args.raw or args.look_ahead is not None or args.step is not None):
        raise ValueError("--raw, --look-ahead and --step are for audio on standard input: give - as FILE")
    if "-" in args.files and args.backend != OURS:
        raise ValueError(f"--backend {args.backend} takes files; standard input (-) is for {OURS}")
    if args.dtype != "float32" and ("-" in args.files or args.backend != OURS):
        raise ValueError(
            f"--dtype {args.dtype} is for files and for {OURS}: streams are float32, like fairseq"
        )
    from speechgpt.data.audio import scan_audio
    from speechgpt.data.unit_text import units_to_text

    load_encoder = encoder_loader(args.backend)
    encoder_path, codebook_path, layer = _encoder_parts(args)
    faults, encoder = Faults("encode"), None
    for path in args.files:
        if path != "-" and faults.attempt(path, scan_audio, path) is None:
            continue
        encoder = encoder or _in_precision(
            load_encoder(encoder_path, codebook_path, layer, args.device), args.dtype
        )
        if path == "-":
            faults.attempt("standard input", _encode_stream, encoder, args)
            continue
        frames = faults.attempt(path, encoder.encode_file, path)
        if frames is not None:
            emit(units_to_text(frames if args.frames else _deduplicated(frames)))
    return faults.code


def _in_precision(encoder, name: str):
    return encoder if name == "float32" else encoder.use(name)


def _encode_stream(units, args: argparse.Namespace) -> None:
    """Prints the line of units bit by bit; after an error it ends without its <eosp>, so that none takes it
    for whole."""
    from speechgpt.data.audio_stream import stream_audio
    from speechgpt.units.streaming import LOOK_AHEAD_SECONDS, STEP_SECONDS, StreamingEncoder

    look_ahead = LOOK_AHEAD_SECONDS if args.look_ahead is None else args.look_ahead
    stream = StreamingEncoder(units, look_ahead, STEP_SECONDS if args.step is None else args.step)
    last, started = None, False

    def show(frames) -> None:
        nonlocal last, started
        fresh = [] if started or not len(frames) else ["<sosp>"]
        for unit in frames.tolist():
            if args.frames or unit != last:
                fresh.append(f"<{unit}>")
            last = unit
        started = started or bool(fresh)
        print("".join(fresh), end="", flush=bool(fresh))

    try:
        for block in stream_audio(sys.stdin.fileno(), units.encoder.sample_rate, args.raw):
            show(stream.push(block))
        show(stream.finish())
    except (ValueError, OSError):
        if started:
            emit("")
        raise
    emit("<eosp>")


def _deduplicated(frames):
    from speechgpt.units.dedup import deduplicate

    return deduplicate(frames)[0]


def _encoder_parts(args: argparse.Namespace) -> tuple[Path, Path, int | None]:
    if args.encoder and args.codebook:
        return args.encoder, args.codebook, args.layer
    from speechgpt.model_dir import find_model

    found = find_model(args.model)
    return args.encoder or found.encoder, args.codebook or found.codebook, args.layer


def decode(argv: list[str]) -> int:
    """Unit text with repeats (`encode --frames`) keeps its timing; without, durations are predicted."""
    parser = command_parser(
        "decode",
        "Units to speech. Units one a frame (encode --frames) keep their timing; deduplicated ones get "
        "predicted durations. A file of several lines gives NAME-1.wav, NAME-2.wav, ...",
    )
    parser.add_argument(
        "units", metavar="UNITS|FILE|-", help="<sosp><12>...<eosp>, a file of such lines, or -"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the wav to write")
    parser.add_argument(
        "--vocoder", type=Path, metavar="PATH", help="vocoder, or a g_00500000 (default: the model's)"
    )
    parser.add_argument(
        "--vocoder-config",
        type=Path,
        metavar="FILE",
        help="config.json of a CodeHiFiGAN (default: beside it)",
    )
    parser.add_argument("--speaker", help="name or number, for a vocoder of several voices")
    add_backend(parser)
    add_model(parser, seed=False)
    args = parser.parse_args(argv)
    if args.vocoder_config and not args.vocoder:
        raise ValueError("--vocoder-config describes a generator: give it too, --vocoder g_00500000")
    check_target(args.out)
    from speechgpt.data.unit_text import text_to_units

    lines = _unit_lines(args.units)
    faults, vocoder, scale = Faults("decode"), None, 1.0
    for (name, line), out in zip(lines, _numbered(args.out, len(lines)), strict=True):
        units = faults.attempt(name, text_to_units, line)
        if units is None:
            continue
        vocoder, scale = (vocoder, scale) if vocoder else _load_vocoder(args)
        waveform = faults.attempt(name, _decode, vocoder, units, args.speaker, scale, out)
        if waveform is not None:
            emit(f"{out} ({len(waveform) / vocoder.sample_rate:.2f} s)")
    return faults.code


def _decode(vocoder, units: list[int], speaker: str | None, scale: float, out: Path):
    from speechgpt.pipeline import say_units

    if not units:
        raise ValueError("there are no units between <sosp> and <eosp>")
    number = speaker is not None and speaker not in vocoder.speakers and speaker.isdecimal()
    waveform = say_units(vocoder, units, int(speaker) if number else speaker, scale)
    save_speech(out, waveform, vocoder.sample_rate)
    return waveform


def _load_vocoder(args: argparse.Namespace):
    """(vocoder, how much slower than it predicts its model speaks)."""
    from speechgpt.model_dir import find_model, load_synthesizer

    if args.backend != OURS:
        return fairseq_vocoder(args.vocoder, args.vocoder_config, args.device), 1.0
    if args.vocoder:
        return load_synthesizer(args.vocoder, args.device, args.vocoder_config), 1.0
    model = find_model(args.model)
    return load_synthesizer(model.vocoder, args.device), model.config.duration_scale


def _unit_lines(source: str) -> list[tuple[str, str]]:
    """[(name for messages, unit text), ...]; `source` is units (it starts with <), a file, or - for stdin."""
    if source.lstrip().startswith("<"):
        return [("UNITS", source)]
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not a text file of units") from error
    name = "standard input" if source == "-" else source
    lines = [(f"{name}:{n}", line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{name}: holds no units; expected <sosp><12><7>...<eosp> lines")
    return lines


def _numbered(out: Path, count: int) -> list[Path]:
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{n}{out.suffix or '.wav'}") for n in range(1, count + 1)]
