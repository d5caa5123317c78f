"""fairseq's HuBERT checkpoints, as `read_inert` gives them, to our `Encoder`; fairseq is not needed.

Two generations: settings in `args` (an argparse.Namespace that holds the task's too) and in `cfg` (parts
`model` and `task`). Names of weights and settings are those of fairseq 0.12's models/hubert/hubert.py and
models/wav2vec/wav2vec2.py. What only its training uses (label embeddings, final projection, dictionaries,
optimizer) is left where it is.
"""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.checkpoint_fields import Fields, describe, named_arrays
from speechgpt.units.encoder import Encoder
from speechgpt.units.encoder_files import WEIGHT_NORM_NAMES, misfits

MODEL, TASK = "hubert", "hubert_pretraining"  # the names that fairseq registers
ARCHITECTURES = (MODEL, "hubert_base", "hubert_large", "hubert_xlarge")  # --arch of the older generation
PUBLISHED_CONVOLUTIONS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"  # fairseq's default
MAX_CONVOLUTIONS = 32
ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "relu": "relu"}
NORMS = {"default": "group", "layer_norm": "layer"}
PROJECTION = "feature_projection.projection"
UNUSED = ("final_proj.", "label_embs_concat", "target_glu.")  # of the training objective
# Settings of later fairseq whose other values mean another network, and the value that means this one.
ONLY = {"layer_type": "transformer", "pos_conv_depth": 1, "conv_pos_batch_norm": False}
RENAMED = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"mask_emb$", "masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
)


def is_fairseq_speech(tree: Any) -> bool:
    """Whether it looks like a checkpoint of HuBERT, or of a relative of whom `convert_hubert` speaks."""
    state = tree.get("model") if isinstance(tree, dict) else None
    return isinstance(state, dict) and any(
        isinstance(name, str) and "feature_extractor.conv_layers." in name for name in state
    )


def convert_hubert(tree: dict, where: str, provenance: dict | None = None) -> Encoder:
    """The encoder (on the CPU, float32) of a checkpoint; `where` names the file in errors.

    Raises ValueError that says which setting or weight is missing, inert, or of another network.
    """
    arrays = named_arrays(tree["model"], f"{where}: model")
    _check_kind(arrays, where)
    model, task = check_settings(tree, where)
    with torch.device("meta"):  # sizes that are only claimed take no memory
        encoder = Encoder.create(_architecture(model), task.flag("normalize", False), 0, provenance)
    encoder.sample_rate = task.integer("sample_rate", 16_000)
    named, expected = renamed_arrays(arrays), encoder.model.state_dict()
    made = {} if PROJECTION + ".weight" in named else _projection(encoder.width)
    if issues := misfits(named, {name: t for name, t in expected.items() if name not in made}):
        raise ValueError(f"{where}: the weights do not fit the checkpoint's own settings: {issues}")
    if issues := misfits(made, {name: expected[name] for name in made}):
        raise ValueError(f"{where}: has no post_extract_proj, which its settings need: {issues}")
    # Copied only now: one storage under every name, or a width that is only claimed, would take gigabytes.
    weights = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in named.items()}
    if made:
        weights |= {f"{PROJECTION}.weight": torch.eye(encoder.width)}
        weights |= {f"{PROJECTION}.bias": torch.zeros(encoder.width)}
    encoder.model.load_state_dict(weights, assign=True)
    return encoder.eval()


def parse_convolutions(text: str, where: str = "conv_feature_layers") -> list[tuple[int, int, int]]:
    """The text "[(512,10,5)] + [(512,3,2)] * 4" to [(channels, kernel, stride), ...], unevaluated."""
    layers: list[tuple[int, int, int]] = []
    triple = r"\((\d{1,5}),(\d{1,5}),(\d{1,5}),?\)"
    for term in "".join(text.split()).split("+") if len(text) <= 1000 else [""]:
        found = re.fullmatch(rf"\[((?:{triple},)*{triple}),?\](?:\*(\d{{1,5}}))?", term)
        if found is None:
            raise ValueError(
                f"{where}: expected a sum of [(channels, kernel, stride), ...] * n, found {text[:80]!r}"
            )
        triples = [(int(c), int(k), int(s)) for c, k, s in re.findall(triple, found[1])]
        times = int(found[found.re.groups] or 1)
        if len(layers) + len(triples) * times > MAX_CONVOLUTIONS:
            raise ValueError(f"{where}: more than {MAX_CONVOLUTIONS} convolutions")
        layers += triples * times
    if not layers or any(0 in layer for layer in layers):
        raise ValueError(f"{where}: expected sizes above 0, found {text[:80]!r}")
    return layers


def _check_kind(arrays: dict[str, np.ndarray], where: str) -> None:
    if any(name.startswith("w2v_encoder.") for name in arrays):
        raise ValueError(
            f"{where}: a HuBERT or wav2vec fine-tuned to recognise speech; expected the pretrained checkpoint"
        )
    if any(name.startswith(("quantizer.", "project_q.")) for name in arrays):
        raise ValueError(f"{where}: a wav2vec 2.0 checkpoint; expected HuBERT")


