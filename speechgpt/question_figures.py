"""Figures of spoken questions, a row for each kind of question."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from speechgpt.data.chain import Recordings
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.data.qa_file import QuestionAnswer
from speechgpt.data.questions import DIGIT_CORPORA, UNKNOWN_ANSWER
from speechgpt.data.text_normal import normalise
from speechgpt.held_out import (
    Figure,
    FigureSettings,
    HeldOut,
    answer_all,
    answer_typed,
    waveforms_of,
    wrong_first,
)
from speechgpt.measures import Measure, accuracy
from speechgpt.right_answers import same_words

# By what stands before the first dot of a question's id, in the report's order.
KINDS = {
    "talk": "small talk",
    "sum": "sums",
    "digit": "digits and digit strings",
    "repeat": "repeat after me",
    "unknown": "what is outside",
    "order": "orders in a synthetic voice",
}
OTHERS = "questions"


def kind_of(question: QuestionAnswer) -> str:
    return KINDS.get(question.id.partition(".")[0], OTHERS)


def questions(held: HeldOut, settings: FigureSettings) -> Figure:
    """Right is the expected answer, word for word. `rows` count for each kind; the goal is a share."""
    asked = _asked(held)
    by_kind: dict[str, list] = defaultdict(list)
    for question, recording in asked:
        by_kind[kind_of(question)].append((question, recording))
    chosen = {
        kind: held.draw(by_kind[kind], settings.rows) for kind in (*KINDS.values(), OTHERS) if by_kind[kind]
    }
    every = [pair for pairs in chosen.values() for pair in pairs]
    turns = answer_all(held.model, waveforms_of([recording for _, recording in every]))
    answers = [normalise(turn.answer) for turn in turns]
    typed = [normalise(a) for a in answer_typed(held.model, [q.question for q, _ in every])]
    expected = [normalise(q.answer) for q, _ in every]
    measures, first = [], 0
    for kind, pairs in chosen.items():
        part = slice(first, first := first + len(pairs))
        some = [q for q, _ in pairs]
        note = _refused(answers, expected) if kind == KINDS["unknown"] else ""
        more = {"note": note, "goal": settings.goal, "seed": held.seed}
        measures.append(
            _share(kind, answers[part], typed[part], expected[part], _floor(held, kind, some), more)
        )
    right = [same_words(a, e) for a, e in zip(answers, expected, strict=True)]
    columns = ["asked", "understood", "expected", "answered"]
    heard = [turn.transcript for turn in turns]
    shown = wrong_first(right, columns, [q.question for q, _ in every], heard, expected, answers)
    voices = sorted({row.speaker for _, (row, _) in every if row.speaker})
    text = (
        "Spoken questions in held-out wordings, answered in writing; right is the expected answer, word for "
        f"word. Voices: {', '.join(voices) or 'not named'}."
    )
    return Figure("Questions", text, tuple(measures), shown)


def _asked(held: HeldOut) -> list[tuple[QuestionAnswer, tuple]]:
    """Held-out questions with their recordings. Recorded orders and digits have figures of their own."""
    if not held.questions:
        raise NotMeasuredError("no questions were given (--qa)")
    rows = {
        row.id: (row, path) for row, path in held.held if not row.slots and row.corpus not in DIGIT_CORPORA
    }
    recordings = Recordings(row for row, _ in rows.values())
    asked = [
        (question, rows[row.id])
        for question in held.questions
        if question.split in ("", held.split)
        for _, row in recordings.find(question.question_id or question.id, "q", whole=True)
    ]
    if not asked:
        raise NotMeasuredError("the manifests have no recordings of held-out questions (ids that end in .q)")
    return asked


def _share(
    kind: str,
    answers: Sequence[str],
    typed: Sequence[str],
    expected: Sequence[str],
    floor: dict[str, Any],
    more: dict[str, Any],
) -> Measure:
    right = [same_words(a, e) for a, e in zip(answers, expected, strict=True)]
    ceiling = float(np.mean([same_words(t, e) for t, e in zip(typed, expected, strict=True)]))
    return accuracy(kind, right, ceiling=ceiling, ceiling_name="the same questions, typed", **floor, **more)


def _floor(held: HeldOut, kind: str, some: Sequence[QuestionAnswer]) -> dict[str, Any]:
    """The answer that the train split of this kind gives most often, given each time."""
    trained = [q for q in held.questions if q.split == "train" and kind_of(q) == kind]
    common = Counter(normalise(q.answer) for q in trained or some).most_common(1)[0][0]
    share = float(np.mean([normalise(q.answer) == common for q in some]))
    return {"floor": share, "floor_name": "always the commonest answer of its kind"}


def _refused(answers: Sequence[str], expected: Sequence[str]) -> str:
    others = [a == UNKNOWN_ANSWER for a, e in zip(answers, expected, strict=True) if e != UNKNOWN_ANSWER]
    return (
        f"{sum(others)} of {len(others)} questions of the other kinds got this answer too" if others else ""
    )
