"""Edit distances are those that can be counted by hand."""

import pytest

from speechgpt.units.edits import edit_distance


@pytest.mark.parametrize(
    ("reference", "found", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("abc", "xabc", 1),
        ("abcd", "bcda", 2),
        ("one two three".split(), "one three three four".split(), 2),
        ([3, 1, 4, 1, 5], [3, 1, 4, 5], 1),
    ],
)
def test_edit_distance(reference, found, edits):
    assert edit_distance(reference, found) == edit_distance(found, reference) == edits


def test_it_agrees_with_the_judge_of_words():
    import numpy as np
    from jiwer import process_words

    generator = np.random.default_rng(0)
    for _ in range(30):
        reference, found = (
            [str(word) for word in generator.integers(0, 4, generator.integers(1, 12))] for _ in range(2)
        )
        counted = process_words(" ".join(reference), " ".join(found))
        edits = counted.substitutions + counted.deletions + counted.insertions
        assert edit_distance(reference, found) == edits
