"""HuBERT's training objective: predict the label of masked frames, and with a weight of unmasked ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechgpt.units.audio_pool import IGNORED
from speechgpt.units.encoder import Encoder
from speechgpt.units.prototypes import class_scores
from speechgpt.units.waveforms import NORMALIZE_EPS

HEADS = ("linear", "cosine", "codebook")
GROUPS = ("nearest", "sum")


@dataclass
class MaskingConfig:
    """Hsu et al. 2021, section IV.C: 8 % of frames start a masked span of 10."""

    start_chance: float = 0.08
    span: int = 10  # frames
    unmasked_rows: float = 0.0  # share of rows that are seen whole, as they will be when the encoder is used


@dataclass
class HeadConfig:
    # cosine: HuBERT's, against label embeddings; linear: plain logits; codebook: distances to the centroids
    # of a codebook that stays as it is (--teacher-codebook), so that the units keep their meaning
    kind: str = "cosine"
    width: int = 256  # cosine: of the projection and the label embeddings
    temperature: float = 0.1  # cosine
    layers: list[int] = field(
        default_factory=list
    )  # predict from these, counted from 1; empty: the last alone
    masked_weight: float = 1.0
    unmasked_weight: float = 0.0
    smoothing: float = 0.0  # of labels, in training: aligned phones are often wrong at their edges
    # codebook: what a phone part scores: its nearest centroid, or the chances of all its centroids together
    group: str = "nearest"

    def __post_init__(self) -> None:
        if self.kind not in HEADS:
            raise ValueError(f"kind: {self.kind!r}, expected one of {', '.join(HEADS)}")
        if self.group not in GROUPS:
            raise ValueError(f"group: {self.group!r}, expected one of {', '.join(GROUPS)}")
        if self.layers != sorted(set(self.layers)):
            raise ValueError(f"layers: {self.layers}, expected rising numbers")


def draw_mask(lengths: Tensor, frames: int, config: MaskingConfig, generator: torch.Generator) -> Tensor:
    """Spans (B, N) bool within each row's `lengths` (B,) frames; at least one in every row that is masked."""
    batch, device = len(lengths), lengths.device
    chance = torch.rand(batch, frames, generator=generator, device=device)
    starts = chance < config.start_chance
    # A row's smallest draw inside its length always starts a span.
    inside = torch.arange(frames, device=device) < (lengths - config.span // 2).clamp(min=1)[:, None]  # B N
    forced = chance.masked_fill(~inside, 2.0).argmin(-1, keepdim=True)  # B 1
    starts = starts.scatter(1, forced, True)
    total = starts.int().cumsum(-1)
    mask = (
        total > functional.pad(total, (config.span, 0))[:, :frames]
    )  # a start within the last `span` frames
    mask = mask & (torch.arange(frames, device=device) < lengths[:, None])
    masked_rows = torch.rand(batch, 1, generator=generator, device=device) >= config.unmasked_rows
    return mask & masked_rows


def normalize_rows(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """(B, T), zero past `lengths` (B,) samples: each row to mean 0 and variance 1 over its own length."""
    valid = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    count = lengths[:, None]
    mean = waveforms.sum(-1, keepdim=True) / count
    centred = (waveforms - mean) * valid
    return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + NORMALIZE_EPS)


class Head(nn.Module):
    """Features (B, N, D) to logits (B, N, classes)."""

    def __init__(self, width: int, classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = nn.Linear(width, classes if config.kind == "linear" else config.width)
        if config.kind == "cosine":
            self.embeddings = nn.Parameter(torch.rand(classes, config.width) * 2 - 1)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.projection(features)
        if self.config.kind == "linear":
            return projected
        with torch.autocast(features.device.type, enabled=False):  # a temperature of 0.1 magnifies rounding
            projected = functional.normalize(projected.float(), dim=-1)
            embeddings = functional.normalize(self.embeddings.float(), dim=-1)
            return projected @ embeddings.T / self.config.temperature


class CodebookHead(nn.Module):
    """Features (B, N, D) to scores of fixed centroids (B, N, K), or of the phone parts that own them."""

    def __init__(self, centroids: Tensor, owner: Tensor | None = None, group: str = "nearest") -> None:
        """centroids (K, D); owner (K,) int64: scores (B, N, classes) of the owners, by `group`."""
        super().__init__()
        self.group = group
        self.register_buffer("centroids", centroids)
        self.register_buffer("owner", owner)
        self.classes = 0 if owner is None else int(owner.max()) + 1
        members = None if owner is None else functional.one_hot(owner, self.classes).float()  # K C
        self.register_buffer("members", members, persistent=False)
        self.scale = float(centroids.var(0).mean()) + 1e-8  # as prototypes.py scales its features

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):  # near centroids differ by little
            flat = features.float().flatten(0, -2)
            if self.owner is None:
                scores = self._scores(flat)
            elif self.group == "nearest":
                scores = class_scores(flat, self.centroids, self.owner, self.classes) / self.scale
            else:
                scores = _log_sums(self._scores(flat), self.members)
            return scores.view(*features.shape[:-1], -1)

    def _scores(self, features: Tensor) -> Tensor:
        """(F, D) to (F, K)."""
        return (features @ self.centroids.T - self.centroids.square().sum(-1) / 2) / self.scale


def _log_sums(scores: Tensor, members: Tensor) -> Tensor:
    """Scores (F, K), members (K, C), 1 where a centroid is of an owner, to (F, C): the logarithm of the sum
    of exponentials, so that a softmax over the owners gives each the sum of its centroids' chances."""
    highest = scores.amax(-1, keepdim=True).detach()
    return ((scores - highest).exp() @ members).clamp(min=1e-30).log() + highest


# One row of the statistics that `MaskedPrediction` returns for each label source, all sums over frames.
STATISTICS = ("masked_loss", "masked_right", "masked", "unmasked_loss", "unmasked_right", "unmasked")


class MaskedPrediction(nn.Module):
    """An encoder with a head for each label source (S) and predicted layer."""

    def __init__(
        self,
        encoder: Encoder,
        classes: list[int],
        weights: list[float],
        config: HeadConfig,
        feature_grad_mult: float = 1.0,
        fixed: Sequence[nn.Module] = (),
    ) -> None:
        """`fixed`: for heads of kind codebook, one for each label source."""
        super().__init__()
        self.encoder, self.weights, self.config = encoder, weights, config
        self.feature_grad_mult = feature_grad_mult
        self.layers = tuple(config.layers) or (encoder.num_layers,)
        encoder.check_layer(self.layers[-1])
        self.heads = nn.ModuleList(
            nn.ModuleList(fixed or [Head(encoder.width, count, config) for count in classes])
            for _ in self.layers
        )

    def forward(
        self, waveforms: Tensor, lengths: Tensor, mask: Tensor, labels: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Normalised waveforms (B, T), lengths (B,) in samples, mask (B, N), labels (B, N) of each source.

        Returns the loss and the last layer's statistics (S, 6), as `STATISTICS` names them.
        """
        found = self.encoder(
            waveforms, lengths, self.layers, mask, feature_grad_mult=self.feature_grad_mult
        )  # B N D each
        if self.encoder.config.do_stable_layer_norm and self.config.kind != "codebook":
            found = [self.encoder.model.encoder.layer_norm(features) for features in found]
        loss, statistics = waveforms.new_zeros(()), []
        for features, heads in zip(found, self.heads, strict=True):
            statistics = []
            for head, weight, target in zip(heads, self.weights, labels, strict=True):
                sums = _sums(head(features), target, mask, self.config.smoothing if self.training else 0.0)
                masked = sums[0] / sums[2].clamp(min=1)
                unmasked = sums[3] / sums[5].clamp(min=1)
                both = self.config.masked_weight * masked + self.config.unmasked_weight * unmasked
                loss = loss + weight * both / len(found)
                statistics.append(sums.detach())
        return loss, torch.stack(statistics)


def _sums(logits: Tensor, labels: Tensor, mask: Tensor, smoothing: float = 0.0) -> Tensor:
    """(6,) float32: sums of loss, right guesses and labelled frames, over masked and over unmasked frames."""
    logits = logits.float()
    loss = functional.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=smoothing,
    ).view_as(labels)
    right = logits.argmax(-1) == labels
    labelled = labels != IGNORED
    groups = [(labelled & mask).float(), (labelled & ~mask).float()]
    return torch.stack([(part * group).sum() for group in groups for part in (loss, right, labelled)])


def describe(statistics: Tensor, kinds: list[str]) -> dict[str, float]:
    """Statistics (S, 6) to accuracies and losses a frame, by label source."""
    named = {}
    for kind, row in zip(kinds, statistics.tolist(), strict=True):
        sums = dict(zip(STATISTICS, row, strict=True))
        for group in ("masked", "unmasked"):
            if sums[group]:
                named[f"{kind}_{group}_accuracy"] = round(sums[f"{group}_right"] / sums[group], 4)
                named[f"{kind}_{group}_loss"] = round(sums[f"{group}_loss"] / sums[group], 4)
    return named
