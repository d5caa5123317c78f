"""Features to units: centroids that know which encoder, layer and rate they were fitted to."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from speechgpt.data.audio import RECEPTIVE_FIELD
from speechgpt.data.files import atomic_path
from speechgpt.units.encoder import Encoder

CODEBOOK_FORMAT = "1"
ASSIGN_CHUNK = 65_536  # frames whose distances are in memory at a time
# mHuBERT base (vp_en_es_fr_it3) and its codebook, as SpeechGPT's speech2unit uses them.
PUBLISHED_LAYER, PUBLISHED_K = 11, 1000


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
