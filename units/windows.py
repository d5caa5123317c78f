"""Audio of any length in bounded memory: overlapping windows whose frames join without a seam."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.units.encoder import Encoder, exact_convolutions
from speechgpt.units.running_norms import RunningNorms

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
    norms = RunningNorms(encoder)
    norms.add(waveform)
    (shift, scale), statistics = norms.level, norms.group
    starts = list(range(0, total, window))
    for at in range(0, len(starts), batch):
        pieces, kept = [], []
        for start in starts[at : at + batch]:
            left, right = max(0, start - context), min(total, start + window + context)
            piece = waveform[left * hop : (right - 1) * hop + field]
            pieces.append(torch.from_numpy((np.asarray(piece, dtype=np.float32) - shift) * scale))
            kept.append((start - left, min(window, total - start)))
        for features, (skip, count) in zip(
            encode_pieces(encoder, pieces, layer, statistics), kept, strict=True
        ):
            yield features[skip : skip + count]


@torch.no_grad()
def encode_pieces(
    encoder: Encoder, pieces: list[Tensor], layer: int, statistics: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    """Levelled pieces (T,) of one recording, with its first group norm's statistics, to features (N, D)."""
    lengths = torch.tensor([len(p) for p in pieces])
    batch = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # B T
    whole = bool((lengths == batch.shape[1]).all())
    batch = batch.to(encoder.device, encoder.dtype)
    with exact_convolutions():
        (hidden,) = encoder(
            batch, None if whole else lengths.to(encoder.device), (layer,), statistics=statistics
        )
    return [row[: encoder.frames(int(n))].float() for row, n in zip(hidden, lengths, strict=True)]
