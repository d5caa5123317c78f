"""Prompts through a decoder: keys and values are kept, and what comes again is not computed again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from speechgpt.decode_steps import steps_of
from speechgpt.llama_decoder import Cache, LlamaDecoder
from speechgpt.units.devices import on_device

FIRST_CAPACITY = 256  # positions of the smallest cache; it doubles when it is full
SPARE = 256  # new tokens that a fresh cache has room for


class Run:
    """One batch being continued. Its rows stand at the same place; shorter prompts are padded on the left."""

    def __init__(self, decoder: LlamaDecoder, batch: int, fast: str):
        self.decoder, self.batch, self.fast = decoder, batch, fast
        self.held: list[int] = []  # of one row: the tokens whose keys and values are in the cache
        self.taken = False
        self.reused = 0  # tokens of the last prompt that were in the cache already
        self._cache: Cache | None = None

    def begin(self, prompts: Sequence[list[int]], new_tokens: int) -> None:
        """Reads prompts; what the last one of a single row had in common with this one, it keeps."""
        length, device = max(map(len, prompts)), self.decoder.device
        self._reserve(length + min(new_tokens, SPARE), len(self.held))
        pads = None
        if any(len(p) < length for p in prompts):
            pads = torch.tensor([length - len(p) for p in prompts], device=device)
        shared = 0
        if self.batch == 1:
            shared = min(common(self.held, prompts[0]), length - 1)
            self.held = self.held[:shared]
        self.reused = shared
        ids = torch.tensor([[0] * (length - len(p)) + p[shared:] for p in prompts], device=device)  # B L
        self._logits = self.decoder.forward(ids, self._cache, shared, pads)  # B V
        self._pads, self._place = pads, length
        self._steps.begin(length, pads)
        self._pending: torch.Tensor | None = None
        if self.batch == 1:
            self.held = list(prompts[0])

    def logits(self) -> torch.Tensor:
        """(B, V) float32 after the tokens so far; the next step overwrites it."""
        if self._pending is not None:
            tokens, self._pending = self._pending, None
            self._step(tokens)
            if self.batch == 1:
                self.held += tokens.tolist()
        return self._logits

    def take(self, tokens: torch.Tensor, more: bool) -> list[int]:
        """Continues with tokens (B,) of the device and tells which they are. Where the device works by
        itself it does the next step meanwhile, if `more` may follow."""
        if not (more and self._steps.ahead and tokens.is_cuda):
            self._pending = tokens
            return tokens.tolist()
        with on_device(tokens.device):  # an event is of the current device's stream
            read = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            read.copy_(tokens, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._step(tokens)
        arrived.synchronize()
        found = read.tolist()
        if self.batch == 1:
            self.held += found
        return found

    def _step(self, tokens: torch.Tensor) -> None:
        if self._place == self._cache.capacity:
            self._reserve(self._place + 1, self._place)
            self._steps.begin(self._place, self._pads)
        self._place += 1
        self._logits = self._steps(tokens)

    def _reserve(self, positions: int, kept: int) -> None:
        """Room for `positions`; the first `kept` stay as they are."""
        if self._cache is not None and self._cache.capacity >= positions:
            return
        capacity = FIRST_CAPACITY
        while capacity < positions:
            capacity *= 2
        cache = Cache(self.decoder, self.batch, capacity)
        if self._cache is not None:
            cache.take(self._cache, min(kept, self._cache.capacity))
        self._cache, self._steps = cache, steps_of(self.decoder, cache, self.fast)


class Engine:
    """Runs of one decoder. The newest run of a single row is kept with its tokens, and one of a batch for its
    room alone, where that is captured; a second run at the same time gets its own, which is kept instead."""

    def __init__(self, decoder: LlamaDecoder, fast: str = "auto"):
        self.decoder, self.fast = decoder, fast
        self._kept: dict[bool, Run] = {}  # by whether it is a batch

    @contextmanager
    def run(self, prompts: Sequence[list[int]], new_tokens: int) -> Iterator[Run]:
        batch = len(prompts)
        found = self._kept.get(batch > 1)
        if found is None or found.taken or found.batch != batch:
            found = Run(self.decoder, batch, self.fast)
            if batch == 1 or self.decoder.device.type == "cuda":
                # Even for one still taken: an answer held and never ended would keep all later ones out.
                self._kept[batch > 1] = found
        found.taken = True
        try:
            found.begin(prompts, new_tokens)
            yield found
        finally:
            found.taken = False

    def forget(self) -> None:
        """Lets the next prompt be read whole; what is captured stays."""
        for run in self._kept.values():
            run.held = []


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
