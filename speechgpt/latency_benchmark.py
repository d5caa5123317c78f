"""Seconds until a model is ready and until something sounds, beside the released way: everything imported
first, the whole answer decoded first, and then the vocoder.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechgpt.data.audio import read_audio
from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.events import Sound
from speechgpt.grammar import turn_machine
from speechgpt.model_dir import find_model
from speechgpt.pipeline import SpeechGPT, deduplicated
from speechgpt.units.machine import Machine

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

QUESTION = "question.wav"  # inside the model directory
KIND = "speech-speech"
# The moment before the first file is encoded: the model is loaded and warm, the file is read.
OURS = """
import os, sys, time
from speechgpt import cli, commands
def begin(*_):
    os.write(1, repr(time.time()).encode())
    os._exit(0)
commands._answer = begin
cli.main(["talk", sys.argv[1], "--device", sys.argv[2]])
"""
RELEASED = """
import os, sys, time
import torch, soundfile, soxr
from transformers import HubertModel, LlamaForCausalLM
from speechgpt.data.audio import read_audio
from speechgpt.model_dir import find_model
from speechgpt.vocoder.synthesize import Synthesizer
parts, device = find_model("mini"), sys.argv[2]
HubertModel.from_pretrained(parts.encoder, dtype=torch.float32).eval().to(device)
LlamaForCausalLM.from_pretrained(parts.llm, dtype=torch.float32).eval().to(device)
Synthesizer.load(parts.vocoder, device)
read_audio(sys.argv[1])
os.write(1, repr(time.time()).encode())
os._exit(0)
"""
TORCH = "import os, time, torch; os.write(1, repr(time.time()).encode()); os._exit(0)"


def start_up(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """From the start of the process; the limit is `import torch`."""
    if machine.kind != "cpu":
        raise NotMeasuredError("the start of `talk` is measured on a CPU")
    question = find_model("mini").path / QUESTION
    repeats = 1 if quick else 5

    def seconds(code: str) -> float:
        started = time.time()
        command = [sys.executable, "-c", code, str(question), machine.kind]
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        if found.returncode:
            raise RuntimeError(f"a start failed: {found.stderr.strip()[-400:]}")
        return float(found.stdout) - started

    if not quick:
        seconds(RELEASED)  # what it reads is in the file cache from now on
    times = [[seconds(code) for code in (OURS, RELEASED, TORCH)] for _ in range(repeats)]
    ours, released, floor = (median(own) for own in zip(*times, strict=True))
    yield Measurement(
        "start-up of `talk` with mini, to the first file's encoding",
        "s",
        released,
        ours,
        limit=floor,
        lower_is_better=True,
        note="fresh processes, files cached; limit: `import torch` alone",
    )


@dataclass(frozen=True)
class Latency:
    """Seconds from the end of the question."""

    first_sound: float
    total: float
    stalls: float
    tokens: int  # that were decoded until the first sound


class ReleasedWay:
    """The whole answer by transformers' model, a call a token, and then the vocoder; the same grammar, the
    same encoder and vocoder."""

    def __init__(self, model: SpeechGPT, answer: Sequence[int] = ()) -> None:
        """`answer`: tokens that are said whatever is chosen; empty: what is chosen."""
        self.model, self.answer = model, answer
        self.llama: LlamaForCausalLM = model.generator.decoder.to_transformers()

    def __call__(self, waveform: np.ndarray, most: int = sys.maxsize) -> float:
        """Seconds until the answer is a waveform; of its first `most` tokens alone, for warming up."""
        started = time.perf_counter()
        generator = self.model.generator
        prompt = generator.format.prompt_turn(deduplicated(self.model.encoder.encode([waveform])[0]))
        turn = generator.format.parse(self._decoded(prompt, most))
        scale = self.model.model_dir.config.duration_scale
        self.model.synthesizer.synthesize([turn.units], duration_scale=scale)
        return time.perf_counter() - started

    @torch.inference_mode()
    def _decoded(self, prompt: list[int], most: int) -> list[int]:
        from transformers.cache_utils import DynamicCache

        generator, device = self.model.generator, self.llama.device
        limits = generator.decoding.limits
        machine = turn_machine(generator.vocabulary, KIND, limits)
        state, found = machine.start, []
        cache, inputs = DynamicCache(config=self.llama.config), torch.tensor([prompt], device=device)  # 1 L
        while not machine.finished(state) and len(found) < most:
            output = self.llama(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            left = generator.decoding.max_new_tokens - len(found)
            scores = machine.filter([state], left, output.logits[:, -1].float())  # 1 V
            token = int(scores.argmax(-1))
            token = self.answer[len(found)] if self.answer else token
            found.append(token)
            state = machine.advance(state, token)
            inputs = torch.tensor([[token]], device=device)
        return found


def ours(model: SpeechGPT, waveform: np.ndarray, low_latency: bool = False) -> Latency:
    tokens = 0
    for event in model.stream_reply(waveform, low_latency=low_latency):
        if isinstance(event, Sound) and not tokens:
            tokens = model.generator.timings.new_tokens
    return Latency(event.timings["first_sound"], event.timings["total"], event.stalls, tokens)


def middle(latencies: Sequence[Latency]) -> Latency:
    """The medians, and the worst stall."""
    first, total = (median(getattr(found, name) for found in latencies) for name in ("first_sound", "total"))
    return Latency(first, total, max(found.stalls for found in latencies), latencies[0].tokens)


def mini_turn(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """The shipped question, asked again and again; in between another question, so that nothing is kept."""
    if machine.kind != "cpu":
        raise NotMeasuredError("a turn of mini is measured on a CPU")
    model = SpeechGPT.load("mini", str(machine.device)).warm_up()
    waveform = read_audio(model.model_dir.path / QUESTION)
    released = ReleasedWay(model)

    def asked(way: Callable) -> float | Latency:
        model.reply(text="hello", speech=False)
        return way()

    ways = [lambda: released(waveform), lambda: ours(model, waveform), lambda: ours(model, waveform, True)]
    rounds = [[asked(way) for way in ways] for _ in range(1 if quick else 9)][0 if quick else 2 :]
    whole, exact, fast = zip(*rounds, strict=True)
    times = model.generator.decoding.hearings
    note = f"ours hears the question {times} times, the released way once" if times > 1 else None
    yield from _compared("a mini turn", median(whole), middle(exact), middle(fast), None, note)


def large_turn(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """The published sizes, random weights, one fixed turn; toy sizes when `quick`."""
    from speechgpt.fixed_turn import FRAMES_A_UNIT, TOY, Sizes, fixed_model, noise

    if not quick and machine.kind != "cuda":
        raise NotMeasuredError("a turn of 7B sizes is measured on a GPU")
    sizes = TOY if quick else Sizes()
    with TemporaryDirectory() as folder:
        model = fixed_model(sizes, machine.device, Path(folder))
        for low_latency in (False, True):  # captures, compiles, and fills what is kept of the prompt
            ours(model, noise(10 + low_latency), low_latency)
        exact, fast = (
            middle([ours(model, noise(100 + n), low_latency) for n in range(1 if quick else 3)])
            for low_latency in (False, True)
        )
        # The released way takes a minute to load and to answer: what is known by then is said.
        print(f"first sound: {exact}, low latency: {fast}", file=sys.stderr, flush=True)
        answer = model.generator.answer
        released = ReleasedWay(model, answer)
        released(noise(12), 20)
        whole = released(noise(13))
    step = sizes.llama.step_weights() * sizes.dtype.itemsize / machine.bandwidth()
    note = f"{len(answer)} tokens, {sizes.units} units of about {FRAMES_A_UNIT} frames, question of 3 s"
    yield from _compared("a turn of 7B sizes", whole, exact, fast, step, note)


def _compared(
    what: str, whole: float, exact: Latency, fast: Latency, step: float | None, note: str | None
) -> Iterator[Measurement]:
    """`whole`: seconds of the released way; `step`: of a token at the machine's bandwidth."""
    for mode, found in (("exact", exact), ("low latency", fast)):
        limit = step * found.tokens if step else None
        said = [f"after {found.tokens} tokens", f"stalls for {found.stalls:.2f} s", *([note] if note else [])]
        yield Measurement(
            f"first sound of {what}, {mode}", "s", whole, found.first_sound, limit, True, "; ".join(said)
        )
    yield Measurement(f"whole answer of {what}, spoken", "s", whole, exact.total, None, True, note or "")


parts = {"start-up": start_up, "first sound, mini": mini_turn, "first sound, 7B": large_turn}
