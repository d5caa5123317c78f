"""Features of a manifest's files: batches of like lengths under a budget, decoded ahead in threads."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from speechgpt.data.audio import probe, read_audio, scan_audio
from speechgpt.data.rows import Utterance
from speechgpt.units.encoder import Encoder
from speechgpt.units.windows import WINDOW_SECONDS, open_long_audio, window_features

BATCH_SECONDS = {"cpu": 60.0, "cuda": 1200.0}  # padded audio encoded at a time
AHEAD = 3  # batches decoded while one is encoded

# Turns a batch's features, one (N, D) a row, into one array a row.
Handle = Callable[[list[Tensor], list[Utterance]], list[np.ndarray]]
Encoded = tuple[Utterance, np.ndarray | None, str]  # row, result, or None and why not


def length_batches(seconds: Sequence[float], budget: float) -> list[list[int]]:
    """Indices in batches of like lengths, longest first; each batch, padded, is `budget` seconds at most."""
    batches: list[list[int]] = []
    longest = 0.0
    for index in sorted(range(len(seconds)), key=lambda i: (-seconds[i], i)):
        if not batches or longest * (len(batches[-1]) + 1) > budget:
            batches.append([])
            longest = seconds[index]
        batches[-1].append(index)
    return batches


def encode_rows(
    encoder: Encoder,
    manifest: str | Path,
    rows: Sequence[Utterance],
    layer: int,
    handle: Handle,
    batch_seconds: float | None = None,
    workers: int = 4,
    progress: str = "",
) -> Iterator[Encoded]:
    """Encodes the rows' files in batches of like lengths, decoding ahead in threads; yields in that order.

    A file that cannot be read yields None and the reason; the rest of its batch goes on.
    """
    budget = batch_seconds or BATCH_SECONDS[encoder.device.type]
    batches = deque(length_batches([row.seconds for row in rows], budget))
    bar = tqdm(
        total=round(sum(row.seconds for row in rows)),
        desc=progress,
        unit="s",
        unit_scale=True,
        disable=None if progress else True,
    )
    waiting: deque = deque()
    with bar, ThreadPoolExecutor(workers) as pool:
        while batches or waiting:
            while batches and len(waiting) < AHEAD:
                members = [rows[i] for i in batches.popleft()]
                waiting.append([(row, pool.submit(_read, row, manifest, encoder)) for row in members])
            batch = [(row, future.result()) for row, future in waiting.popleft()]
            yield from _encode_batch(encoder, manifest, batch, layer, handle)
            bar.update(round(sum(row.seconds for row, _ in batch)))


def _read(row: Utterance, manifest: str | Path, encoder: Encoder) -> np.ndarray | None | str:
    """The waveform (T,); None for a file so long that it goes in windows; a reason when it cannot be read."""
    path = row.audio(manifest)
    try:
        if probe(path).seconds > WINDOW_SECONDS:
            scan_audio(path)
            return None
        waveform = read_audio(path, encoder.sample_rate)
    except (ValueError, OSError) as error:
        return str(error)
    if len(waveform) < encoder.receptive_field:  # longer than HuBERT's 400 samples for encoders of 25 Hz
        return f"{path}: {len(waveform)} samples; this encoder needs at least {encoder.receptive_field}"
    return waveform


def _encode_batch(
    encoder: Encoder, manifest: str | Path, batch: list[tuple], layer: int, handle: Handle
) -> Iterator[Encoded]:
    good = [(row, waveform) for row, waveform in batch if isinstance(waveform, np.ndarray)]
    if good:
        members = [row for row, _ in good]
        features = encoder.features([waveform for _, waveform in good], layer)
        for row, result in zip(members, handle(features, members), strict=True):
            yield row, result, ""
    for row, waveform in batch:
        if isinstance(waveform, str):
            yield row, None, waveform
        elif waveform is None:
            try:
                with open_long_audio(row.audio(manifest), encoder.sample_rate) as long:
                    pieces = [handle([piece], [row])[0] for piece in window_features(encoder, long, layer)]
                yield row, np.concatenate(pieces), ""
            except ValueError as error:
                yield row, None, str(error)
