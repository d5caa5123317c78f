"""talk, transcribe, speak: each input is checked before the model is loaded, and answered or refused on its
own; one refusal never costs the others their answer.
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.cli import OK
from speechgpt.command_options import (
    add_hearings,
    add_json,
    add_model,
    add_parts,
    add_playing,
    command_parser,
    given_parts,
)
from speechgpt.command_results import Faults, check_target, emit, save_speech
from speechgpt.data.audio import read_audio
from speechgpt.events import Reply, Sound
from speechgpt.quick_start import quick_start
from speechgpt.turn_lines import TurnLines, one_row
from speechgpt.wav_stream import Player, PlayerError, WavStream, to_standard_output

if TYPE_CHECKING:
    from speechgpt.pipeline import SpeechGPT

DEFAULT_OUT = Path("work/talk")


def talk(argv: list[str]) -> int:
    """Answers each file (or --text). The answer is printed and played as it comes; with --json an object is
    printed when it is ready."""
    args = _talk_parser().parse_args(argv)
    if bool(args.files) == (args.text is not None):
        raise ValueError("give either files or --text")
    if args.text is not None and not args.text.strip():
        raise ValueError("--text is empty")
    if args.no_speech and (args.stream or args.play):
        raise ValueError("--no-speech leaves nothing to play: --stream and --play go without it")
    from speechgpt.model_dir import find_model

    model_dir, model = find_model(args.model, **given_parts(args)).hearing(args.hearings), None
    typed = args.text is not None
    questions = ["--text"] if typed else args.files
    wavs = answer_names(["text"] if typed else args.files, args.out_dir)
    faults, sink = Faults("talk"), to_standard_output() if args.stream else None
    _import_readers()
    for question, wav in zip(questions, wavs, strict=True):
        started = time.perf_counter()
        heard = args.text if typed else faults.attempt(question, _read_question, question, model_dir)
        if heard is None:
            continue
        reading = time.perf_counter() - started
        model = model or load_model(model_dir, args, encoder=not typed, vocoder=not args.no_speech)
        faults.attempt(question, _answer, model, heard, args, question, wav, reading, sink)
    return faults.code


def _import_readers() -> None:
    """Their first import is no part of the time that a file takes."""
    import soundfile  # noqa: F401
    import soxr  # noqa: F401


def _read_question(path: str, model_dir):
    """(T,) float32 at 16 kHz. The length limit is checked by the file's header, before it is decoded."""
    return read_audio(path, max_seconds=model_dir.config.max_question_seconds)


def _answer(
    model: "SpeechGPT",
    heard: Any,
    args: argparse.Namespace,
    name: str,
    wav: Path,
    reading: float,
    sink: WavStream | None,
) -> None:
    """Answers a waveform or a text: prints it as it comes, plays it, and leaves its speech, if any, in `wav`.

    Timings count from the moment the file was opened, `reading` seconds ago, with the model loaded.
    """
    spoken = not isinstance(heard, str)
    question, text = (heard, None) if spoken else (None, heard)
    out = sys.stderr if sink else sys.stdout
    events = model.stream_reply(
        question, text, not args.no_speech, seed=args.seed, low_latency=args.low_latency
    )
    if args.json:
        lines = TurnLines(out, None, None)
    else:
        emit(name if spoken else "typed question", out)
        lines = TurnLines(out, "  heard   ", "  answer  ")
    reply, fault = follow(events, lines, sink, args.play)
    if reply.waveform is not None:
        save_speech(wav, reply.waveform, reply.sample_rate)
    row = _described(name if spoken else None, reply, wav, reading)
    emit(json.dumps(row, ensure_ascii=False) if args.json else _closing(row), out)
    if fault is not None:
        raise fault


def follow(
    events, lines: TurnLines, sink: WavStream | None = None, command: str | None = None
) -> tuple[Reply, PlayerError | None]:
    """Shows the text of a turn and plays its sound as they come, on `sink` and by a player of its own.

    A player that fails, or that somebody closes, costs its sound alone: its error comes beside the reply.
    """
    fault = None
    try:
        with Player(command) if command else nullcontext() as player:
            for event in events:
                lines.show(event)
                if not isinstance(event, Sound):
                    continue
                if sink is not None:
                    sink.play(event)
                if player is not None and fault is None:
                    try:
                        player.play(event)
                    except PlayerError as error:
                        fault = error
    except PlayerError as error:
        fault = fault or error
    except BaseException:
        lines.drop()
        raise
    return event, fault


