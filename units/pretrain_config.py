"""encoder.yaml: what a HuBERT is and how it is pretrained."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from speechgpt.data.settings import load_settings
from speechgpt.units.augment import AugmentConfig
from speechgpt.units.labels import Target
from speechgpt.units.masked_prediction import HeadConfig, MaskingConfig

# HuBERT base (Hsu et al. 2021, section IV and fairseq's hubert_base_librispeech.yaml).
PUBLISHED_BETAS, PUBLISHED_EPS, PUBLISHED_WEIGHT_DECAY = (0.9, 0.98), 1e-6, 0.01
SCHEDULES = ("trapezoid", "linear", "cosine")
PRECISIONS = ("auto", "float32", "bf16")


@dataclass
class TrainingConfig:
    steps: int | None = None  # ends after so many updates
    max_minutes: float | None = None  # ends after so much wall-clock time, over all continuations
    batch_size: int = 64  # crops a process
    crop_seconds: float = 4.0
    learning_rate: float = 5e-4
    warmup: float = 0.08  # share of the run
    decay: float = 0.4  # trapezoid: share of the run, at its end
    schedule: str = "linear"
    betas: list[float] = field(default_factory=lambda: list(PUBLISHED_BETAS))
    eps: float = PUBLISHED_EPS
    weight_decay: float = PUBLISHED_WEIGHT_DECAY
    gradient_clip: float = 10.0
    feature_grad_mult: float = 1.0  # scales the gradient into the convolutions; HuBERT base has 0.1
    precision: str = "auto"  # auto: bf16 on CUDA, float32 elsewhere
    compile: bool = False  # torch.compile; about a minute before the first step
    seed: int = 1
    pool_device: str = "auto"  # where the audio lies; auto: the GPU when it fits in a third of it
    log_every: int = 50  # steps
    checkpoint_minutes: float = 3.0
    checkpoint_steps: int = 0  # 0: by minutes alone
    evaluation_batches: int = 8  # of dev crops, at the end
    evaluation_every: int = 0  # steps; 0: at the end alone
    max_bad: int = 0  # unreadable files tolerated
    save_dtype: str = "float32"  # float32 | float16, of the encoder's file

    def __post_init__(self) -> None:
        if self.steps is None and self.max_minutes is None:
            raise ValueError("needs steps, max_minutes or both")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: {self.precision!r}, expected one of {', '.join(PRECISIONS)}")
        if self.save_dtype not in ("float32", "float16"):
            raise ValueError(f"save_dtype: {self.save_dtype!r}, expected float32 or float16")
        if self.crop_seconds <= 0 or self.batch_size < 1:
            raise ValueError("crop_seconds and batch_size must be positive")

    def rate(self, done: float) -> float:
        """The learning rate when the share `done` of the run, 0 to 1, is behind."""
        if done < self.warmup:
            return self.learning_rate * done / self.warmup
        left = max(0.0, 1 - done)
        if self.schedule == "trapezoid":
            return self.learning_rate * min(1.0, left / self.decay)
        share = left / (1 - self.warmup)
        if self.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.learning_rate * share


# Settings that change how a run is watched and kept, not what it learns.
WATCHING = ("log_every", "checkpoint_minutes", "checkpoint_steps", "pool_device", "max_bad")


@dataclass
class PretrainConfig:
    architecture: dict  # fields of transformers' HubertConfig
    targets: list[Target]
    training: TrainingConfig
    normalize: bool = False  # the waveform is brought to mean 0 and variance 1 first
    sampling: dict[str, int | float] = field(default_factory=dict)  # corpus: weight; empty: by hours
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets: needs at least one")

    @classmethod
    def load(cls, path: str | Path) -> "PretrainConfig":
        return load_settings(cls, path)
