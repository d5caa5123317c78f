"""A LLaMA for inference alone, in plain torch: fused weights, and a cache of keys and values that stays put.

It gives transformers' logits without importing transformers, which takes seconds. Heads' features are kept in
another order than the checkpoint's, the two of a rotated pair side by side, so that a rotation is one complex
product; queries and keys are reordered alike, and their products stay the same.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from speechgpt.llama_layout import laid_out, paired
from speechgpt.llama_sizes import LlamaSizes

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


@dataclass
class Layer:
    """Matrices are (in, out) as `torch.mm` takes them. On CPU contiguous so; on a GPU transposed views."""

    norm: torch.Tensor  # D
    qkv: torch.Tensor  # D, (heads + 2 groups) W
    out: torch.Tensor  # heads W, D
    inner_norm: torch.Tensor  # D
    gate_up: torch.Tensor  # D, 2 inner
    down: torch.Tensor  # inner, D

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Layer":
        return Layer(**{name: change(tensor) for name, tensor in vars(self).items()})


class Cache:
    """Keys and values of B rows, `capacity` positions each; zeros at first, for masked ones are read too."""

    def __init__(self, decoder: "LlamaDecoder", batch: int, capacity: int):
        sizes = decoder.sizes
        shape = (sizes.layers, 2, batch, sizes.groups, capacity, sizes.width)
        self.data = torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self.layers = self.data.unbind()  # each 2 B G P W
        self.batch, self.capacity = batch, capacity

    def take(self, other: "Cache", length: int) -> None:
        """Copies the first positions of another cache of as many rows."""
        self.data[..., :length, :] = other.data[..., :length, :]


class LlamaDecoder:
    """Weights of one LLaMA on one device. `forward` is its whole arithmetic; steps of one token may be faster
    elsewhere (speechgpt.decode_steps) but must equal it."""

    def __init__(
        self,
        sizes: LlamaSizes,
        embedding: torch.Tensor,
        layers: list[Layer],
        norm: torch.Tensor,
        head: torch.Tensor,
    ):
        self.sizes, self.embedding, self.layers, self.norm, self.head = sizes, embedding, layers, norm, head
        self.dtype, self.device = embedding.dtype, embedding.device
        self._turns: torch.Tensor | None = None
        # By number of parts, what speechgpt.decode_steps makes of the weights: each layer's, and the head.
        self.parted: dict[int, tuple[list[tuple[torch.Tensor, ...]], torch.Tensor]] = {}

    @classmethod
    def of_tensors(
        cls,
        sizes: LlamaSizes,
        tensors: Mapping[str, torch.Tensor],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> "LlamaDecoder":
        """From a state dict in transformers' names; it is copied, a layer at a time."""
        device = torch.device(device)

        def given(name: str) -> torch.Tensor:
            return tensors[name].detach().to(device, dtype)

        def matrix(*parts: torch.Tensor) -> torch.Tensor:
            return laid_out(torch.cat(parts) if len(parts) > 1 else parts[0].clone())

        layers = []
        for number in range(sizes.layers):
            part = f"model.layers.{number}."
            q, k, v, out = (given(f"{part}self_attn.{name}_proj.weight") for name in "qkvo")
            gate, up, down = (given(f"{part}mlp.{name}_proj.weight") for name in ("gate", "up", "down"))
            q, k = paired(q, sizes.width), paired(k, sizes.width)
            layers.append(
                Layer(
                    norm=given(f"{part}input_layernorm.weight").clone(),
                    qkv=matrix(q, k, v),
                    out=matrix(out),
                    inner_norm=given(f"{part}post_attention_layernorm.weight").clone(),
                    gate_up=matrix(gate, up),
                    down=matrix(down),
                )
            )
        embedding = given(EMBEDDING).clone()
        head = matrix(embedding if sizes.tied else given(HEAD))
        return cls(sizes, embedding, layers, given(NORM).clone(), head)

    @classmethod
    def of_model(cls, model: "LlamaForCausalLM") -> "LlamaDecoder":
        """A snapshot of a transformers model, on its device and in its dtype."""
        sizes = LlamaSizes.from_config(model.config.to_dict(), "the model's config")
        return cls.of_tensors(sizes, model.state_dict(), model.dtype, model.device)

    @classmethod
    def random(
        cls, sizes: LlamaSizes, dtype: torch.dtype, device: str | torch.device, seed: int = 0
    ) -> "LlamaDecoder":
        """Weights of standard deviation 0.02, made on the device: for timings."""
        device = torch.device(device)
        draws = torch.Generator(device).manual_seed(seed)

        def matrix(out: int, width: int) -> torch.Tensor:
            empty = torch.empty(out, width, dtype=dtype, device=device)
            return laid_out(empty.normal_(0, 0.02, generator=draws))

        def ones() -> torch.Tensor:
            return torch.ones(sizes.hidden, dtype=dtype, device=device)

        def layer() -> Layer:
            hidden, inner, attended = sizes.hidden, sizes.inner, sizes.heads * sizes.width
            qkv, out = matrix(sizes.fused, hidden), matrix(hidden, attended)
            return Layer(ones(), qkv, out, ones(), matrix(2 * inner, hidden), matrix(hidden, inner))

        embedding = torch.empty(sizes.vocabulary, sizes.hidden, dtype=dtype, device=device)
        embedding.normal_(0, 0.02, generator=draws)
        layers = [layer() for _ in range(sizes.layers)]
        return cls(sizes, embedding, layers, ones(), matrix(sizes.vocabulary, sizes.hidden))

    def to(self, device: str | torch.device) -> "LlamaDecoder":
        """This one, or a copy on another device."""
        device = torch.device(device)
        if device.type == self.device.type and device.index in (None, self.device.index):
            return self

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return laid_out(tensor.t().to(device)) if tensor.dim() == 2 else tensor.to(device)

        layers = [layer.map(moved) for layer in self.layers]
        embedding = self.embedding.to(device)
        return LlamaDecoder(self.sizes, embedding, layers, moved(self.norm), moved(self.head))

    def turns(self, positions: int) -> torch.Tensor:
        """(at least `positions`, W / 2) complex64: what each position multiplies its pairs with."""
        if self._turns is None or len(self._turns) < positions:
            angles = self.sizes.angles(max(positions, self.sizes.context))
            self._turns = torch.polar(torch.ones_like(angles), angles).to(self.device)
        return self._turns

    def score(self, ids: torch.Tensor) -> torch.Tensor:
        """Tokens (B, L) int64 -> logits (B, L, V) float32 after each."""
        return self.forward(ids, Cache(self, *ids.shape), last=False)

    def forward(
        self,
        ids: torch.Tensor,
        cache: Cache,
        start: int = 0,
        pads: torch.Tensor | None = None,
        last: bool = True,
    ) -> torch.Tensor:
        """Tokens (B, L) int64 at the cache's positions from `start` on -> logits (B, V) float32 after the
        last, or (B, L, V) after each. `pads` (B,): positions at each row's beginning that hold nothing."""
        batch, length = ids.shape
        end = start + length
        turns = self.turns(end)[start:end]  # L W/2
        if pads is not None:
            places = torch.arange(start, end, device=self.device)[None] - pads[:, None]  # B L
            turns = self.turns(end)[places.clamp(min=0)]  # B L W/2
        turns = turns.unsqueeze(-2)  # (B) L 1 W/2
        mask = _mask(start, length, pads, self.device)
        x = F.embedding(ids, self.embedding)  # B L D
        with attention_of(self.device):
            for layer, kept in zip(self.layers, cache.layers, strict=True):
                x = self._layer(x, layer, kept, turns, mask, start)
        x = self._normed(x[:, -1] if last else x, self.norm)
        return (x @ self.head).float()

    def _layer(
        self,
        x: torch.Tensor,
        layer: Layer,
        kept: torch.Tensor,
        turns: torch.Tensor,
        mask: torch.Tensor | None,
        start: int,
    ) -> torch.Tensor:
        """`x` (B, L, D) -> (B, L, D); writes its keys and values to `kept` (2, B, G, P, W)."""
        sizes, (batch, length, _) = self.sizes, x.shape
        heads, groups, width = sizes.heads, sizes.groups, sizes.width
        fused = (self._normed(x, layer.norm) @ layer.qkv).view(batch, length, -1, width)  # B L H W
        rotated = _rotated(fused[:, :, : heads + groups], turns)
        end = start + length
        kept[0, :, :, start:end] = rotated[:, :, heads:].transpose(1, 2)  # B G L W
        kept[1, :, :, start:end] = fused[:, :, heads + groups :].transpose(1, 2)
        keys, values = kept[:, :, :, :end]  # each B G P W
        queries = rotated[:, :, :heads].transpose(1, 2)  # B H L W
        if length == 1:  # the queries of a group as if they were queries of one head
            queries = queries.reshape(batch, groups, heads // groups, width)
        elif groups < heads:
            keys, values = (t.repeat_interleave(heads // groups, dim=1) for t in (keys, values))
        found = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None
                                               and length > 1)  # fmt: skip
        found = found.reshape(batch, heads, length, width).transpose(1, 2).reshape(batch, length, -1)
        x = x + found @ layer.out  # B L D
        gate, up = (self._normed(x, layer.inner_norm) @ layer.gate_up).chunk(2, dim=-1)
        return x + (F.silu(gate) * up) @ layer.down

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, self.sizes.epsilon)
        # As transformers: the statistics in float32, the weight in the model's dtype.
        return weight * F.rms_norm(x.float(), (x.shape[-1],), None, self.sizes.epsilon).to(x.dtype)

    def to_transformers(self) -> "LlamaForCausalLM":
        """The same model for what only transformers does (beams); it shares no memory."""
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = self.sizes
        config = LlamaConfig(
            vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.inner,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.groups, head_dim=sizes.width, max_position_embeddings=sizes.context,
            rms_norm_eps=sizes.epsilon, tie_word_embeddings=sizes.tied, rope_parameters=dict(sizes.rope),
        )  # fmt: skip
        with torch.device("meta"):
            model = LlamaForCausalLM(config).to(self.dtype)
        model = model.to_empty(device=self.device).eval()
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(
            self.device
        )  # its tables are no weights
        model.load_state_dict(self.state_dict())
        model.tie_weights()
        return model

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors again, in its names and order."""
        sizes = self.sizes
        found = {EMBEDDING: self.embedding, NORM: self.norm, HEAD: self.head.t()}
        for number, layer in enumerate(self.layers):
            widths = [heads * sizes.width for heads in (sizes.heads, sizes.groups, sizes.groups)]
            q, k, v = layer.qkv.t().split(widths)
            gate, up = layer.gate_up.t().chunk(2)
            found |= {
                f"model.layers.{number}.{name}.weight": tensor
                for name, tensor in {
                    "self_attn.q_proj": paired(q, sizes.width, back=True),
                    "self_attn.k_proj": paired(k, sizes.width, back=True),
                    "self_attn.v_proj": v,
                    "self_attn.o_proj": layer.out.t(),
                    "mlp.gate_proj": gate,
                    "mlp.up_proj": up,
                    "mlp.down_proj": layer.down.t(),
                    "input_layernorm": layer.norm,
                    "post_attention_layernorm": layer.inner_norm,
                }.items()
            }
        return found


def attention_of(device: torch.device) -> AbstractContextManager:
    """Not cuDNN's on a GPU: it plans anew, for a tenth of a second and more, for every length of prompt."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _rotated(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Heads (B, L, H, W) with their pairs turned by (B or 1, L, 1, W / 2) complex."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))  # B L H W/2
    return torch.view_as_real(pairs * turns).flatten(-2).to(heads.dtype)


def _mask(start: int, length: int, pads: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """(B or 1, 1, L, P) bool of what each position may see; None where a plain causal order says it all."""
    if pads is None and (start == 0 or length == 1):
        return None
    here = torch.arange(start, start + length, device=device)[:, None]  # L 1
    there = torch.arange(start + length, device=device)[None]  # 1 P
    seen = (there <= here)[None]
    if pads is not None:
        # A padded position sees itself, since to see nothing is no number.
        seen = seen & (there >= pads[:, None, None]) | (there == here)  # B L P
    return seen[:, None]
