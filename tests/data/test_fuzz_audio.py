"""Audio with broken headers is read, or refused in one line that names the file. FUZZ=10000 mutates more."""

import io
import os

import numpy as np
import pytest
import soundfile

from speechgpt.data.audio import probe, read_audio, scan_audio
from speechgpt.data.audio_stream import stream_audio
from speechgpt.units.windows import open_long_audio

from ..conftest import tone
from ..fuzzing import COUNT, Watch, with_bytes_changed

MOST_BYTES = 64 << 20
MOST_GROWN = 256 << 20  # decoders' own memory and the resampler's too
HEADER = 200  # bytes, where most mutations go
FORMATS = (
    ("WAV", "PCM_16", 16_000, 1),
    ("WAV", "FLOAT", 22_050, 2),
    ("WAV", "IMA_ADPCM", 16_000, 1),
    ("WAVEX", "PCM_24", 48_000, 2),
    ("FLAC", "PCM_16", 16_000, 1),
    ("FLAC", "PCM_24", 44_100, 2),
    ("OGG", "VORBIS", 16_000, 1),
    ("OGG", "OPUS", 48_000, 2),
    ("MP3", "MPEG_LAYER_III", 16_000, 1),
    ("MP3", "MPEG_LAYER_III", 44_100, 2),
    ("AU", "PCM_16", 16_000, 1),
    ("AIFF", "PCM_16", 16_000, 1),
)


@pytest.fixture(scope="module")
def whole() -> list[bytes]:
    files = []
    for form, subtype, rate, channels in FORMATS:
        out = io.BytesIO()
        wave = np.stack([tone(0.3, rate=rate)] * channels, axis=1)  # T C
        soundfile.write(out, wave, rate, format=form, subtype=subtype)
        files.append(out.getvalue())
    return files


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Mostly the header: bytes changed, put in, cut off; a field of two, four or eight bytes at its edges."""
    kind = random.integers(8)
    if kind == 0:
        return data[: int(random.integers(1, len(data)))]
    if kind == 1:
        return with_bytes_changed(data, random, len(data))
    if kind < 5:
        broken, size = bytearray(data), int(random.choice([2, 4, 8]))
        place = int(random.integers(min(HEADER, len(data)) - size))
        value = int(random.choice([0, 1, 0x7F, 0x80, 0xFF]))
        last = int(random.choice([value, 0x7F, 0xFF]))
        broken[place : place + size] = bytes([value] * (size - 1) + [last])
        return bytes(broken)
    return with_bytes_changed(data, random, HEADER)


def read_long(path) -> None:
    """As `encode` takes a long file: checked, then decoded to disk, then read in blocks."""
    scan_audio(path)
    with open_long_audio(path, 16_000) as waveform:
        assert waveform.ndim == 1 and len(waveform) < 16_000 * 400
        assert np.isfinite(waveform).all()


def open_long(path) -> None:
    with open_long_audio(path, 16_000) as waveform:
        assert len(waveform)


def read_stream(path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        for block in stream_audio(file, 16_000):
            assert block.dtype == np.float32  # `StreamEncoder` checks that they are finite
    except ValueError as error:
        assert str(error).startswith("standard input: "), str(error)
        raise ValueError(f"{path}: {error}") from error
    finally:
        os.close(file)


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("error")
def test_mutated_audio_ends_in_clear_errors(whole, tmp_path):
    random, path = np.random.default_rng(0), tmp_path / "x.audio"
    refused = 0
    with Watch(path, MOST_BYTES) as watch:
        for number in range(COUNT):
            path.write_bytes(mutated(whole[number % len(whole)], random))
            what = f"file {number} ({'-'.join(map(str, FORMATS[number % len(whole)]))})"
            ends = [watch.refuses(lambda read=read: read(path), what) for read in (scan_audio, read_audio)]
            assert not watch.refuses(lambda: probe(path), what) or all(ends), f"{what}: probed, then read"
            refused += ends[1]
            long = watch.refuses(lambda: read_long(path), what)
            assert long or not ends[0], f"{what}: scanned, and refused"
            watch.refuses(lambda: open_long(path), what)
            watch.refuses(lambda: read_stream(path), what)
    print(f"{watch}, {refused} by read_audio")
    assert COUNT // 10 < refused < COUNT
    assert watch.grown() < MOST_GROWN
