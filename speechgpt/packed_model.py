"""A LLaMA that learns from packs: attention within documents, the head on supervised places alone."""

from types import MethodType

import torch
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from speechgpt.linear_cross_entropy import linear_cross_entropy
from speechgpt.packed_attention import NAME, documents_as_batch, takes_flash


def learn_from_packs(model: torch.nn.Module, compiled: bool = False) -> None:
    """Lets a LLaMA, or an adapter on one, take the batches of `speechgpt.packs.collate_pack`, in place.

    Plain batches give plain logits as before. `compiled`: each decoder layer through torch.compile; they are
    alike, so that one is compiled for all. Weights, their names and what is saved stay as they are.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.set_attn_implementation(NAME)
    causal.forward = MethodType(_forward, causal)
    causal.learns_compiled = compiled
    if compiled:
        for layer in causal.model.layers:
            layer.compile()


def _forward(
    self: LlamaForCausalLM,
    input_ids: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    bounds: torch.Tensor | None = None,
    predictors: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
    longest: int = 0,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs,
) -> CausalLMOutputWithPast:
    """The loss of a pack: the sum over its supervised tokens by `num_items_in_batch`, or by their number.

    Of a pack no logits are returned. A batch without `bounds` goes to LlamaForCausalLM.forward.
    """
    if bounds is None:
        given = {"labels": labels, "position_ids": position_ids, "num_items_in_batch": num_items_in_batch}
        given = {name: value for name, value in given.items() if value is not None}
        return LlamaForCausalLM.forward(self, input_ids, **given, **kwargs)
    documents = {"bounds": bounds, "longest": longest}
    if not takes_flash(input_ids.device, _matrix_dtype(self, input_ids.device), _head_size(self.config)):
        documents |= dict(zip(("places", "home"), documents_as_batch(bounds), strict=True))
    elif self.learns_compiled:
        torch._dynamo.maybe_mark_dynamic(bounds, 0)  # or each number of documents would be compiled
    more = {name: value for name, value in kwargs.items() if value is not None}  # peft names them all
    found = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **documents, **more)
    hidden = found.last_hidden_state[0].index_select(0, predictors)  # M D
    total = linear_cross_entropy(hidden, self.lm_head.weight, targets, self.learns_compiled)
    if num_items_in_batch is None:
        num_items_in_batch = (labels != -100).sum()
    return CausalLMOutputWithPast(loss=total / num_items_in_batch)


def _matrix_dtype(model: LlamaForCausalLM, device: torch.device) -> torch.dtype:
    """Of the matrix products, which the keys and values have."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return model.model.norm.weight.dtype


def _head_size(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
