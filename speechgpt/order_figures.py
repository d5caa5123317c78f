"""Figures of spoken orders: understood clean and in noise, and answered aloud."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt.babble import LOUDEST, VOICES, add_babble
from speechgpt.data import coffee
from speechgpt.data.audio import SAMPLE_RATE
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.data.rows import Utterance
from speechgpt.data.text_normal import normalise
from speechgpt.held_out import (
    Figure,
    FigureSettings,
    HeldOut,
    answer_all,
    answer_typed,
    needed,
    say_all,
    waveforms_of,
    wrong_first,
)
from speechgpt.judge import Pocketsphinx
from speechgpt.measures import Measure, accuracy
from speechgpt.right_answers import has_slots, order_slots, same_words
from speechgpt.scores import flite_says, word_measure

BACKGROUND = 50  # recordings that the voices behind an order are drawn from
LEVELS = (6, 12, 18, 24)  # dB that the speech is above the noise
# Shares of all 619 orders, means over cafe and kitchen noise at 6 to 24 dB, as published with the recordings.
PUBLISHED = {
    "Google Dialogflow": 0.776,
    "Amazon Lex": 0.845,
    "IBM Watson": 0.868,
    "Microsoft LUIS": 0.899,
    "Picovoice Rhino": 0.976,
}
SOURCE = (
    "Engines: github.com/Picovoice/speech-to-intent-benchmark, benchmark/plot.py, all 619 orders, means over "
    "cafe and kitchen noise at 6 to 24 dB; here the held-out orders alone, and other noise."
)
GRAMMAR_NAME = "pocketsphinx with the order grammar"
COMMONEST = "always the commonest order of the train split"


def orders(held: HeldOut, settings: FigureSettings) -> Figure:
    """Clean recordings. The goal is a share of orders."""
    rows = held.draw(needed(held.orders, "recorded orders"), settings.rows)
    waveforms = waveforms_of(rows)
    wanted = [order_slots(row) for row, _ in rows]
    more: dict[str, Any] = {}
    if all(row.text for row, _ in rows):
        typed = answer_typed(held.model, [row.text for row, _ in rows])
        right = [has_slots(t, w) for t, w in zip(typed, wanted, strict=True)]
        more = {"ceiling": float(np.mean(right)), "ceiling_name": "the same orders, typed"}
    name = "orders with every slot right"
    measures, shown = _understood(held, name, waveforms, wanted, settings.goal, **more)
    text = "Recorded orders, answered in writing; right is an answer that holds exactly the order's slots."
    return Figure("Orders", text, measures, shown)


def noisy_orders(held: HeldOut, settings: FigureSettings) -> Figure:
    """Each recording at one of `LEVELS`, all levels equally often. The goal is a share of orders.

    `corpora` are those that talk in the background.
    """
    rows = held.draw(needed(held.orders, "recorded orders"), settings.rows)
    behind, who = _background(held, settings.corpora)
    waveforms = waveforms_of(rows)
    wanted = [order_slots(row) for row, _ in rows]
    clean = _right(answer_all(held.model, waveforms), wanted)
    rng = np.random.default_rng(held.seed)
    levels = [LEVELS[i % len(LEVELS)] for i in rng.permutation(len(rows))]
    noisy = [
        add_babble(waveform, [voice for at, voice in behind if at != path], level, rng)
        for (_, path), waveform, level in zip(rows, waveforms, levels, strict=True)
    ]
    more = {"ceiling": float(np.mean(clean)), "ceiling_name": "the same orders without noise"}
    name = "noisy orders with every slot right"
    measures, shown = _understood(
        held, name, noisy, wanted, settings.goal, **more, beside=PUBLISHED, levels=levels
    )
    text = (
        f"The recorded orders with babble: {VOICES} recordings of {who} at once, {_listed(LEVELS)} dB under "
        f"the speech by their loudest stretches, one level a recording; all peak at {LOUDEST}. {SOURCE}"
    )
    return Figure("Orders in noise", text, measures, shown)


def spoken_answers(held: HeldOut, settings: FigureSettings) -> Figure:
    """What is heard of the right answers. The goal is how many times flite's error rate is still good."""
    rows = held.draw(needed(held.orders, "recorded orders"), settings.rows)
    turns = answer_all(held.model, waveforms_of(rows), "speech")
    right = _right(turns, [order_slots(row) for row, _ in rows])
    turns = [turn for turn, good in zip(turns, right, strict=True) if good]
    if not turns:
        raise NotMeasuredError(f"none of {len(rows)} orders was answered right, so that none is listened to")
    texts = [turn.answer for turn in turns]
    said = say_all(held.model, [turn.units for turn in turns])
    heard = held.judge.hear_all(said, held.model.sample_rate)
    more, measures, note = said_by_flite(held, texts, settings.goal, "the same answers by flite's voice slt")
    note = f"{len(turns)} right answers of {len(rows)} orders; judge: {held.judge.name}{note}"
    found = word_measure(
        "word error rate of right spoken answers", texts, heard, held.seed, **more, note=note
    )
    text = "Orders answered aloud; what the judge hears of the right answers, against their own text."
    alike = [same_words(t, h) for t, h in zip(texts, heard, strict=True)]
    shown = wrong_first(alike, ["answered", "the judge heard"], texts, heard)
    return Figure("Spoken answers", text, (found, *measures), shown)