def check_settings(tree: Any, where: str, named: bool = False) -> tuple[Fields, Fields]:
    """(the model's settings, the task's) of a checkpoint of HuBERT's pretraining; ValueError for any other.

    fairseq takes `args` where a file has both, so both must say the same. `named`: the names must be there;
    fairseq builds whatever they name, and evaluates other settings for other models.
    """
    if not isinstance(tree, dict):
        raise ValueError(f"{where}: expected a checkpoint's settings, found {describe(tree)}")
    views: list[tuple[Fields, Fields]] = []
    if tree.get("cfg") is not None:
        cfg = Fields(tree["cfg"], f"{where}: cfg")
        views.append((cfg.part("model"), cfg.part("task")))
        _check_name(views[-1][0], "_name", (MODEL,), named)
        _check_name(views[-1][1], "_name", (TASK,), named)
    if tree.get("args") is not None:
        args = Fields(tree["args"], f"{where}: args")
        views.append((args, args))
        _check_name(args, "arch", ARCHITECTURES, named)
        _check_name(args, "task", (TASK,), named)
    if not views:
        raise ValueError(f"{where}: holds neither args nor cfg, so its settings are unknown")
    for model, _ in views:
        _convolutions(model)
    if len(views) == 2 and _meaning(*views[0]) != _meaning(*views[1]):
        raise ValueError(f"{where}: args and cfg describe different networks; expected one")
    return views[0]


def _check_name(settings: Fields, field: str, known: tuple[str, ...], named: bool) -> None:
    found = settings.text(field) if named else settings.text(field, known[0])
    if found not in known:
        raise ValueError(
            f"{settings.where}: {field} is {describe(found)}; expected {known[0]!r}, a pretrained HuBERT"
        )


def _meaning(model: Fields, task: Fields) -> tuple:
    return _architecture(model), task.flag("normalize", False), task.integer("sample_rate", 16_000)


def _convolutions(model: Fields) -> list[tuple[int, int, int]]:
    text = model.text("conv_feature_layers", PUBLISHED_CONVOLUTIONS)
    return parse_convolutions(text, f"{model.where}: conv_feature_layers")


def _architecture(model: Fields) -> dict:
    """Fields of `HubertConfig`; the defaults are fairseq's."""
    for name, expected in ONLY.items():
        kind = {str: model.text, bool: model.flag, int: model.integer}[type(expected)]
        if (found := kind(name, expected)) != expected:
            raise ValueError(f"{model.where}: {name} is {describe(found)}; only {expected!r} is read here")
    layers = _convolutions(model)
    activation, norm = model.text("activation_fn", "gelu"), model.text("extractor_mode", "default")
    for name, found, known in (("activation_fn", activation, ACTIVATIONS), ("extractor_mode", norm, NORMS)):
        if found not in known:
            raise ValueError(f"{model.where}: {name} is {found[:40]!r}; expected one of {', '.join(known)}")
    width, heads = model.integer("encoder_embed_dim", 768), model.integer("encoder_attention_heads", 12)
    groups = model.integer("conv_pos_groups", 16)
    if not width or not heads or not groups or width % heads or width % groups:
        raise ValueError(f"{model.where}: width {width} is no multiple of {heads} heads and {groups} groups")
    if not (depth := model.integer("encoder_layers", 12, most=256)):
        raise ValueError(f"{model.where}: encoder_layers is 0; expected 1 to 256")
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": model.integer("encoder_ffn_embed_dim", 3072),
        "hidden_act": ACTIVATIONS[activation],
        "do_stable_layer_norm": model.flag("layer_norm_first", False),
        "feat_extract_norm": NORMS[norm],
        "conv_dim": [channels for channels, _, _ in layers],
        "conv_kernel": [kernel for _, kernel, _ in layers],
        "conv_stride": [stride for _, _, stride in layers],
        "conv_bias": model.flag("conv_bias", False),
        "num_conv_pos_embeddings": model.integer("conv_pos", 128, most=4096),
        "num_conv_pos_embedding_groups": groups,
    }


def renamed_arrays(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """fairseq's names to Hugging Face's, without what only its training used."""
    named = {_renamed(name): array for name, array in arrays.items() if not name.startswith(UNUSED)}
    for old, new in WEIGHT_NORM_NAMES.items():
        if f"encoder.{old}" in named:
            named[f"encoder.{new}"] = named.pop(f"encoder.{old}")
    return named


def _projection(width: int) -> dict[str, Tensor]:
    """What fairseq leaves out where it would keep the width, where the identity is exact; no numbers yet."""
    shapes = {"weight": (width, width), "bias": (width,)}
    return {f"{PROJECTION}.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED:
        found, count = re.subn("^" + pattern, replacement, name, count=1)
        if count:
            return found
    return name
