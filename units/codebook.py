"""Features to units: centroids that know which encoder, layer and rate they were fitted to."""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from speechgpt.data.audio import RECEPTIVE_FIELD
from speechgpt.data.files import atomic_path
from speechgpt.data.rows import Utterance, read_manifest
from speechgpt.units.encoder import Encoder
from speechgpt.units.extraction import Fetch, encode_rows
from speechgpt.units.phones import phone_labels
from speechgpt.units.prototypes import fit_prototypes
from speechgpt.units.settings import load_settings

CODEBOOK_FORMAT = "1"
ASSIGN_CHUNK = 65_536  # frames whose distances are in memory at a time
# mHuBERT base (vp_en_es_fr_it3) and its codebook, as SpeechGPT's speech2unit uses them.
PUBLISHED_LAYER, PUBLISHED_K = 11, 1000
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


@dataclass(frozen=True)
class Provenance:
    """Where centroids come from. Another encoder, layer or rate makes them meaningless."""

    encoder: str  # the encoder's fingerprint
    layer: int  # counted from 1
    sample_rate: int  # Hz
    hop: int  # samples
    normalize: bool  # the waveform is normalised first
    seed: int = 0
    frames: int = 0  # that the centroids were fitted to; 0: unknown
    receptive_field: int = RECEPTIVE_FIELD  # samples that one frame sees through the convolutions
    kept_from: str = ""  # where `encoder` was trained towards them: the encoder that they were fitted to


class Codebook:
    """centroids (K, D) float32; `source` says which file they were converted from, if any."""

    def __init__(self, centroids: Tensor, provenance: Provenance, source: dict | None = None) -> None:
        if centroids.ndim != 2 or not torch.isfinite(centroids).all():
            raise ValueError(f"expected finite centroids (K, D), found {tuple(centroids.shape)}")
        self.centroids = centroids.float().contiguous()
        self.provenance = provenance
        self.source = source or {}
        self._half_norms = self.centroids.square().sum(-1) / 2  # K
        # Equal centroids can get scores a rounding apart: the first of each stands for all of them.
        distinct, which = torch.unique(self.centroids, dim=0, return_inverse=True)
        index = torch.arange(len(which), device=which.device)
        first = torch.full((len(distinct),), len(which), device=which.device)
        self._first = first.scatter_reduce(0, which, index, "amin")[which]  # K

    @property
    def size(self) -> int:
        """K."""
        return len(self.centroids)

    def __len__(self) -> int:
        return len(self.centroids)

    def to(self, device: str | torch.device) -> "Codebook":
        return Codebook(self.centroids.to(device), self.provenance, self.source)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "Codebook":
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such codebook; `speechgpt codebook` makes one")
        try:
            with safe_open(str(path), "pt") as file:
                header, names = file.metadata() or {}, list(file.keys())
                centroids = file.get_tensor("centroids") if "centroids" in names else None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a codebook file ({error})") from error
        if header.get("format") != f"speechgpt-codebook-{CODEBOOK_FORMAT}" or centroids is None:
            raise ValueError(
                f"{path}: not a codebook of format {CODEBOOK_FORMAT}; found "
                f"{header.get('format', 'no format')} with tensors {', '.join(names)}"
            )
        values = json.loads(header["provenance"])
        if unknown := values.keys() - {f.name for f in fields(Provenance)}:
            raise ValueError(f"{path}: unknown provenance {', '.join(unknown)}; made by a later version")
        source = json.loads(header.get("source", "{}"))
        return cls(centroids.to(device), Provenance(**values), source)

    def save(self, path: str | Path) -> None:
        with atomic_path(path) as part:
            part.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The file that `save` writes."""
        values = asdict(self.provenance)
        for name, usual in (("receptive_field", RECEPTIVE_FIELD), ("kept_from", "")):
            if values[name] == usual:  # left out, so that files of before stay what they were
                del values[name]
        header = {"format": f"speechgpt-codebook-{CODEBOOK_FORMAT}", "provenance": json.dumps(values)}
        if self.source:
            header["source"] = json.dumps(self.source)
        return _ordered(save({"centroids": self.centroids.cpu()}, metadata=header))

    def kept_for(self, encoder: Encoder) -> "Codebook":
        """The same centroids for an encoder that was trained towards them: units keep their meaning."""
        first = self.provenance.kept_from or self.provenance.encoder
        provenance = replace(self.provenance, encoder=encoder.fingerprint, kept_from=first)
        return Codebook(self.centroids, provenance, self.source)

    def as_fitted(self) -> "Codebook":
        """The codebook before `kept_for`; itself where there was none."""
        first = self.provenance.kept_from or self.provenance.encoder
        provenance = replace(self.provenance, encoder=first, kept_from="")
        return Codebook(self.centroids, provenance, self.source)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Tensor:
        """Features (N, D) to the nearest centroid (N,) int64 in squared L2; of equal ones the lowest."""
        if features.shape[-1] != self.centroids.shape[1]:
            raise ValueError(
                f"features are {features.shape[-1]} wide, the centroids {self.centroids.shape[1]}"
            )
        found = []
        for chunk in features.float().to(self.centroids.device).split(ASSIGN_CHUNK):
            # |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x c): the first term is the same for every centroid.
            scores = torch.addmm(self._half_norms[None], chunk, self.centroids.T, alpha=-1)  # n K
            found.append(self._first[scores.argmin(-1)])
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)

    def check(self, encoder: Encoder, layer: int) -> None:
        """Raises ValueError naming both when the centroids were not fitted to this encoder and layer."""
        issues, mine = [], self.provenance
        if mine.encoder not in (encoder.fingerprint, encoder.derived_from):
            issues.append(
                f"the codebook is of encoder {mine.encoder[:12]}, this is {encoder.fingerprint[:12]}"
            )
        for name, ours in (
            ("layer", layer),
            ("sample_rate", encoder.sample_rate),
            ("hop", encoder.hop),
            ("normalize", encoder.normalize),
        ):
            if (theirs := getattr(mine, name)) != ours:
                issues.append(f"the codebook is of {name} {theirs}, here it is {ours}")
        if self.centroids.shape[1] != encoder.width:
            issues.append(f"the codebook is {self.centroids.shape[1]} wide, the encoder {encoder.width}")
        if issues:
            raise ValueError("codebook and encoder do not belong together: " + "; ".join(issues))


def _ordered(file: bytes) -> bytes:
    """The same safetensors file with its metadata in order: the library shuffles them, and hashes compare."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors are aligned
    return len(text).to_bytes(8, "little") + text + file[8 + size :]


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
        return lambda: parts

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
