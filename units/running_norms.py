"""What an encoder computes over a whole recording, gathered in one pass over blocks of it.

Two things see all of a file: `normalize`, the waveform's mean and variance, and the first group norm of
HuBERT base, the mean and variance of each channel of the first convolution. That convolution is linear, so
its sums over the plain waveform give those over the normalised one, and a single pass is enough.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechgpt.units.encoder import Encoder
from speechgpt.units.precision import exact_convolutions
from speechgpt.units.waveforms import NORMALIZE_EPS

BLOCK_SAMPLES = 65_536  # convolved at a time: 27 MB of HuBERT base's 512 channels


class RunningNorms:
    """Sums over all samples that were added; they depend on nothing but the samples' order."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._samples = 0
        self._sum = self._power = 0.0
        self._positions = 0  # of the first convolution
        self._pending = np.zeros(0, np.float32)  # what the next of its positions sees
        channels = encoder.config.conv_dim[0] if encoder.config.feat_extract_norm == "group" else 0
        self._sums = torch.zeros(channels, dtype=torch.float64)  # C
        self._squares = torch.zeros(channels, dtype=torch.float64)  # C

    def add(self, samples: np.ndarray) -> None:
        """Goes on with samples (T,) float32 at the encoder's rate."""
        for start in range(0, len(samples), BLOCK_SAMPLES):
            block = np.asarray(samples[start : start + BLOCK_SAMPLES], dtype=np.float32)
            self._samples += len(block)
            self._sum += float(block.sum(dtype=np.float64))
            self._power += float(np.square(block, dtype=np.float64).sum())
            if len(self._sums):
                self._convolve(block)

    @torch.no_grad()
    def _convolve(self, block: np.ndarray) -> None:
        convolution = self._encoder.model.feature_extractor.conv_layers[0].conv
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        block = np.concatenate([self._pending, block])
        count = max(0, (len(block) - kernel) // stride + 1)
        if count:
            piece = torch.from_numpy(block[: (count - 1) * stride + kernel])
            piece = piece.to(self._encoder.device, self._encoder.dtype)
            with exact_convolutions():
                hidden = functional.conv1d(piece[None, None], convolution.weight, stride=stride)[0]  # C M
            self._sums += hidden.sum(-1, dtype=torch.float64).cpu()
            self._squares += hidden.float().square().sum(-1, dtype=torch.float64).cpu()
            self._positions += count
        self._pending = block[count * stride :]

    @property
    def level(self) -> tuple[np.float32, np.float32]:
        """What to subtract from the waveform and then multiply it by: 0 and 1 unless `normalize`."""
        if not self._encoder.normalize:
            return np.float32(0), np.float32(1)
        mean = self._sum / self._samples
        variance = max(0.0, self._power / self._samples - mean**2)
        return np.float32(mean), np.float32(1 / np.sqrt(variance + NORMALIZE_EPS))

    @property
    def group(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance (C,) float64 of the first convolution of the levelled waveform, or None without
        a group norm."""
        if not len(self._sums):
            return None
        convolution = self._encoder.model.feature_extractor.conv_layers[0].conv
        shift, scale = (float(value) for value in self.level)
        mean = self._sums / self._positions
        variance = (self._squares / self._positions - mean.square()).clamp(min=0)
        mean = scale * (mean - shift * convolution.weight.detach().double().sum((1, 2)).cpu())
        if convolution.bias is not None:
            mean = mean + convolution.bias.detach().double().cpu()
        return mean, variance * scale**2
