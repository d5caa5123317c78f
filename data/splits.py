"""Train, dev and test splits that share no speaker and no text.

Where a corpus has several speakers, whole speakers are held back; where it has one, texts are. A text that
then still stands in two splits stays where more rows say it, and its other rows are dropped.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt.data.draws import draw
from speechgpt.data.files import write_jsonl
from speechgpt.data.rows import SPLITS, Utterance, path_from, read_manifest, write_manifest

WAYS = ("speaker", "text", "keep", "train")  # how a corpus is split
UNKNOWN = ("train", "text", "drop")  # what becomes of rows whose speaker nobody knows


@dataclass(frozen=True)
class SplitPlan:
    shares: dict[str, float]  # {"test": 0.05, "dev": 0.05}, of each corpus's rows
    seed: int = 0
    unknown: str = "train"  # one of UNKNOWN
    by: dict[str, str] = field(default_factory=dict)  # corpus -> one of WAYS; others: speaker, or text if one
    share_text: frozenset[str] = frozenset()  # corpora of few texts (digits) whose splits may share them

    def keeps(self, row: Utterance) -> bool:
        """Rows of a corpus that keeps its own splits are never moved or dropped."""
        return self.by.get(row.corpus) == "keep"


def text_key(text: str) -> str:
    """What makes two texts the same: letters, digits and apostrophes; not case, punctuation or spacing."""
    return " ".join(re.sub(r"[^\w']+|_", " ", text.casefold()).split()) or " ".join(text.split())


def _key(row: Utterance) -> str:
    """The text; for rows that are labelled by meaning alone, the meaning."""
    return text_key(row.text) or text_key(row.slots)


def split_rows(rows: list[Utterance], plan: SplitPlan) -> tuple[list[Utterance], list[dict]]:
    """Returns (rows with their split set, in order, and [{"id", "reason"}, ...] for those dropped).

    Raises ValueError when a corpus cannot be split as asked.
    """
    dropped: list[dict] = []
    proposed: dict[str, str] = {}  # row id -> split that its speaker (or its corpus's own split) asks for
    free: list[Utterance] = []  # rows that follow their text, whatever their speaker
    by_corpus: dict[str, list[Utterance]] = defaultdict(list)
    for row in rows:
        by_corpus[row.corpus].append(row)
    for corpus, own in by_corpus.items():
        known = [row for row in own if row.speaker]
        way = plan.by.get(corpus) or ("text" if len({row.speaker for row in known}) == 1 else "speaker")
        if way == "keep":
            proposed |= {row.id: row.split for row in own}
        elif way == "train":
            proposed |= {row.id: "train" for row in own}
        elif way == "text":
            free += own
        else:
            proposed |= _by_speaker(corpus, known, plan)
            lost = [row for row in own if not row.speaker]
            proposed |= {row.id: "train" for row in lost if plan.unknown == "train"}
            free += lost if plan.unknown == "text" else []
            if plan.unknown == "drop":
                dropped += [{"id": row.id, "reason": "its speaker is unknown"} for row in lost]
    _one_split_a_text(rows, proposed, free, plan, dropped)
    _one_split_a_speaker(rows, proposed, {row.id for row in free}, plan, dropped)
    kept = [row for row in rows if row.id in proposed]
    for row in kept:
        row.split = proposed[row.id]
    _check_shares(kept, by_corpus, plan)
    return kept, dropped


def _by_speaker(corpus: str, rows: list[Utterance], plan: SplitPlan) -> dict[str, str]:
    """Row id -> split; every speaker in one split, each split with at least one speaker."""
    size = Counter(row.speaker for row in rows)
    asked = [split for split in ("test", "dev") if plan.shares.get(split, 0) > 0]
    if rows and len(size) <= len(asked):
        raise ValueError(
            f"corpus {corpus!r} has {len(size)} speakers, too few for {', '.join(['train', *asked])}; give "
            f"--by {corpus}=text (splits then share speakers), --by {corpus}=train, or --dev 0"
        )
    left = sorted(size, key=lambda speaker: draw(plan.seed, "speaker", speaker))
    chosen: dict[str, str] = {}
    for split in asked if rows else []:
        wanted, have = plan.shares[split] * len(rows), 0
        for speaker in list(left):
            # A speaker with far more rows than are wanted stays in train.
            if have < wanted and have + size[speaker] <= max(1.5 * wanted, wanted + 1) and len(left) > 2:
                chosen[speaker] = split
                have += size[speaker]
                left.remove(speaker)
        if not have:
            smallest = min(left, key=lambda speaker: size[speaker])
            chosen[smallest] = split
            left.remove(smallest)
    return {row.id: chosen.get(row.speaker, "train") for row in rows}


def _one_split_a_text(
    rows: list[Utterance],
    proposed: dict[str, str],
    free: list[Utterance],
    plan: SplitPlan,
    dropped: list[dict],
) -> None:
    """Settles `proposed` (changed in place): drops the minority rows of a text, and places the free rows."""
    said: dict[str, Counter] = defaultdict(Counter)  # text -> split -> rows
    bound = [row for row in rows if row.corpus not in plan.share_text and _key(row) and row.id in proposed]
    for row in bound:
        # What a corpus itself holds back outweighs everything else.
        said[_key(row)][proposed[row.id]] += len(rows) if plan.keeps(row) else 1
    # The same count on both sides: the smaller split keeps it.
    home = {text: max(n, key=lambda s: (n[s], SPLITS.index(s))) for text, n in said.items()}
    for row in bound:
        if proposed[row.id] != home[_key(row)] and not plan.keeps(row):
            reason = f"its text is in {home[_key(row)]}, its speaker in {proposed.pop(row.id)}"
            dropped.append({"id": row.id, "reason": reason})
    _place_by_text(free, home, plan)
    proposed |= {row.id: home[_key(row) or row.id] for row in free}


def _place_by_text(free: list[Utterance], home: dict[str, str], plan: SplitPlan) -> None:
    """Gives every text of the `free` rows that has no split yet one in `home` (changed in place)."""
    texts: dict[str, Counter] = defaultdict(Counter)  # corpus -> text -> rows
    for row in free:
        texts[row.corpus][_key(row) or row.id] += 1
    for size in texts.values():
        left = sorted((t for t in size if t not in home), key=lambda text: draw(plan.seed, "text", text))
        for split in ("test", "dev"):
            wanted = plan.shares.get(split, 0) * size.total()
            have = sum(n for text, n in size.items() if home.get(text) == split)
            while left and have < wanted:
                have += size[left[0]]
                home[left.pop(0)] = split
        home |= dict.fromkeys(left, "train")


def _one_split_a_speaker(
    rows: list[Utterance], proposed: dict[str, str], free: set[str], plan: SplitPlan, dropped: list[dict]
) -> None:
    """A speaker of several corpora may have been held back in one of them: the held back split keeps him."""
    homes: dict[str, str] = {}
    for row in rows:
        if row.speaker and row.id in proposed and row.id not in free:
            homes[row.speaker] = max(homes.get(row.speaker, "train"), proposed[row.id], key=SPLITS.index)
    for row in rows:
        home = homes.get(row.speaker)
        if home and proposed.get(row.id, home) != home and row.id not in free and not plan.keeps(row):
            reason = f"its speaker is held back in {home}, in another corpus"
            dropped.append({"id": row.id, "reason": reason})
            del proposed[row.id]


def _check_shares(kept: list[Utterance], by_corpus: dict[str, list[Utterance]], plan: SplitPlan) -> None:
    have = Counter((row.corpus, row.split) for row in kept)
    for corpus, own in by_corpus.items():
        if plan.by.get(corpus) in ("keep", "train") or not any(row.speaker for row in own):
            continue
        for split in SPLITS:
            if not have[corpus, split] and (split == "train" or plan.shares.get(split, 0) > 0):
                raise ValueError(
                    f"corpus {corpus!r} has no {split} rows left: too small, or all its texts are said by "
                    f"speakers of several splits; give --share-text {corpus} or --by {corpus}=text|keep|train"
                )


def check_splits(
    rows: Iterable[Utterance], share_text: Iterable[str] = (), by_text: Iterable[str] = ()
) -> None:
    """Raises ValueError for a text or speaker of two splits, except in corpora named in the two lists."""
    for what, key, spared in (
        ("text", _key, set(share_text)),
        ("speaker", lambda row: row.speaker, set(by_text)),
    ):
        homes: dict[str, Utterance] = {}
        for row in rows:
            if row.corpus in spared or not key(row):
                continue
            first = homes.setdefault(key(row), row)
            if first.split != row.split:
                raise ValueError(
                    f"{what} {key(row)!r} is in {first.split} ({first.id}) and in {row.split} ({row.id})"
                )


def parse_arguments(argv: list[str]) -> tuple[argparse.Namespace, SplitPlan]:
    parser = argparse.ArgumentParser(
        prog="speechgpt split", description="Split a manifest so that no speaker and no text is shared."
    )
    add = parser.add_argument
    add("--manifest", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--only", metavar="CORPUS", help="leave the rows of all other corpora out")
    add("--dev", type=float, default=0.05, help="share of each corpus's rows (default 0.05)")
    add("--test", type=float, default=0.05, help="share of each corpus's rows (default 0.05)")
    add("--seed", type=int, default=0)
    add("--unknown", choices=UNKNOWN, default="train", help="rows of unknown speakers: train (default), "
        "by their text (so that splits may share speakers), or drop")  # fmt: skip
    add("--by", nargs="+", default=[], metavar="CORPUS=WAY", help=f"how to split a corpus: {', '.join(WAYS)} "
        "(keep: its own splits); default: speaker, or text where there is one speaker")  # fmt: skip
    add("--share-text", nargs="+", default=[], metavar="CORPUS", help="corpora of a few texts that all say")
    args = parser.parse_args(argv)
    by = dict(part.partition("=")[::2] for part in args.by)
    if wrong := [f"{corpus}={way}" for corpus, way in by.items() if way not in WAYS]:
        raise ValueError(f"--by {' '.join(wrong)}: expected CORPUS=WAY, the way one of {', '.join(WAYS)}")
    if args.dev < 0 or args.test < 0 or args.dev + args.test >= 1:
        raise ValueError(
            f"--dev {args.dev} and --test {args.test}: expected shares that leave some for train"
        )
    shares = {"test": args.test, "dev": args.dev}
    return args, SplitPlan(shares, args.seed, args.unknown, by, frozenset(args.share_text))


def main(argv: list[str]) -> int:
    args, plan = parse_arguments(argv)
    rows = read_manifest(args.manifest)
    corpora = {row.corpus for row in rows}
    if args.only and args.only not in corpora:
        raise ValueError(f"{args.manifest}: no corpus {args.only}; found {', '.join(sorted(corpora))}")
    rows = [row for row in rows if args.only in (None, row.corpus)]
    if unknown := (set(plan.by) | plan.share_text) - corpora:
        found = ", ".join(sorted(corpora))
        raise ValueError(f"{args.manifest}: no corpus {', '.join(sorted(unknown))}; found {found}")
    kept, dropped = split_rows(rows, plan)
    for row in kept:
        row.path = path_from(args.out, row.audio(args.manifest))
    where = args.out.with_suffix(".dropped.jsonl")
    where.unlink(missing_ok=True)
    if dropped:
        write_jsonl(where, dropped)
    lost = sum(not row.speaker for row in kept)
    if lost:
        print(
            f"{lost} rows have no speaker (--unknown {plan.unknown}); theirs may be shared", file=sys.stderr
        )
    write_manifest(args.out, kept)
    counts = Counter(row.split for row in kept)
    note = f", {len(dropped)} dropped ({where})" if dropped else ""
    print(f"{args.out}: " + ", ".join(f"{counts[split]} {split}" for split in SPLITS) + note)
    return 0
