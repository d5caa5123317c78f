"""Audio of any length in bounded memory, near what the encoder gives for the whole file at once.

HuBERT's attention reaches over the whole file: a window on its own, however much context it has, gives other
features. So a long file goes through the encoder layer by layer, with the frames between two layers on disk:

1. a pass for what runs over the whole file: `normalize` and the first group norm (`RunningNorms`);
2. convolutions, projection and positions, in blocks that are exact at every seam;
3. each layer in windows. Attention sees the window and its context frame by frame, and of the rest of the
   file `MEMORY_FRAMES` frames at even distances, each of which counts for all up to the next.

A file of no more than `MEMORY_FRAMES` frames gets the whole file's features, but for rounding;
docs/long-audio.md has what was measured for longer ones.
"""

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from speechgpt.data.audio import mono_blocks, open_audio
from speechgpt.units.encoder import Encoder
from speechgpt.units.precision import exact_convolutions
from speechgpt.units.running_norms import RunningNorms

WINDOW_SECONDS = 60.0  # longer audio than this goes in windows; LibriSpeech's longest is 35 s
CONTEXT_SECONDS = 4.0  # what a window sees in full beyond each edge
MEMORY_FRAMES = 32_768  # of the rest of the file that a window sees: at 50 Hz all of ten minutes
BLOCK_SECONDS = 30.0  # how much of a long file is convolved at a time


@contextmanager
def open_long_audio(path: str | Path, sample_rate: int) -> Iterator[np.ndarray]:
    """Yields the waveform (T,) float32 mono of a long file from a temporary file on disk, not from memory.

    Check the file with `scan_audio` first: here ValueError is for what cannot be decoded, or is not finite.
    """
    with tempfile.TemporaryFile(prefix="speechgpt-") as store:
        for block in _resampled(path, sample_rate):
            if not np.isfinite(block).all():
                raise ValueError(f"{path}: holds samples that are not finite numbers at {sample_rate} Hz")
            store.write(block.tobytes())
        store.flush()
        if not store.tell():
            raise ValueError(f"{path}: the file holds no samples")
        yield np.memmap(store, dtype=np.float32, mode="r")


def _resampled(path: str | Path, sample_rate: int) -> Iterator[np.ndarray]:
    """The file in blocks (T,) float32 mono at `sample_rate`."""
    import soxr

    with open_audio(path) as source:
        if source.samplerate == sample_rate:
            yield from mono_blocks(source)
            return
        stream = soxr.ResampleStream(source.samplerate, sample_rate, 1, dtype="float32", quality="HQ")
        for mono in mono_blocks(source):
            yield stream.resample_chunk(mono)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def window_features(
    encoder: Encoder,
    waveform: np.ndarray,
    layer: int,
    window_seconds: float = WINDOW_SECONDS,
    context_seconds: float = CONTEXT_SECONDS,
    memory_frames: int = MEMORY_FRAMES,
) -> Iterator[Tensor]:
    """Yields features (n, D) float32 of consecutive windows; the n sum to `encoder.frames(T)` exactly."""
    encoder.check_layer(layer)
    rate = encoder.sample_rate / encoder.hop
    window, context = max(1, round(window_seconds * rate)), round(context_seconds * rate)
    given = FrameStore(encoder.width)
    for block in _inputs(encoder, waveform):
        given.append(block)
    every = max(1, -(-len(given) // max(1, memory_frames)))
    *before, last = encoder.model.encoder.layers[:layer]
    for module in before:
        made = FrameStore(encoder.width)
        for block in _layer_windows(encoder, module, given, window, context, every):
            made.append(block)
        given.close()
        given = made
    yield from _layer_windows(encoder, last, given, window, context, every)
    given.close()


class FrameStore:
    """Frames (N, D) float32 of a long file on disk, appended in order and read anywhere."""

    def __init__(self, width: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="speechgpt-")
        self._width, self._frames = width, 0

    def __len__(self) -> int:
        return self._frames

    def append(self, rows: Tensor) -> None:
        self._file.write(rows.cpu().numpy().tobytes())
        self._frames += len(rows)

    def read(self, start: int, stop: int) -> Tensor:
        """Frames (n, D) from `start` to `stop`."""
        self._file.seek(4 * self._width * start)
        rows = np.fromfile(self._file, np.float32, self._width * (stop - start))
        return torch.from_numpy(rows.reshape(-1, self._width))

    def close(self) -> None:
        self._file.close()


@torch.no_grad()
def _inputs(encoder: Encoder, waveform: np.ndarray) -> Iterator[Tensor]:
    """A waveform (T,) to the first layer's input in blocks (n, D) float32."""
    norms = RunningNorms(encoder)
    norms.add(waveform)
    (shift, scale), statistics = norms.level, norms.group
    hop, total = encoder.hop, int(encoder.frames(len(waveform)))
    size = max(1, int(BLOCK_SECONDS * encoder.sample_rate / hop))
    reach = encoder.config.num_conv_pos_embeddings  # the positional convolution sees half of it to each side
    for start in range(0, total, size):
        stop = min(total, start + size)
        left, right = max(0, start - reach), min(total, stop + reach)
        piece = np.asarray(waveform[left * hop : (right - 1) * hop + encoder.receptive_field], np.float32)
        piece = torch.from_numpy((piece - shift) * scale).to(encoder.device, encoder.dtype)
        with exact_convolutions():
            hidden = encoder.model.feature_projection(encoder.convolve(piece[None], None, statistics))
            hidden = encoder.positioned(hidden)[0]  # n D
        yield hidden[start - left : stop - left].float()


@torch.no_grad()
def _layer_windows(
    encoder: Encoder, module: nn.Module, given: FrameStore, window: int, context: int, every: int
) -> Iterator[Tensor]:
    """One layer over all frames, in windows (n, D) float32. Attention sees a window and its context frame by
    frame, and of the rest one frame in `every`, which counts for all of those."""
    norm = module.layer_norm if encoder.config.do_stable_layer_norm else nn.Identity()  # before attention
    total, size = len(given), every * max(1, window // every)

    def read(start: int, stop: int) -> Tensor:
        return given.read(start, min(total, stop)).to(encoder.device, encoder.dtype)

    places = torch.arange(every // 2, total, every)  # S
    # Copies: a slice would keep the whole block in memory, and so the whole file.
    blocks = (read(start, start + size)[every // 2 :: every].clone() for start in range(0, total, size))
    memory = norm(torch.cat(list(blocks)))  # S D
    for start in range(0, total, window):
        left, right = max(0, start - context), min(total, start + window + context)
        rest = memory[((places < left) | (places >= right)).to(memory.device)]
        seen = torch.cat([norm(read(left, right)), rest])[None]  # 1 M D
        bias = None
        if every > 1 and len(rest):
            bias = torch.zeros(seen.shape[1], dtype=seen.dtype, device=seen.device)  # M
            bias[right - left :] = math.log((total - (right - left)) / len(rest))
            bias = bias.expand(1, 1, min(window, total - start), -1)
        hidden = read(start, start + window)[None]
        yield module(hidden, bias, seen)[0].float()
