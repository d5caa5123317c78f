"""fairseq's own HuBERT behind our words: the judge of what `speechgpt convert` writes, and `encode --backend
fairseq`. Needs the extra `fairseq`; everything here runs fairseq's code, unchanged, on its own files.

fairseq would unpickle whatever a file says, build the model it names, and pass some of that model's settings
to `eval`. Here torch reads the file with `weights_only` and a list of the classes that such checkpoints hold.
Before that the file is read without fairseq: it must name HuBERT, whose one evaluated setting is read too.
"""

import argparse
import collections
import contextlib
import io
import logging
import pickle
import re
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.data.audio import read_audio
from speechgpt.data.inert import read_inert
from speechgpt.units.codebook import ASSIGN_CHUNK
from speechgpt.units.devices import choose_device
from speechgpt.units.fairseq_hubert import MODEL, TASK, check_settings, parse_convolutions
from speechgpt.units.precision import exact_convolutions
from speechgpt.units.waveforms import NORMALIZE_EPS

INSTALL = "pip install 'speechgpt[fairseq]', or `make test PARITY=1` in a clone"


def import_fairseq() -> ModuleType:
    """fairseq, without its chatter. ImportError says how to get it."""
    with quiet():
        try:
            import fairseq
            import fairseq.checkpoint_utils
        except ImportError as error:
            raise ImportError(f"fairseq is not installed ({error}); install it: {INSTALL}") from error
    logging.getLogger("fairseq").setLevel(logging.ERROR)
    return fairseq


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """fairseq prints to standard output, where units go, and sets up everybody's logging on import."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _known_classes() -> list:
    """What HuBERT checkpoints hold besides tensors and plain values: none of it does anything when made."""
    import omegaconf
    from fairseq.data.dictionary import Dictionary
    from omegaconf import base, nodes

    found = [argparse.Namespace, Dictionary, collections.defaultdict, dict, list, int, float, str, bool]
    found += [typing.Any, omegaconf.DictConfig, omegaconf.ListConfig, base.Metadata, base.ContainerMetadata]
    return found + [getattr(nodes, n) for n in dir(nodes) if n.endswith("Node")]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, torch.load reads `path` as fairseq calls it; what is no such file is a ValueError."""
    with torch.serialization.safe_globals(_known_classes()):
        try:
            yield
        except pickle.UnpicklingError as error:
            name = re.search(r"GLOBAL (\S+)", str(error))
            what = f"it holds a {name[1]}" if name else " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: not read with fairseq: {what}") from error
        except (RuntimeError, KeyError, AttributeError, TypeError, EOFError) as error:
            raise ValueError(
                f"{path}: fairseq cannot load it ({' '.join(str(error).split())[:300]})"
            ) from error


