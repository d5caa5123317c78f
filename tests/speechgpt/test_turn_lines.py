"""A turn's text on a terminal, piece by piece, and in a pipe, line by line."""

import io

import numpy as np
import pytest

from speechgpt.events import AnswerText, HeardText, Sound
from speechgpt.turn_lines import TurnLines

TURN = [
    HeardText("two"),
    HeardText(" and\n two"),
    AnswerText("fo"),
    AnswerText("ur \x1b[2J"),
    Sound(np.zeros(3, np.float32), 16_000),
]
WHOLE = "heard> two and two\nanswer> four [2J\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_the_lines_are_the_same(kind):
    out = kind()
    lines = TurnLines(out, "heard> ", "answer> ")
    for event in TURN:
        lines.show(event)
    assert out.getvalue() == WHOLE
    lines.drop()
    assert out.getvalue() == WHOLE


def test_a_terminal_shows_each_piece_and_a_pipe_whole_lines():
    shown = {}
    for kind in (Terminal, io.StringIO):
        out = kind()
        lines = TurnLines(out, "heard> ", "answer> ")
        seen = []
        for event in TURN:
            lines.show(event)
            seen.append(out.getvalue())
        shown[kind] = seen
    assert shown[Terminal][0] == "heard> two" and shown[Terminal][2] == "heard> two and two\nanswer> fo"
    assert shown[io.StringIO][1] == "" and shown[io.StringIO][2] == "heard> two and two\n"
    assert shown[io.StringIO][4] == WHOLE  # before the sound is played


def test_what_has_no_label_is_left_out():
    out = io.StringIO()
    lines = TurnLines(out, None, "answer> ")
    for event in TURN:
        lines.show(event)
    assert out.getvalue() == "answer> four [2J\n"


def test_an_error_leaves_no_half_line_in_a_pipe():
    for kind, left in ((Terminal, "heard> two\n"), (io.StringIO, "")):
        out = kind()
        lines = TurnLines(out, "heard> ", "answer> ")
        lines.show(TURN[0])
        lines.drop()
        assert out.getvalue() == left
