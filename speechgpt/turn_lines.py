"""A turn's text on a terminal or in a pipe, as it comes: a line for what was heard, one for the answer."""

from typing import TextIO

from speechgpt.events import AnswerText, Event, HeardText


def one_row(text: str) -> str:
    """A model's text for a terminal: no line breaks, no control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class TurnLines:
    """Writes pieces of text behind the label of their kind. In a terminal each piece is seen as it comes;
    into a pipe lines are whole, so that one that is never finished is never begun.
    """

    def __init__(self, out: TextIO, heard: str | None, answer: str | None) -> None:
        """The labels; what has none is left out."""
        self._out, self._live = out, out.isatty()
        self._labels = {HeardText: heard, AnswerText: answer}
        self._kind: type | None = None  # of the line that has begun
        self._text, self._shown = "", ""

    def show(self, event: Event) -> None:
        """Text is written; whatever follows it, sound or the reply, ends its line."""
        kind, label = type(event), self._labels.get(type(event))
        if kind is not self._kind:
            self._end()
        if label is None:
            return
        if self._kind is None:
            self._kind = kind
            self._write(label if self._live else "")
        self._text += event.text
        if self._live:
            row = one_row(self._text)
            self._write(row[len(self._shown) :])
            self._shown = row

    def _end(self) -> None:
        if self._kind is not None:
            self._write(("" if self._live else self._labels[self._kind] + one_row(self._text)) + "\n")
        self._kind, self._text, self._shown = None, "", ""

    def drop(self) -> None:
        """Leaves the line that has begun, after an error: a terminal's cursor goes to the next one."""
        if self._kind is not None and self._live:
            self._write("\n")
        self._kind, self._text, self._shown = None, "", ""

    def _write(self, text: str) -> None:
        if text:
            print(text, end="", file=self._out, flush=True)
