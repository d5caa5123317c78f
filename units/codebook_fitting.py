"""Fits a codebook's centroids to features of a corpus: which frames are drawn, and by which method."""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.rows import Utterance, read_manifest
from speechgpt.data.settings import load_settings
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.encoder import Encoder
from speechgpt.units.extraction import Fetch, encode_rows
from speechgpt.units.phones import phone_labels
from speechgpt.units.prototypes import fit_prototypes

# MiniBatchKMeans as fairseq's examples/hubert/simple_kmeans/learn_kmeans.py calls it.
PUBLISHED_KMEANS = {
    "init": "k-means++",
    "max_iter": 100,
    "batch_size": 10_000,
    "tol": 0.0,
    "max_no_improvement": 100,
    "n_init": 20,
    "reassignment_ratio": 0.0,
}
METHODS = ("kmeans", "phones")
OVERSAMPLE = 4  # rows are drawn until they hold this many times the wanted frames


@dataclass
class CodebookConfig:
    """codebook.yaml."""

    k: int  # units
    layer: int  # of the encoder, counted from 1
    method: str = "kmeans"  # kmeans | phones: centroids that tell the parts of phones apart (prototypes.py)
    frames: int = 1_000_000  # feature frames to fit on, at most
    seed: int = 0
    n_init: int = PUBLISHED_KMEANS["n_init"]  # starts, of which the best goes on
    batch_size: int = PUBLISHED_KMEANS["batch_size"]  # frames
    max_iter: int = PUBLISHED_KMEANS["max_iter"]  # passes over the sample
    max_no_improvement: int = PUBLISHED_KMEANS["max_no_improvement"]  # batches
    reassignment_ratio: float = PUBLISHED_KMEANS["reassignment_ratio"]
    batch_seconds: float = 240.0  # audio given to the encoder at a time
    sampling: dict = field(default_factory=dict)  # corpus: share of the frames; empty: as it comes
    max_bad: int = 0  # unreadable files tolerated
    states_per_phone: int = 3  # phones: parts of each phone
    passes: int = 12  # phones: over the sample
    learning_rate: float = 0.01  # phones

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method: {self.method!r}, expected one of {', '.join(METHODS)}")

    @classmethod
    def load(cls, path: str | Path) -> "CodebookConfig":
        return load_settings(cls, path)


def fit_kmeans(sample: np.ndarray, k: int, seed: int, **settings) -> np.ndarray:
    """sample (N, D) to centroids (K, D), float32, by MiniBatchKMeans, by default with published settings."""
    from sklearn.cluster import MiniBatchKMeans

    if len(sample) < k:
        raise ValueError(f"{len(sample)} frames for {k} centroids; give more audio or a smaller k")
    settings = {**PUBLISHED_KMEANS, **settings}
    means = MiniBatchKMeans(n_clusters=k, random_state=seed, compute_labels=False, **settings).fit(sample)
    return means.cluster_centers_.astype(np.float32)


def choose_rows(
    rows: list[Utterance], frames: int, rate: float, seed: int, sampling: dict[str, float]
) -> Iterator[tuple[Utterance, float]]:
    """Yields rows in random order and which share of each row's frames to keep, `frames` in all at most."""
    corpora = {row.corpus for row in rows}
    if unknown := sampling.keys() - corpora - {"*"}:
        raise ValueError(
            f"sampling names {', '.join(sorted(unknown))}; the manifest has {', '.join(sorted(corpora))}"
        )
    totals = {c: sum(r.seconds * rate for r in rows if r.corpus == c) for c in sorted(corpora)}
    weights = {c: sampling.get(c, sampling.get("*", 0.0)) if sampling else totals[c] for c in totals}
    generator = np.random.default_rng(seed)
    for corpus, total in totals.items():
        quota = frames * weights[corpus] / sum(weights.values())
        mine, taken = [row for row in rows if row.corpus == corpus], []
        reach, wanted = 0.0, min(total, OVERSAMPLE * quota)
        for index in generator.permutation(len(mine)):
            if reach >= wanted:
                break
            taken.append(mine[index])
            reach += mine[index].seconds * rate
        yield from ((row, min(1.0, quota / reach)) for row in taken)


