"""Audio that lies about itself costs one clear error and little memory, from a file as from a pipe."""

import os
import struct
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechgpt.data.audio import SCAN_BLOCK, probe, read_audio, scan_audio
from speechgpt.data.audio_stream import stream_audio
from speechgpt.data.layouts import Recording
from speechgpt.data.readers import cut
from speechgpt.units.windows import open_long_audio


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    return (0.2 * np.sin(0.1 * np.arange(round(seconds * rate)))).astype(np.float32)


def wav(rate: int = 16_000, channels: int = 1, size: int | None = None, bits: int = 16) -> bytes:
    """A WAV of one second whose header says what it is told to."""
    data = (32767 * tone(1.0)).astype("<i2").tobytes()
    size = len(data) if size is None else size
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, (rate * align) & 0xFFFFFFFF, align & 0xFFFF, bits)
    head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", (len(head) + size) & 0xFFFFFFFF) + head + data


def flac(samples: int | None = None, rate: int | None = None) -> bytes:
    """A FLAC of one second whose STREAMINFO is changed: 20 bits of rate, 3, 5, then 36 of sample count."""
    import io

    out = io.BytesIO()
    soundfile.write(out, tone(1.0), 16_000, format="FLAC")
    found = bytearray(out.getvalue())
    packed = int.from_bytes(found[18:26], "big")
    if samples is not None:
        packed = packed >> 36 << 36 | samples
    if rate is not None:
        packed = packed & ((1 << 44) - 1) | rate << 44
    found[18:26] = packed.to_bytes(8, "big")
    return bytes(found)


