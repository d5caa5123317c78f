"""The settings of one vocoder training, read from vocoder.yaml."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from speechgpt.data.hashes import settings_hash
from speechgpt.data.settings import load_settings
from speechgpt.vocoder.discriminators import DiscriminatorConfig
from speechgpt.vocoder.generator import VocoderConfig
from speechgpt.vocoder.losses import LossWeights
from speechgpt.vocoder.pool import DataConfig

PRECISIONS = ("float32", "bf16")
# Settings that may change between a run and its continuation: they say when to stop, not what to compute.
MAY_CHANGE = (
    "steps",
    "max_minutes",
    "checkpoint_seconds",
    "log_every",
    "check_rows",
    "cuda_graphs",
    "compile",
)


@dataclass
class TrainConfig:
    generator: VocoderConfig = field(default_factory=VocoderConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    multi_speaker: bool = False  # a table row for every speaker of the manifest
    seed: int = 1
    steps: int = 400_000
    max_minutes: float = 0.0  # of training, over all continuations; 0: no limit
    warmup_steps: int = 0  # first steps without discriminators: mel and duration losses alone
    batch_size: int = 16  # over all processes
    segment_frames: int = 28  # N of a crop; 28 frames are the published 8960 samples
    duration_window: int = 64  # units of a crop for the duration predictor
    learning_rate: float = 2e-4
    warmup_learning_rate: float = 5e-4  # while the mel loss is alone
    betas: list[float] = field(default_factory=lambda: [0.8, 0.99])
    weight_decay: float = 0.01
    lr_decay: float = 0.999  # every `lr_decay_steps`
    lr_decay_steps: int = 800
    cooldown_steps: int = 0  # the last steps, over which the learning rate falls to 0
    ema: float = 0.0  # of the generator's weights a step; the average is what is saved
    precision: str = "float32"  # float32 | bf16 (autocast)
    cuda_graphs: bool = True  # replay captured steps on CUDA; falls back to eager steps with a warning
    compile: bool = False  # torch.compile of the generator on CUDA, in place of the one made for training
    generator_channels_last: bool = False  # its weights on CUDA: for float32, eager and compiled steps
    checkpoint_seconds: float = 600.0
    log_every: int = 50  # steps between looks at the losses; on CUDA also between checks for non-finite ones
    check_rows: int = 32  # dev utterances whose mel distance and durations are measured at the end

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        for name in (
            "steps",
            "batch_size",
            "segment_frames",
            "duration_window",
            "log_every",
            "lr_decay_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected a number in [0, 1)")
        if len(self.betas) != 2:
            raise ValueError(f"betas are {self.betas}, expected two numbers")

    @classmethod
    def load(cls, path: str | Path) -> "TrainConfig":
        return load_settings(cls, path)

    def fingerprint(self) -> str:
        """Of everything that decides the result."""
        return settings_hash(self, leave_out=MAY_CHANGE)

    def to_dict(self) -> dict:
        return asdict(self)

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        base = self.learning_rate * self.lr_decay ** (step // self.lr_decay_steps)
        if step < self.warmup_steps:
            base = self.warmup_learning_rate
        left = self.steps - step
        return base * min(1.0, left / self.cooldown_steps) if self.cooldown_steps else base
