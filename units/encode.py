"""Speech to units: waveforms, files, and whole manifests that resume after a kill."""

import argparse
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speechgpt.data.audio import probe, read_audio
from speechgpt.data.files import write_json, write_jsonl
from speechgpt.data.rows import UnitRow, Utterance, compact
from speechgpt.units.codebook import Codebook
from speechgpt.units.dedup import deduplicate
from speechgpt.units.devices import choose_device, on_device
from speechgpt.units.encoder import HALF, Encoder, check_precision
from speechgpt.units.extraction import BATCH_SECONDS, NOT_FINITE, OVERFLOWED, Fetch, encode_rows
from speechgpt.units.half_kernels import half_refusal
from speechgpt.units.manifest_parts import count_rows, join_files, manifest_parts
from speechgpt.units.padding import length_batches
from speechgpt.units.settings import file_hash, text_hash
from speechgpt.units.windows import CONTEXT_SECONDS, WINDOW_SECONDS, open_long_audio, window_features

logger = logging.getLogger(__name__)

# Audio between two files on disk: what a kill can lose. On a GPU it is seconds of work, so that the start and
# the end of a part cost little.
PART_SECONDS = {"cpu": 1200.0, "cuda": 36_000.0}
NO_UNIT = -1  # of a frame whose features are not finite
# Beside a part file: rows that could not be read, and rows that half precision did not hold.
REJECTS_SUFFIX, OVERFLOWED_SUFFIX = ".rejects", ".overflowed"
PRECISIONS = ("auto", "float32", "float16", "bfloat16", "int8")


class UnitEncoder:
    """An encoder, the layer and the codebook that belong together: waveforms to units."""

    def __init__(
        self, encoder: Encoder, codebook: Codebook, layer: int | None = None, precision: str = "float32"
    ) -> None:
        """precision: as `Encoder.frames_of` takes it. Files that go in windows are computed in float32."""
        self.encoder, self.precision = encoder, precision
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
        precision: str = "float32",
    ) -> "UnitEncoder":
        """dtype: of the encoder's weights. precision: of inference, as `use` takes it."""
        device = choose_device(device)
        if device.type == "cpu" and precision in ("float16", "bfloat16"):
            dtype, precision = getattr(torch, precision), "float32"  # there is no faster way for it there
        return cls(Encoder.load(encoder, device, dtype), Codebook.load(codebook), layer).use(precision)

    def use(self, precision: str) -> "UnitEncoder":
        """From now on computes in `precision`; auto is half on a GPU that can, else float32."""
        where = self.encoder.device.type
        if precision == "auto":
            precision = self._fastest()
        check_precision(precision, where)
        self.precision = precision
        return self

    def _fastest(self) -> str:
        encoder = self.encoder
        if encoder.device.type != "cuda":
            return "float32"
        if reason := half_refusal(encoder.device, encoder.config.conv_pos_batch_norm):
            logger.warning("float32 is used in place of %s, and is slower: %s", HALF, reason)
            return "float32"
        return HALF

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.encoder.sample_rate / self.encoder.hop

    @property
    def num_units(self) -> int:
        """K."""
        return self.codebook.size

    @property
    def computed_in(self) -> str:
        """What decides how features are rounded: float32, float16, bfloat16 or int8."""
        weights = str(self.encoder.dtype).removeprefix("torch.")
        return self.precision if weights == "float32" else weights

    def encode(self, waveforms: Sequence[np.ndarray], batch_seconds: float | None = None) -> list[np.ndarray]:
        """Waveforms (T,) at the encoder's rate to frames (N,) int64 each, the same in any batch.

        Raises ValueError naming the waveforms whose features are no finite numbers.
        """
        rate = self.encoder.sample_rate
        found: list[np.ndarray | None] = [None] * len(waveforms)
        short = []
        for index, waveform in enumerate(waveforms):
            if len(waveform) > self.window_seconds * rate:
                found[index] = self._encode_long(waveform, f"waveform {index}")
            else:
                short.append(index)
        budget = batch_seconds or BATCH_SECONDS[self.encoder.device.type]
        lengths = [len(waveforms[i]) / rate for i in short]
        for batch in length_batches(lengths, budget):
            members = [short[i] for i in batch]
            given = [waveforms[i] for i in members]
            results = self._frames_of(given, self.precision, budget)
            for index, frames in zip(members, results, strict=True):
                found[index] = frames
        if overflowed := [i for i in short if found[i] is None]:
            for index in overflowed:
                (found[index],) = self._frames_of([waveforms[index]], "float32", budget)
            if bad := [i for i in overflowed if found[i] is None]:
                raise ValueError(f"waveform {', '.join(map(str, bad))}: {NOT_FINITE}")
            logger.warning("%d of %d waveforms were %s", len(overflowed), len(waveforms), OVERFLOWED)
        return found

    def _frames_of(
        self, waveforms: list[np.ndarray], precision: str, budget: float
    ) -> list[np.ndarray | None]:
        return self.start(*self.encoder.frames_of(waveforms, self.layer, precision, budget))()

    def encode_file(self, path: str | Path) -> np.ndarray:
        """An audio file of any length to frames (N,) int64, in bounded memory."""
        if probe(path).seconds <= self.window_seconds:
            return self.encode([read_audio(path, self.encoder.sample_rate)])[0]
        with open_long_audio(path, self.encoder.sample_rate) as waveform:
            return self._encode_long(waveform, str(path))

    def _encode_long(self, waveform: np.ndarray, name: str) -> np.ndarray:
        """name: of the waveform, for the error."""
        pieces = window_features(
            self.encoder, waveform, self.layer, self.window_seconds, self.context_seconds
        )
        found = []
        for piece in pieces:
            (units,) = self.start(piece, [len(piece)])()
            if units is None:
                raise ValueError(f"{name}: {NOT_FINITE}")
            found.append(units)
        return np.concatenate(found)  # N

    def assign(self, features: list[Tensor], rows: object = None) -> list[np.ndarray]:
        """Features (N, D) of several rows to frames (N,) int64 of each, with one transfer from the device."""
        units = self.codebook.assign(torch.cat(features)).cpu().numpy()
        return np.split(units, np.cumsum([len(f) for f in features])[:-1])

    def start(self, features: Tensor, frames: list[int], rows: object = None) -> Fetch:
        """Features (sum of N, D) of rows of N frames each; what it returns waits for the units (N,) int64 of
        each, or for None in place of a row whose features are not all finite."""
        units = self.codebook.assign(features)
        # Told by what is fetched anyway, so that the host waits once.
        numbers = torch.where(features.isfinite().all(-1), units, NO_UNIT).int()
        done = None
        if numbers.is_cuda:
            with on_device(numbers.device):  # an event is of the current device's stream
                pinned = torch.empty(len(numbers), dtype=torch.int32, pin_memory=True)
                numbers, done = pinned.copy_(numbers, non_blocking=True), torch.cuda.Event()
                done.record()

        def fetch() -> list[np.ndarray | None]:
            if done is not None:
                done.synchronize()
            found = np.split(numbers.numpy().astype(np.int64), np.cumsum(frames)[:-1])
            return [None if (row == NO_UNIT).any() else row for row in found]

        return fetch


