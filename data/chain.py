"""A question-answer file and spoken questions and answers to chain-of-modality rows (stage 3).

Unit rows are joined by id: question `q7` is asked by rows `q7.q` or `q7.q.VOICE` (or `q7` itself), and
answered by `q7.a` or `q7.a.VOICE`. A question may name another `question_id` or `answer_id`, of such rows or
the whole id of one, to share recordings. Answers may instead be turned to units by a stage 2 model.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from speechgpt.data.dialogue_rows import CHAIN_KINDS, ChainRow, write_chain
from speechgpt.data.draws import matches, pick, pick_weighted
from speechgpt.data.published import write_published
from speechgpt.data.qa_file import QuestionAnswer, read_questions
from speechgpt.data.rejects import Rejects
from speechgpt.data.rows import SPLITS, UnitRow, read_units
from speechgpt.data.settings import parse_with_settings
from speechgpt.data.splits import text_key
from speechgpt.data.spoken import SpeakAll, SpokenAnswers

Speak = Callable[[str], list[int]]  # a text to its units (U)


@dataclass(frozen=True)
class ChainPlan:
    """What to draw. `proportions` are weights of kinds; they need not sum to 1."""

    proportions: dict[str, float] = field(default_factory=lambda: {kind: 0.25 for kind in CHAIN_KINDS})
    seed: int = 0
    every_kind: bool = False  # write all kinds with a positive weight for each spoken question, draw nothing
    max_answer_words: int = 0  # longer answers are left out; 0: no limit
    max_units: int = 0  # of a question or an answer; longer ones are rejected; 0: no limit
    answer_voice: str = ""  # VOICE of the answers; empty: drawn from those there are

    def too_long(self, question: QuestionAnswer) -> bool:
        return 0 < self.max_answer_words < len(question.answer.split())


class Recordings:
    """Unit rows by what they say: `find("q7", "q")` gives the rows `q7.q` and `q7.q.VOICE`."""

    def __init__(self, rows: Iterable[UnitRow]):
        self._by_name: dict[str, list[tuple[str, UnitRow]]] = {}
        for row in rows:
            self._by_name.setdefault(row.id, []).append(("", row))
            for part in (".q.", ".a."):
                stem, found, voice = row.id.rpartition(part)
                if found:
                    self._by_name.setdefault(stem + part[:-1], []).append((voice, row))

    def find(self, name: str, part: str, whole: bool) -> list[tuple[str, UnitRow]]:
        """[(voice, row), ...] by voice; `part` is "q" or "a"; `whole`: `name` may be a row's whole id."""
        found = self._by_name.get(f"{name}.{part}") or (whole and self._by_name.get(name)) or []
        return sorted(found, key=lambda pair: (pair[0], pair[1].id))


def build_rows(
    questions: Iterable[QuestionAnswer],
    recordings: Recordings,
    plan: ChainPlan,
    rejects: Rejects,
    speak: Speak | None = None,
) -> Iterator[ChainRow]:
    """Yields a row for every voice of every question (one for a question without recordings), kinds drawn.

    The same row drawn for two voices (text in, same answer) is written once. With `speak`, it says every
    spoken answer. What is missing or does not fit goes to `rejects`.
    """
    for question in questions:
        if plan.too_long(question):
            continue
        seen: set[str] = set()
        voices = recordings.find(question.question_id or question.id, "q", whole=True) or [("", None)]
        for voice, asked in voices:
            for kind in _kinds(question, voice, plan):
                row = _chain(question, voice, asked, kind, plan, recordings, rejects, speak)
                if row is not None and row.id not in seen:
                    seen.add(row.id)
                    yield row


def _kinds(question: QuestionAnswer, voice: str, plan: ChainPlan) -> list[str]:
    if plan.every_kind:
        return [kind for kind, weight in plan.proportions.items() if weight > 0]
    return [pick_weighted(plan.proportions, plan.seed, "kind", question.id, voice)]


