"""espeak-ng and festival: what they speak, and when each phone of it ends."""

import ctypes.util
import os
import shutil
import signal

import numpy as np
import pytest

from speechgpt.data import espeak, festival
from speechgpt.data.audio import SAMPLE_RATE
from speechgpt.data.rows import read_manifest
from speechgpt.data.speaking import ARPABET, speak
from speechgpt.data.synthesize import Sentence, synthesize
from speechgpt.data.voices import ESPEAK_ACCENTS, VOICES

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
RATE = 1000  # of the made-up events: a sample is a millisecond
LEAD = round(espeak.LEAD * RATE)
ESPEAK = pytest.mark.skipif(not ctypes.util.find_library("espeak-ng"), reason="libespeak-ng is not installed")


def needs(voice):
    there = shutil.which("festival") and any(festival.DATA.glob(f"voices/*/{voice}"))
    package = festival.DEBIAN_PACKAGE[voice]
    return pytest.mark.skipif(not there, reason=f"festival with {package} is not installed")


def test_a_vowel_before_r_is_two_phones_where_the_r_is_spoken():
    begun = [("f", 100 + LEAD), ("A@", 200 + LEAD), ("_:", 300 + LEAD)]
    spoken = espeak.phones(begun, 400, RATE, "en-us+f1")
    assert spoken == [["SIL", 0.1], ["F", 0.2], ["AA", 0.26], ["R", 0.3], ["SIL", 0.4]]
    assert espeak.phones(begun, 400, RATE, "en+f1") == [["SIL", 0.1], ["F", 0.2], ["AA", 0.3], ["SIL", 0.4]]
    linking = [("A@", LEAD), ("r", 100 + LEAD)]
    assert espeak.phones(linking, 200, RATE, "en-us") == [["AA", 0.1], ["R", 0.2]]


def test_signs_that_are_no_phones_join_the_one_before():
    begun = [("s", LEAD), (";", 100 + LEAD), ("i:", 150 + LEAD), ("_", 200 + LEAD), ("_:", 300 + LEAD)]
    assert espeak.phones(begun, 400, RATE, "en-us") == [["S", 0.15], ["IY", 0.2], ["SIL", 0.4]]


def test_an_unknown_phoneme_leaves_no_phones():
    assert espeak.phones([("s", LEAD), ("qq", 50 + LEAD)], 100, RATE, "en-us") == []


def test_a_syllabic_consonant_of_festival_is_two_phones():
    assert festival.plain_phones("b:0.1 el:0.3 dx:0.4") == "b:0.1000 ax:0.2000 l:0.3000 t:0.4000"
    with pytest.raises(ValueError, match="quotation mark"):
        festival.speak('say "this"', None, "ked_diphone", 0, 1.0)


def check(name, tmp_path, text, expected):
    waveform, phones = speak(text, VOICES[name], tmp_path)
    ends = [end for _, end in phones]
    assert ends == sorted(ends) and abs(ends[-1] - len(waveform) / SAMPLE_RATE) < 1e-3
    assert {phone for phone, _ in phones} <= {*ARPABET, "SIL"}
    assert [phone for phone, _ in phones if phone != "SIL"] == expected.split()
    loudest = np.abs(waveform).argmax() / SAMPLE_RATE
    spoken = next(phone for phone, end in phones if end > loudest)
    assert spoken in VOWELS
    return waveform


@ESPEAK
def test_espeak_speaks_with_phones(tmp_path):
    low = check("espeak-us-m3", tmp_path, "seven cars", "S EH V AH N K AA R Z")
    other = check("espeak-gb-f2", tmp_path, "seven cars", "S EH V AH N K AA Z")
    assert len(low) != len(other)
    with pytest.raises(ValueError, match="no voice 'xx-none'"):
        espeak.library().speak("hello", "xx-none", 160, 0)


@ESPEAK
def test_espeak_says_a_sentence_the_same_whatever_it_said_before():
    library = espeak.library()
    texts = ("seven cars", "What time is it?", "Please turn off all electronic devices.", "No.")
    voices = ("en-us+f2", "en+m3", "en-gb-scotland+klatt4")
    sentences = [(text, voice, 165, 50) for text in texts for voice in voices]
    first = [library.speak(*sentence) for sentence in sentences]
    library.lib.srand(7)
    again = [library.speak(*sentence) for sentence in reversed(sentences)][::-1]
    for (one, begun), (other, same) in zip(first, again, strict=True):
        assert np.array_equal(one, other) and begun == same and len(begun) > 3


@ESPEAK
def test_an_espeak_that_dies_is_an_error_of_its_sentence(monkeypatch):
    library = espeak.library()
    monkeypatch.setattr(library, "_speak", lambda *given: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ValueError, match=r"espeak-ng died of 'en' saying 'hello' \(exit code -9"):
        library.speak("hello", "en", 165, 50)
    monkeypatch.undo()
    assert len(library.speak("hello", "en", 165, 50)[0])


@ESPEAK
@pytest.mark.parametrize("accent", ESPEAK_ACCENTS)
def test_espeak_speaks_borrowed_sounds_with_phones(accent, tmp_path):
    sounds = {"Bach": "K", "loch": "K", "Lochness": "K", "blech": "K", "Gogh": "", "Llanelli": "L"}
    for text, sound in (sounds | {"croissant": "AA"}).items():
        waveform, phones = speak(text, VOICES[f"espeak-{accent}-f2"], tmp_path)
        assert {phone for phone, _ in phones} <= {*ARPABET, "SIL"}
        assert phones[-1][1] == pytest.approx(len(waveform) / SAMPLE_RATE, abs=1e-3)
        assert not sound or sound in [phone for phone, _ in phones]


@ESPEAK
def test_espeak_speaks_what_has_no_phone(tmp_path, monkeypatch):
    monkeypatch.delitem(espeak._CONSONANTS, "x")
    sentence = Sentence("bach", "Play Bach.", "espeak-us-f2")
    assert synthesize([sentence], tmp_path, jobs=1) == 1
    (row,) = read_manifest(tmp_path / "manifest.jsonl")
    assert row.phones == [] and row.seconds > 0.3 and row.audio(tmp_path / "manifest.jsonl").exists()


@needs("ked_diphone")
def test_festivals_diphones_speak_with_phones(tmp_path):
    plain = check("ked", tmp_path, "seven cars", "S EH V AH N K AA R Z")
    slow = check("ked-slow", tmp_path, "seven cars", "S EH V AH N K AA R Z")
    assert 1.1 < len(slow) / len(plain) < 1.35


@needs("ked_diphone")
def test_festival_is_started_anew_after_it_died(tmp_path):
    check("ked", tmp_path, "no", "N OW")
    festival._process(__import__("os").getpid())[0].end()
    check("ked", tmp_path, "no", "N OW")


@needs("cmu_us_slt_arctic_hts")
def test_festivals_hmms_speak_with_phones(tmp_path):
    check("hts-deep", tmp_path, "seven cars", "S EH V AH N K AA R Z")
