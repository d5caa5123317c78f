"""Tokens a second of the language model, beside transformers' `generate` and what the memory allows.

On a GPU the sizes are LLaMA-7B's with the published 33,006 rows, random bfloat16 weights; on a CPU it is
`mini`.
The grammar runs in all of our turns, with `mini`'s vocabulary, whose tokens are the first of the rows.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from speechgpt.data.measurement import Measurement, NotMeasuredError
from speechgpt.decode_engine import Engine
from speechgpt.decode_steps import CapturedSteps, PlainSteps, steps_of
from speechgpt.decoding import Decoding
from speechgpt.generate import Generator
from speechgpt.grammar import TurnGrammar
from speechgpt.llama_decoder import Cache, LlamaDecoder
from speechgpt.llama_sizes import LlamaSizes
from speechgpt.units.machine import Machine, seconds_of

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
LLAMA_7B = LlamaSizes(33_006, 4096, 11_008, 32, 32, 32, 128, 2048, 1e-6, False, _ROPE)
TOY = LlamaSizes(2000, 64, 96, 2, 4, 4, 16, 512, 1e-6, False, _ROPE)
PROMPT, NEW, RELEASED_NEW = 256, 240, 48  # tokens of a turn; of one by `generate`, which goes at a tenth
TILES = [(rows, columns, warps) for rows in (4, 8, 16) for columns in (512, 1024) for warps in (4, 8)]
# Questions whose answers must be transformers', token by token.
TYPED = (
    "what is two plus two",
    "turn on the light",
    "i would like a small tea",
    "what is the capital of france",
)


def _large(machine: Machine, quick: bool) -> LlamaDecoder:
    """LLaMA-7B's sizes, or a toy's when `quick`."""
    if quick:
        return LlamaDecoder.random(TOY, torch.float32, machine.device)
    if machine.kind != "cuda":
        raise NotMeasuredError("LLaMA-7B on a CPU takes 27 GB and seconds a token")
    return LlamaDecoder.random(LLAMA_7B, torch.bfloat16, machine.device)


def _limit(machine: Machine, decoder: LlamaDecoder) -> float:
    """token/s at which the weights are read once a token, at the bandwidth of a copy."""
    return machine.bandwidth() / (decoder.sizes.step_weights() * decoder.dtype.itemsize)


def _prompt(decoder: LlamaDecoder, quick: bool) -> list[int]:
    draws = torch.Generator().manual_seed(0)
    return torch.randint(3, 1000, (PROMPT // (8 if quick else 1),), generator=draws).tolist()


def _mini(machine: Machine) -> Generator:
    from speechgpt.model_dir import find_model, load_generator

    return load_generator(find_model("mini").llm, device=str(machine.device))


def _released(
    decoder: LlamaDecoder, prompt: list[int], count: int, machine: Machine
) -> tuple[float, list, list]:
    """(token/s after the first, tokens, logits of each) of `generate`, as the released code calls it."""
    model, ids = decoder.to_transformers(), torch.tensor([prompt], device=machine.device)

    def run(new: int):
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip

    with torch.inference_mode():
        one = seconds_of(lambda: run(1), machine, 2, 1)
        started = time.perf_counter()
        found = run(count)
        machine.synchronize()
        seconds = time.perf_counter() - started - one
    tokens = found.sequences[0, len(prompt) :].tolist()
    return (count - 1) / seconds, tokens, [logits[0].float() for logits in found.logits]


@torch.inference_mode()
def _agreement(decoder: LlamaDecoder, prompt: list[int], tokens: list[int], logits: list, fast: str) -> str:
    """Where our greedy tokens part from `tokens`, and whether a tie within the logits' error explains it."""
    largest = 0.0
    with Engine(decoder, fast).run([prompt], len(tokens)) as run:
        for place, (wanted, scores) in enumerate(zip(tokens, logits, strict=True)):
            ours = run.logits()[0]
            gap = float(scores.topk(2).values.diff().abs())
            chosen = ours.argmax().view(1)
            error = float((ours - scores).abs().max())
            if int(chosen) != wanted:
                verdict = "a tie within" if gap <= max(largest, error) else "NOT a tie within"
                return (
                    f"same tokens up to {place} of {len(tokens)}, {verdict} the logits' error "
                    f"(gap {gap:.2g}, error {max(largest, error):.2g})"
                )
            largest = max(largest, error)
            if place + 1 < len(tokens):
                run.take(chosen, True)
    return f"all {len(tokens)} tokens the same, logits' error {largest:.2g}"


def _turn_rate(generator: Generator, prompt: list[int]) -> tuple[float, float]:
    """(token/s after the first, seconds to the first) of the better of two turns, after one that captures."""
    best, first = 0.0, float("inf")
    for number in range(3):
        generator.engine.forget()
        for _ in generator.steps([prompt], "speech-speech"):
            pass
        times = generator.timings
        if number:
            best = max(best, (times.new_tokens - 1) / (times.total - times.first_token))
            first = min(first, times.first_token)
    return best, first


