"""What a model answered, read from its ids: transcript, answer and units."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from speechgpt.vocabulary import Vocabulary

# What may end the text of an unfinished answer: the first characters of a marker that is still coming.
_UNFINISHED = re.compile(r"(?:;|; \[?(?:[tu]a?)?|^\[(?:ta?)?|<(?:e|eo|eoa)?)$")


@dataclass(frozen=True)
class Turn:
    """One answer of the model. Parts that the kind of turn does not have are empty."""

    transcript: str = ""  # of the spoken question
    answer: str = ""
    units: list[int] = field(default_factory=list)  # U, deduplicated
    complete: bool = True  # False while the answer is still being generated, or was cut


def parse_native(v: Vocabulary, ids: Sequence[int]) -> Turn:
    """Reads an answer whose markers are single tokens. Raises ValueError for a malformed one."""
    ends = {v.single("<eoa>"), v.eos_id}
    answer_starts, spoken_starts = v.single("[ta]"), v.single("[ua]")
    sosp, eosp = v.single("<sosp>"), v.single("<eosp>")
    texts: dict[str, list[int]] = {"transcript": [], "answer": []}
    units: list[int] = []
    part = "transcript"
    for position, token in enumerate(ids):
        if token in ends:
            complete = part != "units"
            return Turn(v.decode_text(texts["transcript"]), v.decode_text(texts["answer"]), units, complete)
        if token == answer_starts and part == "transcript":
            part = "answer"
        elif token == spoken_starts and part == "answer":
            part = "spoken"
        elif token == sosp and part in ("transcript", "spoken") and not units:
            part = "units"
        elif token == eosp and part == "units":
            part = "end"
        elif part == "units" and v.is_unit(token):
            units.append(v.id_to_unit(token))
        elif part in texts and token < v.base_size:
            texts[part].append(token)
        else:
            raise ValueError(f"token {token} at {position} of the answer cannot stand in its {part}")
    return Turn(v.decode_text(texts["transcript"]), v.decode_text(texts["answer"]), units, complete=False)


def parse_upstream(v: Vocabulary, ids: Sequence[int]) -> Turn:
    """Reads an answer of a published checkpoint, whose `[ta]`, `[ua]` and `<eoa>` are ordinary pieces."""
    sosp, eosp = v.single("<sosp>"), v.single("<eosp>")
    before: list[int] = []
    after: list[int] = []
    units: list[int] = []
    part = "text"
    for position, token in enumerate(ids):
        if token == v.eos_id:
            break
        if token == sosp and part == "text":
            part = "units"
        elif token == eosp and part == "units":
            part = "end"
        elif part == "units" and v.is_unit(token):
            units.append(v.id_to_unit(token))
        elif part != "units" and token < v.base_size:
            (before if part == "text" else after).append(token)
        else:
            raise ValueError(f"token {token} at {position} of the answer cannot stand in its {part}")
    if part == "text":
        text, end, _ = v.decode_text(before).partition("<eoa>")
        complete = bool(end)
    else:
        text, complete = v.decode_text(before), "<eoa>" in v.decode_text(after)
    text = re.sub(r"; \[ua\]$", "", text)
    heard, answer_starts, answer = text.partition("[ta]")
    if not complete and part == "text":
        heard, answer = (_UNFINISHED.sub("", t) for t in (heard, answer))
    if answer_starts:
        heard = re.sub(r"; ?$", "", heard)
    return Turn(heard.strip(), answer.strip(), units, complete)
