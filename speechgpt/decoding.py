"""How tokens are chosen from scores."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch

from speechgpt.blocks import Limits
from speechgpt.hearings import SPEEDS


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and what a turn may not exceed."""

    sample: bool = False  # False: always the likeliest token
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    beams: int = 1  # more than one: beam search, no streaming
    asr_beams: int = 0  # of transcriptions alone, which nobody waits for word by word; 0: as `beams`
    hearings: int = 1  # of a spoken question, each at a speed of its own: speechgpt.hearings
    asr_hearings: int = 0  # of what is transcribed; 0: as `hearings`
    seed: int = 0
    max_new_tokens: int = 1024
    max_units: int = Limits.max_units
    max_text_tokens: int = Limits.max_text_tokens
    max_repeats: int = Limits.max_repeats

    def __post_init__(self):
        beams = min(self.beams, self.asr_beams + 1)
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or beams < 1:
            raise ValueError(
                f"decoding: temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k}, "
                f"beams {self.beams}, asr_beams {self.asr_beams}; expected more than 0, 0 to 1, 0 or more, "
                "1 or more, 0 or more"
            )
        for name, least in (("hearings", 1), ("asr_hearings", 0)):
            if (value := getattr(self, name)) not in range(least, len(SPEEDS) + 1):
                raise ValueError(
                    f"decoding: {name} {value}; expected {least} to {len(SPEEDS)}, each has its own speed"
                )
        hearings = max(self.hearings, self.asr_hearings)
        if hearings > 1 and self.sample and max(self.beams, self.asr_beams) > 1:
            raise ValueError(
                f"decoding: sample with beams {self.beams}, asr_beams {self.asr_beams} and hearings "
                f"{hearings}: each hearing would draw its own tokens; leave one of the three out"
            )

    def beams_for(self, kind: str) -> int:
        return self.asr_beams if kind == "asr" and self.asr_beams else self.beams

    def hearings_for(self, kind: str) -> int:
        return self.asr_hearings if kind == "asr" and self.asr_hearings else self.hearings

    @property
    def limits(self) -> Limits:
        return Limits(self.max_units, self.max_text_tokens, self.max_repeats)

    @classmethod
    def from_dict(cls, settings: dict) -> "Decoding":
        """From a config's mapping. Raises ValueError for a setting that does not exist."""
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise ValueError(f"decoding: unknown {', '.join(unknown)}; known: {', '.join(known)}")
        return cls(**settings)

    def to_dict(self) -> dict:
        return asdict(self)


GREEDY = Decoding()
PUBLISHED = Decoding(sample=True, temperature=0.8, top_k=60, top_p=0.8, max_new_tokens=2048)


def chooser(decoding: Decoding, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Scores (B, V) -> tokens (B,), without waiting for the device."""
    if not decoding.sample:
        return lambda scores: scores.argmax(-1)
    random = torch.Generator(device).manual_seed(decoding.seed)

    def choose(scores: torch.Tensor) -> torch.Tensor:
        shares = warped(scores, decoding).softmax(-1)  # B V
        # The largest of shares over exponential draws falls to each token as often as its share says
        # (Gumbel's trick); `torch.multinomial` does the same, and waits to check the shares.
        return (shares / torch.empty_like(shares).exponential_(generator=random)).argmax(-1)

    return choose


def warped(scores: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Scores (B, V) over the temperature, minus infinity outside the top k and the top p, in this order."""
    scores = scores / decoding.temperature
    if decoding.top_k:
        least = scores.topk(min(decoding.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, float("-inf"))
    if decoding.top_p < 1:
        ordered, places = scores.sort(descending=False)
        below = ordered.softmax(-1).cumsum(-1) <= 1 - decoding.top_p
        below[:, -1] = False  # the likeliest stays
        scores = scores.masked_fill(torch.zeros_like(below).scatter(-1, places, below), float("-inf"))
    return scores
