"""Answers from a language model: transcripts, units, whole turns; one by one, in batches, or as they come."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from speechgpt.averaged_scores import AveragedBeams, run_of_hearings
from speechgpt.decode_engine import Engine
from speechgpt.decoding import GREEDY, PUBLISHED, Decoding, chooser
from speechgpt.grammar import TurnGrammar, turn_machine
from speechgpt.hearings import Hearings, hearings_of
from speechgpt.llama_decoder import LlamaDecoder
from speechgpt.prompts import Asked, History, PromptFormat, Turn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

__all__ = ["GREEDY", "PUBLISHED", "Decoding", "Generator", "Part", "Timings"]

ASR_DESCRIPTION = "Write down what is said in this recording."
TTS_DESCRIPTION = "Read this sentence aloud."
OUTPUTS = ("speech", "text")


@dataclass(frozen=True)
class Timings:
    """Of one call, in seconds; the model is loaded."""

    prompt_tokens: int  # of the longest prompt
    reused_tokens: int  # of these, known from the turn before
    new_tokens: int  # of the longest answer
    first_token: float  # until it is known
    total: float


@dataclass(frozen=True)
class Part:
    """A piece of an answer as it comes: text of the transcript or the answer, or one unit."""

    section: str  # transcript | answer | units
    text: str = ""
    unit: int = -1


class Generator:
    """A language model with its prompts and its grammar. `timings` are those of the last call."""

    def __init__(
        self,
        model: "LlamaDecoder | LlamaForCausalLM",
        prompt_format: PromptFormat,
        decoding: Decoding = GREEDY,
        asr_description: str = ASR_DESCRIPTION,
        tts_description: str = TTS_DESCRIPTION,
        fast: str = "auto",
    ):
        """`model`: of transformers, as it is now: later changes of its weights are not seen. `fast`: see
        speechgpt.decode_steps."""
        self.model, self.format, self.decoding = model, prompt_format, decoding
        self.decoder = model if isinstance(model, LlamaDecoder) else LlamaDecoder.of_model(model)
        self.engine = Engine(self.decoder, fast)
        self.vocabulary = prompt_format.vocabulary
        self.asr_description, self.tts_description = asr_description, tts_description
        self.timings: Timings | None = None
        rows = len(self.decoder.embedding)
        if rows < self.vocabulary.size:
            raise ValueError(f"the model has {rows} token rows, its vocabulary {self.vocabulary.size}")
        self._room = self.decoder.sizes.context

    def transcribe(self, units: Sequence[int] | Hearings) -> str:
        return self.transcribe_batch([units])[0]

    def speak_units(self, text: str) -> list[int]:
        return self.speak_batch([text])[0]

    def turn(self, question: Asked, out: str = "speech", history: History = (),
             on_token: Callable[[int], None] | None = None) -> Turn:  # fmt: skip
        """The answer to a question in text, units or hearings. `on_token` gets each token id as it comes (no
        beams)."""
        kind = _kind(question, out)
        prompts = self._turn_prompts(question, history, kind)
        if self.decoding.beams > 1:
            return self.format.parse(self._beam_search(prompts, kind, len(prompts))[0])
        ids = []
        for (token,) in self.steps(prompts, kind, len(prompts)):
            ids.append(token)
            if on_token:
                on_token(token)
        return self.format.parse(ids)

    def transcribe_batch(
        self, questions: Sequence[Sequence[int] | Hearings], batch_size: int = 16
    ) -> list[str]:
        """Units or hearings of each recording -> its transcript."""
        asked = [
            ("asr", [self.format.prompt_asr(units, self.asr_description) for units in hearings_of(question)])
            for question in questions
        ]
        return [self.format.parse(ids).transcript.strip() for ids in self._answer_all(asked, batch_size)]

    def speak_batch(self, texts: Sequence[str], batch_size: int = 16) -> list[list[int]]:
        """Texts -> units (U) of each."""
        prompts = [self.format.prompt_tts(text, self.tts_description) for text in texts]
        return [self.format.parse(ids).units for ids in self.generate_batch(prompts, "tts", batch_size)]

    def turn_batch(self, questions: Sequence[Asked], out: str = "speech", batch_size: int = 16) -> list[Turn]:
        """Independent questions, in text, units or hearings, each without a history."""
        kinds = [_kind(question, out) for question in questions]
        asked = [
            (kind, self._turn_prompts(question, (), kind))
            for kind, question in zip(kinds, questions, strict=True)
        ]
        return [self.format.parse(ids) for ids in self._answer_all(asked, batch_size)]

    def _turn_prompts(self, question: Asked, history: History, kind: str) -> list[list[int]]:
        """One of each hearing."""
        longest = self._longest_prompt(kind)
        return [self.format.prompt_turn(heard, history, longest) for heard in hearings_of(question)]

    def _answer_all(self, asked: Sequence[tuple[str, list[list[int]]]], batch_size: int) -> list[list[int]]:
        """(kind, a prompt of each hearing) of each question -> the ids of each answer. A batch is of one kind
        and of one number of hearings."""
        alike: dict[tuple[str, int], list[int]] = defaultdict(list)
        for i, (kind, prompts) in enumerate(asked):
            alike[kind, len(prompts)].append(i)
        answers: list[list[int]] = [[] for _ in asked]
        for (kind, hearings), chosen in sorted(alike.items()):
            prompts = [prompt for i in chosen for prompt in asked[i][1]]
            found = self.generate_batch(prompts, kind, batch_size, hearings)
            for i, ids in zip(chosen, found, strict=True):
                answers[i] = ids
        return answers

    def stream_turn(self, question: Asked, out: str = "speech", history: History = ()) -> Iterator[Part]:
        """The parts of an answer as they come: text word by word, then units one by one; it returns the whole
        turn. Takes no beams."""
        kind = _kind(question, out)
        prompts = self._turn_prompts(question, history, kind)
        ids: list[int] = []
        sent = {"transcript": "", "answer": ""}
        speech_starts, spoken = self.vocabulary.single("<sosp>"), False
        for (token,) in self.steps(prompts, kind, len(prompts)):
            ids.append(token)
            spoken = spoken or token == speech_starts
            if self.vocabulary.is_unit(token):
                yield Part("units", unit=self.vocabulary.id_to_unit(token))
                continue
            turn = self.format.parse(ids)
            for section, before in sent.items():
                text = getattr(turn, section)
                ended = turn.complete or spoken or turn.answer and section == "transcript"
                # Half a character, or a space that might yet be stripped, waits for its successor.
                whole = text if ended else text.rstrip(" \ufffd")
                if len(whole) > len(before) and whole.startswith(before):
                    sent[section] = whole
                    yield Part(section, whole[len(before) :])
        return self.format.parse(ids)

    def generate_batch(
        self, prompts: Sequence[list[int]], kind: str, batch_size: int = 16, hearings: int = 1
    ) -> list[list[int]]:
        """Prompts of any lengths -> the ids of each answer, without padding. Batches hold similar lengths.

        So many `hearings` of a question follow each other, and get one answer; `batch_size` counts prompts.
        """
        questions = [prompts[first : first + hearings] for first in range(0, len(prompts), hearings)]
        order = sorted(range(len(questions)), key=lambda i: max(map(len, questions[i])))
        answers: list[list[int]] = [[] for _ in questions]
        size = max(1, batch_size // hearings)
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            found = self._answers([prompt for i in chosen for prompt in questions[i]], kind, hearings)
            for i, ids in zip(chosen, found, strict=True):
                answers[i] = ids
        return answers

    def _answers(self, prompts: list[list[int]], kind: str, hearings: int) -> list[list[int]]:
        if self.decoding.beams_for(kind) > 1:
            return self._beam_search(prompts, kind, hearings)
        answers: list[list[int]] = [[] for _ in prompts[::hearings]]
        for tokens in self.steps(prompts, kind, hearings):
            for answer, token in zip(answers, tokens, strict=True):
                if not answer or answer[-1] != self.vocabulary.eos_id:
                    answer.append(token)
        return answers

    @torch.inference_mode()
    def steps(self, prompts: list[list[int]], kind: str, hearings: int = 1) -> Iterator[list[int]]:
        """Yields one token a question at each step, until all have ended; padding after a question's end.

        So many `hearings` of a question follow each other in `prompts`.
        """
        started = time.perf_counter()
        length = max(map(len, prompts))
        limit = self._new_tokens(length, kind)
        machine = turn_machine(self.vocabulary, kind, self.decoding.limits)
        choose = self._chooser()
        states = [machine.start] * (len(prompts) // hearings)
        first = 0.0
        speech_starts = self.vocabulary.single("<sosp>")
        with run_of_hearings(self.engine, prompts, hearings, limit, speech_starts) as run:
            for count in range(limit):
                scores = machine.filter(states, limit - count, run.logits())  # B V
                tokens = run.take(choose(scores), count + 1 < limit)
                first = first or time.perf_counter() - started
                tokens = [
                    self.vocabulary.pad_id if machine.finished(s) else t
                    for s, t in zip(states, tokens, strict=True)
                ]
                states = [machine.advance(s, t) for s, t in zip(states, tokens, strict=True)]
                total = time.perf_counter() - started
                self.timings = Timings(length, run.reused, count + 1, first, total)
                yield tokens
                if all(machine.finished(s) for s in states):
                    return

    def _chooser(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Scores (B, V) -> tokens (B,), for one call."""
        return chooser(self.decoding, self.decoder.device)

    def _beam_search(self, prompts: list[list[int]], kind: str, hearings: int = 1) -> list[list[int]]:
        started = time.perf_counter()
        inputs, attention = self._padded(prompts)
        length, d = inputs.shape[1], self.decoding
        limit, beams = self._new_tokens(length, kind), d.beams_for(kind)
        if d.sample and hearings > 1:
            raise ValueError(f"{hearings} hearings with sampling by beams: each would draw its own tokens")
        grammar = TurnGrammar(self.vocabulary, kind, length, limit, **asdict(d.limits))
        averaging = AveragedBeams(hearings, beams, length, self.vocabulary.single("<sosp>"))
        if d.sample:
            torch.manual_seed(d.seed)
        sampling = {"temperature": d.temperature, "top_k": d.top_k, "top_p": d.top_p} if d.sample else {}
        found = self._searched.generate(
            inputs, attention_mask=attention, max_new_tokens=limit, num_beams=beams,
            do_sample=d.sample, logits_processor=[averaging, grammar],
            eos_token_id=self.vocabulary.eos_id, pad_token_id=self.vocabulary.pad_id, **sampling,
        )[::hearings, length:].tolist()  # fmt: skip
        total = time.perf_counter() - started
        self.timings = Timings(length, 0, max(map(len, found)), total, total)
        end = self.vocabulary.eos_id
        return [ids[: ids.index(end) + 1] if end in ids else ids for ids in found]

    @cached_property
    def _searched(self) -> "LlamaForCausalLM":
        """The model that transformers searches with; only here it is imported."""
        return self.decoder.to_transformers() if self.model is self.decoder else self.model.eval()

    def _padded(self, prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Left-padded: ((B, L) int64 ids, (B, L) int64 mask)."""
        length = max(map(len, prompts))
        pad = self.vocabulary.pad_id
        ids = [[pad] * (length - len(p)) + p for p in prompts]
        mask = [[0] * (length - len(p)) + [1] * len(p) for p in prompts]
        device = self.decoder.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _longest_prompt(self, kind: str) -> int:
        return self._room - turn_machine(self.vocabulary, kind, self.decoding.limits).shortest

    def _new_tokens(self, prompt_length: int, kind: str) -> int:
        """What the settings and the model's positions leave; the grammar closes the turn within it."""
        limit = min(self.decoding.max_new_tokens, self._room - prompt_length)
        shortest = turn_machine(self.vocabulary, kind, self.decoding.limits).shortest
        if limit < shortest:
            raise ValueError(
                f"the prompt is {prompt_length} tokens and a {kind} answer at least {shortest}; "
                f"the model holds {self._room}, at most {self.decoding.max_new_tokens} of them new"
            )
        return limit


def _kind(question: Asked, out: str) -> str:
    if out not in OUTPUTS:
        raise ValueError(f"output {out!r}; expected {' or '.join(OUTPUTS)}")
    if not all(len(heard) for heard in hearings_of(question)):
        raise ValueError("the question is empty")
    return f"{'text' if isinstance(question, str) else 'speech'}-{out}"
