"""Rows and questions as token ids: training rows with their loss mask, and prompts, by the same code.

The native spelling of a turn (every `<...>` and `[...]` one token; D description, T text, Q question,
A answer, U units between `<sosp>` and `<eosp>`; supervised after `[SpeechGPT]`):

    units          <s> U </s>
    asr            <s> prefix [Human] "D This is input:" U <eoh> [SpeechGPT] T <eoa> </s>
    tts            <s> prefix [Human] "D This is input: T" <eoh> [SpeechGPT] U <eoa> </s>
    speech-speech  <s> prefix [Human] U <eoh> [SpeechGPT] Q [ta] A [ua] U <eoa> </s>
    speech-text    <s> prefix [Human] U <eoh> [SpeechGPT] Q [ta] A <eoa> </s>
    text-speech    <s> prefix [Human] Q <eoh> [SpeechGPT] [ta] A [ua] U <eoa> </s>
    text-text      <s> prefix [Human] Q <eoh> [SpeechGPT] [ta] A <eoa> </s>          (also chat)

The upstream spelling is the published one (`speechgpt.data.published`), between `<s>` and `</s>`. Its prompts
end with `[SpeechGPT]:` as the training rows do; the released inference template adds a space, a token more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from speechgpt.answers import Turn, parse_native, parse_upstream
from speechgpt.data.dialogue_rows import ChainRow, InstructRow
from speechgpt.data.published import INPUT
from speechgpt.data.unit_text import units_to_text
from speechgpt.hearings import Hearings
from speechgpt.vocabulary import Vocabulary

Question = str | Sequence[int]  # text, or units
Asked = Question | Hearings  # what a turn may begin with; each hearing has a prompt of its own
History = Sequence[tuple[Question, Turn]]  # earlier questions with their answers, oldest first

__all__ = ["Asked", "History", "PromptFormat", "Question", "Rendered", "Turn"]


@dataclass(frozen=True)
class Rendered:
    """One training row."""

    ids: list[int]  # L tokens
    mask: list[bool] = field(repr=False)  # L; True on the answer, its closing tokens included

    @property
    def prompt_length(self) -> int:
        """Tokens before the answer."""
        return self.mask.index(True)

    def fits(self, max_length: int) -> bool:
        """Rows are never cut: the answer stands at the end, and would be lost first."""
        return len(self.ids) <= max_length


class PromptFormat:
    """Renders rows and questions for one model. `prefix`: its system prompt, may be empty."""

    def __init__(self, vocabulary: Vocabulary, prefix: str = ""):
        self.vocabulary, self.prefix = vocabulary, prefix
        spelling = _UpstreamSpelling if vocabulary.profile == "upstream" else _NativeSpelling
        self._spelling = spelling(vocabulary, prefix)

    def render_units(self, units: Sequence[int]) -> Rendered:
        """Stage 1: speech alone, all of it supervised but the first token."""
        v = self.vocabulary
        ids = [v.bos_id, *v.marker("<sosp>"), *v.units_to_ids(units), *v.marker("<eosp>"), v.eos_id]
        return Rendered(ids, [False] + [True] * (len(ids) - 1))

    def render_instruct(self, row: InstructRow) -> Rendered:
        """Stage 2: speech to text, text to speech, or a chat."""
        if row.kind == "chat":
            reply = self._spelling.reply(row.answer, chat=True)
            return self._rendered(row.id, self._spelling.chat(row.question), reply)
        given, wanted = (row.units, row.text) if row.kind == "asr" else (row.text, row.units)
        return self._rendered(
            row.id, self._spelling.task(row.description, given), self._spelling.reply(wanted)
        )

    def render_chain(self, row: ChainRow, history: History = ()) -> Rendered:
        """Stage 3: the transcript of a spoken question, the answer, and the answer's units."""
        speech_in, speech_out = row.kind.startswith("speech-"), row.kind.endswith("-speech")
        turn = Turn(
            row.question if speech_in else "", row.answer, list(row.answer_units) if speech_out else []
        )
        question = row.question_units if speech_in else row.question
        return self._rendered(row.id, self._asked(question, history), self._spelling.turn(turn))

    def render(self, row: InstructRow | ChainRow) -> Rendered:
        return self.render_chain(row) if hasattr(row, "question_units") else self.render_instruct(row)

    def render_rows(
        self, rows: Iterable[InstructRow | ChainRow], max_length: int
    ) -> tuple[list[Rendered], list[tuple[str, str]]]:
        """(rows that fit, [(row id, reason)] of those that do not). Nothing is ever cut."""
        kept, rejected = [], []
        for row in rows:
            rendered = self.render(row)
            if rendered.fits(max_length):
                kept.append(rendered)
            else:
                rejected.append((row.id, f"{len(rendered.ids)} tokens, at most {max_length} fit"))
        return kept, rejected

    def prompt_asr(self, units: Sequence[int], description: str) -> list[int]:
        return self._spelling.prompt(self._spelling.task(description, units))

    def prompt_tts(self, text: str, description: str) -> list[int]:
        return self._spelling.prompt(self._spelling.task(description, text))

    def prompt_turn(
        self, question: Question, history: History = (), max_length: int | None = None
    ) -> list[int]:
        """A question after earlier turns; the oldest are left out until `max_length` tokens hold it all."""
        for first in range(len(history) + 1):
            ids = self._spelling.prompt(self._asked(question, history[first:]))
            if max_length is None or len(ids) <= max_length:
                return ids
        raise ValueError(f"the question is {len(ids)} tokens with its prompt; at most {max_length} fit")

    def parse(self, ids: Sequence[int], kind: str = "") -> Turn:
        """The answer's ids, whole or so far -> its parts. Ids decide: `<12>` in an answer's text stays text.

        Text that no `[ta]` introduces is the transcript, or the answer for kind "chat". Raises ValueError for
        units or markers where none may stand.
        """
        upstream = self.vocabulary.profile == "upstream"
        turn = (parse_upstream if upstream else parse_native)(self.vocabulary, ids)
        if kind == "chat" and not turn.answer:
            turn = Turn("", turn.transcript, turn.units, turn.complete)
        return turn

    def _asked(self, question: Question, history: History):
        """Earlier turns are text wherever there is a transcript: short, and a form that was trained."""
        pieces = self._spelling.empty
        for asked, turn in history:
            asked = asked if isinstance(asked, str) else turn.transcript or asked
            pieces = pieces + self._spelling.ask(asked) + self._spelling.turn(Turn("", turn.answer))
            pieces = pieces + self._spelling.between
        return pieces + self._spelling.ask(question)

    def _rendered(self, name: str, prompt, answer) -> Rendered:
        try:
            given, ids = self._spelling.prompt(prompt), self._spelling.prompt(prompt + answer)
        except ValueError as error:
            raise ValueError(f"row {name}: {error}") from error
        # A tokenizer that merges across the border would make the prompt of a row another than at inference.
        if ids[: len(given)] != given or len(ids) == len(given):
            raise ValueError(f"row {name}: the answer is empty, or its first token is merged into the prompt")
        ids = [*ids, self.vocabulary.eos_id]
        return Rendered(ids, [False] * len(given) + [True] * (len(ids) - len(given)))


