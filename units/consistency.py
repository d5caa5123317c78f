"""How much of the units is the voice: edits between units of one text, of two speakers or of one twice.

The distance of a pair is its edits over the longer of the two deduplicated sequences: 0 is the same units, 1
is nothing in common.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from speechgpt.data.rows import UnitRow
from speechgpt.data.text_normal import normalise
from speechgpt.units.edits import edit_distance

MAX_PAIRS = 500  # of a pair of corpora
PAIRS_A_TEXT = 4  # so that a text that many said is not all that is measured
LENGTH_REACH = 0.1  # pairs of other texts: how far the partner's length may be off, as a share
COPY = re.compile(r"\.x\d+$")  # how `speechgpt perturb` ends the ids of a recording's copies

Pair = tuple[UnitRow, UnitRow]


def distance(pair: Pair) -> float:
    a, b = pair
    return edit_distance(a.units, b.units) / max(len(a.units), len(b.units))


def recordings(rows: Sequence[UnitRow]) -> list[UnitRow]:
    """Rows whose speaker and text are known, without copies of others: those repeat what was said once."""
    ids = {row.id for row in rows}
    return [
        row
        for row in rows
        if row.speaker
        and row.text
        and row.units
        and not (COPY.search(row.id) and COPY.sub("", row.id) in ids)
    ]


def pairs_of_a_text(
    rows: Sequence[UnitRow], same_speaker: bool, max_pairs: int, generator: np.random.Generator
) -> dict[str, list[Pair]]:
    """Random pairs of one text by the corpora that they are of, of one speaker or of two."""
    by_text: dict[tuple, list[UnitRow]] = defaultdict(list)
    for row in rows:
        voice = (row.corpus, row.speaker) if same_speaker else ()
        by_text[(normalise(row.text), *voice)].append(row)
    found: dict[str, list[Pair]] = defaultdict(list)
    seen: set[tuple[str, str]] = set()
    keys = [key for key in sorted(by_text) if key[0] and len(by_text[key]) > 1]
    for index in generator.permutation(len(keys)):
        members = by_text[keys[index]]
        for _ in range(PAIRS_A_TEXT):
            one = members[generator.integers(len(members))]
            others = [row for row in members if _comparable(one, row, same_speaker)]
            if not others:
                continue
            other = others[generator.integers(len(others))]
            first, second = sorted((one, other), key=lambda row: (row.corpus, row.id))
            group = found[corpora_name(first, second)]
            if (first.id, second.id) not in seen and len(group) < max_pairs:
                seen.add((first.id, second.id))
                group.append((first, second))
    return found


def _comparable(one: UnitRow, other: UnitRow, same_speaker: bool) -> bool:
    if one.id == other.id or (one.speaker == other.speaker) != same_speaker:
        return False
    # A synthesiser says a sentence the same way every time: that is one recording twice, not a repeat.
    return not (same_speaker and (one.units, one.durations) == (other.units, other.durations))


def pairs_of_other_texts(
    pairs: dict[str, list[Pair]], rows: Sequence[UnitRow], generator: np.random.Generator
) -> dict[str, list[Pair]]:
    """The same pairs, whose second row is another of its corpus: another text, speaker and the like length.

    Lengths are kept because sequences of unlike lengths are far apart whatever they say.
    """
    pools: dict[str, list[UnitRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (len(row.units), row.id)):
        pools[row.corpus].append(row)
    lengths = {corpus: np.array([len(row.units) for row in pool]) for corpus, pool in pools.items()}
    found: dict[str, list[Pair]] = {}
    for name, group in pairs.items():
        found[name] = []
        for one, other in group:
            pool, count = lengths[other.corpus], len(other.units)
            low = np.searchsorted(pool, count * (1 - LENGTH_REACH), side="left")
            high = np.searchsorted(pool, count * (1 + LENGTH_REACH), side="right")
            text = normalise(one.text)
            for index in low + generator.permutation(high - low):
                stranger = pools[other.corpus][index]
                if stranger.speaker != one.speaker and normalise(stranger.text) != text:
                    found[name].append((one, stranger))
                    break
    return found


def corpora_name(one: UnitRow, other: UnitRow) -> str:
    return one.corpus if one.corpus == other.corpus else f"{one.corpus}+{other.corpus}"


def summary(pairs: dict[str, list[Pair]]) -> dict:
    """The mean distance over all pairs and over those of each corpus (or two): None without pairs."""
    found = {name: [distance(pair) for pair in group] for name, group in sorted(pairs.items()) if group}

    def mean(values: list[float]) -> dict:
        return {"pairs": len(values), "distance": float(np.mean(values)) if values else None}

    every = [value for values in found.values() for value in values]
    return mean(every) | {"corpora": {name: mean(values) for name, values in found.items()}}


def speaker_distances(rows: Sequence[UnitRow], max_pairs: int = MAX_PAIRS, seed: int = 0) -> dict[str, dict]:
    """One text by two speakers, with one text twice by one (the floor), and two texts (the ceiling)."""
    generator = np.random.default_rng(seed)
    rows = recordings(rows)
    speakers = pairs_of_a_text(rows, False, max_pairs, generator)
    return {
        "other_speaker": summary(speakers),
        "same_speaker": summary(pairs_of_a_text(rows, True, max_pairs, generator)),
        "other_text": summary(pairs_of_other_texts(speakers, rows, generator)),
    }
