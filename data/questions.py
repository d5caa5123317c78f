"""Questions with their answers, as text: orders, digits, sums, repeating, small talk, and what is unknown.

Each function yields `Question`s; `recorded` finds them in recordings. The editable files are those of
`speechgpt.data.smalltalk_files`, and qa/unknown.txt, which draws anew what is held out when it changes, and
for train alone qa/unknown_templates.txt.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from speechgpt.data import coffee
from speechgpt.data.families import family_wordings
from speechgpt.data.files import read_text
from speechgpt.data.qa_file import answer_id
from speechgpt.data.rows import Utterance
from speechgpt.data.sentences import SentenceMaker, digit_string
from speechgpt.data.smalltalk_files import QA, read_more_wordings, read_smalltalk, wording_splits
from speechgpt.data.splits import text_key
from speechgpt.data.text_normal import ONES, normalise, number_words

UNKNOWN_ANSWER = "i did not understand please say it again"
SUM_WORDINGS = (
    "what is {}",
    "what's {}",
    "how much is {}",
    "{}",
    "tell me what {} is",
    "calculate {}",
    "can you tell me what {} is",
    "please work out {}",
)
REPEAT_WORDINGS = ("repeat after me {}", "say after me {}", "please repeat {}", "please say {}", "repeat {}")
LARGEST_SUM = 20
DIGIT_CORPORA = ("digits", "spoken-digits")  # recordings of single digits


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    answer: str
    split: str
    question_id: str = ""  # the recording that asks it; "": it is to be spoken, as `ID.q`

    @property
    def answer_id(self) -> str:
        return answer_id(self.answer)

    def row(self) -> dict:
        row = {
            "id": self.id,
            "question": self.question,
            "answer": self.answer,
            "answer_id": self.answer_id,
            "split": self.split,
        }
        return row | {"question_id": self.question_id} if self.question_id else row


def split_of(number: int, dev: int, test: int) -> str:
    """The first `test` are test, the next `dev` are dev, the others train."""
    return "test" if number < test else "dev" if number < test + dev else "train"


def recorded(utterances: Iterable[Utterance]) -> Iterator[Question]:
    """The recordings that ask something: orders whose slots and words are known, and single digits."""
    for row in utterances:
        text = normalise(row.text)
        if text_key(text) != text_key(row.text):
            continue  # written with signs that are read out: its units would not be taken for this text's
        if answer := recorded_answer(row, text):
            yield Question(row.id, text, answer, row.split, question_id=row.id)


def recorded_answer(row: Utterance, text: str) -> str:
    """ "" for what is no question that can be answered, or has no words."""
    if row.corpus in DIGIT_CORPORA:
        return f"you said {text}" if text in ONES[:10] else ""
    if not text or not row.slots:
        return ""
    try:
        return coffee.answer(coffee.parse_slots(row.slots))
    except ValueError:
        return ""  # slots of another task


def orders(count: int, held: int, seed: int, recordings: Iterable[Question] = ()) -> Iterator[Question]:
    """`count` orders, `held` of them dev and as many test, whose words are in no other split.

    No order has the words of a recorded one that is in another split.
    """
    rng, seen, held_out = random.Random(f"{seed} orders"), set(), frozenset()
    said: Mapping[str, set[str]] = defaultdict(set)  # in which splits of the recordings
    for row in recordings:
        said[row.question].add(row.split)
    for number in range(count):
        split = split_of(number, held, held)
        slots = coffee.draw_slots(rng)
        text = coffee.draw_order(slots, rng, polite=0.05)
        # Short orders run out of wordings: in train a tenth of the repeated ones stay.
        while said.get(text, {split}) != {split} or (
            text in seen and (number < 2 * held or rng.random() < 0.9 or text in held_out)
        ):
            slots = coffee.draw_slots(rng)
            text = coffee.draw_order(slots, rng, polite=0.05)
        seen.add(text)
        if number < 2 * held:
            held_out = frozenset(seen)
        yield Question(f"order.{number:05d}", text, coffee.answer(slots), split)


def digits(count: int, held: int, seed: int) -> Iterator[Question]:
    """Single digits in turn for a third, then strings of two to six; single ones are in every split."""
    rng, seen = random.Random(f"{seed} digits"), set()
    for number in range(count):
        split = split_of(number, held, held)
        if number % 3 == 0:
            text = ONES[number // 3 % 10]
        else:
            text = digit_string(rng, 2, 6)
            while text in seen:
                text = digit_string(rng, 2, 6)
            seen.add(text)
        yield Question(f"digit.{number:05d}", text, f"you said {text}", split)


def all_sums() -> list[tuple[str, str]]:
    """[("three plus four", "seven"), ...]: sums and differences of 0 to 20 that stay there."""
    found = []
    for a in range(LARGEST_SUM + 1):
        for b in range(LARGEST_SUM + 1):
            if a + b <= LARGEST_SUM:
                found.append((f"{number_words(a)} plus {number_words(b)}", number_words(a + b)))
            if a >= b:
                found.append((f"{number_words(a)} minus {number_words(b)}", number_words(a - b)))
    return found


def sums(count: int, held: int, seed: int) -> Iterator[Question]:
    """Every sum in some wordings; a held-out pair of sum and wording is in one split only."""
    rng = random.Random(f"{seed} sums")
    pairs = [(total, wording) for total in all_sums() for wording in SUM_WORDINGS]
    rng.shuffle(pairs)
    for number in range(count):
        (words, result), wording = pairs[number if number < 2 * held else _again(number, 2 * held, pairs)]
        split = split_of(number, held, held)
        yield Question(f"sum.{number:05d}", wording.format(words), f"{words} is {result}", split)


def _again(number: int, held: int, items: list) -> int:
    """An index past the held-out items; begins anew when all were used."""
    return held + (number - held) % (len(items) - held)


def repeats(count: int, held: int, seed: int, maker: SentenceMaker) -> Iterator[Question]:
    rng, seen, number = random.Random(f"{seed} repeats"), set(), 0
    while number < count:
        text = maker.sentence(rng)
        if text in seen or not 2 <= len(text.split()) <= 9:
            continue
        seen.add(text)
        split = split_of(number, held, held)
        yield Question(f"repeat.{number:05d}", rng.choice(REPEAT_WORDINGS).format(text), text, split)
        number += 1


def smalltalk(count: int, seed: int, families: int = 0) -> Iterator[Question]:
    """Every held-out wording once, then the training wordings in turn until there are `count`.

    families: at most so many wordings more of each row, from the other rows of its family.
    """
    training: list[Question] = []
    number = 0
    rows = read_smalltalk()
    more = read_more_wordings(rows)
    for row in rows:
        for place, (text, split) in enumerate(zip(row["questions"], wording_splits(row, seed), strict=True)):
            question = Question(f"talk.{row['id']}.{place}", text, row["answer"], split)
            if split == "train":
                training.append(question)
            else:
                yield question
                number += 1
        training += [
            Question(f"talk.{row['id']}.m{place}", text, row["answer"], "train")
            for place, text in enumerate(more[row["id"]])
        ]
    training += _from_families(rows, training, seed, families)
    if count < number + len(training):
        raise ValueError(f"smalltalk: {count} asked for; there are {number + len(training)} wordings")
    for again in range(count - number):
        base = training[again % len(training)]
        take = again // len(training)
        yield Question(f"{base.id}.v{take}", base.question, base.answer, "train")


def _from_families(rows: list[dict], training: list[Question], seed: int, most: int) -> list[Question]:
    said: dict[str, list[str]] = defaultdict(list)
    for question in training:
        said[question.id.split(".")[1]].append(question.question)
    taken = {text for row in rows for text in row["questions"]} | {q.question for q in training}
    answers = {row["id"]: row["answer"] for row in rows}
    found = []
    for name, texts in family_wordings(rows, said, taken).items():
        random.Random(f"{seed} family {name}").shuffle(texts)
        found += [
            Question(f"talk.{name}.f{place}", text, answers[name], "train")
            for place, text in enumerate(texts[:most])
        ]
    return found


def unknown(
    count: int,
    sentences: int,
    held: int,
    seed: int,
    maker: SentenceMaker,
    path: Path = QA / "unknown.txt",
    made: int = 0,
) -> Iterator[Question]:
    """Listed questions in turn (`count`), `sentences` that ask nothing, and `made` questions from templates,
    all with one polite answer. What is made is all in train."""
    rng = random.Random(f"{seed} unknown")
    texts = [t for t in read_text(path).splitlines() if t and not t.startswith("#")]
    rng.shuffle(texts)
    for number in range(count):
        place = number if number < 2 * held else _again(number, 2 * held, texts)
        yield Question(f"unknown.{number:05d}", texts[place], UNKNOWN_ANSWER, split_of(number, held, held))
    talk = read_smalltalk()
    known = {text for row in talk for text in row["questions"]}
    known.update(text for texts in read_more_wordings(talk).values() for text in texts)
    for number in range(sentences):
        text = maker.sentence(rng)
        while text in known or coffee.parse(text) or len(text.split()) < 4:
            text = maker.sentence(rng)
        yield Question(f"unknown.s{number:05d}", text, UNKNOWN_ANSWER, "train")
    rng = random.Random(f"{seed} unknown made")
    kept = known | set(texts)
    templates = maker.read_templates(QA / "unknown_templates.txt") if made else []
    for number in range(made):
        text = maker.expand(templates[number % len(templates)], rng)
        while text in kept:
            text = maker.expand(rng.choice(templates), rng)
        yield Question(f"unknown.m{number:05d}", text, UNKNOWN_ANSWER, "train")
