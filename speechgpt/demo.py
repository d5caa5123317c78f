"""`speechgpt demo`: answers the question that ships with the model, and leaves a picture beside the wav."""

import argparse
import time
from pathlib import Path

from speechgpt.command_results import save_speech
from speechgpt.commands import describe_timings
from speechgpt.data.audio import read_audio
from speechgpt.model_dir import find_model
from speechgpt.quick_start import quick_start
from speechgpt.turn_lines import one_row

DEFAULT_OUT = Path("work/demo")
ANSWER = "answer.wav"  # its picture is answer.png
QUESTION = "question.wav"  # inside the model directory


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt demo", description=__doc__)
    parser.add_argument("--model", default="mini", metavar="mini|DIR", help="default: mini")
    parser.add_argument("--question", type=Path, metavar="FILE", help=f"default: the model's {QUESTION}")
    parser.add_argument(
        "--out-dir", type=Path, default=DEFAULT_OUT, help=f"folder for {ANSWER} ({DEFAULT_OUT})"
    )
    parser.add_argument("--no-picture", action="store_true", help="leave out the picture beside the wav")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="for models that sample (default 0)")
    args = parser.parse_args(argv)
    model_dir = find_model(args.model)
    question = args.question or model_dir.path / QUESTION
    waveform = read_audio(question, max_seconds=model_dir.config.max_question_seconds)
    model, seconds = _load(model_dir, args.device)
    reply = model.reply(waveform, seed=args.seed)
    wav = args.out_dir / ANSWER
    save_speech(wav, reply.waveform, reply.sample_rate)
    print(f"question  {question} ({reply.seconds_in:.2f} s)")
    print(f"heard     {one_row(reply.transcript)}")
    print(f"answer    {one_row(reply.answer)}")
    print(f"speech    {wav} ({len(reply.waveform) / reply.sample_rate:.2f} s)")
    if not args.no_picture and len(reply.waveform) and (picture := _draw(model, waveform, reply, wav)):
        print(f"picture   {picture}")
    print(f"timings   model loaded in {seconds:.2f} s; {describe_timings(reply.timings)}")
    return 0


def _load(model_dir, device: str):
    started = time.perf_counter()
    with quick_start():
        from speechgpt.pipeline import SpeechGPT

        model = SpeechGPT(model_dir, device, encoder=True, vocoder=True).warm_up()
    return model, time.perf_counter() - started


def _draw(model, question, reply, out: Path) -> Path | None:
    """The picture's path, or None where matplotlib (an extra) is not installed."""
    try:
        from speechgpt.picture import draw_turn
    except ModuleNotFoundError:
        return None
    path = out.with_suffix(".png")
    draw_turn(path, model, question, reply)
    return path
