"""espeak-ng's library, for what its program does not print: when each phone begins.

Its phonemes become the phones that flite's voices report. Which phone a vowel before a written r stands for
depends on the accent: in "en-us" the r is spoken, and the vowel is two phones.

The library keeps state between sentences, which neither a voice set anew nor a sentence between clears: what
was said before moved phones by up to 0.1 s. So a fork of the process speaks each sentence, and in the process
itself the library never spoke.
"""

import ctypes
import json
import os
import traceback
from collections.abc import Sequence
from functools import cache

import numpy as np

LIBRARY = "libespeak-ng.so.1"
DEBIAN_PACKAGE = "libespeak-ng1"
SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples come by the callback before espeak_Synth returns
PHONEME_EVENTS = 0x0001  # of espeak_Initialize
DO_NOT_EXIT = 0x8000  # of espeak_Initialize: an error is returned and does not end the process
UTF_8 = 1  # of espeak_Synth
RATE, PITCH = 1, 3  # of espeak_SetParameter
PHONEME = 7  # the type of an event that begins a phone
RHOTIC = ("en-us",)  # languages that begin so speak the r of "far"
LEAD = 0.011  # seconds that a phone is heard before its event: by an encoder's labels, in four voices
VOWEL_SHARE = 0.6  # of a vowel with its r that is the vowel

_CONSONANTS = {
    **{name: name.upper() for name in "b d f k l m n p s t v w z r g".split()},
    **{"h": "HH", "j": "Y", "D": "DH", "N": "NG", "S": "SH", "T": "TH", "Z": "ZH", "dZ": "JH", "tS": "CH"},
    **{"r-": "R", "t#": "T", "t2": "T", "t[": "T", "w#": "W", "n-": "AH N"},
    **{"x": "K", "l#": "L"},  # of "loch" and "Llanelli": as who lacks these sounds says them
}
_VOWELS = {
    **{name: "AH" for name in ("@", "@-", "@2", "@5", "V", "a#")},
    **{name: "IH" for name in ("I", "I#", "I2")},
    **{"i": "IY", "i:": "IY", "E": "EH", "a": "AE", "0": "AA", "A:": "AA", "U": "UH", "u:": "UW", "3:": "ER"},
    **{"O": "AO", "O2": "AO", "O:": "AO", "OI": "OY", "aI": "AY", "aI2": "AY", "aU": "AW", "eI": "EY"},
    **{"A~": "AA", "E~": "EH", "O~": "AO"},  # nasal, of "croissant"
    **{"oU": "OW", "@L": "AH L", "IR": "ER", "VR": "ER", "i@": "IY AH"},
}
_PAUSES = dict.fromkeys(("_", "_:", "_!", "_|"), "SIL")
# What an r makes of a vowel: with the r spoken, and without.
_BEFORE_R = {
    "3": ("ER", "AH"),
    "A@": ("AA R", "AA"),
    "O@": ("AO R", "AO"),
    "o@": ("AO R", "AO"),
    "U@": ("UH R", "UH"),
    "e@": ("EH R", "EH"),
    "i@3": ("IH R", "IH"),
    "aI@": ("AY ER", "AY AH"),
    "aI3": ("AY ER", "AY AH"),
    "aa": ("AE", "AA"),
}
_JOINED = (";", "?")  # how the phone before them ends


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class Library:
    """The library, which speaks each sentence in a fork."""

    def __init__(self) -> None:
        """Raises FileNotFoundError where it is not installed."""
        try:
            self.lib = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise FileNotFoundError(
                f"{LIBRARY}: {error}; on Debian: apt-get install {DEBIAN_PACKAGE}"
            ) from error
        self.sample_rate = self.lib.espeak_Initialize(SYNCHRONOUS, 0, None, PHONEME_EVENTS | DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise FileNotFoundError(
                f"{LIBRARY} finds no data (error {self.sample_rate}); on Debian: apt-get install "
                "espeak-ng-data, elsewhere set ESPEAK_DATA_PATH"
            )
        self.lib.espeak_ListVoices(None)  # reads their files: once here, and not for each sentence
        self.samples: list[bytes] = []
        self.begun: list[tuple[str, int]] = []
        self._callback = _Callback(self._take)  # kept, or it would be freed while the library has it
        self.lib.espeak_SetSynthCallback(self._callback)

    def _take(self, samples, count: int, events) -> int:
        if samples:
            self.samples.append(ctypes.string_at(samples, 2 * count))
        place = 0
        while events[place].type:
            if events[place].type == PHONEME:
                name = events[place].id.string.decode("utf-8", "replace")
                self.begun.append((name, events[place].sample))
            place += 1
        return 0

    def speak(self, text: str, voice: str, words_a_minute: int, pitch: int) -> tuple[np.ndarray, list]:
        """The waveform (T,) float32 at `sample_rate`, and (phoneme, first sample) of each: always the same.

        voice: such as en-us+f2. pitch: 0 to 99; 0 leaves the voice's own. Raises ValueError for a voice
        that the library lacks.
        """
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.close(reading)
                with open(writing, "wb") as pipe:
                    pipe.write(self._told(text, voice, words_a_minute, pitch))
                code = 0
            except Exception:
                traceback.print_exc()  # the parent sees no more than the code
            finally:
                os._exit(code)  # nothing of the parent's is flushed or ended twice
        os.close(writing)
        try:
            with open(reading, "rb") as pipe:
                head, _, samples = pipe.read().partition(b"\n")
        finally:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])  # below 0: by a signal
        if code:
            raise ValueError(f"espeak-ng died of {voice!r} saying {text!r} (exit code {code})")
        told = json.loads(head)
        if told["error"]:
            raise ValueError(told["error"])
        begun = [(name, first) for name, first in told["begun"]]
        return np.frombuffer(samples, dtype="<i2").astype(np.float32) / 32768, begun  # T

    def _told(self, text: str, voice: str, words_a_minute: int, pitch: int) -> bytes:
        """A line of JSON, with the phonemes or the error, and the samples as int16."""
        error = ""
        try:
            self._speak(text, voice, words_a_minute, pitch)
        except ValueError as found:
            error = str(found)
        head = json.dumps({"error": error, "begun": self.begun}).encode()
        return b"\n".join([head, b"".join(self.samples)])

    def _speak(self, text: str, voice: str, words_a_minute: int, pitch: int) -> None:
        self.samples, self.begun = [], []
        self.lib.srand(1)  # C's own, of which some voices make their noise
        if self.lib.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"espeak-ng has no voice {voice!r}; `espeak-ng --voices=en` lists them")
        self.lib.espeak_SetParameter(RATE, words_a_minute, 0)
        if pitch:
            self.lib.espeak_SetParameter(PITCH, pitch, 0)
        given = text.encode()
        if error := self.lib.espeak_Synth(given, len(given) + 1, 0, 1, 0, UTF_8, None, None):
            raise ValueError(f"espeak-ng did not speak (error {error})")


