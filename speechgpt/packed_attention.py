"""Causal attention within the documents of a pack, never across their bounds.

On CUDA in half precision the flash kernels for documents of varying length do it without padding. Elsewhere
the documents are laid out as a padded batch for the attention alone: right padding is never seen by a causal
query, so the result is exact.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "packed"  # in transformers' attn_implementation
HALF = (torch.bfloat16, torch.float16)
CAUSAL = (-1, 0)  # window: everything before, nothing after


def takes_flash(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether the flash kernels can do it: on NVIDIA's Ampere (compute capability 8.0) or later."""
    fits = dtype in HALF and head_size % 8 == 0 and head_size <= 256
    return device.type == "cuda" and fits and torch.cuda.get_device_capability(device) >= (8, 0)


def documents_as_batch(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(places, home): places (documents, longest) of each document's tokens in the pack, padded at the end;
    home (L,) of each token of the pack in the flattened places. Waits for the device."""
    lengths = bounds.diff().long()  # documents
    longest = int(lengths.max())
    steps = torch.arange(longest, device=bounds.device)
    inside = steps < lengths[:, None]  # documents longest
    places = torch.where(inside, bounds[:-1, None] + steps, bounds[:-1, None])
    return places, inside.flatten().nonzero()[:, 0]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    bounds: torch.Tensor | None = None,
    longest: int = 0,
    places: torch.Tensor | None = None,
    home: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: query (1, H, L, E), key and value (1, G, L, E) to (1, L, H, E).

    `bounds` (documents + 1,) int32 and `longest` go to the flash kernels; with `places` and `home` of
    `documents_as_batch` the documents become a batch. Without `bounds` it is plain causal attention.
    """
    if bounds is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    # Rotary embeddings in float32 make float32 of queries and keys under autocast; values say what is meant.
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))  # L H E, L G E
    if places is not None:
        return _as_batch(q, k, v, places, home, dropout, scaling)[None], None
    if not dropout:
        mixed = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=CAUSAL)
    else:  # the same kernel; the public function has no dropout
        mixed = torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, longest, longest, dropout, True, False, scale=scaling
        )[0]
    return mixed[None], None  # 1 L H E


def _as_batch(q, k, v, places, home, dropout: float, scaling: float | None) -> torch.Tensor:
    """(L, H, E) from queries (L, H, E), keys and values (L, G, E)."""
    q, k, v = (
        x.flatten(1).index_select(0, places.flatten()).view(*places.shape, *x.shape[1:]).transpose(1, 2)
        for x in (q, k, v)
    )  # documents H longest E
    mixed = F.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
    )
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, home)  # L H E


AttentionInterface.register(NAME, packed_attention)
