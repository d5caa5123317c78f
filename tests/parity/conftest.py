"""Files that fairseq itself wrote: HuBERT checkpoints, CodeHiFiGAN generators; and joblib's k-means.

True shapes, random weights, every one of them moved off its initial value, so that no two can be mistaken for
each other: fresh norms are ones and zeros, and a fresh weight_g is just the norm of its weight_v.
"""

import json
import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

REQUIRED = os.environ.get("SPEECHGPT_PARITY") == "1"  # `make test PARITY=1`
K = 1000
LARGE = {  # hubert_large_librivox.yaml, but for its 24 layers
    "encoder_layers": 3,
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "extractor_mode": "layer_norm",
    "layer_norm_first": True,
    "final_dim": 768,
}
VOCODER = {  # the published config.json of the LJSpeech vocoder
    "resblock": "1",
    "num_gpus": 0,
    "batch_size": 16,
    "learning_rate": 0.0002,
    "adam_b1": 0.8,
    "adam_b2": 0.99,
    "lr_decay": 0.999,
    "seed": 1234,
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": K,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "segment_size": 8960,
    "code_hop_size": 320,
    "f0": False,
    "num_mels": 80,
    "num_freq": 1025,
    "n_fft": 1024,
    "hop_size": 256,
    "win_size": 1024,
    "dur_prediction_weight": 1.0,
    "dur_predictor_params": {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
    "sampling_rate": 16000,
    "fmin": 0,
    "fmax": 8000,
    "fmax_for_loss": None,
    "num_workers": 4,
    "dist_config": {"dist_backend": "nccl", "dist_url": "env://"},
}
SPEAKERS = {
    "one voice": {},
    "speaker table": {"multispkr": "from_input_file", "num_speakers": 200, "model_in_dim": 256},
    "speaker vector": {
        "multispkr": "from_input_file",
        "embedder_params": {"model": "resnet"},
        "embedder_dim": 256,
        "model_in_dim": 256,
    },
}


@dataclass(frozen=True)
class HubertFile:
    """How a checkpoint is made."""

    style: str  # cfg | DictConfig | args: how the settings are kept
    normalize: bool
    model: dict  # HubertConfig's fields
    zipped: bool = True  # torch's format since 1.6, or the one before


HUBERTS = {
    "base": HubertFile("cfg", False, {}),
    "base args normalize": HubertFile("args", True, {"encoder_layers": 4}, zipped=False),
    "large normalize": HubertFile("DictConfig", True, LARGE),
    "large": HubertFile("cfg", False, LARGE | {"encoder_layers": 2}),
}


@pytest.fixture(scope="session", autouse=True)
def fairseq():
    """fairseq, without which nothing here can be judged."""
    from speechgpt.units.fairseq_backend import import_fairseq

    try:
        return import_fairseq()
    except ImportError as error:
        if REQUIRED:
            pytest.fail(f"SPEECHGPT_PARITY=1 requires fairseq: {error}", pytrace=False)
        pytest.skip("fairseq is not installed: `make test PARITY=1` installs and requires it")


def shake(model: torch.nn.Module, seed: int, scale: float = 0.1) -> None:
    """Moves every weight by a share of its own size, and where that is nothing by `scale`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = parameter.std() if parameter.numel() > 1 else torch.tensor(0.0)
            spread = spread if spread > 1e-6 else torch.tensor(1.0)
            parameter += scale * spread * torch.randn(parameter.shape, generator=generator)


def write_hubert(path: Path, how: HubertFile, seed: int = 0) -> Path:
    """A checkpoint by fairseq's own Trainer; the older styles are its state as older releases kept it."""
    from fairseq import tasks
    from fairseq.data.dictionary import Dictionary
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models.hubert.hubert import HubertConfig
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
    from fairseq.trainer import Trainer
    from omegaconf import OmegaConf

    config = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(config, False)
    config.common.cpu = True
    config.task = OmegaConf.structured(
        HubertPretrainingConfig(data="labels", labels=["km"], label_rate=50.0, normalize=how.normalize)
    )
    config.model = OmegaConf.structured(HubertConfig(**how.model))
    config.task._name, config.model._name = "hubert_pretraining", "hubert"
    config.criterion = {
        "_name": "hubert",
        "pred_masked_weight": 1.0,
        "pred_nomask_weight": 0.0,
        "log_keys": [],
    }
    config.criterion.loss_weights = [10.0]
    config.optimizer = {"_name": "adam", "adam_betas": "(0.9,0.98)", "adam_eps": 1e-6, "lr": [0.0005]}
    config.lr_scheduler = {"_name": "polynomial_decay", "total_num_update": 100.0, "lr": [0.0005]}
    task = tasks.setup_task(config.task)
    dictionary = Dictionary()
    for unit in range(500):
        dictionary.add_symbol(str(unit), n=1000 - unit)
    task.state.merge_state_dict({"dictionaries": [dictionary]})
    torch.manual_seed(seed)
    model = task.build_model(config.model)
    shake(model, seed)
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    trainer.consolidate_optimizer()
    trainer.save_checkpoint(str(path), {"train_iterator": {"epoch": 1}, "val_loss": 1.0})
    if how.style != "cfg" or not how.zipped:
        state = torch.load(path, weights_only=False)
        restyle(state, how.style)
        torch.save(state, path, _use_new_zipfile_serialization=how.zipped)
    return path


def restyle(state: dict, style: str) -> None:
    """fairseq 0.10 kept a Namespace of all settings in `args`; some releases kept omegaconf's own objects."""
    from omegaconf import OmegaConf

    if style == "DictConfig":
        state["cfg"] = OmegaConf.create(state["cfg"])
    elif style == "args":
        flat = {}
        for part in state["cfg"].values():
            if isinstance(part, dict):
                flat |= {name: value for name, value in part.items() if name != "_name"}
        state["args"] = Namespace(**flat, arch="hubert", task="hubert_pretraining", criterion="hubert")
        state["cfg"] = None


def write_kmeans(path: Path, centroids: np.ndarray, compress: int = 0) -> Path:
    """A fitted MiniBatchKMeans as fairseq's learn_kmeans.py dumps it; two steps, then the centroids given."""
    import joblib
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(
        n_clusters=len(centroids), init=centroids, n_init=1, max_iter=1, batch_size=10_000
    )
    means.fit(centroids)
    means.cluster_centers_ = centroids.astype(np.float32)
    joblib.dump(means, path, compress=compress)
    return path


def write_vocoder(folder: Path, speakers: str, seed: int = 0) -> Path:
    """config.json and g_00500000 of fairseq's CodeHiFiGAN, weight norm and all; returns the latter."""
    from fairseq.models.text_to_speech.codehifigan import CodeGenerator

    config = VOCODER | SPEAKERS[speakers]
    torch.manual_seed(seed)
    model = CodeGenerator(config)
    shake(model, seed, 0.2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # loud, as a trained one is
            if name.endswith("weight_g"):
                parameter *= 2 if name.startswith("conv_post") else 1.5
        model.dur_predictor.proj.bias.fill_(1.3)  # around three frames
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save({"generator": model.state_dict()}, folder / "g_00500000")
    return folder / "g_00500000"
