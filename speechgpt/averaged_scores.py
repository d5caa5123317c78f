"""The scores of a question that was heard several times: the mean of its hearings' log-probabilities.

They decide the text. From `<sosp>` on the first hearing goes on alone: the units say the text that stands
before them, whatever was misheard, and they are most of a turn's tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from speechgpt.decode_engine import Engine, Run


@contextmanager
def run_of_hearings(
    engine: Engine, prompts: Sequence[list[int]], hearings: int, new_tokens: int, speech_starts: int
) -> "Iterator[Run | HeardRun]":
    """A run of B questions; so many `hearings` of each follow each other in `prompts`."""
    with ExitStack() as runs:
        run = runs.enter_context(engine.run(prompts, new_tokens))
        if hearings > 1:
            run = HeardRun(engine, runs, run, prompts[::hearings], hearings, new_tokens, speech_starts)
        yield run


class HeardRun:
    """To who chooses tokens it is a `Run` of a row a question."""

    def __init__(
        self,
        engine: Engine,
        runs: ExitStack,
        run: Run,
        firsts: Sequence[list[int]],
        hearings: int,
        new_tokens: int,
        speech_starts: int,
    ):
        """`runs` closes what is opened here. `firsts`: the prompts of the first hearings."""
        self._engine, self._runs, self._run = engine, runs, run
        self._hearings, self._new_tokens, self._speech_starts = hearings, new_tokens, speech_starts
        self._so_far = [list(prompt) for prompt in firsts]
        self._alone = [False] * len(firsts)  # whether the first hearing of a question goes on alone
        self.reused = run.reused

    def logits(self) -> torch.Tensor:
        """(B, V) float32 after the tokens so far."""
        if self._hearings == 1:
            return self._run.logits()
        rows = self._run.logits().log_softmax(-1).unflatten(0, (-1, self._hearings))  # B H V
        scores = rows.mean(1)  # B V
        for question, alone in enumerate(self._alone):
            if alone:
                scores[question] = rows[question, 0]
        return scores

    def take(self, tokens: torch.Tensor, more: bool) -> list[int]:
        """Continues every hearing of each question with its token (B,)."""
        each = tokens[:, None].expand(-1, self._hearings).flatten()  # B H
        found = self._run.take(each, more)[:: self._hearings]
        if self._hearings == 1:
            return found
        for question, token in enumerate(found):
            self._so_far[question].append(token)
            self._alone[question] |= token == self._speech_starts
        if more and all(self._alone):
            # What the prompt's keys cost again is a few steps of a row; each step of several costs more.
            self._run = self._runs.enter_context(self._engine.run(self._so_far, self._new_tokens))
            self._hearings = 1
        return found


class AveragedBeams:
    """The same for transformers' beam search: a logits processor that stands before the grammar.

    Rows are a question's hearings, side by side, each with its beams. They begin alike and see the same
    scores, so that they take the same tokens and their beams stay alike: any of them is the answer.
    """

    def __init__(self, hearings: int, beams: int, prompt_length: int, speech_starts: int):
        self.hearings, self.beams = hearings, beams
        self.prompt_length, self.speech_starts = prompt_length, speech_starts

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Ids (B hearings beams, L) with the prompt, scores (B hearings beams, V) -> the same shape."""
        if self.hearings == 1:
            return scores
        rows = scores.log_softmax(-1).unflatten(0, (-1, self.hearings, self.beams))  # B H beams V
        mean = rows.mean(1, keepdim=True).expand_as(rows).flatten(0, 2)
        first = rows[:, :1].expand_as(rows).flatten(0, 2)
        alone = (input_ids[:, self.prompt_length :] == self.speech_starts).any(1, keepdim=True)
        return torch.where(alone, first, mean)
