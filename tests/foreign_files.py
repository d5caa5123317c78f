"""Writes checkpoints in the formats of other projects, with classes that are gone when the file is read."""

import argparse
import json
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

FAIRSEQ_NAMES = (  # Hugging Face's names to fairseq's
    (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
    (r"^feature_projection\.projection\.", "post_extract_proj."),
    (r"^feature_projection\.layer_norm\.", "layer_norm."),
    (r"^masked_spec_embed$", "mask_emb"),
    (r"\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", ".pos_conv.0.weight_g"),
    (r"\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", ".pos_conv.0.weight_v"),
    (r"\.pos_conv_embed\.conv\.", ".pos_conv.0."),
    (r"\.attention\.", ".self_attn."),
    (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
    (r"\.feed_forward\.intermediate_dense\.", ".fc1."),
    (r"\.feed_forward\.output_dense\.", ".fc2."),
)


@contextmanager
def passing_classes(*paths: str) -> Iterator[dict[str, type]]:
    """Classes of modules that exist only inside: {"fairseq.data.dictionary.Dictionary": class, ...}."""
    made, modules, hidden = {}, [], []
    for path in paths:
        module, _, name = path.rpartition(".")
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            full = ".".join(parts[:depth])
            if full not in sys.modules:
                sys.modules[full] = types.ModuleType(full)
                modules.append(full)
        made[path] = type(name, (), {"__module__": module, "__qualname__": name})
        hidden.append((sys.modules[module], name, getattr(sys.modules[module], name, None)))
        setattr(sys.modules[module], name, made[path])
    try:
        yield made
    finally:
        for module, name, real in hidden:  # of a package that is installed and imported
            if real is not None:
                setattr(module, name, real)
        for full in modules:
            del sys.modules[full]


def fairseq_weights(encoder) -> dict[str, torch.Tensor]:
    """The encoder's weights under fairseq's names, with the leftovers of its training."""
    layers = encoder.config.feat_extract_norm == "layer"
    found = {}
    for name, value in encoder.model.state_dict().items():
        norm = r"feature_extractor.conv_layers.\1.2." + ("1." if layers else "")
        name = re.sub(r"^feature_extractor\.conv_layers\.(\d+)\.layer_norm\.", norm, name)
        for pattern, replacement in FAIRSEQ_NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = value.detach().clone()
    width = encoder.width
    return found | {
        "final_proj.weight": torch.randn(8, width),
        "final_proj.bias": torch.randn(8),
        "label_embs_concat": torch.randn(20, 8),
    }


def fairseq_settings(encoder) -> dict:
    """The model's part of fairseq's settings."""
    c = encoder.config
    sizes = zip(c.conv_dim, c.conv_kernel, c.conv_stride, strict=True)
    return {
        "_name": "hubert",
        "extractor_mode": "layer_norm" if c.feat_extract_norm == "layer" else "default",
        "encoder_layers": c.num_hidden_layers,
        "encoder_embed_dim": c.hidden_size,
        "encoder_ffn_embed_dim": c.intermediate_size,
        "encoder_attention_heads": c.num_attention_heads,
        "activation_fn": "gelu",
        "layer_norm_first": c.do_stable_layer_norm,
        "conv_feature_layers": " + ".join(f"[({w}, {k}, {s})]" for w, k, s in sizes),
        "conv_bias": c.conv_bias,
        "conv_pos": c.num_conv_pos_embeddings,
        "conv_pos_groups": c.num_conv_pos_embedding_groups,
        "label_rate": 50.0,
    }


def save_fairseq(path: Path, encoder, style: str = "cfg", **save_options) -> None:
    """`style`: cfg (plain dicts), args (an old Namespace), omegaconf (nodes that know their parents)."""
    model = fairseq_settings(encoder)
    task = {"_name": "hubert_pretraining", "normalize": encoder.normalize, "sample_rate": encoder.sample_rate}
    nodes = [f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "nodes.AnyNode", "nodes.EnumNode")]
    gone = ["fairseq.data.dictionary.Dictionary", "fairseq.dataclass.constants.Mode", *nodes]
    with passing_classes(*gone) as classes:
        dictionary = classes[gone[0]]()
        dictionary.symbols, dictionary.indices = ["<s>", "1"], {"<s>": 0, "1": 1}
        weights = fairseq_weights(encoder)
        moments = {i: {"step": 9, "exp_avg": torch.zeros_like(w)} for i, w in enumerate(weights.values())}
        tree = {
            "args": None,
            "cfg": {"model": model, "task": task, "common": {"seed": 1}},
            "model": weights,
            "last_optimizer_state": {"state": moments, "param_groups": [{"lr": 1e-4}]},
            "task_state": {"dictionaries": [dictionary]},
            "extra_state": {"best": None},
        }
        if style == "args":
            tree |= {"args": argparse.Namespace(**(model | task), task="hubert_pretraining"), "cfg": None}
        elif style == "omegaconf":
            tree["cfg"] = _omegaconf(classes, gone, tree["cfg"], None)
        torch.save(tree, path, **save_options)


def _omegaconf(classes: dict[str, type], gone: list[str], value, parent):
    """Nodes with the attributes that omegaconf 2.0 and 2.1 pickle, each of which knows its parent."""
    mode, mapping, plain, enum = (classes[name] for name in gone[1:])
    if isinstance(value, dict):
        node = mapping()
        node._metadata, node._parent = mapping, parent
        node._content = {k: _omegaconf(classes, gone, v, node) for k, v in value.items()}
        return node
    node = plain()
    node._parent, node._val = parent, value
    if value in ("layer_norm", "default"):  # an enum's member is pickled as a call of its class
        node = enum()
        mode.__new__ = lambda cls, value="": object.__new__(cls)
        member = mode()
        mode.__reduce__ = lambda self: (mode, (value,))
        node._parent, node._val = parent, member
    return node


def save_kmeans(path: Path, centroids, compress=0) -> None:
    """A MiniBatchKMeans as fairseq's learn_kmeans.py leaves it, of a scikit-learn that is gone."""
    import joblib

    name = "sklearn_of_old.cluster.k_means_.MiniBatchKMeans"
    with passing_classes(name) as classes:
        model = classes[name]()
        model.cluster_centers_ = centroids
        model.labels_, model.n_clusters, model.tol = None, len(centroids), 0.0
        joblib.dump(model, path, compress=compress)


VOICES = ("one", "table", "vector")


def codehifigan_config(vocoder, voices: str = "one") -> dict:
    """config.json as fairseq's checkpoints have it."""
    c = vocoder.config
    values = {
        "resblock": "1",
        "upsample_rates": c.upsample_rates,
        "upsample_kernel_sizes": c.upsample_kernels,
        "upsample_initial_channel": c.initial_channels,
        "resblock_kernel_sizes": c.resblock_kernels,
        "resblock_dilation_sizes": c.resblock_dilations,
        "num_embeddings": c.num_units,
        "embedding_dim": c.embedding_dim,
        "model_in_dim": c.embedding_dim * (1 if voices == "one" else 2),
        "segment_size": 8960,
        "code_hop_size": c.hop,
        "f0": False,
        "sampling_rate": c.sample_rate,
        "multispkr": None if voices == "one" else "from_input_file",
        "dur_predictor_params": {
            "encoder_embed_dim": c.embedding_dim,
            "var_pred_hidden_dim": c.duration_width,
            "var_pred_kernel_size": 3,
            "var_pred_dropout": 0.5,
        },
    }
    if voices == "table":
        values["num_speakers"] = c.num_speakers
    if voices == "vector":
        values |= {"embedder_params": {"speaker_embedding": "vox"}, "embedder_dim": c.speaker_vector_dim}
    return values


def save_codehifigan(folder: Path, vocoder, voices: str = "one", name: str = "g_00500000") -> Path:
    """The generator under weight norm, as torch's older weight_norm names it; config.json beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for key, value in vocoder.state_dict().items():
        stem = key.removesuffix(".weight")
        if key.endswith(".weight") and stem.startswith(("conv_pre", "ups", "resblocks", "conv_post")):
            norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.dim() - 1))
            state |= {f"{stem}.weight_g": norm, f"{stem}.weight_v": value * 1.5}
        else:
            state[key] = value
    torch.save({"generator": state}, folder / name)
    (folder / "config.json").write_text(json.dumps(codehifigan_config(vocoder, voices)))
    return folder / name
