"""festival as a process that stays: it speaks a sentence a line and prints when each of its phones ends."""

import os
import re
import select
import shutil
import subprocess
from functools import cache
from pathlib import Path

PROGRAM = "festival"
DEBIAN_PACKAGE = {"ked_diphone": "festvox-kdlpc16k", "cmu_us_slt_arctic_hts": "festvox-us-slt-hts"}
DATA = Path("/usr/share/festival")  # where Debian's festival looks for all that it loads
TIMEOUT = 60  # seconds that one sentence may take
KED_PITCH = (105.0, 15.0)  # Hz: mean and deviation of the diphone voice's own pitch
MARK = "spoken"  # begins the line that ends a sentence
SPEAK = f"""
(define (speak text wav)
  (let ((utterance (eval (list 'Utterance 'Text text))))
    (utt.synth utterance)
    (utt.save.wave utterance wav 'riff)
    (format t "{MARK}")
    (mapcar (lambda (phone) (format t " %s:%f" (item.name phone) (item.feat phone 'end)))
            (utt.relation.items utterance 'Segment))
    (format t "\\n")
    (fflush nil)))
"""
# Phones of festival's English that flite does not use.
TO_FLITE = {"dx": ["t"], "nx": ["n"], "el": ["ax", "l"], "em": ["ax", "m"], "en": ["ax", "n"], "axr": ["er"]}


def check(voice: str) -> None:
    """Raises FileNotFoundError where the program or the voice is not installed."""
    if shutil.which(PROGRAM) is None:
        raise FileNotFoundError(f"{PROGRAM}: program not found; on Debian: apt-get install {PROGRAM}")
    if not any(DATA.glob(f"voices/*/{voice}")):
        raise FileNotFoundError(
            f"{DATA}/voices: no voice {voice}; on Debian: apt-get install {DEBIAN_PACKAGE[voice]}"
        )


class Festival:
    """One process, which keeps its lexicon and voices."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [PROGRAM, "--pipe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._say(SPEAK)

    def _say(self, scheme: str) -> None:
        self.process.stdin.write(scheme + "\n")
        self.process.stdin.flush()

    def speak(self, text: str, wav: Path, voice: str, pitch: float, stretch: float) -> str:
        """Writes `wav` and returns `pau:0.22 t:0.31 ...`: the phones with the seconds at which they end.

        text: plain words, no quotation marks or backslashes. pitch: Hz, 0 leaves the voice's own; the voices
        of HMMs (hts) have one pitch and one rate. stretch: of the durations. Raises ValueError, and ends the
        process, when no audio comes.
        """
        self._say(f"(voice_{voice})\n(Parameter.set 'Duration_Stretch {stretch:.4f})")
        if pitch:
            mean, deviation = KED_PITCH
            self._say(
                f"(set! int_lr_params '((target_f0_mean {pitch:.1f}) "
                f"(target_f0_std {deviation * pitch / mean:.1f}) (model_f0_mean 170) (model_f0_std 34)))"
            )
        self._say(f'(speak "{text}" "{wav}")')
        if not select.select([self.process.stdout], [], [], TIMEOUT)[0]:
            raise ValueError(f"festival said nothing for {TIMEOUT} s{self.end()}")
        line = self.process.stdout.readline()
        if not line.startswith(MARK):
            raise ValueError(f"festival printed {line.strip()[:200]!r}{self.end()}")
        return plain_phones(line.removeprefix(MARK))

    def end(self) -> str:
        """Ends the process; returns what it complained of, as the end of a message."""
        self.process.kill()
        said = " ".join(self.process.communicate()[1].split())[-200:]
        return f": {said}" if said else ""


def plain_phones(printed: str) -> str:
    """festival's phones as flite would print them: a syllabic l is a vowel and an l."""
    found, start = [], 0.0
    for item in printed.split():
        name, _, end = item.rpartition(":")
        names = TO_FLITE.get(name, [name])
        for number, phone in enumerate(names, 1):
            found.append(f"{phone}:{start + (float(end) - start) * number / len(names):.4f}")
        start = float(end)
    return " ".join(found)


@cache
def _process(parent: int) -> list[Festival]:
    return []


def speak(text: str, wav: Path, voice: str, pitch: float, stretch: float) -> str:
    """As `Festival.speak`, by a process that this one keeps; another one is started after a failure."""
    if re.search(r'["\\]', text):
        raise ValueError(f"{text!r} has a quotation mark or a backslash")
    kept = _process(os.getpid())
    if not kept or kept[0].process.poll() is not None:
        kept[:] = [Festival()]
    return kept[0].speak(text, wav, voice, pitch, stretch)
