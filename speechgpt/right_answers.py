"""What counts as a right answer, everywhere: an order's slots, other answers word for word."""

from collections.abc import Mapping

from speechgpt.data import coffee
from speechgpt.data.rows import Utterance
from speechgpt.data.text_normal import normalise


def order_slots(row: Utterance) -> dict[str, str]:
    """The slots of a recorded order; {} where the row is none."""
    try:
        return coffee.parse_slots(row.slots) if row.slots else {}
    except ValueError:
        return {}  # slots of another task


def has_slots(answer: str, slots: Mapping[str, str]) -> bool:
    """Whether an answer names exactly an order's slots, in any wording."""
    return coffee.parse(answer) == slots


def same_words(answer: str, expected: str) -> bool:
    """Case, punctuation and the way in which numbers are written do not count."""
    return normalise(answer) == normalise(expected)


def is_right(row: Utterance, expected: str, answer: str) -> bool:
    """Whether a recording is answered right: an order by its slots, everything else by `expected`."""
    if slots := order_slots(row):
        return has_slots(answer, slots)
    return same_words(answer, expected)