def encode_manifest(
    units: UnitEncoder,
    manifest: str | Path,
    out: str | Path,
    shard: tuple[int, int] = (0, 1),
    batch_seconds: float | None = None,
    part_seconds: float | None = None,
    max_bad: int = 0,
    workers: int | None = None,
) -> int:
    """Writes the unit rows of a manifest, in its order, to `out`; returns how many.

    Part files beside `out` hold what is done: after a kill the same call goes on with the next part, once the
    parts with files that could not be read were tried again. Such files go to `out`.rejects.jsonl with the
    reason; more than `max_bad` of them are an error.
    What made the units stands in `out` with the suffix .provenance.json, and how many rows half precision did
    not hold, which are in float32. Memory does not grow with the hours.
    """
    part_seconds = part_seconds or PART_SECONDS[units.encoder.device.type]
    index, shards = shard
    count = count_rows(manifest)
    chosen = index * count // shards, (index + 1) * count // shards
    key = _key(units, manifest, shard, part_seconds)
    folder = Path(f"{out}.parts") / key
    folder.mkdir(parents=True, exist_ok=True)
    _forget_rejected(folder)
    bad = 0
    for number, part in enumerate(manifest_parts(manifest, chosen, part_seconds)):
        path = folder / f"{number:06d}.jsonl"
        rejects = path.with_suffix(REJECTS_SUFFIX)
        if not path.exists():
            label = f"units {number + 1}: "
            write_jsonl(path, _encode_part(units, manifest, part, batch_seconds, workers, label, path))
        if rejects.exists():
            bad += len(rejects.read_bytes().splitlines())
        if bad > max_bad:
            _write_rejects(folder, out)
            _forget_rejected(folder)
            raise ValueError(
                f"{bad} files of {manifest} cannot be read, max_bad is {max_bad}; "
                f"reasons in {out}.rejects.jsonl"
            )
    written = join_files(sorted(folder.glob("*.jsonl")), out)
    _write_rejects(folder, out)
    overflowed = sum(len(p.read_bytes().splitlines()) for p in folder.glob(f"*{OVERFLOWED_SUFFIX}"))
    if overflowed:
        logger.warning("%s: %d of %d rows were %s", out, overflowed, written, OVERFLOWED)
    counts = {"rows": written, "rows_redone_in_float32": overflowed, "key": key}
    write_json(Path(out).with_suffix(".provenance.json"), _provenance(units) | counts)
    shutil.rmtree(folder.parent)
    return written