class FairseqHubert:
    """A HuBERT checkpoint as fairseq loads and runs it, one whole waveform at a time."""

    def __init__(self, model: torch.nn.Module, normalize: bool, sample_rate: int) -> None:
        self.model = model.eval()
        self.normalize = normalize  # the task's setting; fairseq leaves it to the caller to follow it
        self.sample_rate = sample_rate  # Hz

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "auto") -> "FairseqHubert":
        """A fairseq checkpoint (.pt) of a HuBERT, with its dictionaries inside."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a fairseq HuBERT checkpoint")
        checkpoints = import_fairseq().checkpoint_utils
        _check_inert(path)
        with quiet(), reading(path):
            state = checkpoints.load_checkpoint_to_cpu(str(path))
            _check_loaded(state, path)
            models, config, _ = checkpoints.load_model_ensemble_and_task([str(path)], state=state)
        model = models[0]
        if not hasattr(model, "feature_extractor") or not hasattr(model.encoder, "layers"):
            raise ValueError(f"{path}: fairseq loads a {type(model).__name__}, expected a HuBERT")
        return cls(model.to(choose_device(device)), bool(config.task.normalize), int(config.task.sample_rate))

    @property
    def num_layers(self) -> int:
        return len(self.model.encoder.layers)

    @torch.no_grad()
    def features(self, waveform: np.ndarray | Tensor, layers: Sequence[int] = ()) -> list[Tensor]:
        """Waveform (T,) to features (N, D) float32 of each of `layers`, rising from 1; all layers by default.

        The last comes from fairseq's `extract_features(output_layer=...)`, the others from layers on the way.
        """
        layers = tuple(layers) or tuple(range(1, self.num_layers + 1))
        if list(layers) != sorted(set(layers)) or layers[0] < 1 or layers[-1] > self.num_layers:
            # fairseq itself takes layer 0 for the last one
            raise ValueError(f"layers {layers}: expected rising numbers from 1 to {self.num_layers}")
        device = self.model.mask_emb.device
        source = torch.as_tensor(waveform, dtype=torch.float32, device=device)
        if self.normalize:
            source = functional.layer_norm(source, source.shape, eps=NORMALIZE_EPS)
        found: list[Tensor] = []
        blocks = [self.model.encoder.layers[n - 1] for n in layers[:-1]]
        hooks = [b.register_forward_hook(lambda _, __, out: found.append(out[0][:, 0])) for b in blocks]
        try:
            with exact_convolutions():
                last, _ = self.model.extract_features(
                    source[None], padding_mask=None, mask=False, output_layer=layers[-1]
                )  # 1 N D
        finally:
            for hook in hooks:
                hook.remove()
        # fairseq pads to an even number of frames before its layers
        return [f[: last.shape[1]].float() for f in found] + [last[0].float()]


def _check_inert(path: Path) -> None:
    """Raises ValueError unless the file names HuBERT, in every place where fairseq may look."""
    try:
        check_settings(read_inert(path), str(path), named=True)
    except ValueError as error:
        raise ValueError(f"{path}: not run with fairseq: {str(error).removeprefix(f'{path}: ')}") from error


def _check_loaded(state: dict, path: Path) -> None:
    """The same of what fairseq made of the file and builds next: it renames, composes and interpolates."""
    model, task = state["cfg"].model, state["cfg"].task
    if getattr(model, "_name", None) != MODEL or getattr(task, "_name", None) != TASK:
        raise ValueError(f"{path}: not run with fairseq: it takes the file for another model than HuBERT")
    text = getattr(model, "conv_feature_layers", None)
    if text is not None:
        parse_convolutions(str(text), f"{path}: conv_feature_layers")


class FairseqUnits:
    """Waveforms to units as fairseq's examples do it: a checkpoint, a layer, and centroids."""

    def __init__(self, hubert: FairseqHubert, centroids: np.ndarray | Tensor, layer: int) -> None:
        """centroids (K, D)"""
        if not 1 <= layer <= hubert.num_layers:
            raise ValueError(f"layer {layer}: this checkpoint has layers 1 to {hubert.num_layers}")
        self.hubert, self.layer = hubert, layer
        self.centroids = torch.as_tensor(centroids, dtype=torch.float32, device=hubert.model.mask_emb.device)
        self.window_seconds = float("inf")  # fairseq takes a file whole

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Waveforms (T,) to frames (N,) int64 each."""
        return [self.assign(self.hubert.features(w, (self.layer,))[0]).cpu().numpy() for w in waveforms]

    def encode_file(self, path: str | Path) -> np.ndarray:
        """An audio file to frames (N,) int64; the memory grows with the square of its length."""
        return self.encode([read_audio(path, self.hubert.sample_rate)])[0]

    def assign(self, features: Tensor) -> Tensor:
        """Features (N, D) to the nearest centroids (N,), by the terms of |x - c|^2."""
        if features.shape[-1] != self.centroids.shape[1]:
            raise ValueError(
                f"layer {self.layer} is {features.shape[-1]} wide, the centroids {self.centroids.shape[1]}"
            )
        norms = self.centroids.square().sum(-1)  # K
        found = []
        for chunk in features.split(ASSIGN_CHUNK):
            distances = chunk.square().sum(-1, keepdim=True) - 2 * chunk @ self.centroids.T + norms  # n K
            found.append(distances.argmin(-1))
        return torch.cat(found)