class _NativeSpelling:
    """Pieces are lists of ids; joining them is `+`."""

    empty: list[int] = []
    between: list[int] = []

    def __init__(self, vocabulary: Vocabulary, prefix: str):
        self.v = vocabulary
        self.start = [vocabulary.bos_id, *(vocabulary.encode_text(prefix) if prefix else [])]
        self.human, self.gpt = vocabulary.marker("[Human]"), vocabulary.marker("[SpeechGPT]")
        self.end_question, self.end_answer = vocabulary.marker("<eoh>"), vocabulary.marker("<eoa>")

    def said(self, given: Question) -> list[int]:
        if isinstance(given, str):
            return self.v.encode_text(given)
        return [*self.v.marker("<sosp>"), *self.v.units_to_ids(given), *self.v.marker("<eosp>")]

    def ask(self, question: Question) -> list[int]:
        return [*self.human, *self.said(question), *self.end_question, *self.gpt]

    chat = ask

    def task(self, description: str, given: Question) -> list[int]:
        if isinstance(given, str):
            return self.ask(f"{description}{INPUT}{given}")
        lead = self.v.encode_text(f"{description}{INPUT}".rstrip())
        return [*self.human, *lead, *self.said(given), *self.end_question, *self.gpt]

    def reply(self, wanted: Question, chat: bool = False) -> list[int]:
        if not len(wanted):
            raise ValueError("the answer is empty")
        return [*(self.v.marker("[ta]") if chat else []), *self.said(wanted), *self.end_answer]

    def turn(self, turn: Turn) -> list[int]:
        if not turn.answer:
            raise ValueError("the answer is empty")
        ids = self.v.encode_text(turn.transcript) if turn.transcript else []
        ids = [*ids, *self.v.marker("[ta]"), *self.v.encode_text(turn.answer)]
        if turn.units:
            ids += [*self.v.marker("[ua]"), *self.said(turn.units)]
        return [*ids, *self.end_answer]

    def prompt(self, pieces: list[int]) -> list[int]:
        return [*self.start, *pieces]


class _UpstreamSpelling:
    """Pieces are strings, encoded as one: the published ids depend on what stands around a text."""

    empty = ""
    between = " "

    def __init__(self, vocabulary: Vocabulary, prefix: str):
        self.v, self.prefix = vocabulary, prefix

    def said(self, given: Question) -> str:
        if isinstance(given, str):
            return self.v.check_text(given)
        self.v.units_to_ids(given)  # refuses units out of range
        return units_to_text(given)

    def ask(self, question: Question) -> str:
        return f"[Human]: {self.said(question)}<eoh>. [SpeechGPT]:"

    def chat(self, question: str) -> str:
        return f"[Human]: {self.said(question)}<eoh> [SpeechGPT]:"

    def task(self, description: str, given: Question) -> str:
        return f"[Human]: {self.v.check_text(description)}{INPUT}{self.said(given)}<eoh> [SpeechGPT]:"

    def reply(self, wanted: Question, chat: bool = False) -> str:
        if not len(wanted):
            raise ValueError("the answer is empty")
        return f" {self.said(wanted)}<eoa> "

    def turn(self, turn: Turn) -> str:
        if not turn.answer:
            raise ValueError("the answer is empty")
        heard = f"{self.said(turn.transcript)}; " if turn.transcript else ""
        spoken = f"; [ua] {self.said(turn.units)}" if turn.units else ""
        return f" {heard}[ta] {self.said(turn.answer)}{spoken}<eoa>."

    def prompt(self, pieces: str) -> list[int]:
        return [self.v.bos_id, *self.v.encode_template(self.prefix + pieces)]
