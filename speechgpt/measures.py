"""One figure of an evaluation: its value, its bootstrap interval, and what it stands between."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Measure:
    """`floor` is what costs nothing (a baseline), `ceiling` what the best input or a person would reach."""

    name: str  # "ASR word error rate"
    value: float
    low: float  # of the 95 % bootstrap interval
    high: float
    n: int  # items that were scored
    unit: str  # "%" (value in 0..1) | "s" | "MB" | "" (plain number)
    better: str  # "lower" | "higher"
    floor: float | None = None
    floor_name: str = ""
    ceiling: float | None = None
    ceiling_name: str = ""
    beside: dict[str, float] = field(default_factory=dict)  # what others reach, by name
    goal: float | None = None
    note: str = ""

    def to_dict(self) -> dict:
        return asdict(self)


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> float:
    """sum(parts) / sum(wholes): the pooled rate, as word error rates are pooled over utterances."""
    return float(np.sum(parts) / max(float(np.sum(wholes)), 1e-12))


def bootstrap(
    parts: Sequence[float], wholes: Sequence[float], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % interval of `ratio`. Whole items (utterances) are resampled: the words of one stay together."""
    top, bottom = np.asarray(parts, dtype=float), np.asarray(wholes, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(top), size=(resamples, len(top)))  # R n
    ratios = top[drawn].sum(axis=1) / np.maximum(bottom[drawn].sum(axis=1), 1e-12)  # R n -> R
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def measure(
    name: str,
    parts: Sequence[float],
    wholes: Sequence[float],
    *,
    better: str,
    unit: str = "%",
    seed: int = 0,
    **more,
) -> Measure:
    """A pooled rate with its interval. Raises ValueError when there is nothing to score."""
    if not len(parts):
        raise ValueError(f"{name}: nothing to score")
    low, high = bootstrap(parts, wholes, seed)
    return Measure(name, ratio(parts, wholes), low, high, len(parts), unit, better, **more)


def accuracy(name: str, right: Sequence[bool], *, seed: int = 0, **more) -> Measure:
    """The share of items that are right."""
    return measure(name, [int(r) for r in right], [1] * len(right), better="higher", seed=seed, **more)


def median(name: str, values: Sequence[float], *, unit: str, better: str, seed: int = 0, **more) -> Measure:
    """The middle of repeated readings, with the interval of the medians of resampled ones."""
    if not len(values):
        raise ValueError(f"{name}: nothing to score")
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (RESAMPLES, len(values)))  # R n
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Measure(name, float(np.median(values)), float(low), float(high), len(values), unit, better, **more)


def perplexity(
    name: str, losses: Sequence[float], tokens: Sequence[int], *, seed: int = 0, **more
) -> Measure:
    """exp of the mean loss a token; `losses` are sums of nats over each item's tokens."""
    if not len(losses):
        raise ValueError(f"{name}: nothing to score")
    low, high = bootstrap(losses, tokens, seed)
    value = float(np.exp(ratio(losses, tokens)))
    return Measure(name, value, float(np.exp(low)), float(np.exp(high)), len(losses), "", "lower", **more)