HOSTILE = {
    "a rate of 1 Hz": (wav(rate=1), "sample rate 1 Hz; expected 1000 to 768000"),
    "a rate of 4 GHz": (wav(rate=0xFFFFFFFF), "sample rate|not an audio file"),
    "a rate of 2 GHz": (wav(rate=2_000_000_000), "sample rate 2000000000 Hz; expected"),
    "a rate of nothing": (wav(rate=0), "sample rate 0 Hz|not an audio file"),
    "no channels": (wav(channels=0), "not an audio file"),
    "65535 channels": (wav(channels=0xFFFF), "not an audio file"),
    "no bits": (wav(bits=0), "not an audio file"),
    "twice the samples": (wav(size=64_000), "truncated, 16000 samples where the header says 32000"),
    "2 GB of samples": (wav(size=0x7FFFE000), "truncated, 16000 samples where the header says 1073737728"),
    "half a file": (wav()[:9000], "truncated"),
    "a header alone": (wav()[:44], "truncated|holds no samples"),
    "half a header": (wav()[:30], "not an audio file"),
    "flac: a day too much": (flac(samples=1 << 31), "truncated|cannot be decoded"),
    "flac: 2**36 - 1 samples": (flac(samples=(1 << 36) - 1), "truncated|cannot be decoded"),
    "flac: a rate of 1 Hz": (flac(rate=1), "sample rate 1 Hz|not an audio file"),
    "flac: half": (flac()[: len(flac()) // 2], "truncated|cannot be decoded"),
    "flac: its mark alone": (b"fLaC", "not an audio file"),
}


@pytest.mark.parametrize("read", [read_audio, scan_audio], ids=["read", "scan"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_lying_header_is_one_clear_error(name, read, tmp_path):
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.wav"
    path.write_bytes(content)
    tracemalloc.start()  # numpy reports what it allocates
    try:
        with pytest.raises(ValueError, match=message) as raised:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * SCAN_BLOCK
    finally:
        tracemalloc.stop()
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_ogg_cut_short_or_in_pieces(tmp_path):
    path = tmp_path / "cut.ogg"
    soundfile.write(path, tone(3.0), 16_000)
    whole = path.read_bytes()
    for keep in (20, 60, 3000):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=str(path)):
            scan_audio(path)
            pytest.skip("libsndfile takes an Ogg file's last page for its end: what is there is a whole file")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named(value, tmp_path):
    waveform = tone(1.0)
    waveform[777] = value
    soundfile.write(tmp_path / "nan.wav", waveform, 16_000, subtype="FLOAT")
    for read in (read_audio, scan_audio):
        with pytest.raises(ValueError, match="nan.wav: sample 777 is not a finite number"):
            read(tmp_path / "nan.wav")


def test_many_channels_are_averaged_in_bounded_memory(tmp_path):
    path = tmp_path / "many.wav"
    soundfile.write(path, np.repeat(tone(0.1)[:, None], 200, axis=1), 16_000, subtype="FLOAT")
    assert probe(path).channels == 200
    np.testing.assert_allclose(read_audio(path), tone(0.1), atol=1e-6)


def piped(content: bytes, rate: int = 16_000, raw: int | None = None, piece: int = 777) -> np.ndarray:
    """What `stream_audio` makes of bytes that arrive through a pipe in small pieces."""
    inner, outer = os.pipe()

    def write() -> None:
        try:
            for start in range(0, len(content), piece):
                os.write(outer, content[start : start + piece])
        except BrokenPipeError:
            pass  # an error was raised on the other side
        finally:
            os.close(outer)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return np.concatenate(list(stream_audio(inner, rate, raw)))
    finally:
        os.close(inner)
        writer.join(10)


@pytest.mark.parametrize("form", ["wav", "flac", "ogg", "au", "aiff"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_pipe_gives_what_the_file_gives(form, rate, tmp_path):
    path = tmp_path / f"sound.{form}"
    soundfile.write(path, np.stack([tone(2.3, rate), 0.5 * tone(2.3, rate)], axis=1), rate)
    from_file = read_audio(path)
    found = piped(path.read_bytes())
    assert abs(len(found) - len(from_file)) <= 1
    size = min(len(found), len(from_file))
    np.testing.assert_allclose(found[:size], from_file[:size], atol=1e-4)
    with open(path, "rb") as file:  # `< sound.mp3`: a file, not a pipe
        np.testing.assert_array_equal(np.concatenate(list(stream_audio(file.fileno(), 16_000))), found)


def test_raw_samples_of_any_pieces():
    pcm = (32767 * tone(1.0)).astype("<i2")
    for piece in (1, 3, 4096):
        np.testing.assert_array_equal(piped(pcm.tobytes(), raw=16_000, piece=piece), pcm / np.float32(32768))
    assert len(piped(pcm.tobytes(), raw=8_000)) == 32_000


def test_a_wav_of_unknown_length_streams_to_its_end():
    """ffmpeg writes the largest size into the header of a WAV that goes to a pipe."""
    assert len(piped(wav(size=0xFFFFFFFF))) == 16_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"Dear reader, this is no sound at all." * 9, "not audio that can be read from a pipe"),
        (b"ID3\4" + bytes(100), "mp3 cannot be read from a pipe"),
        (wav()[:9000], "truncated, 4478 samples where the header says 16000"),
        (wav(size=64_000), "truncated, 16000 samples where the header says 32000"),
        (wav(rate=1), "sample rate 1 Hz"),
        (wav(channels=0), "not audio"),
        (flac()[: len(flac()) // 2], "truncated|cannot be decoded"),
        (flac()[:30], "not audio|cannot be decoded"),
        (b"fLaC", "not audio"),
    ],
)
def test_a_bad_stream_is_one_clear_error(content, message):
    with pytest.raises(ValueError, match=f"standard input: .*{message}|standard input: {message}"):
        piped(content)


def test_bad_raw_streams():
    with pytest.raises(ValueError, match="ends in the middle of a 16 bit sample"):
        piped(b"123", raw=16_000)
    with pytest.raises(ValueError, match="--raw: sample rate 3 Hz; expected 1000"):
        piped(b"1234", raw=3)
    with pytest.raises(ValueError, match="is empty"):
        piped(b"", raw=16_000)


def test_a_missing_file_and_a_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        probe(tmp_path / "none.wav")
    with pytest.raises(ValueError, match="is a folder"):
        probe(tmp_path)


def open_long(path: Path) -> int:
    with open_long_audio(path, 16_000) as waveform:
        return len(waveform)


@pytest.mark.parametrize("name", [b"x.raw", b"x.RAW", b"x", b"x.mp3", b"\xff.wav"])
def test_a_name_says_nothing_about_a_file(name, tmp_path):
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(wav())
    assert (
        probe(path).samples == scan_audio(path).samples == len(read_audio(path)) == open_long(path) == 16_000
    )


@pytest.mark.parametrize(
    "content, said",
    [
        (b"words", "not an audio file"),
        (wav(rate=1), "sample rate 1 Hz"),
        (wav()[:44], "holds no samples"),
        (flac()[:200], "cannot be decoded|holds no samples"),
    ],
)
def test_a_long_file_that_is_none_is_named(content, said, tmp_path):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.wav: .*({said})"):
        open_long(path)
    with pytest.raises(FileNotFoundError, match="gone.wav"):
        open_long(tmp_path / "gone.wav")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [3e38, np.inf, np.nan])
def test_samples_that_overflow_are_not_finite_numbers(value, tmp_path):
    path = tmp_path / "x.wav"
    stereo = np.stack([tone(1.0)] * 2, axis=1)
    stereo[700] = value
    stereo[700, 1] = abs(value) if np.isfinite(value) else -value
    soundfile.write(path, stereo, 16_000, subtype="FLOAT")
    for read in (read_audio, scan_audio, open_long):
        with pytest.raises(ValueError, match=r"x\.wav: .*finite"):
            read(path)


def test_a_header_that_promises_2_gb_cuts_little(tmp_path):
    path = tmp_path / "x.flac"
    path.write_bytes(flac(samples=1 << 35))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.flac: (truncated|cannot be decoded)"):
            cut(Recording("a", path, begin=0.5), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
