"""Training an encoder further towards a codebook that stays as it is, so that its units keep their meaning.

What was made with the codebook (units on disk, a vocoder, a language model) stays valid, and the encoder
learns to give the clean recording's units for what is cut, fast, noisy or far away (augmentation-invariant
units, Gat et al. 2022, here with the nearest centroid itself as the classifier).
"""

import torch
from torch import Tensor

from speechgpt.units.audio_pool import IGNORED, CropSampler
from speechgpt.units.masked_prediction import CodebookHead, HeadConfig
from speechgpt.units.unit_encoder import UnitEncoder

CODEBOOK_FILE = "codebook.safetensors"  # in the encoder's folder: the same centroids, for the new encoder


def check_kept(config: HeadConfig, kinds: list[str], teacher: UnitEncoder | None, layers: int) -> None:
    """Raises ValueError for what a head of kind codebook cannot be trained with."""
    if teacher is None or "units" not in kinds or set(kinds) - {"units", "phones"}:
        raise ValueError(
            f"head codebook: targets {', '.join(kinds)}; expected units (with --teacher), or units and phones"
        )
    if (config.layers or [layers]) != [teacher.layer]:
        raise ValueError(
            f"head codebook: predicts from layer {config.layers or layers}, "
            f"the codebook is of layer {teacher.layer}"
        )


def kept_heads(
    teacher: UnitEncoder, kinds: list[str], group: str, train: CropSampler, dev: CropSampler | None
) -> list[CodebookHead]:
    """A head for each label source, in order; the samplers' labels are brought into line with them.

    With phones beside units, a unit belongs to the phone part that it most often stands for in `train`. Where
    the teacher's unit is of another part than the aligned one, it was heard wrongly and is no label: there,
    as in voices that the teacher does not know, the phone part alone is learnt, by `group` (HeadConfig).
    """
    centroids = teacher.codebook.centroids.float()
    if "phones" not in kinds:
        return [CodebookHead(centroids) for _ in kinds]
    at, beside = kinds.index("units"), kinds.index("phones")
    owner = unit_owners(train.labels[at], train.labels[beside], len(centroids))
    parts, compact = owner.unique(return_inverse=True)  # parts (C), each unit's among them (K)
    for sampler in (train, dev):
        if sampler is not None:
            units, phones = sampler.labels[at], sampler.labels[beside]
            heard = owner.to(units.device)[units.long().clamp(min=0)]
            wrong = (phones >= 0) & (heard != phones)
            sampler.labels[at] = units.masked_fill(wrong, IGNORED)
            sampler.labels[beside] = _compact(phones, parts.to(phones.device))
    return [CodebookHead(centroids, compact if kind == "phones" else None, group) for kind in kinds]


def unit_owners(units: Tensor, phones: Tensor, size: int) -> Tensor:
    """units (N,) and phone parts (N,), negative where unknown, to the commonest part of each unit (K,) int64.

    Units that no labelled frame has own a part of their own, that no frame is of.
    """
    known = (units >= 0) & (phones >= 0)
    units, phones = units[known].long().cpu(), phones[known].long().cpu()
    classes = int(phones.max()) + 1
    counts = torch.bincount(units * classes + phones, minlength=size * classes).view(size, classes)  # K C
    return torch.where(counts.sum(1) > 0, counts.argmax(1), classes)


def _compact(labels: Tensor, parts: Tensor) -> Tensor:
    """Labels (N,) to their places among `parts`, rising; IGNORED where they are not among them."""
    place = torch.searchsorted(parts, labels.long()).clamp(max=len(parts) - 1)
    return torch.where(parts[place] == labels, place, IGNORED).to(labels.dtype)
