"""Chances that depend on a seed and a name alone: not on the order of rows, nor on other rows."""

import random
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


def draw(seed: int, *names: str) -> float:
    """Uniform in [0, 1), the same on every machine for the same seed and names."""
    key = "\x1f".join((str(seed), *names)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(key, digest_size=7).digest(), "big") / 2**56


def pick(options: Sequence[T], seed: int, *names: str) -> T:
    """One of `options`, each equally likely."""
    return options[int(draw(seed, *names) * len(options))]


def pick_weighted(weights: dict[T, float], seed: int, *names: str) -> T:
    """A key of `weights`, in proportion to its weight."""
    point = draw(seed, *names) * sum(weights.values())
    for option, weight in weights.items():
        if point < weight:
            return option
        point -= weight
    return [option for option, weight in weights.items() if weight > 0][-1]  # rounding


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether any of the shell-like patterns (`*`, `?`, `[1-9]`) fits the whole name."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def draw_some(items: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` of the items (all, where there are no more), the same for the same seed, in their own order."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), count))]
