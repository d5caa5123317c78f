"""Unit selection: what synthesisers said, said again in units that were cut out of people's recordings.

Concatenative synthesis (Hunt and Black 1996), but of discrete units instead of samples: a sentence's phones
are covered by runs of the same phones in recordings, which are joined in the middle of a phone, where it
changes least (diphones). A language model then reads any text in the units, the mistakes and the timing that
recordings have, and not only the few texts that were recorded.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechgpt.data.audio import RECEPTIVE_FIELD, SAMPLE_RATE
from speechgpt.data.draws import matches, pick_weighted
from speechgpt.data.hashes import text_hash
from speechgpt.data.parallel import in_processes
from speechgpt.data.rejects import Rejects
from speechgpt.data.rows import UnitRow, Utterance, read_manifest, read_units, write_units
from speechgpt.data.settings import load_settings
from speechgpt.units.dedup import deduplicate, expand
from speechgpt.units.phones import frame_centres

CHUNK = 500  # sentences that a process takes at a time
CONTEXT = 3  # phones by which a run is looked up; from there on it is followed in its recording
SPLIT = "train"


@dataclass
class SelectionConfig:
    """unit-selection.yaml."""

    donors: dict  # corpus of recordings that are cut: its share of the sentences
    said: list  # patterns of CORPUS/ID of rows that are said again
    said_exclude: list = field(default_factory=list)
    speakers: list = field(default_factory=lambda: ["*"])  # patterns: whose phones are taken
    donors_exclude: list = field(default_factory=list)  # patterns of CORPUS/ID
    shortest: int = 2  # phones of a run, where there are such: drawn anew for each
    longest: int = 6
    times: dict = field(
        default_factory=lambda: {"*": 1}
    )  # corpus: how often each row is said; "*": all others
    hop: int = 320  # samples from a unit to the next; HuBERT's
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(
                f"shortest {self.shortest}, longest {self.longest}: expected 1 <= shortest <= longest"
            )
        shares = self.donors.values()
        if not all(type(v) in (int, float) and 0 <= v < float("inf") for v in shares) or not any(shares):
            raise ValueError(f"donors is {self.donors!r}; expected a share for each corpus")
        if self.hop < 1 or not all(type(n) is int and n >= 0 for n in self.times.values()):
            raise ValueError(
                f"times is {self.times}, hop {self.hop}; expected whole numbers, a hop of 1 or more"
            )

    def times_said(self, corpus: str) -> int:
        return self.times.get(corpus, self.times.get("*", 0))


@dataclass(frozen=True)
class Donor:
    """A recording's units and where its phones are."""

    phones: tuple[str, ...]  # P
    bounds: np.ndarray  # (P + 1,) int64: the first frame of each phone, and the end
    frames: np.ndarray  # (N,) int64: units

    def cut(self, first: int, last: int, from_middle: bool, to_middle: bool) -> np.ndarray:
        """The units of the frames from phone `first` to phone `last`; of these, half where asked."""
        start = self._middle(first) if from_middle else self.bounds[first]
        end = self._middle(last) if to_middle else self.bounds[last + 1]
        return self.frames[start:end]

    def _middle(self, phone: int) -> int:
        return (self.bounds[phone] + self.bounds[phone + 1]) // 2


def donor(row: UnitRow, phones: list, hop: int) -> Donor:
    """A unit row with its phones, [[phone, end in seconds], ...]; frames as `phone_labels` gives them."""
    frames = expand(row.units, row.durations)
    centres = frame_centres(len(frames), hop, RECEPTIVE_FIELD, SAMPLE_RATE)  # N
    ends = np.searchsorted(centres, [end for _, end in phones])
    bounds = np.concatenate([[0], ends[:-1], [len(frames)]]).astype(np.int64)
    return Donor(tuple(phone for phone, _ in phones), bounds, frames)


class Inventory:
    """Recordings, by the phones that follow each other in them."""

    def __init__(self, donors: Sequence[Donor]):
        self.donors = donors
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        for number, one in enumerate(donors):
            for place in range(len(one.phones)):
                for length in range(1, min(CONTEXT, len(one.phones) - place) + 1):
                    self._places[one.phones[place : place + length]].append((number, place))

    def say(self, phones: Sequence[str], config: SelectionConfig, rng: np.random.Generator) -> np.ndarray:
        """Phones (P) to units, one a frame (N,). Raises ValueError for a phone that no recording has."""
        phones, at, joined, pieces = tuple(phones), 0, False, []
        while at < len(phones):
            wanted = int(rng.integers(config.shortest, config.longest + 1))
            one, place, length = self._run(phones[at : at + wanted], rng)
            ends = at + length == len(phones)
            halved = length > 1 and not ends
            pieces.append(one.cut(place, place + length - 1, joined, halved))
            at += length - halved
            joined = halved
        return np.concatenate(pieces)

    def _run(self, phones: tuple[str, ...], rng: np.random.Generator) -> tuple[Donor, int, int]:
        """(recording, first phone in it, how many): the longest beginning of `phones` that one drawn has."""
        for length in range(min(CONTEXT, len(phones)), 0, -1):
            if found := self._places.get(phones[:length]):
                number, place = found[int(rng.integers(len(found)))]
                there = self.donors[number].phones
                while (
                    length < len(phones)
                    and there[place + length : place + length + 1] == phones[length : length + 1]
                ):
                    length += 1
                return self.donors[number], place, length
        raise ValueError(f"no recording has the phone {phones[0]}")