def _key(units: UnitEncoder, manifest: str | Path, shard: tuple[int, int], part_seconds: float) -> str:
    """A hash of all that decides what the parts hold, so that a changed run starts afresh."""
    centroids = units.codebook.centroids.cpu().numpy().tobytes().hex()
    return text_hash(
        units.encoder.fingerprint,
        centroids,
        units.layer,
        file_hash(manifest),
        shard,
        part_seconds,
        units.computed_in,
        units.window_seconds,
        "rows in order",
    )


def _provenance(units: UnitEncoder) -> dict:
    return {
        "encoder": units.encoder.fingerprint,
        "layer": units.layer,
        "codebook_size": units.num_units,
        "codebook": text_hash(units.codebook.centroids.cpu().numpy().tobytes().hex()),
        "computed_in": units.computed_in,
    }


def _encode_part(
    units: UnitEncoder,
    manifest: str | Path,
    rows: list[Utterance],
    batch_seconds: float | None,
    workers: int | None,
    label: str,
    path: Path,
) -> Iterator[dict]:
    """Yields the part's unit rows, for `path`; when it ends, files beside it hold those that cannot be read
    and those that half precision did not hold."""
    bad, overflowed = [], []
    for row, frames, note in encode_rows(
        units.encoder,
        manifest,
        rows,
        units.layer,
        units.start,
        batch_seconds,
        workers,
        label,
        units.precision,
    ):
        if frames is None:
            bad.append({"id": row.id, "path": row.path, "reason": note})
            continue
        if note == OVERFLOWED:
            overflowed.append({"id": row.id})
        yield compact(unit_row(row, frames))
    for suffix, noted in ((REJECTS_SUFFIX, bad), (OVERFLOWED_SUFFIX, overflowed)):
        if noted:
            write_jsonl(path.with_suffix(suffix), noted)
        else:
            path.with_suffix(suffix).unlink(missing_ok=True)


def unit_row(row: Utterance, frames: np.ndarray) -> UnitRow:
    """The unit row of one utterance, from its frames (N,)."""
    found, durations = deduplicate(frames)
    return UnitRow(
        row.id, found.tolist(), durations.tolist(), row.speaker, row.corpus, row.text, row.split, row.slots
    )


def _write_rejects(folder: Path, out: str | Path) -> None:
    path = Path(f"{out}.rejects.jsonl")
    if rejects := sorted(folder.glob(f"*{REJECTS_SUFFIX}")):
        join_files(rejects, path)
    else:
        path.unlink(missing_ok=True)


def _forget_rejected(folder: Path) -> None:
    """Unlinks every part with files that could not be read: a repaired file is tried again."""
    for rejects in folder.glob(f"*{REJECTS_SUFFIX}"):
        rejects.with_suffix(".jsonl").unlink(missing_ok=True)
        rejects.unlink()


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
    parser.add_argument(
        "--dtype", choices=PRECISIONS, default="auto", help=f"auto: {HALF} on a GPU that can, else float32"
    )
    parser.add_argument(
        "--batch-seconds",
        type=float,
        help="audio a batch, with its padding where it is padded (60 on a CPU, 640 on a GPU)",
    )
    parser.add_argument("--part-seconds", type=float, help="audio between two part files")
    parser.add_argument("--max-bad", type=int, default=0, help="unreadable files tolerated")
    parser.add_argument("--workers", type=int, help="threads that decode ahead (all cores but one)")
    options = parser.parse_args(argv)
    units = UnitEncoder.load(
        options.encoder, options.codebook, options.layer, options.device, precision=options.dtype
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
