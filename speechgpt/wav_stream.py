"""Sound as it comes, into a pipe: a WAV whose end nobody knows when it begins."""

import shlex
import struct
import subprocess
import sys
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from speechgpt.data.audio_stream import ENDLESS
from speechgpt.events import Sound

BYTES = 2  # a sample
FULL_SCALE = 32768  # what 1.0 becomes; the largest sample is one less


def wav_header(sample_rate: int) -> bytes:
    """Of 16 bit mono PCM, of as many bytes as a header of a stream says: players go on to the end."""
    rates = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, sample_rate * BYTES, BYTES, 8 * BYTES)
    return (
        b"RIFF" + struct.pack("<I", ENDLESS + 36) + b"WAVEfmt " + rates + b"data" + struct.pack("<I", ENDLESS)
    )


def pcm16(waveform: np.ndarray) -> bytes:
    """(T,) float in [-1, 1] to little-endian samples, those of `write_wav`."""
    # Rounded down, as libsndfile does where it clips.
    samples = np.floor(np.asarray(waveform, np.float32) * FULL_SCALE)
    return np.clip(samples, -FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()


class WavStream:
    """Writes sound to `file`, each piece at once. All of it must have one rate."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._begun = file, False

    def play(self, sound: Sound) -> None:
        head = b"" if self._begun else wav_header(sound.sample_rate)
        self._begun = True
        self._file.write(head + pcm16(sound.waveform))
        self._file.flush()


def to_standard_output() -> WavStream:
    """Raises ValueError when that is a terminal."""
    if sys.stdout.isatty():
        raise ValueError(
            "--stream - writes sound to standard output, which is a terminal: pipe it to a player"
        )
    return WavStream(sys.stdout.buffer)


class PlayerError(ValueError):
    """A player that was started has failed; the answer itself has not."""


class Player(WavStream):
    """A program that plays the WAV on its standard input, such as `aplay -q`. The context waits for it."""

    def __init__(self, command: str) -> None:
        """Raises ValueError when it cannot be started."""
        words = shlex.split(command)
        if not words:
            raise ValueError("--play is empty; expected a program that plays a WAV from its standard input")
        try:
            self._running = subprocess.Popen(words, stdin=subprocess.PIPE)
        except OSError as error:
            raise ValueError(f"--play {command}: {error.strerror.lower()}") from error
        self._command = command
        super().__init__(self._running.stdin)

    def play(self, sound: Sound) -> None:
        try:
            super().play(sound)
        except BrokenPipeError as error:  # not that of standard output, which ends the command
            raise PlayerError(f"--play {self._command}: went away before it had all of the sound") from error

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Raises PlayerError when the program fails; after an error of ours it is ended."""
        with suppress(BrokenPipeError):
            self._file.close()
        if kind is not None:
            self._running.kill()
        code = self._running.wait()
        if code and kind is None:
            raise PlayerError(f"--play {self._command}: failed with exit code {code}")
