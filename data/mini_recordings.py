"""What mini's texts take over from recordings: the questions that people ask, and what else they say."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt.data.prose import HeldOut
from speechgpt.data.questions import Question, recorded
from speechgpt.data.rows import read_manifest
from speechgpt.data.text_normal import normalise


@dataclass(frozen=True)
class Recordings:
    """What is taken over from recordings (--speech)."""

    questions: list[Question] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)  # the other texts of train, each once
    held_out: HeldOut = field(default_factory=lambda: HeldOut([]))  # the texts of dev and test


def read_recordings(manifests: Sequence[Path]) -> Recordings:
    """What the recordings ask and say; prints how many do. Raises ValueError for a manifest without words."""
    found, said, held_out = [], [], []
    for path in manifests:
        rows = read_manifest(path)
        asking = list(recorded(rows))
        ids = {question.id for question in asking}
        saying = [row for row in rows if row.id not in ids and not row.slots and normalise(row.text)]
        if not asking and not saying:
            raise ValueError(
                f"{path}: none of {len(rows)} recordings has the slots and words of an order, is of the "
                "corpus digits, or says anything else; "
                "`speechgpt align --jsgf-slots` finds the words of orders"
            )
        print(f"{path}: {len(asking)} of {len(rows)} recordings ask something, {len(saying)} say something")
        found += asking
        said += [normalise(row.text) for row in saying if row.split == "train"]
        held_out += [row.text for row in rows if row.split != "train"]
    kept = HeldOut(held_out)
    return Recordings(found, [text for text in dict.fromkeys(said) if not kept.says(text)], kept)
