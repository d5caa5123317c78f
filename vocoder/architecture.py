"""The sizes of a unit vocoder."""

from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

EDGE_KERNEL = 7  # of the generator's first and last convolution


@dataclass
class VocoderConfig:
    """The architecture; the defaults are the published sizes (13.48 M parameters)."""

    num_units: int = 1000  # K, the codebook's size; 0 in a config that is yet to meet its codebook
    embedding_dim: int = 128  # D
    upsample_rates: list[int] = field(default_factory=lambda: [5, 4, 4, 2, 2])  # their product is the hop
    upsample_kernels: list[int] = field(default_factory=lambda: [11, 8, 8, 4, 4])
    initial_channels: int = 512  # halved at every upsampling
    resblock_kernels: list[int] = field(default_factory=lambda: [3, 7, 11])
    resblock_dilations: list[list[int]] = field(default_factory=lambda: [[1, 3, 5]] * 3)
    num_speakers: int = 0  # 0: one voice; n: a table of n voices
    speaker_vector_dim: int = 0  # > 0: a linear map from a speaker vector of this width
    speaker_dim: int = 128  # width of the speaker part beside every frame
    duration_predictor: bool = True
    duration_width: int = 128
    duration_kernel: int = 3
    duration_dropout: float = 0.5
    duration_speaker: bool = False  # the duration predictor sees the speaker too
    sample_rate: int = 16_000  # Hz
    speakers: list[str] = field(default_factory=list)  # names of the table's rows
    default_speaker: str = ""
    codebook: dict[str, Any] = field(default_factory=dict)  # provenance of the units that it speaks
    training: dict[str, Any] = field(default_factory=dict)  # what it was trained on and to which level

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Raises ValueError that lists everything wrong."""
        problems = []
        if len(self.upsample_rates) != len(self.upsample_kernels):
            problems.append(
                f"{len(self.upsample_rates)} upsample_rates but {len(self.upsample_kernels)} upsample_kernels"
            )
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernels, strict=False):
            if kernel < rate or (kernel - rate) % 2:
                problems.append(f"upsample kernel {kernel} for rate {rate}: expected rate + an even number")
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            problems.append(
                f"{len(self.resblock_kernels)} resblock_kernels, {len(self.resblock_dilations)} dilations"
            )
        if self.initial_channels % (2 ** len(self.upsample_rates)):
            problems.append(f"initial_channels {self.initial_channels} cannot be halved at every upsampling")
        if self.num_speakers and self.speaker_vector_dim:
            problems.append("num_speakers and speaker_vector_dim exclude each other")
        if self.speakers and len(self.speakers) != self.num_speakers:
            problems.append(f"{len(self.speakers)} speaker names for num_speakers {self.num_speakers}")
        if self.default_speaker and self.speakers and self.default_speaker not in self.speakers:
            problems.append(f"default_speaker {self.default_speaker!r} is not one of {self.speakers}")
        if problems:
            raise ValueError("vocoder config: " + "; ".join(problems))

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return prod(self.upsample_rates)

    @property
    def frame_reach(self) -> tuple[int, int]:
        """Frames to the left and right of a frame that its samples depend on: (21, 21) as published."""
        left, right = self.stage_reach(0)
        return left + EDGE_KERNEL // 2, right + EDGE_KERNEL // 2

    def stage_reach(self, stage: int) -> tuple[int, int]:
        """Positions left and right of one that enters upsampling `stage` that its samples depend on."""
        rates, kernels = self.upsample_rates[stage:], self.upsample_kernels[stage:]
        first, last = 0, prod(rates) - 1  # of its samples, then of what they depend on, layer by layer
        first, last = first - EDGE_KERNEL // 2, last + EDGE_KERNEL // 2
        blocks = zip(self.resblock_kernels, self.resblock_dilations, strict=True)
        block = max(sum((d + 1) * (kernel - 1) // 2 for d in dilations) for kernel, dilations in blocks)
        for rate, kernel in reversed(list(zip(rates, kernels, strict=True))):
            first, last = first - block, last + block
            padding = (kernel - rate) // 2
            # Output o of a transposed convolution sees input i if 0 <= o + padding - i * rate < kernel.
            first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
        return -first, last

    @property
    def unit_reach(self) -> int:
        """Units to each side of a unit that its predicted duration depends on: 2 as published."""
        return 2 * ((self.duration_kernel - 1) // 2) if self.duration_predictor else 0

    @property
    def has_speaker(self) -> bool:
        return bool(self.num_speakers or self.speaker_vector_dim)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "vocoder config") -> "VocoderConfig":
        known = {f.name for f in fields(cls)}
        if unknown := values.keys() - known:
            raise ValueError(
                f"{where}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
            )
        return cls(**values)
