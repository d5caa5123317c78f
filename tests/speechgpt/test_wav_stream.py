"""A wav without an end, and the programs that play it."""

import io
import shlex
import sys

import numpy as np
import pytest
import soundfile

from speechgpt.data.audio import read_audio, write_wav
from speechgpt.data.audio_stream import stream_audio
from speechgpt.events import Sound
from speechgpt.wav_stream import Player, WavStream, pcm16

RATE = 16_000
KEEP = "import sys; open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"


def python(code: str, *arguments: object) -> str:
    """A command line for --play."""
    return shlex.join([sys.executable, "-c", code, *map(str, arguments)])


def pieces(waveform: np.ndarray) -> list[Sound]:
    return [Sound(piece, RATE) for piece in np.array_split(waveform, 5)]


def test_samples_are_those_of_the_written_wav(tmp_path, make_tone):
    waveform = np.concatenate([make_tone(0.3) * 8, [1.0, -1.0, 1.5, -1.5, 0.0]]).astype(np.float32)
    write_wav(tmp_path / "a.wav", waveform, RATE)
    written, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert pcm16(waveform) == written.astype("<i2").tobytes()


def test_a_stream_is_read_like_a_file(tmp_path, make_tone):
    waveform = make_tone(0.5)
    path = tmp_path / "stream.wav"
    with open(path, "wb") as file:
        stream = WavStream(file)
        for piece in pieces(waveform):
            stream.play(piece)
    write_wav(tmp_path / "whole.wav", waveform, RATE)
    whole = read_audio(tmp_path / "whole.wav")
    assert np.array_equal(read_audio(path), whole)
    with open(path, "rb") as file:
        assert np.array_equal(np.concatenate(list(stream_audio(file.fileno(), RATE))), whole)


def test_each_piece_leaves_at_once(make_tone):
    class Out(io.BytesIO):
        flushed = 0

        def flush(self):
            self.flushed = len(self.getvalue())

    out = Out()
    stream = WavStream(out)
    stream.play(Sound(make_tone(0.1), RATE))
    assert out.flushed == 44 + 2 * 1600
    stream.play(Sound(make_tone(0.1), RATE))
    assert out.flushed == 44 + 4 * 1600


def test_a_player_hears_all_of_it_and_is_waited_for(tmp_path, make_tone):
    waveform = make_tone(0.5)
    with Player(python(KEEP, tmp_path / "heard.wav")) as player:
        for piece in pieces(waveform):
            player.play(piece)
    assert len(read_audio(tmp_path / "heard.wav")) == len(waveform)


def test_players_that_fail(make_tone):
    with pytest.raises(ValueError, match="--play no-such-player: no such file"):
        Player("no-such-player")
    with pytest.raises(ValueError, match="is empty"):
        Player(" ")
    with pytest.raises(ValueError, match="exit code 3"), Player(python("import sys; sys.exit(3)")):
        pass
    long = Sound(np.zeros(1_000_000, np.float32), RATE)
    with pytest.raises(ValueError, match="went away"), Player(python("import sys; sys.exit(3)")) as player:
        player.play(long)


def test_after_an_error_the_player_is_ended():
    with pytest.raises(KeyboardInterrupt), Player(python("import time; time.sleep(100)")) as player:
        raise KeyboardInterrupt
    assert player._running.returncode is not None
