"""Audio files to mono float32 waveforms at the rate that the units need, and back.

Whatever libsndfile reads is accepted; channels are averaged (never laid end to end), any rate is resampled.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechgpt.data.files import atomic_path

if TYPE_CHECKING:
    from soundfile import SoundFile

SAMPLE_RATE = 16_000  # Hz, HuBERT's
RECEPTIVE_FIELD = 400  # samples: the shortest waveform that has one HuBERT frame
SCAN_BLOCK = 1 << 20  # samples of all channels that are decoded at a time
RATES = (
    1_000,
    768_000,
)  # Hz, lowest and highest: beyond them a header lies, and resampling would fill the memory


# Whose container says how many samples there are, and which libsndfile does not correct.
EXACT_FORMATS = ("FLAC", "OGG")


class TooLongError(ValueError):
    """More audio than the caller takes in one piece."""


@dataclass(frozen=True)
class AudioInfo:
    seconds: float
    sample_rate: int  # Hz
    channels: int
    samples: int  # by the file's header


def probe(path: str | Path) -> AudioInfo:
    """Reads the header alone. Raises FileNotFoundError or ValueError naming the file."""
    with open_audio(path) as source:
        return _info(source)


def _info(source: "SoundFile") -> AudioInfo:
    return AudioInfo(source.frames / source.samplerate, source.samplerate, source.channels, source.frames)


@contextmanager
def open_audio(path: str | Path) -> Iterator["SoundFile"]:
    """An audio file for reading. Raises FileNotFoundError, or ValueError with its name and what is wrong."""
    import soundfile

    with open(_existing(path), "rb") as file:
        try:
            # By its number: a name can be no UTF-8, or end in .raw, and then no header would be looked for.
            source = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            reason = f"not an audio file that libsndfile reads ({error.error_string})"
            raise ValueError(f"{path}: {reason}") from error
        with source:
            check_rate(source.samplerate, path)
            try:
                yield source
            except soundfile.LibsndfileError as error:
                raise ValueError(f"{path}: cannot be decoded ({error.error_string})") from error


def check_rate(rate: int, name: str | Path) -> None:
    """Raises ValueError when no recording of speech has this sample rate (Hz)."""
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"{name}: sample rate {rate} Hz; expected {RATES[0]} to {RATES[1]}")


def mono_blocks(source: "SoundFile", most: int = sys.maxsize) -> Iterator[np.ndarray]:
    """What is left of an open file, up to `most` samples, in blocks (T,) float32 of the channels' mean.

    Memory follows what is there, not what the header promises.
    """
    # No larger than the file claims to be: a second of speech needs no room for a minute of it.
    size = max(1, min(SCAN_BLOCK // source.channels, source.frames))
    while len(block := source.read(min(size, most), dtype="float32", always_2d=True)):
        most -= len(block)
        yield mean_of_channels(block)


def mean_of_channels(block: np.ndarray) -> np.ndarray:
    """(T, C) float32 to the mean of the channels (T,), where the caller names samples that are not finite."""
    if block.shape[1] == 1:
        return block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):
        return block.mean(axis=1)


def read_audio(
    path: str | Path, sample_rate: int = SAMPLE_RATE, max_seconds: float | None = None, check: bool = True
) -> np.ndarray:
    """Returns the waveform (T,) float32, mono, at `sample_rate`.

    Raises FileNotFoundError, or ValueError naming the file, when it is not audio, is empty, holds fewer
    samples than its header says, or (with `check`) fails `check_waveform`; TooLongError, a ValueError, when
    it is longer than `max_seconds`.
    """
    with open_audio(path) as source:
        info = _info(source)
        if info.samples == 0:
            raise ValueError(f"{path}: the file holds no samples")
        if max_seconds is not None and info.seconds > max_seconds:
            raise TooLongError(
                f"{path}: {info.seconds:.0f} s of audio; the limit here is {max_seconds:.0f} s"
            )
        blocks = list(mono_blocks(source))
        exact = source.format in EXACT_FORMATS
    samples = blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks])  # T
    expected = info.samples if exact else _declared_samples(path, info)
    if len(samples) < expected:
        raise ValueError(f"{path}: truncated, {len(samples)} samples where the header says {expected}")
    waveform = resample(samples, info.sample_rate, sample_rate)  # T
    if check:
        check_waveform(waveform, path)
    return waveform


def scan_audio(path: str | Path) -> AudioInfo:
    """Checks a file of any length in bounded memory; raises what `read_audio` raises, returns its header."""
    info = probe(path)
    if info.samples == 0:
        raise ValueError(f"{path}: the file holds no samples")
    found, heard = 0, False
    with open_audio(path) as source:
        for mono in mono_blocks(source):
            if not np.isfinite(mono).all():
                where = found + int(np.argmin(np.isfinite(mono)))
                raise ValueError(f"{path}: sample {where} is not a finite number")
            found, heard = found + len(mono), heard or bool(mono.any())
    expected = _declared_samples(path, info)
    if found < expected:
        raise ValueError(f"{path}: truncated, {found} samples where the header says {expected}")
    if not heard:
        raise ValueError(f"{path}: all samples are zero")
    return info


def _declared_samples(path: str | Path, info: AudioInfo) -> int:
    """The header's own count of samples; libsndfile silently corrects a WAV whose data was cut short."""
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            return info.samples
        block_align = 0
        while len(chunk := file.read(8)) == 8:
            name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            if name == b"fmt ":
                start = file.tell()
                block_align = int.from_bytes(file.read(14)[12:], "little")
                file.seek(start + size + size % 2)
            elif name == b"data":
                # Streaming writers leave 0 or the largest size: then the count is unknown, not wrong.
                known = block_align and 0 < size < 0x7FFFF000
                compressed = info.samples * block_align > 2 * size if block_align else True
                return size // block_align if known and not compressed else info.samples
            else:
                file.seek(size + size % 2, 1)
    return info.samples


def resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """(T,) at `rate` Hz to (T',) float32 at `sample_rate` Hz."""
    if rate == sample_rate:
        return np.ascontiguousarray(waveform, dtype=np.float32)
    import soxr

    return soxr.resample(waveform.astype(np.float32), rate, sample_rate, quality="HQ").astype(np.float32)


def check_waveform(waveform: np.ndarray, name: str | Path) -> None:
    """Raises ValueError when (T,) `waveform` cannot be speech: too short, silent, or not finite."""
    if len(waveform) < RECEPTIVE_FIELD:
        raise ValueError(
            f"{name}: {len(waveform)} samples at 16 kHz; the encoder needs at least {RECEPTIVE_FIELD} (25 ms)"
        )
    if not np.isfinite(waveform).all():
        raise ValueError(f"{name}: sample {int(np.argmin(np.isfinite(waveform)))} is not a finite number")
    if not waveform.any():
        raise ValueError(f"{name}: all samples are zero")


def write_wav(path: str | Path, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes (T,) float in [-1, 1] as 16 bit PCM WAV, atomically."""
    import soundfile

    # Encoded in memory first: on a full disk libsndfile says "System error", Python's own write says which.
    encoded = BytesIO()
    soundfile.write(encoded, np.clip(waveform, -1, 1), sample_rate, subtype="PCM_16", format="WAV")
    with atomic_path(path) as part:
        part.write_bytes(encoded.getvalue())


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected an audio file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty")
    return path
