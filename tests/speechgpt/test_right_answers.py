"""The page of recordings and the report count the same answers as right."""

import pytest

from speechgpt.answers import Turn
from speechgpt.data.questions import recorded_answer
from speechgpt.data.rows import Utterance
from speechgpt.data.text_normal import normalise
from speechgpt.listen import right_answers
from speechgpt.order_figures import _right
from speechgpt.right_answers import is_right, order_slots, same_words

ORDER = Utterance(
    "o", "o.wav", 1.0, "", "coffee", "a large mocha please", "test", "coffeeDrink=mocha; size=large"
)
DIGIT = Utterance("7_ann_0", "d.wav", 1.0, "ann", "digits", "seven", "test")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("okay here is your order a large mocha", True),
        ("sure one mocha and it is LARGE", True),
        ("a large mocha with milk", False),
        ("a mocha", False),
        ("", False),
    ],
)
def test_page_and_report_agree_on_orders(answer, right):
    expected = right_answers([ORDER], [])["o"]
    assert is_right(ORDER, expected, answer) is right
    assert _right([Turn(answer=answer)], [order_slots(ORDER)]) == [right]


@pytest.mark.parametrize(
    ("answer", "right"), [("You said 7!", True), ("seven", False), ("you said eight", False)]
)
def test_other_answers_are_compared_by_word(answer, right):
    expected = recorded_answer(DIGIT, normalise(DIGIT.text))
    assert is_right(DIGIT, expected, answer) is same_words(answer, expected) is right


def test_slots_of_another_task_are_no_order():
    light = Utterance("l", "l.wav", 1.0, text="turn on the light", slots="state=on")
    assert order_slots(light) == {} and is_right(light, "It is on.", "it is on")
