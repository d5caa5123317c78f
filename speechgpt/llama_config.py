"""Whether a LLaMA's config.json means the weights beside it, known before a gigabyte of them is written."""

from pathlib import Path

from speechgpt.data.checkpoint_fields import Fields
from speechgpt.lora_files import TABLES, Lora

_LAYER = {
    "self_attn.q_proj": ("hidden", "hidden"),
    "self_attn.k_proj": ("kv", "hidden"),
    "self_attn.v_proj": ("kv", "hidden"),
    "self_attn.o_proj": ("hidden", "hidden"),
    "mlp.gate_proj": ("inner", "hidden"),
    "mlp.up_proj": ("inner", "hidden"),
    "mlp.down_proj": ("hidden", "inner"),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
}


def checked_config(
    config: dict, folder: Path, adapter: Lora | None, shapes: dict[str, tuple[int, ...]]
) -> dict:
    """config.json with the rows that the tables have. Raises ValueError that lists what does not fit."""
    config = dict(config)
    rows = (*shapes.get(TABLES[0], ()), 0)[0]
    if adapter is not None:
        adapter.check_names(set(shapes))
    elif rows != config.get("vocab_size"):
        raise ValueError(
            f"{folder}: the weights have {rows} rows, config.json says {config.get('vocab_size')}"
        )
    config["vocab_size"] = rows
    expected = _expected(config, folder / "config.json", len(shapes))
    issues = [f"missing {name}" for name in expected.keys() - shapes.keys()]
    issues += [f"unexpected {name}" for name in shapes.keys() - expected.keys() - {TABLES[1]}]
    issues += [
        f"{name} has shape {shapes[name]}, config.json means {expected[name]}"
        for name in expected.keys() & shapes.keys()
        if shapes[name] != expected[name]
    ]
    if issues:
        shown = "; ".join(sorted(issues)[:5]) + (f"; and {len(issues) - 5} more" if len(issues) > 5 else "")
        raise ValueError(f"{folder}: the weights do not fit config.json: {shown}")
    return config


def _expected(config: dict, path: Path, tensors: int) -> dict[str, tuple[int, ...]]:
    """Shapes by name that config.json means; `tensors`: how many there are, and so no fewer than layers."""
    fields = Fields(config, str(path))
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
    sizes = {name: fields.integer(name) for name in names}
    if wrong := [name for name in names if not sizes[name]]:
        raise ValueError(f"{path}: {wrong[0]} is 0; expected a whole number above 0")
    if (layers := sizes["num_hidden_layers"]) > tensors:
        raise ValueError(
            f"{path}: the weights do not fit config.json: {layers} layers of {tensors} tensors in all"
        )
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    groups = fields.integer("num_key_value_heads", heads) or heads
    widths = {"hidden": hidden, "inner": sizes["intermediate_size"], "kv": hidden // heads * groups}
    expected = {
        f"model.layers.{layer}.{name}.weight": tuple(widths[side] for side in sides)
        for layer in range(layers)
        for name, sides in _LAYER.items()
    }
    expected |= {"model.norm.weight": (hidden,), TABLES[0]: (config["vocab_size"], hidden)}
    if not config.get("tie_word_embeddings"):
        expected[TABLES[1]] = (config["vocab_size"], hidden)
    return expected
