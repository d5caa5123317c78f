"""HuBERT in plain torch, with the parameter names of transformers' HubertModel, for training and as the plan
that faster ones are compared with. Importing transformers itself takes seconds."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from speechgpt.units.hubert_config import HubertConfig


def _gelu_tanh(hidden: Tensor) -> Tensor:
    return functional.gelu(hidden, approximate="tanh")


# By transformers' names.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": functional.relu,
    "selu": functional.selu,
    "silu": functional.silu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r}: expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class ConvolutionLayer(nn.Module):
    """(B, C, M) to (B, C', M'): convolution, the norm that this layer has, activation."""

    def __init__(self, config: HubertConfig, number: int) -> None:
        super().__init__()
        given = config.conv_dim[number - 1] if number else 1
        made, kernel, stride = (c[number] for c in (config.conv_dim, config.conv_kernel, config.conv_stride))
        self.conv = nn.Conv1d(given, made, kernel, stride, bias=config.conv_bias)
        self.grouped = config.feat_extract_norm == "group"
        if not self.grouped:
            self.layer_norm = nn.LayerNorm(made)
        elif number == 0:
            self.layer_norm = nn.GroupNorm(made, made)
        self.activation = activation_of(config.feat_extract_activation)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv(hidden)
        if not self.grouped:
            hidden = self.layer_norm(hidden.transpose(1, 2)).transpose(1, 2)
        elif hasattr(self, "layer_norm"):
            hidden = self.layer_norm(hidden)
        return self.activation(hidden)


class FeatureExtractor(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        layers = (ConvolutionLayer(config, number) for number in range(len(config.conv_dim)))
        self.conv_layers = nn.ModuleList(layers)


class FeatureProjection(nn.Module):
    """(B, N, C) to (B, N, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        if config.feat_proj_layer_norm:
            self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        if hasattr(self, "layer_norm"):
            hidden = self.layer_norm(hidden)
        return self.dropout(self.projection(hidden))


class PositionalConvolution(nn.Module):
    """(B, N, D) to what its surroundings add to each frame (B, N, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.num_conv_pos_embeddings
        self.conv = nn.Conv1d(
            width, width, kernel, padding=kernel // 2, groups=config.num_conv_pos_embedding_groups
        )
        if config.conv_pos_batch_norm:
            self.batch_norm = nn.BatchNorm1d(width)
        else:
            self.conv = weight_norm(self.conv, dim=2)
        self.surplus = 1 - kernel % 2  # an even kernel makes one frame too many
        self.activation = activation_of(config.feat_extract_activation)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden.transpose(1, 2)  # B D N
        if hasattr(self, "batch_norm"):
            hidden = self.batch_norm(hidden)
        hidden = self.conv(hidden)
        if self.surplus:
            hidden = hidden[:, :, :-1]
        return self.activation(hidden).transpose(1, 2)  # B N D


class Attention(nn.Module):
    """Multi-head attention of (B, N, D) over itself, or over other frames (B, M, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout
        # In transformers' order, for `_initialize`.
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None, seen: Tensor | None) -> Tensor:
        seen = hidden if seen is None else seen
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B H N D/H
            for projected in (self.q_proj(hidden), self.k_proj(seen), self.v_proj(seen))
        )
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = nn.Dropout(config.hidden_dropout)
        self.activation = activation_of(config.hidden_act)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.intermediate_dropout(self.activation(self.intermediate_dense(hidden)))
        return self.output_dropout(self.output_dense(hidden))


class TransformerLayer(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.stable = config.do_stable_layer_norm
        self.attention = Attention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D). mask: what attention leaves out (bool) or adds (float), as broadcast to
        (B, H, N, M). seen (B, M, D): what it sees in place of `hidden`, normed where norms come first."""
        given = self.layer_norm(hidden) if self.stable else hidden
        hidden = hidden + self.dropout(self.attention(given, mask, seen))
        if self.stable:
            return hidden + self.feed_forward(self.final_layer_norm(hidden))
        hidden = self.layer_norm(hidden)
        return self.final_layer_norm(hidden + self.feed_forward(hidden))


class Transformer(nn.Module):
    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_hidden_layers))


class Hubert(nn.Module):
    """The parts of a HuBERT; `Encoder` says how they follow one another."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = Transformer(config)
        self.apply(lambda module: _initialize(module, config.initializer_range))
        if hasattr(self, "masked_spec_embed"):
            nn.init.uniform_(self.masked_spec_embed)


def _initialize(module: nn.Module, deviation: float) -> None:
    """As transformers does it, in its order, so that one seed means one encoder."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.normal_(module.weight, 0.0, deviation)
        if isinstance(module, nn.Conv1d):
            # A weight that is computed cannot be set: the positional convolution keeps torch's first values.
            nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
