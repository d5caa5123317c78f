"""One token at a time, as fast as the device goes: plain on a CPU, replayed as CUDA graphs on a GPU.

A graph's launches cost the host nothing and its addresses stay, so tokens, places and logits live in buffers.
What one bucket of positions was captured for serves every turn until the cache moves.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional as F

from speechgpt.llama_decoder import Cache, LlamaDecoder, attention_of
from speechgpt.llama_layout import ALIGNED, split
from speechgpt.units.devices import on_device
from speechgpt.units.triton_works import probe_of, triton_runs

FAST = ("auto", "plain", "graph", "compiled", "kernels")
COPIED = 1 << 28  # weights: larger models are not copied for quicker steps on a CPU
FIRST_BUCKET = 256  # positions that the shortest graph attends to; each next one to twice as many
PROBE = probe_of("speechgpt.decode_kernels")
WITHOUT_KERNELS = "steps are CUDA graphs of torch's own"


def best_way(decoder: LlamaDecoder, batch: int, fast: str = "auto") -> str:
    """What `auto` stands for: plain on a CPU; kernels for one row on a GPU, and else graphs."""
    if fast not in FAST:
        raise ValueError(f"fast is {fast!r}; expected one of {', '.join(FAST)}")
    if decoder.device.type != "cuda":
        return "plain"
    if fast == "auto":
        width = decoder.sizes.width
        fits = batch == 1 and not width & (width - 1)
        fast = "kernels" if fits and triton_runs(PROBE, decoder.device, WITHOUT_KERNELS) else "graph"
    return "graph" if fast == "kernels" and batch > 1 else fast


class PlainSteps:
    """Calls the model: what everything else must equal."""

    ahead = False  # whether a step may be asked for before the last one's token is looked at

    def __init__(self, decoder: LlamaDecoder, cache: Cache, pads: torch.Tensor | None = None):
        self.decoder, self.cache, self.pads = decoder, cache, pads
        self._lean = _lean_step(decoder, cache) if _fits_lean(decoder, cache.batch) else None

    def begin(self, place: int, pads: torch.Tensor | None) -> None:
        """The place of the next token, and how much of each row holds nothing."""
        self.place, self.pads = place, pads

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B,) int64 -> logits (B, V) float32 after them."""
        place, self.place = self.place, self.place + 1
        if self._lean and self.pads is None:
            return self._lean(tokens, place)
        return self.decoder.forward(tokens[:, None], self.cache, place, self.pads)


def _fits_lean(decoder: LlamaDecoder, batch: int) -> bool:
    sizes = decoder.sizes
    plain = decoder.dtype == torch.float32 and decoder.device.type == "cpu" and batch == 1
    whole = not any(n % ALIGNED for n in (sizes.hidden, sizes.fused, 2 * sizes.inner))
    return plain and whole and sizes.step_weights() < COPIED