def read_inventories(
    units: Sequence[str | Path], phones: dict[str, list], config: SelectionConfig
) -> dict[str, Inventory]:
    """The donors of each corpus. Raises ValueError for a corpus without any."""
    found: dict[str, list[Donor]] = {corpus: [] for corpus in config.donors}
    for path in units:
        for row in read_units(path):
            fits = row.split == SPLIT and not matches(f"{row.corpus}/{row.id}", config.donors_exclude)
            if fits and row.corpus in found and phones.get(row.id):
                found[row.corpus].append(donor(row, phones[row.id], config.hop))
    if missing := [corpus for corpus, donors in found.items() if not donors]:
        raise ValueError(
            f"{', '.join(map(str, units))}: no {SPLIT} rows of {', '.join(missing)} with phones "
            "(`speechgpt align` adds them)"
        )
    return {corpus: Inventory(donors) for corpus, donors in found.items()}


def say_rows(
    rows: Sequence[Utterance], inventories: dict[str, Inventory], config: SelectionConfig
) -> tuple[list[UnitRow], list[tuple[str, str]]]:
    """The unit rows `ID.s0`, `ID.s1` ... of each row, and (id, reason) of those that cannot be said."""
    said, left = [], []
    for row in rows:
        for time in range(config.times_said(row.corpus)):
            name = f"{row.id}.s{time}"
            corpus = pick_weighted(config.donors, config.seed, "donors", name)
            rng = np.random.default_rng(int(text_hash(config.seed, "selection", name), 16))
            try:
                frames = inventories[corpus].say([phone for phone, _ in row.phones], config, rng)
                units, durations = deduplicate(frames)
                if not len(units):
                    raise ValueError("its phones lasted for no frame")
            except ValueError as error:
                left.append((name, str(error)))
                continue
            said.append(
                UnitRow(
                    name,
                    units.tolist(),
                    durations.tolist(),
                    corpus,
                    row.corpus,
                    row.text,
                    row.split,
                    row.slots,
                )
            )
    return said, left


def select(
    units: Sequence[str | Path],
    manifests: Sequence[str | Path],
    config: SelectionConfig,
    rejects: Rejects,
    jobs: int = 0,
) -> Iterator[UnitRow]:
    """Says the rows that the config names, in the manifests' order, in units of the recordings in `units`."""
    rows = [row for manifest in manifests for row in read_manifest(manifest)]
    inventories = read_inventories(
        units, {row.id: row.phones for row in rows if row.corpus in config.donors}, config
    )
    rows = [row for row in rows if _is_said(row, config)]
    if not rows:
        raise ValueError(f"{', '.join(map(str, manifests))}: no {SPLIT} row with phones is to be said again")
    chunks = [(first, rows[first : first + CHUNK]) for first in range(0, len(rows), CHUNK)]
    done = dict(in_processes(_say_chunk, chunks, jobs, (inventories, config)))
    for first, _ in chunks:
        said, left = done[first]
        for name, reason in left:
            rejects.add(name, reason)
        yield from said


def _say_chunk(chunk: tuple[int, list[Utterance]], inventories: dict, config: SelectionConfig) -> tuple:
    first, rows = chunk
    return first, say_rows(rows, inventories, config)


def _is_said(row: Utterance, config: SelectionConfig) -> bool:
    name = f"{row.corpus}/{row.id}"
    wanted = matches(name, config.said) and not matches(name, config.said_exclude)
    return wanted and row.split == SPLIT and bool(row.phones) and matches(row.speaker, config.speakers)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt unit-selection", description=__doc__)
    parser.add_argument("--config", required=True, help="unit-selection.yaml")
    parser.add_argument("--donors", nargs="+", required=True, help="unit rows of the recordings that are cut")
    parser.add_argument(
        "--manifest", nargs="+", required=True, help="phones, of the recordings and of what is said"
    )
    parser.add_argument("--out", type=Path, required=True, help="unit rows")
    parser.add_argument("--jobs", type=int, default=0, help="processes; default: one for each core")
    parser.add_argument(
        "--max-bad", type=int, default=0, help="rejects to tolerate; they go to OUT's .rejects.jsonl"
    )
    args = parser.parse_args(argv)
    config = load_settings(SelectionConfig, args.config)
    with Rejects.beside(args.out, args.max_bad) as rejects:
        count = write_units(args.out, select(args.donors, args.manifest, config, rejects, args.jobs))
    print(f"{args.out}: {count} rows{rejects}")
    return 0
