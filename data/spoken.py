"""Answers spoken by a model, kept while the job runs, so that a killed job does not speak them again."""

import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from speechgpt.data.files import read_jsonl, write_jsonl

SAVE_EVERY = 30.0  # seconds: what a kill can cost


class SpokenAnswers:
    """`speak(text)` gives units (U), once a text; OUT.spoken.jsonl holds them until the job is done.

    The model is loaded at the first text that the file does not have. A file of another model is not used.
    """

    def __init__(self, out: str | Path, model: Path, load: Callable[[Path], Callable[[str], list[int]]]):
        self.path = Path(out).with_suffix(".spoken.jsonl")
        self.model = {"model": str(model.resolve()), "changed": _changed(model)}
        self._load, self._model_dir, self._speaker = load, model, None
        self._units: dict[str, list[int]] = {}
        self._bar: tqdm | None = None
        self._saved = time.monotonic()
        if self.path.exists():
            rows = read_jsonl(self.path)
            if next(rows, (0, {}))[1] == self.model:
                self._units = {row["text"]: row["units"] for _, row in rows}

    def speak(self, text: str) -> list[int]:
        if text not in self._units:
            if self._speaker is None:
                self._speaker = self._load(self._model_dir)
                self._bar = tqdm(desc="answers", unit="answer", initial=len(self._units), disable=None)
            self._units[text] = [int(u) for u in self._speaker(text)]
            self._bar.update()
            if time.monotonic() - self._saved > SAVE_EVERY:
                self.save()
        return self._units[text]

    def save(self) -> None:
        write_jsonl(self.path, [self.model, *({"text": t, "units": u} for t, u in self._units.items())])
        self._saved = time.monotonic()

    def __enter__(self) -> "SpokenAnswers":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """After an error the answers stay for the next run; once all is written, they go."""
        if self._bar is not None:
            self._bar.close()
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self._units:
            self.save()


def _changed(model: Path) -> int:
    """Nanoseconds at which the newest file of the model's folder changed."""
    if not model.is_dir():
        raise FileNotFoundError(f"{model}: no such model folder")
    return max((path.stat().st_mtime_ns for path in model.rglob("*") if path.is_file()), default=0)
