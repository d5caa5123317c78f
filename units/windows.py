"""Audio of any length in bounded memory: overlapping windows whose frames join without a seam."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.units.encoder import NORMALIZE_EPS, Encoder, exact_convolutions

WINDOW_SECONDS = 60.0  # longer audio than this goes in windows; LibriSpeech's longest is 35 s
CONTEXT_SECONDS = 4.0  # what a window sees beyond each edge; more hardly changes the units
BLOCK_SECONDS = 30.0  # how much of a long file is decoded at a time


@contextmanager
def open_long_audio(path: str | Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Yields the waveform (T,) float32 mono of a long file from a temporary file on disk, not from memory.

    Check the file with `scan_audio` first.
    """
    import soundfile
    import soxr

    with tempfile.TemporaryFile(prefix="speechgpt-") as store, soundfile.SoundFile(str(path)) as source:
        stream = None
        if source.samplerate != sample_rate:
            stream = soxr.ResampleStream(source.samplerate, sample_rate, 1, dtype="float32", quality="HQ")
        for block in source.blocks(int(BLOCK_SECONDS * source.samplerate), dtype="float32", always_2d=True):
            mono = block.mean(axis=1)  # T
            store.write((mono if stream is None else stream.resample_chunk(mono)).tobytes())
        if stream is not None:
            store.write(stream.resample_chunk(np.zeros(0, np.float32), last=True).tobytes())
        store.flush()
        yield np.memmap(store, dtype=np.float32, mode="r")


def window_features(
    encoder: Encoder,
    waveform: np.ndarray,
    layer: int,
    window_seconds: float = WINDOW_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
    batch: int = 1,
) -> Iterator[Tensor]:
    """Yields features (n, D) float32 of consecutive windows; the n sum to `encoder.frames(T)` exactly.

    What runs over the whole file (`normalize`, the first group norm) is computed over the whole file first.
    """
    encoder.check_layer(layer)
    hop, field = encoder.hop, encoder.receptive_field
    total = int(encoder.frames(len(waveform)))
    window = max(1, round(window_seconds * encoder.sample_rate / hop))
    context = round(context_seconds * encoder.sample_rate / hop)
    shift, scale = _level(encoder, waveform)
    statistics = _group_statistics(encoder, waveform, shift, scale)
    starts = list(range(0, total, window))
    for at in range(0, len(starts), batch):
        pieces, kept = [], []
        for start in starts[at : at + batch]:
            left, right = max(0, start - context), min(total, start + window + context)
            piece = waveform[left * hop : (right - 1) * hop + field]
            pieces.append(torch.from_numpy((np.asarray(piece, dtype=np.float32) - shift) * scale))
            kept.append((start - left, min(window, total - start)))
        for features, (skip, count) in zip(_encode(encoder, pieces, layer, statistics), kept, strict=True):
            yield features[skip : skip + count]


@torch.no_grad()
def _encode(
    encoder: Encoder, pieces: list[Tensor], layer: int, statistics: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    lengths = torch.tensor([len(p) for p in pieces])
    batch = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # B T
    whole = bool((lengths == batch.shape[1]).all())
    batch = batch.to(encoder.device, encoder.dtype)
    with exact_convolutions():
        (hidden,) = encoder(
            batch, None if whole else lengths.to(encoder.device), (layer,), statistics=statistics
        )
    return [row[: encoder.frames(int(n))].float() for row, n in zip(hidden, lengths, strict=True)]


def _blocks(waveform: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(waveform), size):
        yield np.asarray(waveform[start : start + size], dtype=np.float32)


def _level(encoder: Encoder, waveform: np.ndarray) -> tuple[np.float32, np.float32]:
    """What to subtract from the waveform and then multiply it by: the whole file's normalisation."""
    if not encoder.normalize:
        return np.float32(0), np.float32(1)
    size = int(BLOCK_SECONDS * encoder.sample_rate)
    mean = sum(float(b.sum(dtype=np.float64)) for b in _blocks(waveform, size)) / len(waveform)
    power = sum(float(np.square(b - mean, dtype=np.float64).sum()) for b in _blocks(waveform, size))
    return np.float32(mean), np.float32(1 / np.sqrt(power / len(waveform) + NORMALIZE_EPS))


@torch.no_grad()
def _group_statistics(
    encoder: Encoder, waveform: np.ndarray, shift: np.float32, scale: np.float32
) -> tuple[Tensor, Tensor] | None:
    """Mean and variance (C,) of the first convolution's output over the whole file, in one pass."""
    if encoder.config.feat_extract_norm != "group":
        return None
    kernel, stride = encoder.config.conv_kernel[0], encoder.config.conv_stride[0]
    convolution = encoder.model.feature_extractor.conv_layers[0].conv
    total = (len(waveform) - kernel) // stride + 1
    size = int(BLOCK_SECONDS * encoder.sample_rate / stride)
    sums = squares = 0.0
    for start in range(0, total, size):
        stop = min(total, start + size)
        piece = np.asarray(waveform[start * stride : (stop - 1) * stride + kernel], dtype=np.float32)
        piece = torch.from_numpy((piece - shift) * scale).to(encoder.device, encoder.dtype)
        with exact_convolutions():
            hidden = convolution(piece[None, None])[0].double()  # C M
        sums, squares = sums + hidden.sum(-1), squares + hidden.square().sum(-1)
    mean = sums / total
    return mean, squares / total - mean.square()
