"""Waveforms as an encoder takes them: checked, float32 in memory, normalised, side by side in a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NORMALIZE_EPS = 1e-5  # fairseq layer-normalises the waveform with torch's default


def in_memory(waveform: np.ndarray | Tensor) -> np.ndarray:
    """A waveform (T,) of any dtype and device to (T,) float32 in memory."""
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().float().cpu().numpy()  # numpy knows no bfloat16
    return np.asarray(waveform, np.float32)


def normalised(waveform: Tensor) -> Tensor:
    """(T,) to mean 0 and variance 1 over its whole length."""
    return functional.layer_norm(waveform, waveform.shape, eps=NORMALIZE_EPS)


def check_waveforms(waveforms: Sequence[np.ndarray | Tensor], least: int, sample_rate: int) -> None:
    """Raises ValueError that says which one is not (T,), or has fewer than `least` samples."""
    for number, waveform in enumerate(waveforms):
        if np.ndim(waveform) != 1:
            raise ValueError(
                f"waveform {number} of the batch: shape {tuple(np.shape(waveform))}, expected (T,): one "
                "channel a waveform"
            )
        if len(waveform) < least:
            raise ValueError(
                f"waveform {number} of the batch: {len(waveform)} samples; the encoder needs at least "
                f"{least} ({1000 * least / sample_rate:.0f} ms)"
            )


def side_by_side(waveforms: Sequence[np.ndarray | Tensor], normalize: bool) -> tuple[Tensor, Tensor]:
    """Waveforms (T,) to a batch (B, T) float32 in memory, zero past a row's end, and lengths (B,) int64."""
    batch = torch.zeros(len(waveforms), max(len(w) for w in waveforms))
    for number, waveform in enumerate(waveforms):
        row = torch.as_tensor(in_memory(waveform))
        batch[number, : len(row)] = normalised(row) if normalize else row
    return batch, torch.tensor([len(w) for w in waveforms])