def _lean_step(decoder: LlamaDecoder, cache: Cache) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """(token (1,), place) -> logits (1, V), float32: `forward` with as few calls into torch as it takes.

    A product of one row uses one core, and a core reads memory at half of what two do: so each matrix is cut
    into parts, a batch of products. A norm's scale is one number, and goes into the product; its weight is in
    the matrix.
    """
    sizes, epsilon, hidden = decoder.sizes, decoder.sizes.epsilon, decoder.sizes.hidden
    heads, groups, width = sizes.heads, sizes.groups, sizes.width
    parts = min(1 << torch.get_num_threads().bit_length() - 1, ALIGNED)
    turns = decoder.turns(cache.capacity)  # P W/2
    fused = torch.empty(parts, 1, sizes.fused // parts)
    gated = torch.empty(parts, 1, 2 * sizes.inner // parts)
    if parts not in decoder.parted:  # once a decoder: a cache that grows, or another run's, needs no new copy
        decoder.parted[parts] = _parted_weights(decoder, parts)
    weights, head = decoder.parted[parts]
    logits = torch.empty(parts, 1, head.shape[2])
    flat = fused.view(-1, width)  # H W
    queries, both = flat[:heads].view(1, groups, -1, width), flat[heads:].view(2, groups, width)
    pairs = torch.view_as_complex(flat[: heads + groups].view(heads + groups, -1, 2))
    gate, up = gated.view(2, 1, -1).unbind()
    each = [
        (*layer, *kept, kept[:, 0])  # keys and values, 1 G P W each
        for layer, kept in zip(weights, cache.layers, strict=True)
    ]
    add, silu, attend = torch.baddbmm, F.silu, F.scaled_dot_product_attention

    def product(x: torch.Tensor, matrix: torch.Tensor, out: torch.Tensor) -> None:
        flat = x.view(-1)
        scale = (flat.dot(flat).item() / hidden + epsilon) ** -0.5
        add(out, flat.expand(parts, 1, hidden), matrix, beta=0, alpha=scale, out=out)

    def step(token: torch.Tensor, place: int) -> torch.Tensor:
        turn, end = turns[place], place + 1
        x = F.embedding(token, decoder.embedding).view(parts, 1, -1)
        for qkv, out, gate_up, down, keys, values, kept in each:
            product(x, qkv, fused)
            pairs.mul_(turn)
            kept.select(2, place).copy_(both)
            mixed = attend(queries, keys.narrow(2, 0, end), values.narrow(2, 0, end))
            x = add(x, mixed.reshape(-1).expand(parts, 1, -1), out)
            product(x, gate_up, gated)
            x = add(x, silu(gate).mul_(up).expand(parts, 1, -1), down)
        product(x, head, logits)
        return logits.view(1, -1)[:, : sizes.vocabulary]

    return step


def _parted_weights(decoder: LlamaDecoder, parts: int) -> tuple[list[tuple[torch.Tensor, ...]], torch.Tensor]:
    """Each layer's four matrices, and the head."""
    layers = [
        (
            _parted(layer.qkv, parts, layer.norm),
            _parted(layer.out, parts),
            _parted(layer.gate_up, parts, layer.inner_norm),
            _parted(layer.down, parts),
        )
        for layer in decoder.layers
    ]
    return layers, _parted(decoder.head, parts, decoder.norm)


def _parted(matrix: torch.Tensor, parts: int, norm: torch.Tensor | None = None) -> torch.Tensor:
    """A copy in parts that are read in one piece, with a norm's weight on its inputs."""
    found = split(matrix, parts)  # parts, in, out / parts
    return found.contiguous() if norm is None else found * norm[:, None]


class BucketStep:
    """One token of B rows in torch, over the first `bucket` positions; its parts may be compiled."""

    def __init__(self, decoder: LlamaDecoder, cache: Cache, compiled: bool = False):
        device, batch = decoder.device, cache.batch
        self.decoder, self.cache = decoder, cache
        self.token = torch.zeros(batch, dtype=torch.int64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.pads = torch.zeros(batch, dtype=torch.int64, device=device)
        self.logits = torch.zeros(batch, decoder.sizes.vocabulary, device=device)
        self._turns = torch.view_as_real(decoder.turns(cache.capacity))  # P W/2 2
        self._columns = torch.arange(cache.capacity, device=device)
        self._before, self._after, self._last = _compiled() if compiled else (_before, _after, _last)

    def run(self, bucket: int) -> None:
        decoder, sizes, batch = self.decoder, self.decoder.sizes, self.cache.batch
        shape = (batch, sizes.groups, sizes.heads // sizes.groups, sizes.width)
        columns = self._columns[:bucket]
        hidden = (columns > self.place) | (columns < self.pads[:, None])  # B P
        bias = torch.zeros(batch, 1, 1, bucket, dtype=decoder.dtype, device=decoder.device)
        bias.masked_fill_(hidden[:, None, None], float("-inf"))
        bias = bias.expand(-1, sizes.groups, shape[2], -1)
        turns = self._turns[self.place - self.pads][:, None]  # B 1 W/2 2
        x = F.embedding(self.token, decoder.embedding)  # B D
        with attention_of(decoder.device):
            x = self._layers(x, turns, bias, shape, bucket)
        self.logits.copy_(self._last(x, decoder.norm, decoder.head, sizes.epsilon))

    def _layers(
        self, x: torch.Tensor, turns: torch.Tensor, bias: torch.Tensor, shape: tuple[int, ...], bucket: int
    ) -> torch.Tensor:
        sizes = self.decoder.sizes
        for layer, kept in zip(self.decoder.layers, self.cache.layers, strict=True):
            queries, keys, values = self._before(
                x, layer.norm, layer.qkv, turns, sizes.heads, sizes.groups, sizes.epsilon
            )
            kept[0].index_copy_(2, self.place, keys.unsqueeze(2))
            kept[1].index_copy_(2, self.place, values.unsqueeze(2))
            mixed = F.scaled_dot_product_attention(
                queries.reshape(shape), kept[0, :, :, :bucket], kept[1, :, :, :bucket], attn_mask=bias
            )
            rest = (layer.out, layer.inner_norm, layer.gate_up, layer.down, sizes.epsilon)
            x = self._after(x, mixed.reshape(len(x), -1), *rest)
        return x


@cache
def _compiled() -> tuple[Callable, ...]:
    """Once a process, whatever the cache: all layers share the code of one."""
    options = {"coordinate_descent_tuning": True, "triton.cudagraphs": False}
    return tuple(torch.compile(part, options=options, dynamic=False) for part in (_before, _after, _last))


def _normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def _before(x, norm, qkv, turns, heads: int, groups: int, epsilon: float) -> tuple[torch.Tensor, ...]:
    """Queries (B, H, W) and keys (B, G, W), turned by their place, and values (B, G, W)."""
    fused = (_normed(x, norm, epsilon) @ qkv).view(len(x), heads + 2 * groups, -1)
    even, odd = fused[:, : heads + groups].float().unflatten(-1, (-1, 2)).unbind(-1)  # B H W/2
    cosine, sine = turns.unbind(-1)
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    turned = turned.flatten(-2).to(x.dtype)  # B H W
    return turned[:, :heads], turned[:, heads:], fused[:, heads + groups :]


def _after(x, mixed, out, norm, gate_up, down, epsilon: float) -> torch.Tensor:
    x = x + mixed @ out
    gate, up = (_normed(x, norm, epsilon) @ gate_up).chunk(2, dim=-1)
    return x + (F.silu(gate) * up) @ down


def _last(x, norm, head, epsilon: float) -> torch.Tensor:
    return (_normed(x, norm, epsilon) @ head).float()


class CapturedSteps:
    """Steps on a GPU, captured once for each bucket and replayed. `way`: graph | compiled | kernels.

    On a CPU, for tests, the same steps run without capture.
    """

    ahead = True

    def __init__(self, decoder: LlamaDecoder, cache: Cache, way: str):
        self.capacity, self.captures = cache.capacity, decoder.device.type == "cuda"
        self.one_bucket = way == "kernels"  # which read as far as the place says
        if way == "kernels":
            from speechgpt.decode_kernels import KernelStep

            self.step: KernelStep | BucketStep = KernelStep(decoder, cache)
        else:
            self.step = BucketStep(decoder, cache, compiled=way == "compiled")
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._pool = None
        self._aside: torch.cuda.Stream | None = None

    def begin(self, place: int, pads: torch.Tensor | None) -> None:
        self.place = place
        self.step.place.fill_(place)
        if not self.one_bucket:
            self.step.pads.zero_() if pads is None else self.step.pads.copy_(pads)

    def bucket(self, place: int) -> int:
        """Positions attended to when the token stands at `place`."""
        found = self.capacity if self.one_bucket else min(FIRST_BUCKET, self.capacity)
        while found <= place:
            found = min(2 * found, self.capacity)
        return found

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B,) int64 -> logits (B, V) float32, in a buffer that the next step overwrites. Nothing waits."""
        bucket = self.bucket(self.place)
        self.place += 1
        self.step.token.copy_(tokens)
        if not self.captures:
            self._run(bucket)
            self.step.place.add_(1)
            return self.step.logits
        if bucket not in self._graphs:
            with on_device(self.step.token.device):
                self._capture(bucket)
        self._graphs[bucket].replay()
        return self.step.logits

    def _run(self, bucket: int) -> None:
        self.step.run() if self.one_bucket else self.step.run(bucket)

    def _capture(self, bucket: int) -> None:
        """The warm-up compiles and allocates; it writes what the replay will write at the same place."""
        # One for all captures, which share a pool. Torch's own would be of the device that captured first.
        self._aside = self._aside or torch.cuda.Stream()
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            for _ in range(2):
                self._run(bucket)
        torch.cuda.current_stream().wait_stream(self._aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a vocoder's) may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._aside, capture_error_mode="thread_local"):
            self._run(bucket)
            self.step.place.add_(1)
        self._pool = self._pool or graph.pool()
        self._graphs[bucket] = graph


def steps_of(decoder: LlamaDecoder, cache: Cache, fast: str = "auto") -> PlainSteps | CapturedSteps:
    way = best_way(decoder, cache.batch, fast)
    return PlainSteps(decoder, cache) if way == "plain" else CapturedSteps(decoder, cache, way)