def _chain(
    question: QuestionAnswer,
    voice: str,
    asked: UnitRow | None,
    kind: str,
    plan: ChainPlan,
    recordings: Recordings,
    rejects: Rejects,
    speak: Speak | None,
) -> ChainRow | None:
    row = ChainRow(question.id, kind, question.question, question.answer, split=_split(question, asked))
    name = [question.id, kind]
    try:
        if row.speech_in:
            row.question_units = _asked(question, asked, plan)
            name += [voice] if voice else []
        if row.speech_out:
            answer_voice, row.answer_units = _answered(question, voice, plan, recordings, speak)
            name += [answer_voice] if answer_voice and answer_voice != voice else []
        row.id = ".".join(name)
        row.check()
    except ValueError as error:
        rejects.add(".".join(name), str(error))
        return None
    return row


def _split(question: QuestionAnswer, asked: UnitRow | None) -> str:
    """Of the question's split and its recording's, the one that is held back more, so that nothing leaks."""
    return max(question.split or "train", asked.split if asked else "train", key=SPLITS.index)


def _asked(question: QuestionAnswer, asked: UnitRow | None, plan: ChainPlan) -> list[int]:
    if asked is None:
        name = question.question_id or question.id
        raise ValueError(f"nobody asks it: there is no unit row {name}.q, {name}.q.VOICE or {name}")
    if asked.text and text_key(asked.text) != text_key(question.question):
        raise ValueError(f"unit row {asked.id} says {asked.text!r}; the question is {question.question!r}")
    return _within(asked.units, f"unit row {asked.id}", plan)


def _answered(
    question: QuestionAnswer, voice: str, plan: ChainPlan, recordings: Recordings, speak: Speak | None
) -> tuple[str, list[int]]:
    """(voice, units) of the answer."""
    if speak is not None:
        return "", _within(speak(question.answer), "the spoken answer", plan)
    name = question.answer_id or question.id
    # A row that bears the question's own id is a recording of the question.
    found = recordings.find(name, "a", whole=name != question.id)
    if plan.answer_voice:
        found = [pair for pair in found if pair[0] == plan.answer_voice]
    if not found:
        end = f".{plan.answer_voice}" if plan.answer_voice else " (or .a.VOICE)"
        raise ValueError(f"nobody answers: there is no unit row {name}.a{end}; or give --speak-with")
    answer_voice, row = pick(found, plan.seed, "answer", question.id, voice)
    if row.text and text_key(row.text) != text_key(question.answer):
        raise ValueError(f"unit row {row.id} says {row.text!r}; the answer is {question.answer!r}")
    return answer_voice, _within(row.units, f"unit row {row.id}", plan)


def _within(units: list[int], what: str, plan: ChainPlan) -> list[int]:
    if not units:
        raise ValueError(f"{what} has no units")
    if plan.max_units and len(units) > plan.max_units:
        raise ValueError(f"{what} has {len(units)} units, more than {plan.max_units}")
    return [int(u) for u in units]


def read_proportions(text: str) -> dict[str, float]:
    """ "speech-speech=2,text-text=1" to weights; kinds that are not named get none."""
    weights = {kind: 0.0 for kind in CHAIN_KINDS}
    for part in text.split(","):
        kind, _, weight = part.strip().partition("=")
        if kind not in weights or not weight.replace(".", "", 1).isdigit():
            raise ValueError(f"--proportions: {part!r}; expected KIND=WEIGHT with {', '.join(CHAIN_KINDS)}")
        weights[kind] = float(weight)
    if not any(weights.values()):
        raise ValueError("--proportions: every weight is 0")
    return weights


def load_speaker(model: Path, stage_config: Path | None = None) -> SpeakAll:
    """Text to units, by a model directory or by a stage's LLaMA folder (prompted as its config says)."""
    # By name, and only when asked for: the language model's package depends on data, not data on it.
    models, stages = import_module("speechgpt.model_dir"), import_module("speechgpt.stages")
    if (model / models.MODEL_FILE).is_file():
        return models.find_model(model).load_generator().speak_batch
    prefix = stages.StageConfig.load(stage_config).prefix if stage_config else ""
    return models.load_generator(model, prefix).speak_batch


