"""What copies of recordings are to be like: perturb.yaml, checked as it is read."""

from dataclasses import dataclass, field, fields
from typing import Any

from speechgpt.units.augment import AugmentConfig
from speechgpt.units.revoice import RevoiceConfig

LIMITS = (0.5, 2.0)  # of speeds
# Copies are known by their settings as they are written, so that 8 stays another number than 8.0.
Number = int | float
Range = Any  # [lowest, highest]; the class says itself what is none
NOT_OF_SOUND = ("copies", "speed", "trim", "trim_quiet_db", "babble_share")  # settings done elsewhere


@dataclass
class PerturbConfig:
    """Chances are per copy; ranges are uniform, that of speeds over its logarithm. See `AugmentConfig`."""

    copies: int | dict[str, int]  # of each recording; or for each corpus, and those not named are left out
    speed: Range = (0.85, 1.18)  # 1.1 is 10 % faster and higher, formants too
    equalizer_chance: Number = 0.0
    equalizer_db: Number = 8.0
    band_chance: Number = 0.0
    telephone_chance: Number = 0.0
    noise_chance: Number = 0.0
    snr_db: Range = (5.0, 30.0)
    reverb_chance: Number = 0.0
    reverb_seconds: Range = (0.1, 0.4)
    reverb_direct_db: Range = (3.0, 15.0)
    gain_db: Range = (0.0, 0.0)  # peak level; [0, 0]: left as it is
    babble_share: Number = 0.0  # of the noisy copies: other recordings; the rest: white to brown noise
    trim: dict = field(default_factory=dict)  # corpus: the largest share that a copy loses at each end
    trim_quiet_db: dict = field(default_factory=dict)  # corpus: [least, most], see `cutting.cut_ends`
    revoice: RevoiceConfig = field(default_factory=RevoiceConfig)

    def __post_init__(self) -> None:
        counts = self.copies.values() if isinstance(self.copies, dict) else [self.copies]
        if not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError(f"copies is {self.copies!r}; expected a whole number, or one for each corpus")
        for name in ("speed", "snr_db", "reverb_seconds", "reverb_direct_db", "gain_db"):
            if not _is_range(value := getattr(self, name)):
                raise ValueError(f"{name} is {value!r}; expected [lowest, highest]")
        if not LIMITS[0] <= self.speed[0] <= self.speed[1] <= LIMITS[1]:
            raise ValueError(f"speed is {self.speed!r}; expected numbers from {LIMITS[0]} to {LIMITS[1]}")
        if not all(type(v) in (int, float) and 0 <= v < 0.5 for v in self.trim.values()):
            raise ValueError(f"trim is {self.trim!r}; expected shares from 0 to less than 0.5 by corpus")
        if not all(_is_range(value) and value[0] > 0 for value in self.trim_quiet_db.values()):
            raise ValueError(f"trim_quiet_db is {self.trim_quiet_db!r}; expected [least, most] by corpus")
        if not 0 < self.reverb_seconds[0]:
            raise ValueError(f"reverb_seconds is {self.reverb_seconds!r}; expected numbers above 0")

    def count(self, corpus: str) -> int:
        """Copies of each recording of a corpus."""
        return self.copies.get(corpus, 0) if isinstance(self.copies, dict) else self.copies

    def sound(self, babbling: bool = False, others: bool = False) -> AugmentConfig:
        """Where other recordings babble there is no other noise; in all, `noise_chance` are noisy."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_OF_SOUND}
        given = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}
        share = self.babble_share if others else 0.0
        silent = 1 - self.noise_chance * share  # the chance that nobody babbles
        left = self.noise_chance * (1 - share) / silent if silent and not babbling else 0.0
        return AugmentConfig(**given | {"noise_chance": left})


def _is_range(value: object) -> bool:
    """Whether it is two numbers, the lowest first."""
    if not isinstance(value, list | tuple) or not all(type(v) in (int, float) for v in value):
        return False
    return len(value) == 2 and value[0] <= value[1]
