"""`speechgpt chat`: several turns in a terminal or from a pipe; the model remembers the earlier ones."""

import argparse
import sys
from pathlib import Path

from speechgpt.commands import Faults, one_row, save_speech
from speechgpt.data.audio import read_audio
from speechgpt.model_dir import find_model

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
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="for models that sample (default 0)")
    args = parser.parse_args(argv)
    model_dir = find_model(args.model)
    from speechgpt.pipeline import SpeechGPT

    model = SpeechGPT(model_dir, args.device, encoder=False, vocoder=not args.no_speech)
    return Chat(model, args.out_dir, not args.no_speech, args.seed).run()


class Chat:
    """One conversation: reads lines from standard input until it ends or /quit."""

    def __init__(self, model, out_dir: Path, speech: bool, seed: int) -> None:
        self.model, self.out_dir, self.speech, self.seed = model, out_dir, speech, seed
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
        answered = self.faults.attempt(question, self._ask, question, spoken)
        if answered is None:
            return
        reply, wav = answered
        self.history.append(reply)
        self.turn += 1
        if spoken:
            print(f"heard> {one_row(reply.transcript)}")
        print(f"answer> {one_row(reply.answer)}" + (f"   [{wav}]" if wav else ""), flush=True)

    def _ask(self, question: str, spoken: bool):
        limit = self.model.model_dir.config.max_question_seconds
        waveform = read_audio(question, max_seconds=limit) if spoken else None
        text = None if spoken else question
        reply = self.model.reply(waveform, text, self.speech, self.history, self.seed)
        if reply.waveform is None:
            return reply, None
        wav = self.out_dir / f"turn-{self.turn + 1}.wav"
        save_speech(wav, reply.waveform, reply.sample_rate)
        return reply, wav
