"""Packs: rows laid end to end in sequences of one fixed length, each row a document of its own.

A row's positions start at 0 and its tokens see no other row's (`speechgpt.packed_attention`), so a pack
trains what its rows padded to a batch would, and almost no token of it is padding. All packs are equally
long: one shape to compile, one amount of memory.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from speechgpt.batches import IGNORED, PAD_MULTIPLE, TokenRows

WINDOW = 1024  # rows that are looked through for one that fills the end of a pack
LONGEST_MULTIPLE = 128  # tokens: bounds on document lengths are rounded up to this, the attention's block


def cut_rows(rows: TokenRows, length: int) -> TokenRows:
    """Rows longer than `length` tokens in consecutive pieces (stage 1); no token is lost."""
    parts = []
    for number in range(len(rows)):
        ids, mask, kind = rows[number]
        for start in range(0, len(ids), length):
            piece = slice(start, start + length)
            parts.append((ids[piece], mask[piece], rows.kinds[kind]))
    return TokenRows.join(parts)


class PackedBatches(Sampler):
    """Lists of row numbers that fill packs of `tokens` tokens; a longer row is a pack of its own.

    The rows are packed once, in an order drawn from the seed. In each epoch the packs come in another order,
    and rows of the same length change places, drawn from (seed, epoch) alone: every epoch has the same number
    of packs, and a resumed run sees what a straight one would. Each of `world` processes gets every world-th
    pack; some are dealt twice if they do not come out even.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        tokens: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.lengths = np.asarray(lengths)  # rows
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0
        order = np.random.default_rng([seed, 2]).permutation(len(self.lengths))
        self.packs = fill_packs(self.lengths, order, tokens)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.packs) // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        packs = self.plan()
        for step in range(len(self)):
            yield packs[(step * self.world + self.rank) % len(packs)]

    def plan(self) -> list[list[int]]:
        """All packs of this epoch, for all processes, in order."""
        rng = np.random.default_rng([self.seed, self.epoch])
        count = len(self.lengths)
        sitting = np.argsort(self.lengths, kind="stable")
        called = np.lexsort((rng.permutation(count), self.lengths))  # the same lengths in the same places
        instead = np.empty(count, dtype=np.int64)
        instead[sitting] = called
        return [instead[self.packs[i]].tolist() for i in rng.permutation(len(self.packs))]


def fill_packs(lengths: np.ndarray, order: np.ndarray, room: int, window: int = WINDOW) -> list[np.ndarray]:
    """Row numbers a pack: rows as they come in `order` while they fit, then the longest that still fit of the
    next `window` rows. Packs are thus random samples of the rows, and all but the last are nearly full."""
    ordered = np.asarray(lengths)[order]  # rows
    sizes = ordered.tolist()
    taken = np.zeros(len(order), dtype=bool)
    packs: list[np.ndarray] = []
    head = 0
    while head < len(sizes):
        if taken[head]:
            head += 1
            continue
        left, members, place = room, [], head
        while place < len(sizes) and (taken[place] or sizes[place] <= left or not members):
            if not taken[place]:
                members.append(place)
                left -= sizes[place]
            place += 1
        taken[head:place] = True
        while left > 0:
            near = ordered[place : place + window]
            fitting = np.where(taken[place : place + window] | (near > left), 0, near)
            if not fitting.any():
                break
            best = place + int(fitting.argmax())
            members.append(best)
            taken[best] = True
            left -= sizes[best]
        packs.append(order[members])
        head = place
    return packs


def collate_pack(
    rows: list[tuple[np.ndarray, np.ndarray, int]], pad_id: int, tokens: int, longest: int
) -> dict[str, torch.Tensor | int]:
    """Rows (ids, mask, kind) to one pack of L tokens: `tokens`, or more if a row is longer.

    input_ids, labels and position_ids are (1, L) int64. `bounds` (documents + 1,) int32 says where each
    document begins, and the end; padding is a document too (or several, none longer than the longest row).
    `predictors` (M,) int64 are the places before the supervised tokens, `targets` (M,) int64 these tokens (or
    IGNORED, where M was rounded up). `longest` is handed on: no document may be longer.
    """
    lengths = [len(ids) for ids, _, _ in rows]
    total = -(-max(tokens, sum(lengths)) // PAD_MULTIPLE) * PAD_MULTIPLE
    spare, piece = total - sum(lengths), max(lengths)
    documents = lengths + [piece] * (spare // piece) + ([spare % piece] if spare % piece else [])
    bounds = np.cumsum([0, *documents])
    input_ids = np.full(total, pad_id, dtype=np.int64)  # L
    labels = np.full(total, IGNORED, dtype=np.int64)  # L
    for start, (ids, mask, _) in zip(bounds.tolist(), rows, strict=False):
        input_ids[start : start + len(ids)] = ids
        labels[start : start + len(ids)] = np.where(mask, ids, IGNORED)
        labels[start] = IGNORED  # nothing in its document comes before it
    positions = np.arange(total) - np.repeat(bounds[:-1], documents)  # L
    before = np.flatnonzero(labels != IGNORED) - 1
    size = -(-max(1, len(before)) // PAD_MULTIPLE) * PAD_MULTIPLE  # M
    predictors = np.zeros(size, dtype=np.int64)  # M
    targets = np.full(size, IGNORED, dtype=np.int64)  # M
    predictors[: len(before)], targets[: len(before)] = before, labels[before + 1]
    return {
        "input_ids": torch.from_numpy(input_ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(positions)[None],
        "bounds": torch.from_numpy(bounds.astype(np.int32)),
        "predictors": torch.from_numpy(predictors),
        "targets": torch.from_numpy(targets),
        "longest": -(-longest // LONGEST_MULTIPLE) * LONGEST_MULTIPLE,
    }
