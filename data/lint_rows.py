"""One line of a row file to what the linter must know of it, and what is wrong with it alone.

Reads the published JSON lines, stage 1's unit lines, plain text, and this package's own rows.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from speechgpt.data.dialogue_rows import CHAIN_KINDS, INSTRUCT_KINDS, ChainRow, InstructRow
from speechgpt.data.files import parse_json
from speechgpt.data.published import CHAIN_DRIFT, INPUT, INSTRUCT_DRIFT, PREFIX
from speechgpt.data.rows import UnitRow, Utterance, row_of
from speechgpt.data.unit_text import units_to_text

HUMAN, END, CHAIN_END = "[Human]: ", "<eoa> ", "<eoa>."
REPLY, CHAIN_REPLY = "<eoh> [SpeechGPT]: ", "<eoh>. [SpeechGPT]: "
TRANSCRIBED, ANSWERED, SPOKEN = "; [ta] ", "[ta] ", "; [ua] "
MARKERS = ("<sosp>", "<eosp>", "<eoh>", "<eoa>", "<eos>", "[Human]", "[SpeechGPT]", "[ta]", "[ua]")
SPECIALS = ("<s>", "</s>", "<unk>")
# What a text must not hold: a reader of the row, or the model's tokenizer, takes it for structure.
INJECTED = re.compile("|".join([r"<\d+>", *(re.escape(m) for m in (*MARKERS, *SPECIALS))]))
UNITS = re.compile(r"<sosp>(?:<(?:0|[1-9][0-9]{0,9})>)+<eosp>")
_HEAD = f'{{"prefix": {json.dumps(PREFIX)}, "plain_text": '.encode()
SHORT = 40  # characters of a text that a message shows


@dataclass(slots=True)
class Found:
    """What one line holds. `problems`: (kind, what) of the line alone."""

    kind: str = (
        ""  # asr, tts, chat, a kind of chain, units, utterance, question-answer, text; empty: unreadable
    )
    texts: list[tuple[str, str]] = field(default_factory=list)  # (field, text) of everything said or typed
    units: list[tuple[str, str]] = field(default_factory=list)  # (field, units as <sosp><12><7>...<eosp>)
    heard: str = ""  # the text that may stand in one split alone
    heard_units: str = ""  # the units that may, as text
    content: str = ""  # equal for equal rows, whatever their ids
    id: str = ""
    split: str = ""  # of the row; empty: the file's
    plain: str = ""  # published rows: prefix and plain_text
    row: Any = None  # own rows: the row
    answer_at: int = 0  # published rows: where in `plain` the answer starts
    problems: list[tuple[str, str]] = field(default_factory=list)

    def problem(self, kind: str, what: str) -> "Found":
        self.problems.append((kind, what))
        return self


def read_line(line: bytes, is_json: bool) -> Found:
    """`is_json`: of a file of JSON lines. Raises nothing: what is wrong is among the problems."""
    found = Found()
    if not is_json:
        try:
            return _text_line(line.decode("utf-8").rstrip("\r\n"), found)
        except UnicodeDecodeError as error:
            return found.problem("broken", f"not UTF-8 (byte {error.start})")
    try:
        values = parse_json(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return found.problem("broken", f"not UTF-8 (byte {error.start})")
    except ValueError as error:
        return found.problem("broken", short(str(error), 110))
    if not isinstance(values, dict):
        return found.problem("broken", f"expected a JSON object, found {type(values).__name__}")
    if "plain_text" in values or "prefix" in values:
        _published(values, line, found)
    else:
        _own(values, found)
    _injections(found)
    return found


def printable(text: str) -> str:
    """Escapes what would end the report or steer the terminal: lone surrogates, control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def short(text: str, most: int = SHORT) -> str:
    """Text for one line of a report; a space for every stretch of white space, and the rest `printable`."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _text_line(text: str, found: Found) -> Found:
    if "<sosp>" in text or "<eosp>" in text:
        found.kind, found.content = "units", text
        if not UNITS.fullmatch(text):
            return found.problem("template", f"not a line of units <sosp><12>...<eosp>: {short(text)}")
        found.heard_units = text
        found.units.append(("units", text))
        return found
    found.kind, found.content, found.heard = "text", text, text
    found.texts.append(("text", text))
    _injections(found)
    return found


def _published(values: dict, line: bytes, found: Found) -> None:
    prefix, plain = values.get("prefix"), values.get("plain_text")
    if list(values) != ["prefix", "plain_text"]:
        found.problem("template", f"fields {short(', '.join(values))}; expected prefix, plain_text")
    if not isinstance(plain, str) or not isinstance(prefix, str):
        found.problem("broken", "prefix and plain_text must be texts")
        return
    if prefix != PREFIX:
        found.problem("template", f"the prefix is not the published one: {short(prefix) or 'empty'}")
    found.content = plain
    reason = _chain(plain, found) if CHAIN_REPLY in plain else _instruct(plain, found)
    if reason:
        found.kind = ""
        found.problem("template", f"{reason}: {short(plain[:60])}")
        found.texts.clear()
        return
    found.plain = prefix + plain
    found.answer_at += len(prefix)
    _signs(found)
    if not found.problems and not _spelled(plain, line.strip()):
        found.problem("template", "the JSON is not spelled as json.dumps spells it")


def _spelled(plain: str, line: bytes) -> bool:
    """Whether json.dumps writes this line, with é as it is or as \\u00e9."""
    ways = [encode_basestring_ascii] if plain.isascii() else [encode_basestring_ascii, encode_basestring]
    return any(line == _HEAD + way(plain).encode("utf-8", "replace") + b"}" for way in ways)


def _are_units(text: str) -> bool:
    return text.startswith("<sosp>") and UNITS.fullmatch(text) is not None


def _instruct(plain: str, found: Found) -> str:
    """Fills `found` from a stage 2 text; returns what drifts, or nothing."""
    if not plain.startswith(HUMAN) or not plain.endswith(END):
        return f"a stage 2 row starts with {HUMAN!r} and ends with {END!r}"
    asked, between, reply = plain[len(HUMAN) : -len(END)].partition(REPLY)
    if not between:
        return f"no {REPLY!r}"
    found.answer_at = len(HUMAN) + len(asked) + len(REPLY)
    description, task, given = asked.partition(INPUT)
    if not task:
        found.kind, found.heard = "chat", asked
        found.texts += [("question", asked), ("answer", reply)]
    elif _are_units(given):
        found.kind, found.heard, found.heard_units = "asr", reply, given
        found.texts += [("description", description), ("text", reply)]
    elif _are_units(reply):
        found.kind, found.heard, found.heard_units = "tts", given, reply
        found.texts += [("description", description), ("text", given)]
    else:
        return "a task with well-formed units on neither side"
    if found.heard_units:
        found.units.append(("units", found.heard_units))
    return _empty(found)


def _chain(plain: str, found: Found) -> str:
    """Fills `found` from a stage 3 text; returns what drifts, or nothing."""
    if not plain.startswith(HUMAN) or not plain.endswith(CHAIN_END):
        return f"a stage 3 row starts with {HUMAN!r} and ends with {CHAIN_END!r}"
    asked, _, reply = plain[len(HUMAN) : -len(CHAIN_END)].partition(CHAIN_REPLY)
    found.answer_at = len(HUMAN) + len(asked) + len(CHAIN_REPLY)
    spoken_in = _are_units(asked)
    if spoken_in:
        question, between, reply = reply.partition(TRANSCRIBED)
        if not between:
            return f"no {TRANSCRIBED!r} after the transcript"
        found.heard_units = asked
        found.units.append(("question_units", asked))
    else:
        question = asked
        if not reply.startswith(ANSWERED):
            return f"no {ANSWERED!r} before the answer, nor units before {CHAIN_REPLY!r}"
        reply = reply[len(ANSWERED) :]
    answer, spoken_out, said = reply.rpartition(SPOKEN)
    if spoken_out and not _are_units(said):
        return f"no well-formed units after {SPOKEN!r}"
    if spoken_out:
        found.units.append(("answer_units", said))
    else:
        answer = reply
    found.kind = f"{'speech' if spoken_in else 'text'}-{'speech' if spoken_out else 'text'}"
    found.heard = question
    found.texts += [("question", question), ("answer", answer)]
    return _empty(found)


def _empty(found: Found) -> str:
    lacking = [name for name, text in found.texts if not text.strip()]
    return f"{lacking[0]} is empty" if lacking else ""


def _signs(found: Found) -> None:
    """Texts that hold a part of a template, and would be read as it; markers are reported as injected."""
    signs = CHAIN_DRIFT if found.kind in CHAIN_KINDS else INSTRUCT_DRIFT
    for name, text in found.texts:
        for sign in signs:
            if sign in text and sign not in MARKERS:
                found.problem("template", f"{name} holds {sign!r}, a part of the template: {short(text)}")
                break


def _own(values: dict, found: Found) -> None:
    """A row of this package, told by its fields."""
    kind = values.get("kind")
    try:
        if kind in INSTRUCT_KINDS or kind in CHAIN_KINDS:
            row = row_of(InstructRow if kind in INSTRUCT_KINDS else ChainRow, values)
            _dialogue(row, found)
        elif "durations" in values or "units" in values:
            row = row_of(UnitRow, values)
            found.kind, found.heard = "units", row.text
            found.texts.append(("text", row.text))
            if not row.units:
                raise ValueError("units is empty")
            _take_units("units", row.units, found)
        elif "path" in values:
            row = row_of(Utterance, values)
            found.kind, found.heard = "utterance", row.text
            found.texts.append(("text", row.text))
        else:
            _loose(values, found)
            return
    except (ValueError, TypeError) as error:
        found.kind = ""
        found.problem("fields", short(str(error), 120))
        return
    found.row, found.id, found.split = row, row.id, row.split
    rest = {name: value for name, value in asdict(row).items() if name not in ("id", "split")}
    found.content = json.dumps(rest)


def _dialogue(row: InstructRow | ChainRow, found: Found) -> None:
    found.kind = row.kind
    names = [name for name in ("description", "text", "question", "answer") if getattr(row, name, "")]
    found.texts += [(name, getattr(row, name)) for name in names]
    found.heard = row.question or getattr(row, "text", "")
    for name in ("units", "question_units", "answer_units"):
        if units := getattr(row, name, None):
            _take_units(name, units, found, heard=name != "answer_units")


def _take_units(name: str, units: list[int], found: Found, heard: bool = True) -> None:
    spelled = units_to_text(units)
    found.units.append((name, spelled))
    if heard:
        found.heard_units = spelled


def _loose(values: dict, found: Found) -> None:
    """Text chats and texts: {"question", "answer"} or {"text"}, with whatever notes beside them."""
    names = ("question", "answer") if "question" in values or "answer" in values else ("text",)
    for name in names:
        value = values.get(name)
        if not isinstance(value, str) or not value.strip():
            listed = short(", ".join(values), 80) or "none"
            found.problem("fields", f"no row that is known here, and no text in {name}; fields: {listed}")
            found.texts.clear()
            return
        found.texts.append((name, value))
    found.kind = "question-answer" if len(names) > 1 else "text"
    found.heard = found.texts[0][1]
    found.content = json.dumps([text for _, text in found.texts])
    found.id, found.split = (v if isinstance(v := values.get(key), str) else "" for key in ("id", "split"))


def _injections(found: Found) -> None:
    for name, text in found.texts:
        if ("<" in text or "[" in text) and (match := INJECTED.search(text)):
            shown = short(text[max(0, match.start() - 15) : match.end() + 15])
            found.problem("injection", f"{name} holds {match.group()[:20]!r}: {shown}")