def spoken_texts(questions: list[QuestionAnswer], recordings: Recordings, plan: ChainPlan) -> set[str]:
    """The answers that `build_rows` will ask its `speak` for: those of the kinds that were drawn."""
    texts: set[str] = set()

    def note(text: str) -> list[int]:
        texts.add(text)
        return [0]

    rehearsal = Rejects("", max_bad=sys.maxsize)  # never entered, so that it writes nothing
    for _ in build_rows(questions, recordings, plan, rehearsal, note):
        pass
    return texts


@dataclass
class ChainSettings:
    """chain.yaml; the options of the same names come before it."""

    seed: int = 0
    proportions: str = ""
    every_kind: bool = False
    answer_voice: str = ""
    max_answer_words: int = 0
    exclude: list = field(default_factory=list)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="speechgpt chain", description="Question-answer file and unit rows to chain rows (stage 3)."
    )
    add = parser.add_argument
    add("--qa", type=Path, nargs="+", required=True, help='JSON lines {"id", "question", "answer", ...}')
    add("--units", type=Path, nargs="*", default=[], help="unit rows of spoken questions and answers")
    add("--out", type=Path, required=True, help="chain rows, all splits in one file")
    add("--exclude", nargs="+", default=[], help="patterns of the ids of questions to leave out")
    add("--proportions", help="e.g. speech-speech=3,text-text=1 (default: all four kinds alike)")
    add("--every-kind", action="store_true", help="every kind in --proportions for each, instead of a draw")
    add("--seed", type=int, default=0)
    add("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="write only these splits to OUT")
    add("--answer-voice", default="", help="use only answers .a.VOICE (default: drawn)")
    add(
        "--speak-with", type=Path, metavar="DIR", help="a model (stage 2's, or assembled) that speaks answers"
    )
    add("--stage-config", type=Path, help="stage2.yaml of --speak-with, for its prefix")
    add("--max-answer-words", type=int, default=0, help="leave longer answers out (published: 35)")
    add("--max-units", type=int, default=0, help="reject longer questions and answers (default 0: no limit)")
    add("--max-bad", type=int, default=0, help="rejects to tolerate; they go to OUT's .rejects.jsonl")
    add("--published", type=Path, help="also write the train split as published JSON lines")
    args = parse_with_settings(parser, ChainSettings, argv)
    args.proportions = read_proportions(args.proportions or ",".join(f"{kind}=1" for kind in CHAIN_KINDS))
    return args


def main(argv: list[str]) -> int:
    args = parse_arguments(argv)
    questions = [row for path in args.qa for row in read_questions(path)]
    questions = [question for question in questions if not matches(question.id, args.exclude)]
    recordings = Recordings(row for path in args.units for row in read_units(path))
    plan = ChainPlan(
        args.proportions, args.seed, args.every_kind, args.max_answer_words, args.max_units, args.answer_voice
    )
    spoken = None
    if args.speak_with:
        load = partial(load_speaker, args.speak_with, args.stage_config)
        spoken = SpokenAnswers(args.out, args.speak_with, load)
    with Rejects.beside(args.out, args.max_bad) as rejects, spoken or nullcontext():
        if spoken:
            spoken.speak_all(spoken_texts(questions, recordings, plan))
        rows = list(build_rows(questions, recordings, plan, rejects, spoken and spoken.units.__getitem__))
        rows = [row for row in rows if row.split in args.splits]
        if not rows:
            raise ValueError(f"{', '.join(map(str, args.qa))}: no rows in {', '.join(args.splits)}")
        write_chain(args.out, rows)
    if args.published:
        write_published(args.published, (row for row in rows if row.split == "train"))
    long = sum(plan.too_long(question) for question in questions)
    if long:
        print(f"{long} answers have more than {plan.max_answer_words} words: left out", file=sys.stderr)
    counts = {kind: sum(row.kind == kind for row in rows) for kind in CHAIN_KINDS}
    print(f"{args.out}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()) + str(rejects))
    return 0
