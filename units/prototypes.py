"""Centroids that tell phones apart: learning vector quantization instead of k-means.

k-means splits features where they vary most, which need not be where phones differ: of an encoder whose
linear head names 89 % of the phones right, its clusters may keep 65 %. Here each centroid stands for a part
of a phone, and the centroids are moved by gradient until the nearest one is of the right part (Kohonen 1990;
the soft form of Seo and Obermayer 2003, with the best centroid of a class as its score). What comes out is
assigned like any other codebook, by distance.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BATCH = 4096  # frames
WARM_PASSES = 10  # of k-means within a class
RATE_END = 0.05  # of the learning rate, when the passes are over


def share_out(counts: np.ndarray, k: int) -> np.ndarray:
    """Frames of each class (C,) to centroids of each (C,): one at least, the rest by the roots of counts."""
    if k < np.count_nonzero(counts):
        raise ValueError(
            f"k is {k}; expected at least one centroid for each of {np.count_nonzero(counts)} phone parts"
        )
    weights = np.sqrt(counts.astype(np.float64))
    given = (counts > 0).astype(np.int64)
    for _ in range(k - int(given.sum())):
        given[np.argmax(np.where(counts > given, weights / np.maximum(given, 1), -1.0))] += 1
    return given


def fit_prototypes(
    sample: np.ndarray,
    labels: np.ndarray,
    k: int,
    seed: int,
    passes: int = 12,
    learning_rate: float = 0.01,
    smoothing: float = 0.05,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """sample (N, D) float32 with classes (N,), all at least 0, to centroids (K, D) float32."""
    if len(sample) < k:
        raise ValueError(f"{len(sample)} labelled frames for {k} centroids; give more audio or a smaller k")
    labels = np.unique(labels, return_inverse=True)[1]  # parts of phones that nobody says need no centroid
    mean, scale = sample.mean(0), float(sample.std(0).mean()) + 1e-8
    features = (sample - mean) / scale  # one scale for all: distances keep their order
    start, classes = _start(features, labels, share_out(np.bincount(labels), k), seed)
    centroids = _train(features, labels, start, classes, seed, passes, learning_rate, smoothing, device)
    return (centroids * scale + mean).astype(np.float32)


def _start(
    features: np.ndarray, labels: np.ndarray, given: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """k-means within each class: centroids (K, D) and their classes (K,)."""
    from sklearn.cluster import MiniBatchKMeans

    found, classes = [], []
    for number in np.flatnonzero(given):
        mine = features[labels == number]
        if given[number] == 1:
            found.append(mine.mean(0, keepdims=True))
        else:
            means = MiniBatchKMeans(
                int(given[number]), random_state=seed, n_init=1, batch_size=1024, max_iter=WARM_PASSES
            )
            found.append(means.fit(mine).cluster_centers_)
        classes += [number] * int(given[number])
    return np.concatenate(found).astype(np.float32), np.array(classes)


def _train(
    features: np.ndarray,
    labels: np.ndarray,
    start: np.ndarray,
    classes: np.ndarray,
    seed: int,
    passes: int,
    learning_rate: float,
    smoothing: float,
    device: str | torch.device,
) -> np.ndarray:
    x, y = torch.from_numpy(features).to(device), torch.from_numpy(labels.astype(np.int64)).to(device)
    owner = torch.from_numpy(classes).to(device)  # K
    centroids = torch.from_numpy(start).to(device).requires_grad_()  # K D
    optimizer = torch.optim.Adam([centroids], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    steps = passes * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, RATE_END, max(1, steps))
    for _ in range(passes):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH):
            batch = batch.to(device)
            scores = class_scores(x[batch], centroids, owner, int(classes.max()) + 1)  # n C
            loss = functional.cross_entropy(scores, y[batch], label_smoothing=smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not torch.isfinite(centroids).all():
        raise ValueError("the centroids are not finite; lower learning_rate")
    return centroids.detach().cpu().numpy()


def class_scores(features: Tensor, centroids: Tensor, owner: Tensor, classes: int) -> Tensor:
    """Features (N, D), centroids (K, D), their classes (K,): scores (N, C), the nearest centroid's of each.

    A score is x c - |c|^2 / 2, which ranks centroids as their distances do.
    """
    scores = features @ centroids.T - centroids.square().sum(-1) / 2  # N K
    lowest = torch.full((len(features), classes), -1e4, device=features.device)
    return lowest.scatter_reduce(1, owner.expand(len(features), -1), scores, "amax")
