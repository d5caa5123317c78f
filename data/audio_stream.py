"""Audio from a pipe, as it arrives: what libsndfile decodes without seeking, FLAC, and headerless samples."""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from speechgpt.data.audio import check_rate, mean_of_channels

BLOCK_SECONDS = 0.1  # read at a time
NAME = "standard input"
ENDLESS = 0x7FFFF000  # bytes of samples; headers of streams promise this many or more
SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
BEHIND = 1 << 17  # bytes of a FLAC stream that its decoder may go back


def stream_audio(file: int, sample_rate: int, raw_rate: int | None = None) -> Iterator[np.ndarray]:
    """Reads the file descriptor `file` to its end; yields blocks (T,) float32, mono, at `sample_rate`.

    `raw_rate`: the stream is 16 bit little-endian mono PCM of this rate (Hz), without a header. Raises
    ValueError when it is not audio, is empty, or ends before the header says.
    """
    import soxr

    resampler = None
    for rate, mono in _raw(file, raw_rate) if raw_rate is not None else _decoded(file):
        if rate != sample_rate:
            resampler = resampler or soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
            mono = resampler.resample_chunk(mono)
        yield mono
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _raw(file: int, rate: int) -> Iterator[tuple[int, np.ndarray]]:
    check_rate(rate, "--raw")
    rest, heard = b"", False
    while block := os.read(file, 2 * max(1, int(BLOCK_SECONDS * rate))):
        heard, block = True, rest + block
        even = len(block) - len(block) % 2
        rest = block[even:]
        yield rate, np.frombuffer(block[:even], "<i2").astype(np.float32) / 32768
    if not heard:
        raise ValueError(f"{NAME}: is empty")
    if rest:
        raise ValueError(f"{NAME}: ends in the middle of a 16 bit sample")


def _decoded(file: int) -> Iterator[tuple[int, np.ndarray]]:
    import soundfile

    with _opened(file) as opened:
        found, source = 0, None
        try:
            source = soundfile.SoundFile(opened, closefd=False)
            check_rate(source.samplerate, NAME)
            size = max(1, int(BLOCK_SECONDS * source.samplerate))
            while len(block := source.read(size, dtype="float32", always_2d=True)):
                found += len(block)
                yield source.samplerate, mean_of_channels(block)
        except soundfile.LibsndfileError as error:
            what = "cannot be decoded" if source else "not audio that can be read from a pipe"
            raise ValueError(
                f"{NAME}: {what} ({error.error_string}); wav, flac, ogg and au can, and --raw RATE"
            ) from error
        expected = source.frames
        promised = expected * source.channels * SAMPLE_BYTES.get(source.subtype, 1)
        source.close()
    if found == 0:
        raise ValueError(f"{NAME}: the stream holds no samples")
    if found < expected and promised < ENDLESS:
        raise ValueError(f"{NAME}: truncated, {found} samples where the header says {expected}")


@contextmanager
def _opened(file: int) -> Iterator["int | ForwardReader"]:
    """What libsndfile takes: a file as it is; FLAC through `ForwardReader`, for it goes back a little; else a
    pipe of our own, behind the bytes that were read to know."""
    if stat.S_ISREG(os.fstat(file).st_mode):
        yield file
        return
    head = b""
    while len(head) < 4 and (more := os.read(file, 4 - len(head))):
        head += more
    if not head:
        raise ValueError(f"{NAME}: is empty")
    if head[:3] == b"ID3" or (head[0] == 0xFF and head[1:2] >= b"\xe0"):
        raise ValueError(f"{NAME}: mp3 cannot be read from a pipe; wav, flac, ogg and au can, and --raw RATE")
    if head == b"fLaC":
        yield ForwardReader(file, head)
        return
    inner, outer = os.pipe()
    pump = threading.Thread(target=_pump, args=(file, head, outer), daemon=True)
    pump.start()
    try:
        yield inner
    finally:
        os.close(inner)
        pump.join(BLOCK_SECONDS)  # it ends at its next write, or with the program


def _pump(file: int, head: bytes, outer: int) -> None:
    try:
        block = head
        while block:
            block = block[os.write(outer, block) :] or os.read(file, 1 << 14)
    except BrokenPipeError:
        pass  # the decoder has seen enough
    finally:
        os.close(outer)


class ForwardReader:
    """A pipe as a file that can be read forwards, and backwards by `BEHIND` bytes; its end is not known."""

    def __init__(self, file: int, head: bytes) -> None:
        self._file, self._kept, self._start, self._place = file, head, 0, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: 1 << 62}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the pipe, or where they are gone or far ahead."""
        stop = self._place + size
        if self._place < self._start or self._place > self._start + len(self._kept) + BEHIND:
            return b""
        while (missing := stop - self._start - len(self._kept)) > 0:
            if not (block := os.read(self._file, missing)):
                break
            self._kept += block
        found = self._kept[self._place - self._start : stop - self._start]
        self._place += len(found)
        drop = max(0, self._place - self._start - BEHIND)
        self._kept, self._start = self._kept[drop:], self._start + drop
        return found

    def readinto(self, buffer: memoryview) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)

    def write(self, data: bytes) -> int:
        raise OSError("a pipe is only read")