def sample_features(
    encoder: Encoder, manifest: str | Path, rows: Iterable[tuple[Utterance, float]], config: CodebookConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) float32 of a random sample of frames of the rows, and their phone parts (N,) int16."""
    keep = dict((row.id, share) for row, share in rows)
    chosen = [row for row in read_manifest(manifest) if row.id in keep]
    found: dict[str, np.ndarray] = {}
    labels: dict[str, list[np.ndarray]] = defaultdict(list)  # of each window; most files are in one piece
    frames_before: Counter[str] = Counter()  # of a row's windows so far
    generator = torch.Generator().manual_seed(config.seed)
    place = (encoder.hop, encoder.receptive_field, encoder.sample_rate, config.states_per_phone)

    def pick(features: Tensor, frames: list[int], batch: list[Utterance]) -> Fetch:
        masks = [torch.rand(n, generator=generator) < keep[r.id] for n, r in zip(frames, batch, strict=True)]
        kept = features[torch.cat(masks).to(features.device)].float().cpu().numpy()
        for row, mask in zip(batch, masks, strict=True):
            phones = row.phones if config.method == "phones" else []
            start = frames_before[row.id]
            frames_before[row.id] = end = start + len(mask)
            labels[row.id].append(phone_labels(phones, end, *place)[start:][mask.numpy()])
        parts = np.split(kept, np.cumsum([int(m.sum()) for m in masks])[:-1])
        return lambda: [part if np.isfinite(part).all() else None for part in parts]

    bad = []
    for row, part, reason in encode_rows(
        encoder, manifest, chosen, config.layer, pick, config.batch_seconds, progress="features"
    ):
        if part is None:
            bad.append(reason)
            if len(bad) > config.max_bad:
                raise ValueError(f"more than max_bad = {config.max_bad} bad files: " + "; ".join(bad[:5]))
        else:
            found[row.id] = part
    order = [row.id for row in chosen if row.id in found]
    return np.concatenate([found[i] for i in order]), np.concatenate([p for i in order for p in labels[i]])


def fit_codebook(
    config: CodebookConfig, encoder: Encoder, manifest: str | Path, split: str = "train"
) -> Codebook:
    """Samples features of the manifest's `split` rows and fits the centroids."""
    encoder.check_layer(config.layer)
    rows = [row for row in read_manifest(manifest) if row.split == split]
    if not rows:
        raise ValueError(f"{manifest}: no rows of split {split!r}")
    rate = encoder.sample_rate / encoder.hop
    if config.method == "phones":
        rows = [row for row in rows if row.phones]
        if not rows:
            raise ValueError(f"{manifest}: method phones needs rows with phones; `speechgpt align` adds them")
    chosen = choose_rows(rows, config.frames, rate, config.seed, config.sampling)
    sample, labels = sample_features(encoder, manifest, chosen, config)
    if config.method == "phones":
        sample, labels = sample[labels >= 0], labels[labels >= 0]
        centroids = fit_prototypes(
            sample, labels, config.k, config.seed, config.passes, config.learning_rate, device=encoder.device
        )
    else:
        centroids = fit_kmeans(
            sample,
            config.k,
            config.seed,
            n_init=config.n_init,
            batch_size=config.batch_size,
            max_iter=config.max_iter,
            max_no_improvement=config.max_no_improvement,
            reassignment_ratio=config.reassignment_ratio,
        )
    provenance = Provenance(
        encoder.fingerprint,
        config.layer,
        encoder.sample_rate,
        encoder.hop,
        encoder.normalize,
        config.seed,
        len(sample),
        encoder.receptive_field,
    )
    return Codebook(torch.from_numpy(centroids), provenance)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt codebook", description=__doc__)
    parser.add_argument("--config", required=True, help="codebook.yaml")
    parser.add_argument("--encoder", required=True, help="encoder folder")
    parser.add_argument("--manifest", required=True, help="rows of split train are sampled")
    parser.add_argument("--out", required=True, help="codebook.safetensors")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    config = CodebookConfig.load(options.config)
    encoder = Encoder.load(options.encoder, options.device)
    codebook = fit_codebook(config, encoder, options.manifest)
    codebook.save(options.out)
    print(
        f"{options.out}: {codebook.size} centroids of layer {config.layer}, "
        f"fitted to {codebook.provenance.frames} frames"
    )
    return 0
