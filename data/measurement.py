"""What a benchmark says: one figure beside its baseline and the machine's limit, or one point of a curve."""

from dataclasses import asdict, dataclass


class NotMeasuredError(Exception):
    """A figure that cannot be measured here, and why; the others go on."""


@dataclass(frozen=True)
class Measurement:
    """A speed, or (with `lower_is_better`) a time. Baseline, ours and limit are in `unit`, from one run."""

    part: str  # what was measured
    unit: str  # x real time | token/s | step/s | s | ...
    baseline: float | None  # the released way of doing the same; None where there is none
    ours: float
    limit: float | None = None  # what the machine's measured matrix rate or bandwidth allows
    lower_is_better: bool = False
    note: str = ""  # agreement, error, sizes

    @property
    def ratio(self) -> float | None:
        """How many times better than the baseline."""
        if not self.baseline or not self.ours:
            return None
        return self.baseline / self.ours if self.lower_is_better else self.ours / self.baseline

    @property
    def limit_share(self) -> float | None:
        """Which share of the limit was reached, 0 to 1."""
        if not self.limit or not self.ours:
            return None
        return self.limit / self.ours if self.lower_is_better else self.ours / self.limit

    def to_dict(self) -> dict:
        return {
            "part": self.part,
            "unit": self.unit,
            "baseline": self.baseline,
            "ours": self.ours,
            "ratio": self.ratio,
            "limit_share": self.limit_share,
            "note": self.note,
        }


@dataclass(frozen=True)
class Growth:
    """One point of a curve: what a job of some size takes."""

    part: str  # the job
    size_name: str  # of the axis: hours of audio, tokens a turn, ...
    size: float
    seconds: float
    bytes: float  # of memory, at its peak, on top of what an empty job takes

    def to_dict(self) -> dict:
        return asdict(self)
