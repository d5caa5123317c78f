"""Token rows as flat arrays, packing into blocks, and batches of rows of like length.

Rows are padded on the right and no attention mask is passed: under causal attention a token never sees the
padding after it, and the padding carries no loss, so the fast attention kernels stay usable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from speechgpt.data.files import read_json, write_json

IGNORED = -100  # label of a token without loss, as transformers wants it
PAD_MULTIPLE = 16  # tokens: batch lengths are rounded up to this, for the tensor cores and for few shapes


@dataclass
class TokenRows(Dataset):
    """Rows of token ids with their loss mask, end to end in flat arrays (L is the sum of all lengths)."""

    ids: np.ndarray  # (L,) int32
    mask: np.ndarray  # (L,) bool, true where the token is supervised
    offsets: np.ndarray  # (rows + 1,) int64, where each row starts
    kind: np.ndarray  # (rows,) uint8, index into `kinds`
    kinds: tuple[str, ...]  # names of the kinds of rows

    @classmethod
    def join(cls, rows: Sequence[tuple[np.ndarray, np.ndarray, str]]) -> "TokenRows":
        """From (ids, mask, kind) a row."""
        kinds = tuple(sorted({kind for _, _, kind in rows}))
        number = {kind: i for i, kind in enumerate(kinds)}
        empty = np.zeros(0)
        return cls(
            ids=np.concatenate([ids for ids, _, _ in rows] or [empty]).astype(np.int32),
            mask=np.concatenate([mask for _, mask, _ in rows] or [empty]).astype(bool),
            offsets=np.cumsum([0, *(len(ids) for ids, _, _ in rows)], dtype=np.int64),
            kind=np.array([number[kind] for _, _, kind in rows], dtype=np.uint8),
            kinds=kinds,
        )

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray, int]:
        part = slice(self.offsets[row], self.offsets[row + 1])
        return self.ids[part], self.mask[part], int(self.kind[row])

    def __getitems__(self, rows: list[int]) -> list[tuple[np.ndarray, np.ndarray, int]]:
        return [self[row] for row in rows]

    @property
    def lengths(self) -> np.ndarray:
        """(rows,) int64 tokens."""
        return np.diff(self.offsets)

    def select(self, rows: np.ndarray) -> "TokenRows":
        """The given rows, in the given order; a row may be given several times."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        flat = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)  # (L,)
        return TokenRows(self.ids[flat], self.mask[flat], offsets, self.kind[rows], self.kinds)

    def count(self) -> dict[str, int]:
        """Rows of each kind."""
        found = np.bincount(self.kind, minlength=len(self.kinds))
        return {kind: int(n) for kind, n in zip(self.kinds, found, strict=True) if n}

    def save(self, folder: Path) -> None:
        """Writes plain npy files, that several processes can map into memory."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "mask", "offsets", "kind"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        write_json(folder / "kinds.json", self.kinds)

    @classmethod
    def load(cls, folder: Path) -> "TokenRows":
        arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("ids", "mask")}
        small = {n: np.load(folder / f"{n}.npy") for n in ("offsets", "kind")}
        return cls(**arrays, **small, kinds=tuple(read_json(folder / "kinds.json")))


def pack(rows: TokenRows, block: int) -> TokenRows:
    """Lays rows end to end in blocks of at most `block` tokens: best fit, longest first.

    No row is cut unless it is longer than a block: then it goes into consecutive pieces, none of them lost.
    The first token of a row has no loss, because nothing in its block says what comes next.
    """
    parts = _pieces(rows, block)
    blocks: list[list[int]] = []
    open_blocks: dict[int, list[int]] = {}  # tokens left -> numbers of the blocks that have so much room
    free = 0  # bit r is set where open_blocks[r] is not empty
    kind = -1
    for i in sorted(range(len(parts)), key=lambda i: (parts[i][2], parts[i][0] - parts[i][1], i)):
        start, end, kind_here = parts[i]
        if kind_here != kind:  # kinds do not share blocks
            open_blocks, free, kind = {}, 0, kind_here
        length = end - start
        fitting = free >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1  # the smallest room that is large enough
            number = open_blocks[left].pop()
            if not open_blocks[left]:
                free &= ~(1 << left)
        else:
            left, number = block, len(blocks)
            blocks.append([])
        blocks[number].append(i)
        if left > length:
            open_blocks.setdefault(left - length, []).append(number)
            free |= 1 << (left - length)
    return _lay(rows, parts, blocks)


def _pieces(rows: TokenRows, block: int) -> list[tuple[int, int, int]]:
    """(start, end, kind) of each row in the flat arrays; rows longer than a block in several pieces."""
    pieces = []
    offsets = rows.offsets.tolist()
    for start, end, kind in zip(offsets[:-1], offsets[1:], rows.kind.tolist(), strict=True):
        for cut in range(start, end, block):
            pieces.append((cut, min(cut + block, end), kind))
    return pieces


def _lay(rows: TokenRows, parts: list[tuple[int, int, int]], blocks: list[list[int]]) -> TokenRows:
    starts = set(rows.offsets[:-1].tolist())
    laid = []
    for members in blocks:
        pieces = [parts[i] for i in sorted(members)]
        masks = [rows.mask[start:end].copy() for start, end, _ in pieces]
        for mask, (start, _, _) in zip(masks, pieces, strict=True):
            if start in starts:
                mask[0] = False
        ids = np.concatenate([rows.ids[start:end] for start, end, _ in pieces])
        laid.append((ids, np.concatenate(masks), rows.kinds[pieces[0][2]]))
    return TokenRows.join(laid)


class LengthBatches(Sampler):
    """Lists of row numbers of like length: `rows` a batch, or as many as keep the padded batch in `tokens`.

    The order is a function of (seed, epoch) alone, so a resumed run sees what a straight one would. Every
    epoch has the same number of batches, although rows change company: cuts depend on rounded lengths only.
    Each of `world` processes gets every world-th batch; some are dealt twice if they do not come out even.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        rows: int = 8,
        tokens: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ):
        self.rounded = -(-np.asarray(lengths) // PAD_MULTIPLE) * PAD_MULTIPLE
        self.seed, self.rank, self.world = seed, rank, world
        self.shuffle = shuffle
        self.epoch = 0
        self.cuts = _cuts(np.sort(self.rounded)[::-1], rows, tokens)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-(len(self.cuts) - 1) // self.world)

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.plan()
        for step in range(len(self)):
            yield batches[(step * self.world + self.rank) % len(batches)]

    def plan(self) -> list[list[int]]:
        """All batches of this epoch, for all processes, in order."""
        count = len(self.rounded)
        rng = np.random.default_rng([self.seed, self.epoch])
        chance = rng.permutation(count) if self.shuffle else np.arange(count)
        order = np.lexsort((chance, -self.rounded))  # longest first, neighbours by chance
        batches = [order[a:b].tolist() for a, b in zip(self.cuts[:-1], self.cuts[1:], strict=True)]
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches


def _cuts(ordered: np.ndarray, rows: int, tokens: int) -> list[int]:
    """Where batches begin in rows sorted from the longest to the shortest; the last entry is the end."""
    if not tokens:
        return [*range(0, len(ordered), rows), len(ordered)]
    cuts = [0]
    while cuts[-1] < len(ordered):
        cuts.append(min(len(ordered), cuts[-1] + max(1, tokens // int(ordered[cuts[-1]]))))
    return cuts


@dataclass(frozen=True)
class UnitNoise:
    """Units that are heard, not learnt, are replaced by others at random: what is new to an encoder is heard
    with more errors than what it was trained on, and a language model must not trust every unit."""

    share: float  # of the units without loss
    first: int  # id of unit 0
    count: int  # K

    def among(self, ids: np.ndarray) -> np.ndarray:
        """ids (L,) to (L,) bool: which are units."""
        return (ids >= self.first) & (ids < self.first + self.count)

    def apply(self, ids: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """ids (L,) with their loss mask (L,) to ids (L,)."""
        heard = ~mask & self.among(ids)
        wrong = heard & (rng.random(len(ids)) < self.share)
        return np.where(wrong, rng.integers(self.first, self.first + self.count, len(ids)), ids)


@dataclass(frozen=True)
class TextNoise:
    """In rows that are heard, words that are written go wrong at random, without loss where they do: after a
    misheard word of its own a model must go on, and answer, from what it hears, not from that word alone."""

    share: float  # of the text tokens with loss
    first: int  # the lowest id of text; the tokens that begin and end rows are below
    units: UnitNoise  # text ends where units begin

    def apply(
        self, ids: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids and their loss mask (L,) each to the same."""
        if not (~mask & self.units.among(ids)).any():
            return ids, mask
        end = self.units.first
        wrong = mask & (ids >= self.first) & (ids < end) & (rng.random(len(ids)) < self.share)
        return np.where(wrong, rng.integers(self.first, end, len(ids)), ids), mask & ~wrong


class NoisyRows(Dataset):
    """Rows by (epoch, row number), with noise drawn from these and the seed: a resumed run sees the same."""

    def __init__(self, rows: TokenRows, noise: UnitNoise, seed: int, text: TextNoise | None = None):
        self.rows, self.noise, self.seed, self.text = rows, noise, seed, text

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, int]:
        ids, mask, kind = self.rows[place[1]]
        rng = np.random.default_rng([self.seed, *place])
        ids = self.noise.apply(ids, mask, rng)
        if self.text is not None:
            ids, mask = self.text.apply(ids, mask, rng)
        return ids, mask, kind


class EpochBatches(Sampler):
    """The batches of a `LengthBatches`, as lists of (epoch, row number)."""

    def __init__(self, batches: "LengthBatches"):
        self.batches = batches

    def set_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(self.batches.epoch, row) for row in batch]


def collate(rows: list[tuple[np.ndarray, np.ndarray, int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows to input_ids (B, L) and labels (B, L), int64, padded on the right."""
    length = -(-max(len(ids) for ids, _, _ in rows) // PAD_MULTIPLE) * PAD_MULTIPLE
    input_ids = np.full((len(rows), length), pad_id, dtype=np.int64)  # B L
    labels = np.full((len(rows), length), IGNORED, dtype=np.int64)  # B L
    for i, (ids, mask, _) in enumerate(rows):
        input_ids[i, : len(ids)] = ids
        labels[i, : len(ids)] = np.where(mask, ids, IGNORED)
    return {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}


class BatchLoader(DataLoader):
    """A DataLoader over `LengthBatches` that tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)