def one_turn(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """A whole turn with its grammar, as `talk` does it."""
    decoder, mini = _large(machine, quick), _mini(machine)
    prompt = _prompt(decoder, quick)
    rate, tokens, logits = _released(decoder, prompt, 4 if quick else RELEASED_NEW, machine)
    machine.forget()
    text = 4 if quick else 30
    new = 24 if quick else NEW
    decoding = Decoding(max_new_tokens=new, max_text_tokens=text, max_units=new - 2 * text - 6)
    name = "LLaMA-7B, bf16, one turn"
    for fast in ("auto", "graph"):
        ours, first = _turn_rate(Generator(decoder, mini.format, decoding, fast=fast), prompt)
        note = f"first token {first * 1e3:.1f} ms; {_agreement(decoder, prompt, tokens, logits, fast)}"
        part = name if fast == "auto" else f"{name}, torch's own kernels in a graph"
        yield Measurement(part, "token/s", rate, ours, _limit(machine, decoder), note=note)


def _steps(steps: PlainSteps | CapturedSteps, place: int, count: int, machine: Machine) -> None:
    token = torch.ones(1, dtype=torch.int64, device=machine.device)
    steps.begin(place, None)
    for _ in range(count):
        steps(token)


def steps_of_each_way(ways: tuple[str, ...], machine: Machine, quick: bool) -> Iterator[Measurement]:
    """Steps alone, early and late in the context, and what the first one costs (capture, compilation)."""
    decoder = _large(machine, quick)
    count = 3 if quick else 40
    for way in ways:
        cache = Cache(decoder, 1, decoder.sizes.context)
        steps = steps_of(decoder, cache, way)
        for place in (200, decoder.sizes.context - count - 8):
            run = partial(_steps, steps, place, count, machine)
            with torch.inference_mode():
                started = time.perf_counter()
                run()
                machine.synchronize()
                first = time.perf_counter() - started
                seconds = seconds_of(run, machine, 3, 1) / count
            note = f"first {count} steps {first:.1f} s"
            part = f"LLaMA-7B step, {way}, position {place}"
            yield Measurement(part, "token/s", None, 1 / seconds, _limit(machine, decoder), note=note)
        del steps, cache
        machine.forget()


def tiles(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """How much of the bandwidth the products reach with each tile, on eight layers of LLaMA-7B."""
    from speechgpt.decode_kernels import KernelStep

    if machine.kind != "cuda":
        raise NotMeasuredError("the kernels need a GPU")
    decoder = LlamaDecoder.random(replace(LLAMA_7B, layers=8), torch.bfloat16, machine.device)
    size = decoder.sizes.step_weights() * decoder.dtype.itemsize
    with torch.inference_mode():
        cache = Cache(decoder, 1, 512)
        for tile in TILES[:1] if quick else TILES:
            steps = CapturedSteps(decoder, cache, "kernels")
            steps.step = KernelStep(decoder, cache, tile)
            run = partial(_steps, steps, 200, 40, machine)
            rate = size * 40 / seconds_of(run, machine, 3, 1) / 1e9
            part = "matrix-vector products, {} rows, {} columns, {} warps".format(*tile)
            yield Measurement(part, "GB/s", None, rate, machine.bandwidth() / 1e9)


def shipped(machine: Machine, quick: bool) -> Iterator[Measurement]:
    """`mini` in float32: turns by transformers and by us, the same tokens asked for."""
    mini = _mini(machine)
    limit = 24 if quick else 160
    mini.decoding = replace(mini.decoding, max_new_tokens=limit)
    model = mini.decoder.to_transformers()
    same, rates = 0, []
    prompts = [mini.format.prompt_turn(question) for question in (TYPED[:1] if quick else TYPED)]
    for prompt in prompts:
        ids = torch.tensor([prompt], device=machine.device)

        def released(new: int, ids: torch.Tensor = ids) -> list[int]:
            grammar = TurnGrammar(mini.vocabulary, "text-speech", ids.shape[1], limit)
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
                logits_processor=[grammar], eos_token_id=mini.vocabulary.eos_id, pad_token_id=0,
            )  # fmt: skip
            return found[0, ids.shape[1] :].tolist()

        with torch.inference_mode():
            wanted = released(limit)
            one = seconds_of(lambda: released(1), machine, 2, 1)  # noqa: B023
            whole = seconds_of(lambda: released(limit), machine, 2, 0)  # noqa: B023
        ours = [token for (token,) in mini.steps([prompt], "text-speech")]
        for _ in mini.steps([prompt], "text-speech"):
            pass
        times = mini.timings
        rates.append(((len(wanted) - 1) / (whole - one), (len(ours) - 1) / (times.total - times.first_token)))
        same += ours == wanted
    baseline, found = (sorted(column)[len(column) // 2] for column in zip(*rates, strict=True))
    note = f"{1e3 / found:.2f} ms a token; {same} of {len(prompts)} answers have transformers' tokens"
    yield Measurement(
        "mini, float32, one turn", "token/s", baseline, found, _limit(machine, mini.decoder), note=note
    )


parts: dict[str, Callable[[Machine, bool], Iterator[Measurement]]] = {
    "language model, one turn": one_turn,
    "language model, steps": partial(steps_of_each_way, ("kernels", "graph")),
    "language model, compiled steps": partial(steps_of_each_way, ("compiled",)),
    "language model, tiles of the kernels": tiles,
    "language model, mini": shipped,
}
