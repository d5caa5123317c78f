"""Answers spoken by a model, kept while the job runs, so that a killed job does not speak them again."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from speechgpt.data.files import read_jsonl, write_jsonl

SAVE_EVERY = 30.0  # seconds: what a kill can cost

SpeakAll = Callable[[list[str]], list[list[int]]]  # texts to the units (U) of each


class SpokenAnswers:
    """After `speak_all(texts)`, `units[text]` are its units (U); OUT.spoken.jsonl holds them until the end.

    The model is loaded if there is a text that the file does not have. A file of another model is not used.
    """

    def __init__(self, out: str | Path, model: Path, load: Callable[[], SpeakAll], batch_size: int = 16):
        self.path = Path(out).with_suffix(".spoken.jsonl")
        self.model = {"model": str(model.resolve()), "changed": _changed(model)}
        self.units: dict[str, list[int]] = {}
        self._load, self._batch_size = load, batch_size
        if self.path.exists():
            rows = read_jsonl(self.path)
            if next(rows, (0, {}))[1] == self.model:
                self.units = {row["text"]: row["units"] for _, row in rows}

    def speak_all(self, texts: Iterable[str]) -> None:
        # Texts of like length make batches with little padding.
        left = sorted({text for text in texts if text not in self.units}, key=lambda text: (len(text), text))
        if not left:
            return
        speak = self._load()
        saved = time.monotonic()
        with tqdm(desc="speaking answers", unit="answer", total=len(left), disable=None) as bar:
            for start in range(0, len(left), self._batch_size):
                batch = left[start : start + self._batch_size]
                for text, units in zip(batch, speak(batch), strict=True):
                    self.units[text] = [int(u) for u in units]
                bar.update(len(batch))
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()

    def save(self) -> None:
        write_jsonl(self.path, [self.model, *({"text": t, "units": u} for t, u in self.units.items())])

    def __enter__(self) -> "SpokenAnswers":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """After an error the answers stay for the next run; once all is written, they go."""
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self.units:
            self.save()


def _changed(model: Path) -> int:
    """Nanoseconds at which the newest file of the model's folder changed."""
    if not model.is_dir():
        raise FileNotFoundError(f"{model}: no such model folder")
    return max((path.stat().st_mtime_ns for path in model.rglob("*") if path.is_file()), default=0)
