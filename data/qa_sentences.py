"""Any question-answer file to the sentences that `speechgpt synthesize` speaks: every question, every answer.

Written are questions.jsonl (ids `ID.q`, or `ID.q.VOICE` with several copies), answers.jsonl (`ANSWER_ID.a`)
and qa.jsonl, in which equal answers share one answer_id: `speechgpt chain` joins it with their units. Where a
row has a question_id, that is the ID under which its question is spoken.
"""

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from speechgpt.data.draws import draw
from speechgpt.data.files import write_jsonl
from speechgpt.data.qa_file import QuestionAnswer, answer_id, read_questions
from speechgpt.data.synthesize import SAFE_ID, Sentence
from speechgpt.data.text_normal import normalise
from speechgpt.data.voices import VOICES, resolve

QUESTION_VOICES = "flite-all,espeak-us"
ANSWER_VOICE = "slt"


class Answered(Protocol):
    """What is asked of a row here; the rows of mini and those of any file have it."""

    answer: str
    answer_id: str
    split: str


def answer_sentences(rows: Iterable[Answered], voice: str, corpus: str) -> list[Sentence]:
    """One sentence for each different answer; it is in train if any training question has it."""
    splits: dict[str, str] = {}
    texts: dict[str, str] = {}
    for row in rows:
        texts[row.answer_id] = row.answer
        if splits.get(row.answer_id) != "train":
            splits[row.answer_id] = row.split or "train"
    return [Sentence(f"{i}.a", text, voice, splits[i], corpus) for i, text in texts.items()]


def question_sentences(
    rows: Iterable[QuestionAnswer], voices: Sequence[str], copies: int, seed: int, corpus: str
) -> list[Sentence]:
    """Each question in `copies` voices, drawn by `seed` and its id alone; shared ones once."""
    if not 1 <= copies <= len(set(voices)):
        raise ValueError(
            f"--copies {copies}; expected 1 to {len(set(voices))}, the number of question voices"
        )
    asked: dict[str, QuestionAnswer] = {}
    for row in rows:
        name = row.question_id or row.id
        if name not in asked or row.split in ("", "train"):
            asked[name] = row
    sentences = []
    for name, row in asked.items():
        for voice in draw_voices(voices, copies, f"{seed} voice {name}"):
            identity = f"{name}.q.{voice}" if copies > 1 else f"{name}.q"
            sentences.append(Sentence(identity, row.question, voice, row.split or "train", corpus))
    return sentences


def draw_voices(voices: Sequence[str], count: int, seed: str) -> list[str]:
    """`count` different ones; a voice that stands twice in `voices` is drawn earlier."""
    order = list(voices)
    random.Random(seed).shuffle(order)
    return list(dict.fromkeys(order))[:count]


def read_files(paths: Sequence[Path], plain: bool = False) -> list[QuestionAnswer]:
    """All rows, equal answers under one answer_id: the first that one of them names, or one made of the text.

    Raises ValueError naming the file for an id that stands twice, that says two things or cannot name a file.
    """
    rows: list[QuestionAnswer] = []
    said: dict[str, str] = {}  # "q NAME" or "a NAME" -> what it says
    named: dict[str, str] = {}  # answer -> answer_id
    seen: set[str] = set()
    for path in paths:
        for row in read_questions(path):
            if plain:
                row = replace(row, question=normalise(row.question), answer=normalise(row.answer))
                if not row.question or not row.answer:
                    raise ValueError(f"{path}: row {row.id} holds no words to say")
            if row.id in seen:
                raise ValueError(f"{path}: id {row.id!r} is also in another of the files")
            seen.add(row.id)
            for part, name, text in (
                ("q", row.question_id or row.id, row.question),
                ("a", row.answer_id, row.answer),
            ):
                if name and not SAFE_ID.fullmatch(name):
                    raise ValueError(f"{path}: id {name!r} cannot be a file name (letters, digits, . _ -)")
                if name and said.setdefault(f"{part} {name}", text) != text:
                    raise ValueError(f"{path}: {name!r} is {said[f'{part} {name}']!r} and also {text!r}")
            if row.answer_id:
                named.setdefault(row.answer, row.answer_id)
            rows.append(row)
    return [replace(row, answer_id=named.get(row.answer) or answer_id(row.answer)) for row in rows]


def write_sentences(path: Path, sentences: Iterable[Sentence]) -> int:
    """What `read_sentences` reads, without the fields that are empty; returns the number of rows."""
    return write_jsonl(path, (_compact(sentence) for sentence in sentences))


def _compact(row) -> dict:
    return {name: value for name, value in vars(row).items() if value}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt qa-sentences", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--qa", type=Path, nargs="+", required=True, help='JSON lines {"id", "question", "answer", ...}')
    add("--out", type=Path, required=True, help="folder for questions.jsonl, answers.jsonl and qa.jsonl")
    add("--question-voices", default=QUESTION_VOICES, help=f"as synthesize's --voices ({QUESTION_VOICES})")
    add("--copies", type=int, default=1, help="in how many voices each question is asked (default 1)")
    add("--answer-voice", default=ANSWER_VOICE, help=f"one voice for all answers ({ANSWER_VOICE})")
    add("--seed", type=int, default=0, help="of the draw of question voices")
    add("--dev", type=float, default=0.05, help="share of rows without a split that are held back (0.05)")
    add(
        "--plain", action="store_true", help="as plain words: lower case, no punctuation, numbers spelled out"
    )
    args = parser.parse_args(argv)
    if args.answer_voice not in VOICES:
        raise ValueError(
            f"--answer-voice {args.answer_voice!r}; `speechgpt synthesize --list-voices` prints all"
        )
    rows = [
        replace(
            row, split=row.split or ("dev" if draw(args.seed, "split", row.question) < args.dev else "train")
        )
        for row in read_files(args.qa, args.plain)
    ]
    asked = question_sentences(rows, resolve(args.question_voices), args.copies, args.seed, "qa-questions")
    counts = {
        "questions.jsonl": write_sentences(args.out / "questions.jsonl", asked),
        "answers.jsonl": write_sentences(
            args.out / "answers.jsonl", answer_sentences(rows, args.answer_voice, "qa-answers")
        ),
        "qa.jsonl": write_jsonl(args.out / "qa.jsonl", map(_compact, rows)),
    }
    for name, count in counts.items():
        print(f"{args.out / name}: {count} rows")
    return 0
