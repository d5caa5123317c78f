"""Speech to units: waveforms, files, and whole manifests that resume after a kill."""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.audio import probe, read_audio
from speechgpt.data.files import read_jsonl, write_jsonl
from speechgpt.data.rows import UnitRow, Utterance, read_manifest, write_units
from speechgpt.units.codebook import Codebook
from speechgpt.units.dedup import deduplicate
from speechgpt.units.encoder import Encoder
from speechgpt.units.extraction import BATCH_SECONDS, encode_rows, length_batches
from speechgpt.units.settings import file_hash, text_hash
from speechgpt.units.windows import CONTEXT_SECONDS, WINDOW_SECONDS, open_long_audio, window_features

PART_SECONDS = 1200.0  # audio between two files on disk: what a kill can lose
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class UnitEncoder:
    """An encoder, the layer and the codebook that belong together: waveforms to units."""

    def __init__(self, encoder: Encoder, codebook: Codebook, layer: int | None = None) -> None:
        self.encoder = encoder
        self.layer = codebook.provenance.layer if layer is None else layer
        encoder.check_layer(self.layer)
        codebook.check(encoder, self.layer)
        self.codebook = codebook.to(encoder.device)
        self.window_seconds = WINDOW_SECONDS
        self.context_seconds = CONTEXT_SECONDS

    @classmethod
    def load(
        cls,
        encoder: str | Path,
        codebook: str | Path,
        layer: int | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
    ) -> "UnitEncoder":
        return cls(Encoder.load(encoder, device, dtype), Codebook.load(codebook), layer)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.encoder.sample_rate / self.encoder.hop

    @property
    def num_units(self) -> int:
        """K."""
        return self.codebook.size

    def encode(self, waveforms: Sequence[np.ndarray], batch_seconds: float | None = None) -> list[np.ndarray]:
        """Waveforms (T,) at the encoder's rate to frames (N,) int64 each, the same in any batch."""
        rate = self.encoder.sample_rate
        found: list[np.ndarray | None] = [None] * len(waveforms)
        short = []
        for index, waveform in enumerate(waveforms):
            if len(waveform) > self.window_seconds * rate:
                found[index] = self._encode_long(waveform)
            else:
                short.append(index)
        budget = batch_seconds or BATCH_SECONDS[self.encoder.device.type]
        lengths = [len(waveforms[i]) / rate for i in short]
        for batch in length_batches(lengths, budget):
            members = [short[i] for i in batch]
            features = self.encoder.features([waveforms[i] for i in members], self.layer)
            for index, frames in zip(members, self.assign(features), strict=True):
                found[index] = frames
        return found

    def encode_file(self, path: str | Path) -> np.ndarray:
        """An audio file of any length to frames (N,) int64, in bounded memory."""
        if probe(path).seconds <= self.window_seconds:
            return self.encode([read_audio(path, self.encoder.sample_rate)])[0]
        with open_long_audio(path, self.encoder.sample_rate) as waveform:
            return self._encode_long(waveform)

    def _encode_long(self, waveform: np.ndarray) -> np.ndarray:
        pieces = window_features(
            self.encoder, waveform, self.layer, self.window_seconds, self.context_seconds
        )
        return np.concatenate([self.assign([piece])[0] for piece in pieces])  # N

    def assign(self, features: list[Tensor], rows: object = None) -> list[np.ndarray]:
        """Features (N, D) of several rows to frames (N,) int64 of each, with one transfer from the device."""
        units = self.codebook.assign(torch.cat(features)).cpu().numpy()
        return np.split(units, np.cumsum([len(f) for f in features])[:-1])


