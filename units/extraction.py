"""Features of a manifest's files: batches of rows in order under a budget, decoded ahead in threads, and
fetched from the device while it works on the next."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from speechgpt.data.audio import TooLongError, read_audio, scan_audio
from speechgpt.data.parallel import cores
from speechgpt.data.rows import Utterance
from speechgpt.units.encoder import Encoder
from speechgpt.units.windows import WINDOW_SECONDS, open_long_audio, window_features

# Audio given to the encoder at a time, which divides it where it must pad (units/padding.py): on a CPU what
# caches and memory like, on a GPU 32,000 frames, whose products are large enough, while 2 GB hold what the
# first convolution makes of them in half precision.
BATCH_SECONDS = {"cpu": 60.0, "cuda": 640.0}
NOT_FINITE = "features that are no finite numbers; look for samples or weights that are none"
AHEAD = 3  # batches decoded while one is encoded

OVERFLOWED = "computed in float32: half precision did not hold the features"

Fetch = Callable[[], list[np.ndarray | None]]
# Starts to turn a batch's features (sum of N, D), of rows of N frames each, into one array a row; what it
# returns waits for them, and gives None for a row whose features are not finite.
Handle = Callable[[Tensor, list[int], list[Utterance]], Fetch]
# Row, result and OVERFLOWED or nothing; or row, None and why there is none.
Encoded = tuple[Utterance, np.ndarray | None, str]


def budget_batches(rows: Sequence[Utterance], budget: float) -> Iterator[list[Utterance]]:
    """The rows in order, in batches of `budget` seconds at most, or of one longer row."""
    batch: list[Utterance] = []
    filled = 0.0
    for row in rows:
        if batch and filled + row.seconds > budget:
            yield batch
            batch, filled = [], 0.0
        batch.append(row)
        filled += row.seconds
    if batch:
        yield batch


def encode_rows(
    encoder: Encoder,
    manifest: str | Path,
    rows: Sequence[Utterance],
    layer: int,
    handle: Handle,
    batch_seconds: float | None = None,
    workers: int | None = None,
    progress: str = "",
    precision: str = "float32",
) -> Iterator[Encoded]:
    """Encodes the rows' files, decoding ahead in threads (all cores but one by default); yields in order.

    A file that cannot be read yields None and the reason; the rest of its batch goes on. A row whose features
    are not finite in another `precision` is computed again in float32, and said to be `OVERFLOWED`.
    batch_seconds: of audio a batch, and of padded audio where the encoder pads.
    """
    batch_seconds = batch_seconds or BATCH_SECONDS[encoder.device.type]
    batches = budget_batches(rows, batch_seconds)
    bar = tqdm(
        total=round(sum(row.seconds for row in rows)),
        desc=progress,
        unit="s",
        unit_scale=True,
        disable=None if progress else True,
    )
    decoding: deque[list[tuple[Utterance, Future]]] = deque()
    started: deque[Callable[[], list[Encoded]]] = deque()  # batches that the device works on
    with bar, ThreadPoolExecutor(workers or max(1, cores() - 1)) as pool:
        try:
            while True:
                while len(decoding) < AHEAD and (members := next(batches, None)):
                    decoding.append([(row, pool.submit(_read, row, manifest, encoder)) for row in members])
                if decoding:
                    batch = [(row, future.result()) for row, future in decoding.popleft()]
                    started.append(_start(encoder, manifest, batch, layer, handle, precision, batch_seconds))
                elif not started:
                    return
                if len(started) > 1 or not decoding:
                    for done in started.popleft()():
                        bar.update(round(done[0].seconds))
                        yield done
        finally:
            pool.shutdown(cancel_futures=True)


def _read(row: Utterance, manifest: str | Path, encoder: Encoder) -> np.ndarray | None | str:
    """The waveform (T,); None for a file so long that it goes in windows; a reason when it cannot be read."""
    path = row.audio(manifest)
    try:
        try:
            # The manifest's word is not enough: a long file in one piece would fill the memory.
            waveform = read_audio(path, encoder.sample_rate, WINDOW_SECONDS)
        except TooLongError:
            scan_audio(path)
            return None
    except (ValueError, OSError) as error:
        return str(error)
    if len(waveform) < encoder.receptive_field:  # longer than HuBERT's 400 samples for encoders of 25 Hz
        return f"{path}: {len(waveform)} samples; this encoder needs at least {encoder.receptive_field}"
    return waveform


def _start(
    encoder: Encoder,
    manifest: str | Path,
    batch: list[tuple],
    layer: int,
    handle: Handle,
    precision: str,
    batch_seconds: float,
) -> Callable[[], list[Encoded]]:
    """Gives the batch to the device; what it returns waits for the results, in the batch's order."""
    rows = [row for row, waveform in batch if isinstance(waveform, np.ndarray)]
    waveforms = [waveform for _, waveform in batch if isinstance(waveform, np.ndarray)]

    def encode(members: Sequence[int], how: str) -> Fetch:
        if not members:
            return list
        given = [waveforms[i] for i in members]
        features, frames = encoder.frames_of(given, layer, how, batch_seconds)
        return handle(features, frames, [rows[i] for i in members])

    fetch = encode(range(len(rows)), precision)

    def finish() -> list[Encoded]:
        fetched = [(frames, "") for frames in fetch()]
        overflowed = [index for index, (frames, _) in enumerate(fetched) if frames is None]
        overflowed = [] if precision == "float32" else overflowed  # which would find the same
        for index, frames in zip(overflowed, encode(overflowed, "float32")(), strict=True):
            fetched[index] = frames, OVERFLOWED
        if bad := [row.id for row, (frames, _) in zip(rows, fetched, strict=True) if frames is None]:
            raise ValueError(f"{manifest}, {', '.join(bad)}: {NOT_FINITE}")
        results, found = iter(fetched), []
        for row, waveform in batch:
            if isinstance(waveform, str):
                found.append((row, None, waveform))
            elif waveform is None:
                found.append(_encode_long(encoder, manifest, row, layer, handle))
            else:
                found.append((row, *next(results)))
        return found

    return finish


def _encode_long(
    encoder: Encoder, manifest: str | Path, row: Utterance, layer: int, handle: Handle
) -> Encoded:
    """A file that goes in windows, in float32."""
    found = []
    try:
        with open_long_audio(row.audio(manifest), encoder.sample_rate) as waveform:
            for piece in window_features(encoder, waveform, layer):
                (part,) = handle(piece, [len(piece)], [row])()
                if part is None:
                    raise ValueError(f"{row.id}, {row.audio(manifest)}: {NOT_FINITE}")
                found.append(part)
        return row, np.concatenate(found), ""
    except ValueError as error:
        return row, None, str(error)
