"""Distances between rows of one text, with who speaks them and what stands between: worked out by hand."""

import pytest

from speechgpt.data.rows import UnitRow
from speechgpt.units.consistency import speaker_distances


def row(name, units, speaker, text, corpus="x", durations=None):
    return UnitRow(name, units, durations or [1] * len(units), speaker, corpus, text)


ROWS = [
    row("a1", [1, 2, 3, 4], "ann", "Good day!"),
    row("a2", [1, 2, 3, 5], "ann", "good day"),  # a repeat: one of four differs
    row("b1", [1, 2, 6, 7], "bob", "good day"),  # two of four differ from both of Ann's
    row("b2", [8, 9, 8, 9], "bob", "so long"),  # nothing in common
]


def test_the_three_distances_of_four_rows():
    found = speaker_distances(ROWS)
    assert found["other_speaker"] == {
        "pairs": 2, "distance": 0.5, "corpora": {"x": {"pairs": 2, "distance": 0.5}}
    }  # fmt: skip
    assert found["same_speaker"]["pairs"] == 1 and found["same_speaker"]["distance"] == 0.25
    # The partner is Bob's other text for Ann's rows; for Bob's row there is no other.
    assert found["other_text"]["distance"] == 1.0


def test_what_is_no_pair():
    copies = [row("b1.x0", [5, 6, 7, 8], "cid", "good day"), row("?", [1, 2], "", "good day")]
    twin = row("b3", [1, 2, 6, 7], "bob", "good day")  # a synthesiser's: the recording itself again
    found = speaker_distances([*ROWS, *copies, twin])
    assert found["other_speaker"]["distance"] == 0.5 and found["same_speaker"]["pairs"] == 1
    # The other durations make it a repeat whose units are the same.
    lively = row("b3", [1, 2, 6, 7], "bob", "good day", durations=[2, 1, 1, 1])
    assert speaker_distances([*ROWS, lively])["same_speaker"]["distance"] == pytest.approx(0.125)
    # An id that merely ends like a copy's has no recording that it copies.
    alone = row("c.x1", [1, 2, 3, 4], "cid", "so long")
    assert speaker_distances([*ROWS, alone])["other_speaker"]["pairs"] == 3


def test_corpora_are_told_apart_and_pairs_capped_and_seeded():
    rows = [
        row(
            f"{corpus}{speaker}{n}",
            [n, n + 1, n + 2 + speaker],
            str(speaker),
            f"text {'abcdefgh'[n]}",
            corpus,
        )
        for corpus in ("p", "q")
        for speaker in range(3)
        for n in range(8)
    ]
    found = speaker_distances(rows, max_pairs=5, seed=3)
    assert set(found["other_speaker"]["corpora"]) == {"p", "q", "p+q"}
    assert all(part["pairs"] == 5 for part in found["other_speaker"]["corpora"].values())
    assert found["other_speaker"]["distance"] == pytest.approx(1 / 3)
    assert found == speaker_distances(rows, max_pairs=5, seed=3) != speaker_distances(rows, 5, seed=4)


def test_without_speakers_there_is_nothing_to_tell():
    found = speaker_distances([row("a", [1, 2], "", "good day")])
    assert found["other_speaker"] == {"pairs": 0, "distance": None, "corpora": {}}
