"""What a LLaMA's config.json means for its arithmetic, and the rotations of its positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

ROPE_TYPES = ("default", "linear", "llama3")  # those of published LLaMAs whose rotations are fixed tables
# config.json of LLaMAs from before a field was there means these.
_THETA, _EPSILON, _CONTEXT = 10_000.0, 1e-6, 2048


@dataclass(frozen=True)
class LlamaSizes:
    """Sizes and constants. Widths in numbers of features."""

    vocabulary: int  # V
    hidden: int  # D
    inner: int  # of the feed-forward layer
    layers: int
    heads: int  # of queries
    groups: int  # heads of keys and values; each serves heads / groups of queries
    width: int  # W, of a head
    context: int  # positions that it was made for
    epsilon: float  # under the root of the norms
    tied: bool  # the head is the embedding
    rope: Mapping = field(hash=False)  # rope_theta, rope_type and what belongs to it

    @classmethod
    def from_config(cls, config: Mapping, where: str = "config") -> "LlamaSizes":
        """Of config.json as any transformers wrote it. ValueError names `where` and what is not done here."""
        for name in ("attention_bias", "mlp_bias"):
            if config.get(name):
                raise ValueError(f"{where}: {name} is set; expected a LLaMA, whose layers have no biases")
        if (act := config.get("hidden_act", "silu")) != "silu":
            raise ValueError(f"{where}: hidden_act is {act!r}; expected silu")
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        groups = config.get("num_key_value_heads") or heads
        width = config.get("head_dim") or hidden // heads
        if heads % groups or width % 2:
            raise ValueError(
                f"{where}: {heads} heads of width {width} for {groups} of keys; expected an even width and a "
                "multiple"
            )
        return cls(
            vocabulary=config["vocab_size"],
            hidden=hidden,
            inner=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            groups=groups,
            width=width,
            context=config.get("max_position_embeddings") or _CONTEXT,
            epsilon=config.get("rms_norm_eps") or _EPSILON,
            tied=bool(config.get("tie_word_embeddings")),
            rope=_rope(config, where),
        )

    @property
    def fused(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.heads + 2 * self.groups) * self.width

    def step_weights(self) -> int:
        """Weights that one token reads: all but the embedding's other rows."""
        layer = self.hidden * (self.fused + self.heads * self.width + 3 * self.inner)
        return self.layers * layer + self.hidden * self.vocabulary

    def frequencies(self) -> torch.Tensor:
        """(W / 2,) float32: radians a position, as transformers computes them."""
        exponents = torch.arange(0, self.width, 2, dtype=torch.int64).float() / self.width
        found = 1.0 / (self.rope["rope_theta"] ** exponents)
        if self.rope["rope_type"] == "linear":
            return found / self.rope["factor"]
        if self.rope["rope_type"] == "llama3":
            low, high = self.rope["low_freq_factor"], self.rope["high_freq_factor"]
            turns = self.rope["original_max_position_embeddings"] * found / (2 * math.pi)
            kept = ((turns - low) / (high - low)).clamp(0, 1)  # 1: fast enough to stay as it was
            return (1 - kept) * found / self.rope["factor"] + kept * found
        return found

    def angles(self, positions: int) -> torch.Tensor:
        """(positions, W / 2) float32, radians."""
        return torch.outer(torch.arange(positions, dtype=torch.float32), self.frequencies())


def _rope(config: Mapping, where: str) -> dict:
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ROPE_TYPES:
        raise ValueError(f"{where}: rope type {kind!r}; known are {', '.join(ROPE_TYPES)}")
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{where}: partial_rotary_factor is {given['partial_rotary_factor']}; expected 1")
    theta = given.get("rope_theta") or config.get("rope_theta") or _THETA
    needed = {"linear": ("factor",), "default": ()}.get(
        kind, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    if missing := [name for name in needed if not isinstance(given.get(name), int | float)]:
        raise ValueError(f"{where}: rope type {kind!r} without {', '.join(missing)}")
    return {"rope_type": kind, "rope_theta": float(theta)} | {name: given[name] for name in needed}
