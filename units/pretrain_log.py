"""What a training run tells while it runs."""

import time

from torch import Tensor

from speechgpt.units.masked_prediction import describe


class TrainingLog:
    """Sums on the device between two lines; reading them is the only wait."""

    def __init__(self, kinds: list[str], step_seconds: float) -> None:
        """kinds: of the label sources; step_seconds: of audio in one step, over all processes."""
        self.kinds, self.step_seconds = kinds, step_seconds
        self.last: dict[str, float] = {}
        self._reset()

    def _reset(self) -> None:
        self.since, self.steps = time.monotonic(), 0
        self.loss: Tensor | None = None
        self.statistics: Tensor | None = None

    def add(self, loss: Tensor, statistics: Tensor) -> None:
        """The loss () and the statistics (S, 6) of one step."""
        self.steps += 1
        self.loss = loss if self.loss is None else self.loss + loss
        self.statistics = statistics if self.statistics is None else self.statistics + statistics

    def line(self) -> str:
        """The means since the last line, as text; also kept as `last`."""
        loss = float(self.loss) / self.steps  # waits for the device
        speed = self.steps / (time.monotonic() - self.since)
        self.last = {
            "loss": round(loss, 4),
            **describe(self.statistics, self.kinds),
            "steps_per_second": round(speed, 3),
            "audio_hours_per_second": round(speed * self.step_seconds / 3600, 4),
        }
        self._reset()
        return as_text(self.last)


def as_text(metrics: dict[str, float]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in metrics.items())
