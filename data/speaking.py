"""One sentence by flite, espeak-ng or festival: its waveform, and when each of its phones ends."""

import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from speechgpt.data import espeak, festival
from speechgpt.data.audio import SAMPLE_RATE, resample
from speechgpt.data.voices import ESPEAK, FESTIVAL, FLITE, Voice

TIMEOUT = 60  # seconds that one sentence may take
DEBIAN_PACKAGE = {"flite": "flite"}
PEAK = 0.99  # the loudest that a file may be: warping can overshoot
MIN_SECONDS = 0.1
FLITE_TO_ARPABET = {"ax": "AH", "pau": "SIL", "ssil": "SIL", "brth": "SIL"}
ARPABET = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG "
    "OW OY P R S SH T TH UH UW V W Y Z ZH".split()
)


def sanitise(text: str, program: str) -> str:
    """One line of what the program can read aloud; its markup ([[phonemes]], tags) becomes plain text."""
    if program != ESPEAK:
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    text = "".join(c if c.isprintable() else " " for c in text)
    # For festival the text is a string of its language.
    return " ".join(re.sub(r"[\[\]<>{}|\\^~`_*#]" + ('|"' if program == FESTIVAL else ""), " ", text).split())


def parse_phones(printed: str, seconds: float | None = None) -> list[list]:
    """flite's `pau:0.159 sh:0.296` to [[phone, end in seconds], ...].

    A text of several sentences prints a line each, whose times begin anew. With `seconds` the times are
    scaled to the audio's true length: the kal voices run 2.6 % long.
    """
    phones, start, last = [], 0.0, 0.0
    for item in printed.split():
        label, _, end = item.rpartition(":")
        if float(end) < last:
            start += last
        last = float(end)
        phone = FLITE_TO_ARPABET.get(label, label.upper())
        if phone not in ARPABET and phone != "SIL":
            raise ValueError(f"the unknown phone {label!r} was spoken")
        phones.append([phone, start + last])
    scale = seconds / phones[-1][1] if phones and seconds else 1.0
    return [[phone, round(end * scale, 4)] for phone, end in phones]


def speak(text: str, voice: Voice, folder: Path) -> tuple[np.ndarray, list[list]]:
    """Returns the waveform (T,) at 16 kHz and its phones, [[phone, end in seconds], ...] to its end."""
    text = sanitise(text, voice.program)
    if not re.search(r"\w", text):
        raise ValueError("nothing to say")
    samples, rate, phones = PROGRAMS[voice.program](text, voice, folder)  # T'
    waveform = resample(samples, round(rate * voice.tract), SAMPLE_RATE)  # T
    if len(waveform) < MIN_SECONDS * SAMPLE_RATE or not waveform.any():
        raise ValueError(f"{voice.program} said nothing ({len(waveform)} samples)")
    waveform *= min(1.0, PEAK / np.abs(waveform).max())
    return waveform, _fitted(phones, voice.tract, len(waveform) / SAMPLE_RATE)


def _fitted(phones: list[list], tract: float, seconds: float) -> list[list]:
    """The program's phones to those of its audio played `tract` times as fast, which lasts `seconds`."""
    fitted = [[phone, round(min(end / tract, seconds), 4)] for phone, end in phones]
    if fitted:
        fitted[-1][1] = round(seconds, 4)
    return fitted


def _by_flite(text: str, voice: Voice, folder: Path) -> tuple[np.ndarray, int, list[list]]:
    """(T,), its rate, and [[phone, end in seconds], ...]."""
    text_file, wav = folder / "text.txt", folder / "speech.wav"
    wav.unlink(missing_ok=True)
    text_file.write_text(text + "\n", encoding="utf-8")
    command = voice.command(str(text_file), str(wav))
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    if done.returncode or not wav.exists():
        said = " ".join(done.stderr.split())[:200]
        raise ValueError(f"{voice.program} ended with {done.returncode} and no audio: {said}")
    samples, rate = _read(wav)
    return samples, rate, parse_phones(done.stdout, len(samples) / rate)


def _by_festival(text: str, voice: Voice, folder: Path) -> tuple[np.ndarray, int, list[list]]:
    """As `_by_flite`; the diphone voice ends 25 ms after its last phone, at any length."""
    wav = folder / "speech.wav"
    wav.unlink(missing_ok=True)
    printed = festival.speak(text, wav, voice.voice, voice.told_pitch, 1 / voice.told_rate)
    if not wav.exists():
        raise ValueError("festival wrote no audio")
    return *_read(wav), parse_phones(printed)


def _by_espeak(text: str, voice: Voice, folder: Path) -> tuple[np.ndarray, int, list[list]]:
    """As `_by_flite`."""
    library = espeak.library()
    samples, begun = library.speak(text, voice.voice, voice.words_a_minute, voice.pitch)
    rate = library.sample_rate
    return samples, rate, espeak.phones(begun, len(samples), rate, voice.voice)


def _read(wav: Path) -> tuple[np.ndarray, int]:
    import soundfile

    return soundfile.read(str(wav), dtype="float32")


PROGRAMS = {FLITE: _by_flite, ESPEAK: _by_espeak, FESTIVAL: _by_festival}


def check_programs(voices: Iterable[Voice]) -> None:
    """Raises FileNotFoundError naming the Debian package of what is not installed."""
    for program, name in sorted({(voice.program, voice.voice) for voice in voices}):
        if program == ESPEAK:
            espeak.library()
        elif program == FESTIVAL:
            festival.check(name)
        elif shutil.which(program) is None:
            package = DEBIAN_PACKAGE[program]
            raise FileNotFoundError(f"{program}: program not found; on Debian: apt-get install {package}")
