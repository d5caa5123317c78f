"""When two encoders may name different units for a frame: how far their features differ, and how near the
next centroid is.

Nearest in squared L2: with d_i = |x - c_i|^2, features x and y of one frame have
    (|y - c_j|^2 - |y - c_i|^2) - (|x - c_j|^2 - |x - c_i|^2) = 2 (y - x).(c_i - c_j),
at most 2 |y - x| |c_i - c_j| by Cauchy and Schwarz. So where d_j - d_i exceeds that for every j, y has x's
unit: in exact arithmetic. Both sides compute the distances in float32, as terms of |x|^2 - 2 x.c + |c|^2,
which adds to each distance an error bounded by gamma_n = n u / (1 - n u) times the sum of the terms'
magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), n = D + 3 and u = 2^-24.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

UNIT_ROUNDOFF = 2.0**-24  # float32
CHUNK = 2048  # frames whose distances are in memory at a time


@dataclass(frozen=True)
class UnitAgreement:
    """Two encoders' units for the same frames."""

    frames: int  # compared
    decided: int  # frames where the measured error cannot move the unit
    within: int  # different units where it can
    over: int  # different units although it cannot: one side computes something else

    def __add__(self, other: "UnitAgreement") -> "UnitAgreement":
        return UnitAgreement(
            self.frames + other.frames,
            self.decided + other.decided,
            self.within + other.within,
            self.over + other.over,
        )


def decided_frames(reference: Tensor, other: Tensor, centroids: Tensor) -> Tensor:
    """Features (N, D) of both sides and centroids (K, D): where (N,) bool both must name the same unit."""
    if reference.shape != other.shape:
        raise ValueError(f"features {tuple(reference.shape)} against {tuple(other.shape)}")
    centroids = centroids.double()
    apart = _squared_distances(centroids, centroids).sqrt()  # K K
    found = [
        _decided(x.double(), y.double(), centroids, apart)
        for x, y in zip(reference.split(CHUNK), other.split(CHUNK), strict=True)
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)


def _decided(x: Tensor, y: Tensor, centroids: Tensor, apart: Tensor) -> Tensor:
    distances = _squared_distances(x, centroids)  # N K
    best, unit = distances.min(-1)  # N
    moved = 2 * (y - x).norm(dim=-1, keepdim=True) * apart[unit]  # N K
    size = torch.maximum(x.norm(dim=-1), y.norm(dim=-1))[:, None]  # N 1
    norms = centroids.norm(dim=-1)  # K
    terms = (size + norms) ** 2  # N K: |x|^2 + 2 |x| |c| + |c|^2 bounds the sum of the terms' magnitudes
    operations = centroids.shape[1] + 3
    gamma = operations * UNIT_ROUNDOFF / (1 - operations * UNIT_ROUNDOFF)
    rounded = gamma * (terms + terms.gather(1, unit[:, None]))  # N K
    clear = distances - best[:, None] > moved + rounded
    return clear.scatter(1, unit[:, None], True).all(-1)


def _squared_distances(x: Tensor, centroids: Tensor) -> Tensor:
    """(N, D) and (K, D) in float64 to (N, K); its own rounding is 1e-9 of the float32 bound."""
    terms = x.square().sum(-1, keepdim=True) - 2 * x @ centroids.T + centroids.square().sum(-1)
    return terms.clamp(min=0)


def compare_units(
    reference: Tensor, other: Tensor, centroids: Tensor, reference_units: Tensor, other_units: Tensor
) -> UnitAgreement:
    """Features (N, D) and the units (N,) that each side named for them, on the CPU."""
    decided = decided_frames(reference, other, centroids)
    different = torch.as_tensor(reference_units) != torch.as_tensor(other_units)
    return UnitAgreement(
        len(decided), int(decided.sum()), int((different & ~decided).sum()), int((different & decided).sum())
    )
