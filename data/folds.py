"""Manifests for encoders that each leave one fold of the recordings and of the voices out (cross-fitting).

An encoder knows the recordings that it was trained on: their units are cleaner than any that a new speaker
will get, and what learns from them (a language model) meets others in use. So several encoders are trained,
each without one fold, and the units of a fold come from the encoder that has not heard it.

What is left out are recordings and voices, not words: the same text may be heard from somebody else, as any
encoder has heard most words that it will meet. So texts decide the fold within a corpus that is divided by
them (one speaker, or none known), and nothing across corpora.
"""

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from speechgpt.data.draws import draw, matches
from speechgpt.data.rows import Utterance, path_from, read_manifest, write_manifest
from speechgpt.data.settings import load_settings
from speechgpt.data.splits import text_key

KEYS = ("speaker", "text")  # what stays together in one fold


@dataclass
class FoldsConfig:
    """folds.yaml; patterns are shell-like (`*`, `?`, `[1-9]`)."""

    folds: int = 2
    seed: int = 0
    by: dict = field(default_factory=lambda: {"*": "speaker"})  # corpus -> one of KEYS; "*": all others
    leave_out: list = field(default_factory=list)  # patterns of speakers, fold by fold; others are drawn
    heard_by_all: list = field(default_factory=list)  # corpora that no encoder leaves out
    # Corpora whose unheard rows get the ending .f0, .f1 ...: they come beside the usual rows. Those of others
    # keep their ids, and replace the usual ones (`speechgpt merge --first`).
    added: list = field(default_factory=list)
    shares: dict = field(default_factory=dict)  # corpus -> share of its unheard rows that are taken, not all

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds: {self.folds}, expected 2 or more")
        for corpus, key in self.by.items():
            if key not in KEYS:
                raise ValueError(f"by: {corpus}: {key!r}, expected {' or '.join(KEYS)}")
        if self.leave_out and len(self.leave_out) != self.folds:
            raise ValueError(f"leave_out: {len(self.leave_out)} lists of speakers for {self.folds} folds")
        if not all(type(v) in (int, float) and 0 <= v <= 1 for v in self.shares.values()):
            raise ValueError(f"shares: {self.shares!r}, expected a share from 0 to 1 for each corpus")
        lists = [*self.leave_out, self.heard_by_all, self.added]
        if not all(isinstance(each, list) and all(isinstance(p, str) for p in each) for each in lists):
            raise ValueError(
                "leave_out, heard_by_all, added: expected lists of patterns (leave_out: a list a fold)"
            )

    def fold(self, row: Utterance) -> int | None:
        """The fold that leaves `row` out, 0 to `folds` - 1; None where no encoder does.

        A disturbed copy has its recording's speaker and text, and so its fold. Raises ValueError for a corpus
        or a row that cannot be placed.
        """
        if matches(row.corpus, self.heard_by_all):
            return None
        named = [number for number, patterns in enumerate(self.leave_out) if matches(row.speaker, patterns)]
        if len(named) > 1:
            found = " and ".join(str(number) for number in named)
            raise ValueError(f"leave_out: speaker {row.speaker!r} is in folds {found}")
        if named:
            return named[0]
        return int(draw(self.seed, "fold", *self._key(row)) * self.folds)

    def is_taken(self, row: Utterance) -> bool:
        return draw(self.seed, "taken", row.id) < self.shares.get(row.corpus, 1.0)

    def _key(self, row: Utterance) -> tuple[str, str]:
        """What is drawn. Speakers have one name in all corpora, as for `speechgpt split`: one fold each."""
        kind = self.by.get(row.corpus) or self.by.get("*")
        if kind is None:
            known = ", ".join(self.by) or "none"
            raise ValueError(f'by: no corpus {row.corpus!r} (row {row.id}) and no "*"; found {known}')
        corpus, key = "", row.speaker
        if kind == "text":
            corpus, key = row.corpus, text_key(row.text) or text_key(row.slots)
        if not key:
            raise ValueError(f"row {row.id} of corpus {row.corpus!r} has no {kind}, which its fold goes by")
        return corpus, key


def heard(config: FoldsConfig, rows: Iterable[Utterance], number: int) -> list[Utterance]:
    """What the encoder of fold `number` is trained on, and measured on: dev, held back as ever."""
    return [r for r in rows if r.split == "dev" or (r.split == "train" and config.fold(r) != number)]


def unheard(config: FoldsConfig, rows: Iterable[Utterance], number: int) -> list[Utterance]:
    """What that encoder gives units of: the training rows of its fold, with ids of their own if `added`."""
    fold = [r for r in rows if r.split == "train" and config.fold(r) == number and config.is_taken(r)]
    return [replace(r, id=f"{r.id}.f{number}") if matches(r.corpus, config.added) else r for r in fold]


def write_folds(config: FoldsConfig, heard_from: Path, manifest: Path, out: Path) -> list[str]:
    """Writes heard-N.jsonl and unheard-N.jsonl of every fold N to the folder `out`; returns a line on each.

    Raises ValueError for rows that cannot be placed, and for a fold whose encoder would hear nothing, or all.
    """
    parts = []
    for kind, source, choose in (("heard", heard_from, heard), ("unheard", manifest, unheard)):
        rows = read_manifest(source)
        for number in range(config.folds):
            try:
                chosen = choose(config, rows, number)
            except ValueError as error:
                raise ValueError(f"{source}: {error}") from error
            if not any(row.split == "train" for row in chosen):
                raise ValueError(f"{source}: no training row is {kind} by the encoder of fold {number}")
            parts.append((out / f"{kind}-{number}.jsonl", source, chosen))
    lines = []
    for path, source, rows in parts:
        write_manifest(path, (replace(row, path=path_from(path, row.audio(source))) for row in rows))
        corpora = Counter(row.corpus for row in rows if row.split == "train")
        hours = sum(row.seconds for row in rows if row.split == "train") / 3600
        counts = ", ".join(f"{n} {corpus}" for corpus, n in sorted(corpora.items()))
        lines.append(f"{path}: {len(rows)} rows; train: {hours:.2f} h, {counts}")
    return lines


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt folds", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="YAML: presets/mini/folds.yaml")
    parser.add_argument("--heard", type=Path, required=True, help="manifest of what encoders are trained on")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="manifest of what units are needed of: with the copies"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of heard-N.jsonl and unheard-N.jsonl")
    args = parser.parse_args(argv)
    for line in write_folds(load_settings(FoldsConfig, args.config), args.heard, args.manifest, args.out):
        print(line)
    return 0