def said_by_flite(
    held: HeldOut, texts: Sequence[str], goal: float | None, name: str
) -> tuple[dict[str, Any], list[Measure], str]:
    """What stands beside a word error rate of speech: its fields, flite's own measure, and what to note."""
    lacking = "" if held.sphinx else f"the judge is {held.judge.name}"
    lacking = lacking or ("" if shutil.which("flite") else "flite is not installed")
    if lacking:
        return {}, [], f"; {'nothing beside it' if goal is None else 'goal not applied'}: {lacking}"
    waveforms = [flite_says(normalise(t)) for t in texts]
    flite = word_measure(name, texts, held.judge.hear_all(waveforms, SAMPLE_RATE), held.seed)
    return {"beside": {name: flite.value}, "goal": None if goal is None else goal * flite.value}, [flite], ""


def _understood(
    held: HeldOut,
    name: str,
    waveforms: Sequence[np.ndarray],
    wanted: Sequence[dict[str, str]],
    goal: float | None,
    beside: dict[str, float] | None = None,
    levels: Sequence[int] = (),
    **more,
) -> tuple[tuple[Measure, ...], dict[str, Any]]:
    turns = answer_all(held.model, waveforms)
    right = _right(turns, wanted)
    more |= _commonest(held, wanted)
    baseline = []
    beside = dict(beside or {})
    if held.sphinx:
        heard = Pocketsphinx(coffee.any_order_jsgf()).hear_all(waveforms, SAMPLE_RATE)
        found = [has_slots(h, w) for h, w in zip(heard, wanted, strict=True)]
        other = GRAMMAR_NAME + (", in noise" if levels else "")
        baseline = [accuracy(other, found, seed=held.seed, note=_by_level(found, levels))]
        beside = {GRAMMAR_NAME: baseline[0].value} | beside
    note = _by_level(right, levels)
    measures = (
        accuracy(name, right, seed=held.seed, beside=beside, goal=goal, note=note, **more),
        *baseline,
    )
    asked = [coffee.format_slots(w) for w in wanted]
    columns = ["asked for", "understood", "answered"]
    shown = wrong_first(right, columns, asked, [t.transcript for t in turns], [t.answer for t in turns])
    return measures, shown


def _right(turns: Sequence, wanted: Sequence[dict[str, str]]) -> list[bool]:
    return [has_slots(turn.answer, slots) for turn, slots in zip(turns, wanted, strict=True)]


def _commonest(held: HeldOut, wanted: Sequence[dict[str, str]]) -> dict[str, Any]:
    """The floor: the order that the train split has most often, given each time."""
    trained = Counter(
        coffee.format_slots(slots)
        for row, _ in held.rows
        if row.split == "train" and (slots := order_slots(row))
    )
    if not trained:
        return {}
    common = trained.most_common(1)[0][0]
    found = [coffee.format_slots(slots) == common for slots in wanted]
    return {"floor": float(np.mean(found)), "floor_name": COMMONEST}


def _background(held: HeldOut, corpora: Sequence[str]) -> tuple[list[tuple[Path, np.ndarray]], str]:
    """Recordings to talk behind orders, and whose they are: held-out sentences, else other orders.

    At least `VOICES`, without the order that they talk behind.
    """
    chosen = held.draw(held.sentences(corpora) or held.orders, BACKGROUND)
    who, own = _whose([row for row, _ in chosen]), {path for _, path in held.orders}
    spare = int(any(path in own for _, path in chosen))
    if len(chosen) < VOICES + spare:
        raise NotMeasuredError(
            f"{VOICES} recordings talk behind an order; {len(chosen) - spare} other of {who} are there"
        )
    return [(path, waveform) for (_, path), waveform in zip(chosen, waveforms_of(chosen), strict=True)], who


def _whose(rows: Sequence[Utterance]) -> str:
    return " and ".join(sorted({row.corpus or "the same corpus" for row in rows}))


def _by_level(right: Sequence[bool], levels: Sequence[int]) -> str:
    """ "6 dB 9 of 15, ..." for those recordings that have a level."""
    parts = []
    for level in sorted(set(levels)):
        some = [r for r, at in zip(right, levels, strict=True) if at == level]
        parts.append(f"{level} dB {sum(some)} of {len(some)}")
    return ", ".join(parts)


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} or {numbers[-1]}"
