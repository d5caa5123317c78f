"""The figures of held-out speech by name, in the report's order."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from speechgpt.cost_figures import size, turn_time
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.data.settings import settings_from
from speechgpt.held_out import Figure, FigureSettings, HeldOut
from speechgpt.order_figures import noisy_orders, orders, spoken_answers
from speechgpt.question_figures import questions
from speechgpt.word_figures import digits, said_again, sentences, spoken_sentences

FIGURES: dict[str, Callable[[HeldOut, FigureSettings], Figure]] = {
    "orders": orders,
    "noisy_orders": noisy_orders,
    "digits": digits,
    "questions": questions,
    "sentences": sentences,
    "spoken_answers": spoken_answers,
    "spoken_sentences": spoken_sentences,
    "resynthesis": said_again,
    "turn_time": turn_time,
    "size": size,
}

OF_CORPORA = ("noisy_orders", "sentences", "spoken_sentences", "resynthesis")  # can be told which to take


def read_figures(given: Mapping[str, Any]) -> dict[str, FigureSettings]:
    """eval.yaml's `figures`, in the report's order. Raises ValueError for what they do not know."""
    if unknown := sorted(map(str, set(given) - set(FIGURES))):
        raise ValueError(f"figures: unknown {', '.join(unknown)}; known: {', '.join(FIGURES)}")
    mappings = {name: {} if given[name] is None else given[name] for name in FIGURES if name in given}
    wanted = settings_from(dict[str, FigureSettings], mappings, "figures")
    for name, settings in wanted.items():
        if settings.corpora and name not in OF_CORPORA:
            raise ValueError(f"figures: {name} takes no corpora; those that do: {', '.join(OF_CORPORA)}")
    return wanted


def measure_figures(
    held: HeldOut, wanted: Mapping[str, FigureSettings]
) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, float]]:
    """(sections of the report, what was not measured and why, seconds that each figure took)."""
    sections, missing, seconds = [], {}, {}
    for name, settings in tqdm(wanted.items(), "figures", disable=None):
        started = time.perf_counter()
        try:
            sections.append(FIGURES[name](held, settings).section())
        except NotMeasuredError as error:
            missing[name] = str(error)
        seconds[name] = round(time.perf_counter() - started, 1)
    return sections, missing, seconds
