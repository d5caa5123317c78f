"""fairseq's CodeHiFiGAN generators (`config.json` and `g_00500000`) to our `UnitVocoder`, without fairseq.

Names of weights and settings are those of fairseq 0.12's models/text_to_speech/codehifigan.py and hifigan.py,
which our generator shares; what is left is to fold the weight norm.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.checkpoint_fields import Fields, describe, named_arrays
from speechgpt.units.encoder_files import misfits
from speechgpt.vocoder.architecture import VocoderConfig
from speechgpt.vocoder.generator import UnitVocoder

SPEAKERS = 200  # fairseq's default for a speaker table
SPEAKER_VECTOR = 256  # and for the width of speaker vectors
MAX_STAGES = 16
# A pair of tensors that stands for a weight: torch's older and newer names.
WEIGHT_NORMS = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
SPEECHBRAIN = (
    "a unit HiFi-GAN of SpeechBrain: its convolutions pad by reflection and ours with zeros{more}, so that "
    "no weights of ours give its waveform; use SpeechBrain, or train a vocoder with `speechgpt vocoder`"
)


def is_generator(tree: Any) -> bool:
    """fairseq keeps the weights under `generator`; SpeechBrain's are bare."""
    return isinstance(tree, dict) and (isinstance(tree.get("generator"), dict) or is_speechbrain(tree))


def is_speechbrain(tree: Any) -> bool:
    return isinstance(tree, dict) and "unit_embedding.weight" in tree


def is_generator_config(values: Any) -> bool:
    return isinstance(values, dict) and "upsample_rates" in values and "num_embeddings" in values


def convert_generator(tree: dict, values: Any, where: str, config_where: str) -> UnitVocoder:
    """The vocoder (on the CPU) of a checkpoint and its config.json's values.

    One voice, a table of speakers (`multispkr`) or a map from a speaker vector (`embedder_params` too).
    Raises ValueError that says which setting or weight is missing, or of another network.
    """
    if is_speechbrain(tree):
        raise ValueError(f"{where}: " + SPEECHBRAIN.format(more=_speechbrain_differences(tree)))
    config = _config(Fields(values, config_where))
    state = fold(named_arrays(tree["generator"], f"{where}: generator"), where)
    if config.speaker_vector_dim == config.num_speakers == 0:
        # An embedder without `multispkr` is stored, and never called.
        state = {name: value for name, value in state.items() if not name.startswith("spkr.")}
    with torch.device("meta"):  # sizes that are only claimed take no memory
        model = UnitVocoder(config).eval()
    if issues := misfits(state, model.state_dict()):
        raise ValueError(f"{where}: the weights do not fit {config_where}: {issues}")
    model.load_state_dict(state, assign=True)
    return model


def fold(arrays: dict[str, np.ndarray], where: str) -> dict[str, Tensor]:
    """Weight norm (over all dimensions but the first) folded into plain weights, float32."""
    state = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()}
    for gain, direction in WEIGHT_NORMS:
        for name in [name for name in state if name.endswith(gain)]:
            stem = name.removesuffix(gain)
            g, v = state.pop(name), state.pop(stem + direction, None)
            if v is None or g.dim() != v.dim() or g.numel() != len(v):
                raise ValueError(f"{where}: {name} has no {stem}{direction} of its shape beside it")
            state[f"{stem}.weight"] = torch._weight_norm(v, g, 0)  # what fairseq computes, to the last bit
    return state


def _config(fields: Fields) -> VocoderConfig:
    width = fields.integer("embedding_dim")
    config = VocoderConfig(
        num_units=fields.integer("num_embeddings"),
        embedding_dim=width,
        upsample_rates=_integers(fields, "upsample_rates"),
        upsample_kernels=_integers(fields, "upsample_kernel_sizes"),
        initial_channels=fields.integer("upsample_initial_channel", most=1 << 14),
        resblock_kernels=_integers(fields, "resblock_kernel_sizes"),
        resblock_dilations=_dilations(fields),
        speaker_dim=width,
        sample_rate=fields.integer("sampling_rate", 16_000),
        duration_predictor=False,
    )
    if fields.raw("f0", False) or fields.raw("f0_quant_num_bin", 0):
        raise ValueError(f"{fields.where}: a generator that is also told the pitch (f0), which ours is not")
    if fields.raw("multispkr", False):
        if fields.raw("embedder_params", False):
            config.speaker_vector_dim = fields.integer("embedder_dim", SPEAKER_VECTOR)
        else:
            config.num_speakers = fields.integer("num_speakers", SPEAKERS)
    expected = width * (2 if config.has_speaker else 1)
    if (found := fields.integer("model_in_dim", expected)) != expected:
        raise ValueError(
            f"{fields.where}: model_in_dim is {found}; units and speaker make {expected}: more is put beside "
            "every frame than is read here"
        )
    if (hop := fields.integer("code_hop_size", config.hop)) != config.hop:
        raise ValueError(f"{fields.where}: code_hop_size is {hop}, upsample_rates make {config.hop}")
    if fields.raw("dur_predictor_params", False):
        _add_durations(config, fields.part("dur_predictor_params"))
    config.check()
    return config


def _add_durations(config: VocoderConfig, fields: Fields) -> None:
    config.duration_predictor = True
    config.duration_width = fields.integer("var_pred_hidden_dim")
    config.duration_kernel = fields.integer("var_pred_kernel_size")
    dropout = fields.raw("var_pred_dropout", 0.5)
    config.duration_dropout = float(dropout) if isinstance(dropout, (int, float)) else 0.5
    if config.duration_kernel != 3:  # fairseq pads the second convolution by 1 whatever its kernel
        raise ValueError(f"{fields.where}: var_pred_kernel_size is {config.duration_kernel}; expected 3")
    if (width := fields.integer("encoder_embed_dim", config.embedding_dim)) != config.embedding_dim:
        raise ValueError(
            f"{fields.where}: encoder_embed_dim is {width}, embedding_dim {config.embedding_dim}"
        )


def _integers(fields: Fields, name: str) -> list[int]:
    return _checked(fields.raw(name), f"{fields.where}: {name}")


def _dilations(fields: Fields) -> list[list[int]]:
    where, found = f"{fields.where}: resblock_dilation_sizes", fields.raw("resblock_dilation_sizes")
    if not isinstance(found, list) or len(found) > MAX_STAGES:
        raise ValueError(f"{where} is {describe(found)}; expected lists of dilations")
    return [_checked(values, where) for values in found]


def _checked(values: Any, where: str) -> list[int]:
    good = isinstance(values, list) and 0 < len(values) <= MAX_STAGES
    if not good or any(type(v) is not int or not 0 < v <= 1 << 10 for v in values):
        raise ValueError(f"{where} is {describe(values)}; expected up to {MAX_STAGES} whole numbers above 0")
    return list(values)


def _speechbrain_differences(tree: dict) -> str:
    if any(isinstance(name, str) and name.startswith("var_predictor.") for name in tree):
        return ", its duration predictor has no layer norm"
    return ""