def _talk_parser() -> argparse.ArgumentParser:
    parser = command_parser("talk", "Answers spoken questions with speech.")
    parser.add_argument("files", nargs="*", metavar="FILE", help="recordings of a question each")
    parser.add_argument("--text", help="a typed question instead of files")
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=DEFAULT_OUT,
        help=f"folder for NAME.answer.wav (default: {DEFAULT_OUT})",
    )
    parser.add_argument("--no-speech", action="store_true", help="answer in text alone, write no wav")
    parser.add_argument(
        "--stream",
        choices=["-"],
        help="also write the sound to standard output as it comes, as one wav (... --stream - | aplay); "
        "the text then goes to standard error",
    )
    add_playing(parser)
    add_hearings(parser)
    add_json(parser)
    add_model(parser)
    add_parts(parser)
    return parser


def _described(path: str | None, reply: Reply, wav: Path, reading: float) -> dict[str, Any]:
    """What --json prints of a turn."""
    timings = {k: None if v is None else round(v + reading, 4) for k, v in reply.timings.items()}
    spoken = reply.waveform is not None
    return {
        "path": path,
        "transcript": reply.transcript,
        "answer": reply.answer,
        "wav": str(wav) if spoken else None,
        "seconds_in": round(reply.seconds_in, 3),
        "seconds_out": round(len(reply.waveform) / reply.sample_rate, 3) if spoken else 0.0,
        "timings": timings,
        "stalls": round(reply.stalls, 4),
    }


def _closing(row: dict[str, Any]) -> str:
    """The lines that follow a turn's text."""
    speech = [f"  speech  {row['wav']} ({row['seconds_out']:.2f} s)"] if row["wav"] else []
    stalls = f", stalled for {row['stalls']:.2f} s" if row["stalls"] else ""
    return "\n".join([*speech, f"  took    {describe_timings(row['timings'])}{stalls}"])


def describe_timings(timings: dict[str, float | None]) -> str:
    """{"encode": 0.1, "first_token": 0.2, ...} to "encode 0.10 s, first token 0.20 s, ..."."""
    known = ((name.replace("_", " "), value) for name, value in timings.items() if value is not None)
    return ", ".join(f"{name} {value:.2f} s" for name, value in known)


def answer_names(questions: list[str], folder: Path) -> list[Path]:
    """One path for each question: NAME.answer.wav, numbered where two questions share a name."""
    taken: set[str] = set()
    paths = []
    for question in questions:
        stem, name, number = Path(question).stem or "answer", None, 1
        while name is None or name.lower() in taken:  # folders may not tell a.wav from A.wav
            name = f"{stem}.answer.wav" if number == 1 else f"{stem}-{number}.answer.wav"
            number += 1
        taken.add(name.lower())
        paths.append(folder / name)
    return paths


def transcribe(argv: list[str]) -> int:
    """Prints `path: text` a line (the text alone for a single file), or with --json one object."""
    parser = command_parser("transcribe", "Writes down what recordings say.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    add_hearings(parser)
    add_json(parser)
    add_model(parser)
    add_parts(parser)
    args = parser.parse_args(argv)
    from speechgpt.model_dir import find_model

    model_dir, model = find_model(args.model, **given_parts(args)).hearing(args.hearings), None
    faults = Faults("transcribe")
    for path in args.files:
        waveform = faults.attempt(path, _read_question, path, model_dir)
        if waveform is None:
            continue
        model = model or load_model(model_dir, args, encoder=True, vocoder=False)
        text = faults.attempt(path, model.transcribe, waveform, args.seed)
        if text is None:
            continue
        if args.json:
            emit(json.dumps({"path": path, "text": text}, ensure_ascii=False))
        else:
            emit(one_row(text) if len(args.files) == 1 else f"{path}: {one_row(text)}")
    return faults.code


def speak(argv: list[str]) -> int:
    parser = command_parser("speak", "Says a text.")
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the wav to write")
    add_model(parser)
    add_parts(parser)
    args = parser.parse_args(argv)
    if not args.text.strip():
        raise ValueError("TEXT is empty")
    from speechgpt.model_dir import find_model

    check_target(args.out)
    model = load_model(find_model(args.model, **given_parts(args)), args, encoder=False, vocoder=True)
    waveform = model.speak(args.text, seed=args.seed)
    save_speech(args.out, waveform, model.sample_rate)
    emit(f"{args.out} ({len(waveform) / model.sample_rate:.2f} s)")
    return OK


def load_model(model_dir, args: argparse.Namespace, encoder: bool, vocoder: bool):
    # Before the language model is read, which may take minutes.
    model_dir.check(*(["encoder", "codebook"] if encoder else []), *(["vocoder"] if vocoder else []))
    with quick_start():
        from speechgpt.pipeline import SpeechGPT

        model = SpeechGPT(model_dir, args.device, encoder=encoder, vocoder=vocoder)
    # On a CPU the first answer costs less by itself than a warm-up does.
    return model if model.device == "cpu" else model.warm_up()