@cache
def library() -> Library:
    """One serves forked processes too: it never speaks in the process that made it."""
    return Library()


def phones(begun: Sequence[tuple[str, int]], samples: int, sample_rate: int, language: str) -> list[list]:
    """(phoneme, first sample) of each to [[phone, end in seconds], ...] that ends with the audio.

    Without any phone where one phoneme is of no known phone: a borrowed word is spoken well, and only the
    alignment is missing.
    """
    found: list[list] = []
    begun = [(name, max(0, first - round(LEAD * sample_rate))) for name, first in begun]
    ends = [first for _, first in begun[1:]] + [samples]
    if begun and begun[0][1] > 0:
        found.append(["SIL", begun[0][1] / sample_rate])
    following = [name for name, _ in begun[1:]] + [""]
    for (name, first), end, after in zip(begun, ends, following, strict=True):
        if name in _JOINED and found:
            found[-1][1] = end / sample_rate
            continue
        names = _phone(name, after, language).split()
        if not names:
            return []
        cuts = [end] if len(names) == 1 else [first + round(VOWEL_SHARE * (end - first)), end]
        for phone, cut in zip(names, cuts, strict=True):
            if found and phone == found[-1][0] == "SIL":
                found[-1][1] = cut / sample_rate
            elif cut / sample_rate > (found[-1][1] if found else 0.0):
                found.append([phone, cut / sample_rate])
    return [[phone, round(end, 4)] for phone, end in found]


def _phone(name: str, after: str, language: str) -> str:
    """One phone, or two with a space between; "" is unknown."""
    if name in _BEFORE_R:
        spoken, silent = _BEFORE_R[name]
        # A linking r is a phone of its own.
        return spoken if language.startswith(RHOTIC) and after not in ("r", "r-") else silent
    for table in (_CONSONANTS, _VOWELS, _PAUSES):
        if name in table:
            return table[name]
    return "SIL" if name in _JOINED else ""
