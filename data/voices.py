"""The voices that the corpus maker knows: which program speaks, with which arguments, warped how.

`tract` plays the program's output at another speed, which moves pitch and formants together as a shorter or
longer vocal tract does; the program is told to speak slower or faster by the same factor, so that the rate
of speech stays. Pitch alone is moved by the program.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

FLITE = "flite"
ESPEAK = "espeak-ng"
FESTIVAL = "festival"


@dataclass(frozen=True)
class Voice:
    name: str
    program: str  # FLITE, ESPEAK or FESTIVAL
    voice: str  # what the program calls it
    pitch: int = 0  # flite, festival: Hz, espeak-ng: 0 to 99; 0 leaves the program's own
    rate: float = 1.0  # over 1 is faster than the program's own
    tract: float = 1.0  # over 1 is a shorter vocal tract: higher formants

    @property
    def told_rate(self) -> float:
        """What the program is told, so that the rate is as wanted when its output is played faster."""
        return self.rate / self.tract

    @property
    def told_pitch(self) -> float:
        return self.pitch / self.tract

    def command(self, text_file: str, wav: str) -> list[str]:
        """flite's command line; the text stands in a file, so that none of it can be taken for an option."""
        rate = self.told_rate
        options = ["--setf", f"duration_stretch={1 / rate:.4f}"] if rate != 1 else []
        options += ["--setf", f"int_f0_target_mean={self.told_pitch:.1f}"] if self.pitch else []
        return [FLITE, "-voice", self.voice, *options, "-psdur", "-f", text_file, "-o", wav]

    @property
    def words_a_minute(self) -> int:
        """What espeak-ng is told."""
        return round(ESPEAK_WORDS_A_MINUTE * self.told_rate)


ESPEAK_WORDS_A_MINUTE = 165
FLITE_PITCH = {"slt": 170, "awb": 128, "kal16": 100, "rms": 0}  # Hz; rms takes no other pitch than its own
# name: (tract, factor of the pitch, rate)
FLITE_VARIANTS = {
    "deep": (0.87, 0.85, 1.0),
    "low": (0.93, 0.94, 1.1),
    "bright": (1.07, 1.06, 0.95),
    "small": (1.14, 1.18, 1.05),
    "slow": (1.0, 0.96, 0.8),
    "fast": (1.03, 1.0, 1.25),
    "calm": (0.97, 0.82, 0.9),
    "lively": (1.0, 1.2, 1.1),
}
# festival: ked is a diphone voice of another speaker than kal, which is held back; hts is slt as a model of
# HMMs, whose pitch and rate move with its formants alone.
KED_PITCH = 105  # Hz
HTS_TRACTS = {"": 1.0, "-deep": 0.86, "-low": 0.93, "-bright": 1.08, "-small": 1.16}
ESPEAK_ACCENTS = {
    "us": "en-us",
    "nyc": "en-us-nyc",
    "gb": "en",  # the file of en-gb
    "rp": "en-gb-x-rp",
    "scot": "en-gb-scotland",
    "lanc": "en-gb-x-gbclan",
    "midl": "en-gb-x-gbcwmd",
    "carib": "en-029",
}
ESPEAK_VARIANTS = (
    "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 klatt klatt2 klatt3 klatt4 Alex Andrea Andy Annie Denis Gene "
    "Jacky Lee Marco Michael Mike adam anika aunty belinda boris david ed edward grandma grandpa iven john "
    "linda max norbert paul quincy rob shelby steph travis victor zac"
).split()


def _flite() -> list[Voice]:
    voices = [Voice(name, FLITE, name) for name in ("slt", "rms", "awb", "kal16", "kal")]
    for name, pitch in FLITE_PITCH.items():
        for variant, (tract, higher, rate) in FLITE_VARIANTS.items():
            if name == "rms" and variant in ("calm", "lively"):
                tract = {"calm": 0.9, "lively": 1.1}[variant]  # the only way to move its pitch
            voices.append(Voice(f"{name}-{variant}", FLITE, name, round(pitch * higher), rate, tract))
    return voices


def _espeak() -> list[Voice]:
    """Every accent with every variant; pitch, rate and tract are fixed by the voice's name."""
    voices = []
    for accent, language in ESPEAK_ACCENTS.items():
        for variant in ESPEAK_VARIANTS:
            name = f"espeak-{accent}-{variant.lower()}"
            draw = zlib.crc32(name.encode())
            pitch = 30 + draw % 41
            rate = (0.85, 0.95, 1.0, 1.05, 1.15)[draw // 41 % 5]
            tract = (0.92, 0.96, 1.0, 1.0, 1.04, 1.08)[draw // 205 % 6]
            voices.append(Voice(name, ESPEAK, f"{language}+{variant}", pitch, rate, tract))
    return voices


def _festival() -> list[Voice]:
    voices = [Voice("ked", FESTIVAL, "ked_diphone")]
    for variant, (tract, higher, rate) in FLITE_VARIANTS.items():
        pitch = round(KED_PITCH * higher)
        voices.append(Voice(f"ked-{variant}", FESTIVAL, "ked_diphone", pitch, rate, tract))
    # Its rate follows its tract.
    hts = [Voice(f"hts{v}", FESTIVAL, "cmu_us_slt_arctic_hts", 0, t, t) for v, t in HTS_TRACTS.items()]
    return voices + hts


VOICES: dict[str, Voice] = {voice.name: voice for voice in (*_flite(), *_espeak(), *_festival())}
GROUPS: dict[str, list[str]] = {
    "flite": ["slt", "rms", "awb", "kal16"],
    "flite-all": [v.name for v in VOICES.values() if v.program == FLITE and v.name != "kal"],
    "espeak-us": [name for name in VOICES if name.startswith("espeak-us-")],
    "espeak-all": [v.name for v in VOICES.values() if v.program == ESPEAK],
    "festival": [v.name for v in VOICES.values() if v.program == FESTIVAL],
}


def resolve(names: str | Sequence[str]) -> list[str]:
    """Voice names of "a,b,c" or a list: single voices, groups, or all that begin with "slt-*".

    A name that stands twice is drawn twice as often; "-name" takes voices out again (also "-kal16*").
    Raises ValueError for an unknown one.
    """
    given = names.split(",") if isinstance(names, str) else list(names)
    chosen: list[str] = []
    for name in (n.strip() for n in given):
        if name.startswith("-"):
            drop = set(_expand(name[1:]))
            chosen = [c for c in chosen if c not in drop]
        elif name:
            chosen += _expand(name)
    if not chosen:
        raise ValueError(f"no voice left in {names!r}; groups: {', '.join(GROUPS)}")
    return chosen


def _expand(name: str) -> list[str]:
    if name in GROUPS:
        return GROUPS[name]
    if name in VOICES:
        return [name]
    if name.endswith("*") and (found := [v for v in VOICES if v.startswith(name[:-1])]):
        return found
    raise ValueError(
        f"unknown voice {name!r}; groups: {', '.join(GROUPS)}; voices: slt, rms, awb, kal16, kal, "
        f"slt-deep ... (variants {', '.join(FLITE_VARIANTS)}), espeak-us-f1 ... (`--list-voices` prints all)"
    )
