"""Triton kernels of one decoding step at batch 1: products of a matrix and a vector at the memory's speed.

Of a step's time nearly all is reading the weights once. Norms, the gate, the rotations and the sums of the
residual stream are done where their numbers are in registers anyway: six launches a layer, for queries, keys
and values; attention in splits; their joining; the output; gate and up; down. Sums are float32.
`TRITON_INTERPRET=1` runs the same code on a CPU.
"""

import torch
import triton
import triton.language as tl

from speechgpt.llama_decoder import Cache, LlamaDecoder

# Rows and columns of a matrix that one program holds at a time, and its warps: 16 bytes a thread and load,
# four loads under way.
TILE = (8, 512, 4)
SPLITS, BLOCK = 8, 32  # programs that share a head's positions; positions at a time
LOG2_E = 1.4426950408889634


@triton.jit
def _product(
    vector, norm, matrix, out, size, epsilon, width: tl.constexpr,
    NORM: tl.constexpr, GATE: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out (size,) = matrix (size, width) @ vector; with NORM of the normed vector, with ADD added to `out`,
    with GATE silu of that times the same with the matrix's next `size` rows."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    others = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < width
        here = (rows < size)[:, None] & inside[None, :]
        x = tl.load(vector + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(norm + columns, mask=inside, other=0.0).to(tl.float32)
        places = rows[:, None] * width + columns[None, :]
        weights = tl.load(matrix + places, mask=here, other=0.0, eviction_policy="evict_first")
        sums += weights.to(tl.float32) * x[None, :]
        if GATE:
            weights = tl.load(
                matrix + size * width + places, mask=here, other=0.0, eviction_policy="evict_first"
            )
            others += weights.to(tl.float32) * x[None, :]
    found = tl.sum(sums, 1)
    other = tl.sum(others, 1)
    if NORM:
        # The root is one number for the whole vector, and so may come last.
        scale = 1.0 / tl.sqrt(tl.sum(squares, 0) / width + epsilon)
        found *= scale
        other *= scale
    if GATE:
        found = found / (1.0 + tl.exp(-found)) * other
    if ADD:
        found += tl.load(out + rows, mask=rows < size, other=0.0)
    tl.store(out + rows, found, mask=rows < size)


@triton.jit
def _attend(
    fused, cosines, sines, kept, place, partial, weights, scale, capacity,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's share of the positions. Split 0 rotates, uses and writes the newest key and value."""
    head, split = tl.program_id(0), tl.program_id(1)
    group = head // (HEADS // GROUPS)
    position = tl.load(place).to(tl.int32)
    i = tl.arange(0, WIDTH)
    cosine = tl.load(cosines + position * (WIDTH // 2) + i // 2)
    sine = tl.load(sines + position * (WIDTH // 2) + i // 2) * tl.where(i % 2 == 0, -1.0, 1.0)
    query = tl.load(fused + head * WIDTH + i) * cosine + tl.load(fused + head * WIDTH + (i ^ 1)) * sine
    query *= scale
    new = fused + (HEADS + group) * WIDTH
    key = (tl.load(new + i) * cosine + tl.load(new + (i ^ 1)) * sine).to(kept.dtype.element_ty)
    value = tl.load(new + GROUPS * WIDTH + i).to(kept.dtype.element_ty)
    keys = kept + group * capacity * WIDTH
    values = keys + GROUPS * capacity * WIDTH
    writes = (split == 0) & (head % (HEADS // GROUPS) == 0) & (i < WIDTH)
    tl.store(keys + position * WIDTH + i, key, mask=writes)
    tl.store(values + position * WIDTH + i, value, mask=writes)
    total = tl.where(split == 0, 1.0, 0.0)
    highest = tl.where(split == 0, tl.sum(query * key.to(tl.float32), 0), float("-inf"))
    mixed = value.to(tl.float32) * total
    first = split * BLOCK
    while first < position:
        places = first + tl.arange(0, BLOCK)
        inside = places < position
        offsets = places[:, None] * WIDTH + i[None, :]
        block = tl.load(keys + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        scores = tl.where(inside, tl.sum(query[None, :] * block, 1), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 0))
        shrink = tl.exp2(highest - higher)
        shares = tl.exp2(scores - higher)
        block = tl.load(values + offsets, mask=inside[:, None], other=0.0).to(tl.float32)
        mixed = mixed * shrink + tl.sum(shares[:, None] * block, 0)
        total = total * shrink + tl.sum(shares, 0)
        highest = higher
        first += SPLITS * BLOCK
    at = head * SPLITS + split
    tl.store(partial + at * WIDTH + i, mixed)
    tl.store(weights + 2 * at, highest)
    tl.store(weights + 2 * at + 1, total)


@triton.jit
def _join(partial, weights, attended, WIDTH: tl.constexpr, SPLITS: tl.constexpr):
    """The splits of one head to its attended values."""
    head = tl.program_id(0)
    splits, i = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    highest = tl.load(weights + 2 * (head * SPLITS + splits))
    shares = tl.exp2(highest - tl.max(highest, 0))
    total = tl.sum(shares * tl.load(weights + 2 * (head * SPLITS + splits) + 1), 0)
    parts = tl.load(partial + (head * SPLITS + splits)[:, None] * WIDTH + i[None, :])
    tl.store(attended + head * WIDTH + i, tl.sum(parts * shares[:, None], 0) / total)


def probe(device: torch.device) -> None:
    """Compiles and runs the smallest kernel: raises what a machine without a compiler raises."""
    partial, weights = torch.zeros(1, 2, 16, device=device), torch.zeros(1, 2, 2, device=device)
    _join[(1,)](partial, weights, torch.zeros(16, device=device), 16, 2, num_warps=1)


class KernelStep:
    """One token of one row: `token` and `place` (1,) int64 in, `logits` (1, V) float32 out, all in place."""

    def __init__(self, decoder: LlamaDecoder, cache: Cache, tile: tuple[int, int, int] = TILE):
        """`tile`: rows, columns and warps of a program."""
        sizes, device = decoder.sizes, decoder.device
        if cache.batch != 1 or sizes.width & (sizes.width - 1):
            raise ValueError(
                f"batch {cache.batch}, heads of width {sizes.width}; expected 1 and a power of 2"
            )
        self.decoder, self.cache, self.tile = decoder, cache, tile

        def floats(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = floats(1, sizes.vocabulary)
        self.stream, self.fused, self.inner = (
            floats(1, sizes.hidden),
            floats(sizes.fused),
            floats(sizes.inner),
        )
        self.attended = floats(sizes.heads * sizes.width)
        self.partial, self.weights = floats(sizes.heads, SPLITS, sizes.width), floats(sizes.heads, SPLITS, 2)
        turns = decoder.turns(cache.capacity)  # P W/2
        self.cosines, self.sines = turns.real.contiguous(), turns.imag.contiguous()

    def run(self) -> None:
        decoder, sizes = self.decoder, self.decoder.sizes
        self.stream.copy_(decoder.embedding[self.token])
        scale = LOG2_E / sizes.width**0.5
        for layer, kept in zip(decoder.layers, self.cache.layers, strict=True):
            self._multiply(self.stream, layer.qkv, self.fused, norm=layer.norm)
            _attend[(sizes.heads, SPLITS)](
                self.fused, self.cosines, self.sines, kept, self.place, self.partial, self.weights, scale,
                self.cache.capacity, sizes.heads, sizes.groups, sizes.width, SPLITS, BLOCK, num_warps=4,
            )  # fmt: skip
            _join[(sizes.heads,)](self.partial, self.weights, self.attended, sizes.width, SPLITS, num_warps=1)
            self._multiply(self.attended, layer.out, self.stream, add=True)
            self._multiply(self.stream, layer.gate_up, self.inner, norm=layer.inner_norm, gate=True)
            self._multiply(self.inner, layer.down, self.stream, add=True)
        self._multiply(self.stream, decoder.head, self.logits, norm=decoder.norm)

    def _multiply(
        self, vector: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor,
        norm: torch.Tensor | None = None, gate: bool = False, add: bool = False,
    ) -> None:  # fmt: skip
        rows = matrix.t()  # out, in
        if not rows.is_contiguous():
            rows = rows.contiguous()  # on a CPU alone, where it is for tests
        size = rows.shape[0] // 2 if gate else rows.shape[0]
        height, columns, warps = self.tile
        _product[(triton.cdiv(size, height),)](
            vector, vector if norm is None else norm, rows, out, size, self.decoder.sizes.epsilon,
            rows.shape[1], norm is not None, gate, add, height, columns, num_warps=warps,
        )  # fmt: skip
