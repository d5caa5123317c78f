"""`speechgpt chat`: several turns in a terminal or from a pipe; the model remembers the earlier ones."""

import argparse
import sys
from pathlib import Path

from speechgpt.command_options import add_playing
from speechgpt.command_results import Faults, emit, save_speech
from speechgpt.commands import follow
from speechgpt.data.audio import read_audio
from speechgpt.events import Reply
from speechgpt.model_dir import find_model
from speechgpt.quick_start import quick_start
from speechgpt.turn_lines import TurnLines

HELP = "Type a question, or: /say FILE asks with a recording, /new forgets the conversation, /quit ends it."
DEFAULT_OUT = Path("work/chat")


def main(argv: list[str]) -> int:
    """Answers are printed; with speech, turn N is also written to OUT_DIR/turn-N.wav."""
    parser = argparse.ArgumentParser(prog="speechgpt chat", description=__doc__, epilog=HELP)
    parser.add_argument("--model", default="mini", metavar="mini|DIR", help="default: mini")
    parser.add_argument(
        "--out-dir", type=Path, default=DEFAULT_OUT, help=f"folder for turn-N.wav ({DEFAULT_OUT})"
    )
    parser.add_argument("--no-speech", action="store_true", help="answer in text alone, write no wav")
    add_playing(parser)
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="for models that sample (default 0)")
    args = parser.parse_args(argv)
    if args.no_speech and args.play:
        raise ValueError("--no-speech leaves nothing to play: --play goes without it")
    model_dir = find_model(args.model)
    with quick_start():
        from speechgpt.pipeline import SpeechGPT

        model = SpeechGPT(model_dir, args.device, encoder=False, vocoder=not args.no_speech)
    return Chat(model, args.out_dir, not args.no_speech, args.seed, args.play, args.low_latency).run()


class Chat:
    """One conversation: reads lines from standard input until it ends or /quit."""

    def __init__(
        self,
        model,
        out_dir: Path,
        speech: bool,
        seed: int,
        player: str | None = None,
        low_latency: bool = False,
    ) -> None:
        self.model, self.out_dir, self.speech, self.seed = model, out_dir, speech, seed
        self.player, self.low_latency = player, low_latency
        self.history: list = []
        self.turn = 0
        self.faults = Faults("chat")

    def run(self) -> int:
        if sys.stdin.isatty():
            print(HELP, file=sys.stderr)
        while (line := self._read()) is not None:
            word, _, rest = line.partition(" ")
            if word == "/quit":
                break
            if word == "/new":
                self.history = []
            elif word == "/help":
                print(HELP, file=sys.stderr)
            elif word == "/say":
                self._answer(rest.strip() or "/say", spoken=True)
            elif word.startswith("/"):
                self.faults.report(word, ValueError(f"unknown command; {HELP}"))
            elif line:
                self._answer(line, spoken=False)
        return self.faults.code

    def _read(self) -> str | None:
        """The next line, or None at the end of the input. Only a person at a terminal gets a prompt."""
        if sys.stdin.isatty():
            print("you> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        return line.strip() if line else None

    def _answer(self, question: str, spoken: bool) -> None:
        reply = self.faults.attempt(question, self._ask, question, spoken)
        if reply is not None:
            self.history.append(reply)
            self.turn += 1

    def _ask(self, question: str, spoken: bool) -> Reply:
        """Prints the answer as it comes, and where its speech is."""
        limit = self.model.model_dir.config.max_question_seconds
        waveform = read_audio(question, max_seconds=limit) if spoken else None
        text = None if spoken else question
        events = self.model.stream_reply(
            waveform, text, self.speech, self.history, self.seed, self.low_latency
        )
        lines = TurnLines(sys.stdout, "heard> " if spoken else None, "answer> ")
        reply, fault = follow(events, lines, command=self.player)
        if reply.waveform is not None:
            wav = self.out_dir / f"turn-{self.turn + 1}.wav"
            save_speech(wav, reply.waveform, reply.sample_rate)
            emit(f"speech> {wav} ({len(reply.waveform) / reply.sample_rate:.2f} s)")
        if fault is not None:
            self.faults.report(question, fault)
        return reply
