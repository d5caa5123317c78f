"""How many edits lie between two sequences of units, words or characters. Numpy alone."""

from collections.abc import Hashable, Sequence

import numpy as np


def edit_distance(reference: Sequence[Hashable], found: Sequence[Hashable]) -> int:
    """Levenshtein distance: substitutions, deletions and insertions, each costs 1."""
    numbers: dict[Hashable, int] = {}
    a = np.array([numbers.setdefault(item, len(numbers)) for item in reference], dtype=np.int64)  # n
    b = np.array([numbers.setdefault(item, len(numbers)) for item in found], dtype=np.int64)  # m
    column = np.arange(len(b) + 1)  # m+1
    costs = column.copy()  # from no reference item to each prefix of `found`
    for item in a:
        best = costs + 1  # a deletion
        best[1:] = np.minimum(best[1:], costs[:-1] + (b != item))  # a match or a substitution
        # Insertions run along the row: the cost at j is the least of best[i] + (j - i) over i <= j.
        costs = np.minimum.accumulate(best - column) + column
    return int(costs[-1])
