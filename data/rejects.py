"""What a builder could not use: counted against a tolerance, and kept in a file with the reason."""

from pathlib import Path

from speechgpt.data.files import write_jsonl


class Rejects:
    """`with Rejects("rows.rejects.jsonl", max_bad=3) as rejects: rejects.add("id", "reason")`.

    More than `max_bad` of them raise ValueError. The file holds {"id", "reason"} lines; none is left (nor an
    old one kept) when there is nothing to say.
    """

    def __init__(self, path: str | Path, max_bad: int = 0):
        self.path = Path(path)
        self.max_bad = max_bad
        self.rows: list[dict] = []

    @classmethod
    def beside(cls, out: str | Path, max_bad: int = 0) -> "Rejects":
        """For the rows of OUT.jsonl: OUT.rejects.jsonl."""
        return cls(Path(out).with_suffix(".rejects.jsonl"), max_bad)

    def add(self, name: str, reason: str) -> None:
        self.rows.append({"id": name, "reason": reason})
        if len(self.rows) > self.max_bad:
            hint = f"; {self.max_bad} are tolerated (--max-bad), the others are in {self.path}"
            raise ValueError(f"{name}: {reason}{hint if self.max_bad else ' (--max-bad N tolerates N such)'}")

    def __len__(self) -> int:
        return len(self.rows)

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self.rows and self.max_bad:
            write_jsonl(self.path, self.rows)
        else:
            self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        return f", {len(self.rows)} rejected ({self.path})" if self.rows else ""