def encode_manifest(
    units: UnitEncoder,
    manifest: str | Path,
    out: str | Path,
    shard: tuple[int, int] = (0, 1),
    batch_seconds: float | None = None,
    part_seconds: float = PART_SECONDS,
    max_bad: int = 0,
    workers: int = 4,
) -> int:
    """Writes the unit rows of a manifest, in its order, to `out`; returns how many.

    Part files beside `out` hold what is done: after a kill the same call goes on with the next part. Files
    that cannot be read go to `out`.rejects.jsonl with the reason; more than `max_bad` of them are an error.
    """
    rows = read_manifest(manifest)
    index, count = shard
    rows = rows[index * len(rows) // count : (index + 1) * len(rows) // count]
    folder = _parts_folder(units, manifest, Path(out), shard, part_seconds)
    plan = _plan_parts(rows, part_seconds)
    bad = 0
    for number, part in enumerate(plan):
        path = folder / f"{number:06d}.jsonl"
        if not path.exists():
            label = f"units {number + 1}/{len(plan)}"
            write_jsonl(path, _encode_part(units, manifest, part, batch_seconds, workers, label))
        bad += sum("reason" in line for _, line in read_jsonl(path))
        if bad > max_bad:
            _write_rejects(folder, out)
            path.unlink()  # a repaired file is tried again
            raise ValueError(
                f"{bad} files of {manifest} cannot be read, max_bad is {max_bad}; "
                f"reasons in {out}.rejects.jsonl"
            )
    found = {line["id"]: UnitRow(**line) for line in _lines(folder) if "reason" not in line}
    written = write_units(out, (found[row.id] for row in rows if row.id in found))
    _write_rejects(folder, out)
    shutil.rmtree(folder.parent)
    return written


def _parts_folder(
    units: UnitEncoder, manifest: str | Path, out: Path, shard: tuple[int, int], part_seconds: float
) -> Path:
    """Part files live under a hash of all that decides their content, so that a changed run starts afresh."""
    centroids = units.codebook.centroids.cpu().numpy().tobytes().hex()
    key = text_hash(
        units.encoder.fingerprint,
        centroids,
        units.layer,
        file_hash(manifest),
        shard,
        part_seconds,
        str(units.encoder.dtype),
        units.window_seconds,
    )
    folder = out.with_name(out.name + ".parts") / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _plan_parts(rows: list[Utterance], part_seconds: float) -> list[list[Utterance]]:
    """Rows of like lengths in parts of about `part_seconds` of audio; the same plan whenever it is made."""
    parts: list[list[Utterance]] = []
    filled = 0.0
    for row in sorted(rows, key=lambda row: -row.seconds):
        if not parts or filled >= part_seconds:
            parts.append([])
            filled = 0.0
        parts[-1].append(row)
        filled += row.seconds
    return parts


def _encode_part(
    units: UnitEncoder,
    manifest: str | Path,
    rows: list[Utterance],
    batch_seconds: float | None,
    workers: int,
    label: str,
) -> Iterator[dict]:
    for row, frames, reason in encode_rows(
        units.encoder, manifest, rows, units.layer, units.assign, batch_seconds, workers, label
    ):
        if frames is None:
            yield {"id": row.id, "path": row.path, "reason": reason}
        else:
            yield asdict(unit_row(row, frames))


def unit_row(row: Utterance, frames: np.ndarray) -> UnitRow:
    """The unit row of one utterance, from its frames (N,)."""
    found, durations = deduplicate(frames)
    return UnitRow(
        row.id, found.tolist(), durations.tolist(), row.speaker, row.corpus, row.text, row.split, row.slots
    )


def _lines(folder: Path) -> Iterator[dict]:
    for path in sorted(folder.glob("*.jsonl")):
        for _, line in read_jsonl(path):
            yield line


def _write_rejects(folder: Path, out: str | Path) -> None:
    path = Path(f"{out}.rejects.jsonl")
    rejects = [line for line in _lines(folder) if "reason" in line]
    if rejects:
        write_jsonl(path, rejects)
    else:
        path.unlink(missing_ok=True)


def parse_shard(text: str) -> tuple[int, int]:
    """The text 2/8 to (2, 8): the third of eight, counting from 0."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard {text}: expected i/n with i from 0 to n - 1, such as 0/4")
    return int(index), int(count)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt units", description=__doc__)
    parser.add_argument("--encoder", required=True, help="encoder folder")
    parser.add_argument("--codebook", required=True, help="codebook.safetensors")
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--out", required=True, help="units.jsonl")
    parser.add_argument("--layer", type=int, help="default: the codebook's")
    parser.add_argument(
        "--shard", default="0/1", help="i/n from 0: this run's rows; joined in order they are all"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument(
        "--batch-seconds", type=float, help="padded audio a batch (60 on a CPU, 1200 on a GPU)"
    )
    parser.add_argument(
        "--part-seconds", type=float, default=PART_SECONDS, help="audio between two part files"
    )
    parser.add_argument("--max-bad", type=int, default=0, help="unreadable files tolerated")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode ahead")
    options = parser.parse_args(argv)
    units = UnitEncoder.load(
        options.encoder, options.codebook, options.layer, options.device, DTYPES[options.dtype]
    )
    written = encode_manifest(
        units,
        options.manifest,
        options.out,
        parse_shard(options.shard),
        options.batch_seconds,
        options.part_seconds,
        options.max_bad,
        options.workers,
    )
    print(f"{options.out}: {written} rows", file=sys.stderr)
    return 0
