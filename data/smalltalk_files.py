"""The editable files of small talk: its questions in all their wordings, with one answer each.

qa/smalltalk.jsonl draws anew what is held out when it changes; qa/smalltalk_more.jsonl is for train alone.
"""

import random
from pathlib import Path

from speechgpt.data.files import read_jsonl
from speechgpt.data.text_normal import normalise

QA = Path(__file__).with_name("qa")
MAX_ANSWER_WORDS = 20


def read_smalltalk(path: Path = QA / "smalltalk.jsonl") -> list[dict]:
    """[{"id", "answer", "questions"}]. Raises ValueError naming the line of a row that is broken."""
    rows, seen = [], {}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if set(row) != {"id", "answer", "questions"} or len(row["questions"]) < 3:
            raise ValueError(f"{where}: expected id, answer and at least 3 questions")
        for text in (row["answer"], *row["questions"]):
            if normalise(text) != text:
                raise ValueError(f"{where}: {text!r}; expected {normalise(text)!r}")
        if len(row["answer"].split()) > MAX_ANSWER_WORDS:
            raise ValueError(f"{where}: the answer has more than {MAX_ANSWER_WORDS} words")
        for text in row["questions"]:
            if text in seen:
                raise ValueError(f"{where}: {text!r} is also a question of {seen[text]}")
            seen[text] = row["id"]
        rows.append(row)
    return rows


def read_more_wordings(rows: list[dict], path: Path = QA / "smalltalk_more.jsonl") -> dict[str, list[str]]:
    """{row id: more wordings} of `rows`, all of train, in a file that draws nothing anew.

    Raises ValueError naming the line of an unknown id, or of a wording that is known (it may be held out).
    """
    more: dict[str, list[str]] = {row["id"]: [] for row in rows}
    seen = {text: row["id"] for row in rows for text in row["questions"]}
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if set(row) != {"id", "questions"} or row["id"] not in more:
            raise ValueError(f"{where}: expected questions and the id of a row of small talk")
        for text in row["questions"]:
            if normalise(text) != text:
                raise ValueError(f"{where}: {text!r}; expected {normalise(text)!r}")
            if text in seen:
                raise ValueError(f"{where}: {text!r} is also a question of {seen[text]}; take it out")
            seen[text] = row["id"]
            more[row["id"]].append(text)
    return more


def wording_splits(row: dict, seed: int) -> list[str]:
    """The split of each wording: one is test, one of four or more is dev, at least two stay in train."""
    order = list(range(len(row["questions"])))
    random.Random(f"{seed} {row['id']}").shuffle(order)
    splits = ["train"] * len(order)
    splits[order[0]] = "test"
    if len(order) >= 4:
        splits[order[1]] = "dev"
    return splits
