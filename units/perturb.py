"""Copies of recordings at other speeds, in other voices, in noise, cut short: audio files and a manifest.

For corpora of so few speakers, rooms and devices that what is trained on their units learns those as well.
Only rows of split train are copied. Rows are copied in chunks; a chunk's rows are written when all its audio
is, and the manifest after the last chunk: a killed run goes on with the same command, and ends with the same
files.
"""

import argparse
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from speechgpt.data.audio import RECEPTIVE_FIELD, SAMPLE_RATE, read_audio, resample
from speechgpt.data.files import atomic_path, read_jsonl, write_jsonl
from speechgpt.data.hashes import text_hash
from speechgpt.data.parallel import in_processes
from speechgpt.data.rows import Utterance, read_manifest, write_manifest
from speechgpt.data.settings import load_settings
from speechgpt.data.synthesize import SAFE_ID, audio_path
from speechgpt.units.augment import augment
from speechgpt.units.cutting import cut_ends, cut_phones, retime_phones
from speechgpt.units.perturb_config import PerturbConfig

CHUNK = 64  # copies: what a kill can cost each job
VERSION = 4  # of the way in which copies are made: another one makes all anew
PEAK = 0.99  # the loudest that a file may be
SPLIT = "train"  # held-out recordings stay as they were made
BABBLE_VOICES = 5
TALKERS = 16  # recordings of which these are, for each chunk
NAME_LENGTH = 100  # characters of an id in a file name


def perturb_waveform(
    waveform: np.ndarray, config: PerturbConfig, seed: int, name: str, others: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """(T,) float32 at 16 kHz to (T / speed,) float32; the draws depend on `seed` and `name` alone.

    others: (T,) each, the recordings that may talk in the background.
    """
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    chance = int.from_bytes(digest[:8], "big") / 2**64  # [0, 1)
    slowest, fastest = (math.log(s) for s in config.speed)
    # No copy may be too short for one frame of units.
    speed = min(math.exp(slowest + chance * (fastest - slowest)), max(1.0, len(waveform) / RECEPTIVE_FIELD))
    faster = resample(waveform, round(SAMPLE_RATE * speed), SAMPLE_RATE)  # T'
    rng = random.Random(digest)
    babbling = bool(others) and rng.random() < config.noise_chance * config.babble_share
    if babbling:
        faster = faster + babble(faster, others, rng.uniform(*config.snr_db), rng)
    generator = torch.Generator().manual_seed(int.from_bytes(digest[8:], "big") >> 1)
    lengths = torch.tensor([len(faster)])
    rows = torch.from_numpy(faster)[None]  # 1 T'
    wanted = config.sound(babbling, bool(others))
    sound = augment(rows, lengths, wanted, generator, SAMPLE_RATE)[0].numpy()  # T'
    return sound * min(1.0, PEAK / max(float(np.abs(sound).max()), PEAK))


def babble(
    waveform: np.ndarray, others: Sequence[np.ndarray], snr_db: float, rng: random.Random
) -> np.ndarray:
    """(T,): some of `others`, begun anywhere and repeated, `snr_db` below the waveform (T,)."""
    voices = np.zeros(len(waveform), np.float32)
    for other in rng.sample(list(others), min(BABBLE_VOICES, len(others))):
        level = float(np.sqrt(np.mean(np.square(other)))) or 1.0
        begin = rng.randrange(len(other))
        voices += rng.uniform(0.3, 1.0) / level * np.resize(np.roll(other, -begin), len(waveform))
    power = float(np.mean(np.square(voices))) or 1.0
    wanted = float(np.mean(np.square(waveform))) * 10 ** (-snr_db / 10)
    return voices * math.sqrt(wanted / power)


@dataclass(frozen=True)
class Source:
    row: Utterance
    audio: Path
    copies: int

    def key(self) -> list:
        """All of the recording that decides its copies."""
        state = self.audio.stat()
        return [asdict(self.row), str(self.audio.resolve()), state.st_size, state.st_mtime_ns, self.copies]

    def outputs(self) -> list[tuple[str, Path]]:
        """Ids and files of the copies."""
        names = [f"{self.row.id}.x{n}" for n in range(self.copies)]
        return [(name, audio_path(file_name(name), "flac")) for name in names]


def file_name(name: str) -> str:
    """A name that files may have; ids that have to be changed for it get a digest, so that none collide."""
    if SAFE_ID.fullmatch(name) and len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return f"_{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:NAME_LENGTH]}.{digest}"


@dataclass(frozen=True)
class Chunk:
    sources: list[Source]
    config: PerturbConfig
    seed: int
    out: Path
    rows: Path  # relative to out; its name holds a hash of all that decides the copies
    talkers: tuple = ()  # recordings that may talk in the background

    @property
    def copies(self) -> int:
        return sum(source.copies for source in self.sources)

    def finished(self) -> bool:
        files = (path for source in self.sources for _, path in source.outputs())
        return (self.out / self.rows).exists() and all((self.out / path).exists() for path in files)


def perturb_chunk(chunk: Chunk) -> int:
    """Writes all copies, then the chunk's rows; returns their number."""
    import soundfile

    torch.set_num_threads(1)  # there is a process for each core; after a fork more threads would hang
    rows = []
    config, seed = chunk.config, chunk.seed
    others = [read_audio(path, SAMPLE_RATE) for path in chunk.talkers]  # T each
    for source in chunk.sources:
        whole = read_audio(source.audio, SAMPLE_RATE)  # T
        quiet_db, share = config.trim_quiet_db.get(source.row.corpus), config.trim.get(source.row.corpus, 0.0)
        for name, path in source.outputs():
            waveform, cut = cut_ends(whole, quiet_db, share, seed, name)  # T'
            copy = perturb_waveform(waveform, config, seed, name, others)  # T''
            with atomic_path(chunk.out / path) as part:
                soundfile.write(str(part), copy, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
            phones = cut_phones(source.row.phones, cut / SAMPLE_RATE, len(waveform) / SAMPLE_RATE)
            phones = retime_phones(phones, len(copy) / len(waveform))
            seconds = round(len(copy) / SAMPLE_RATE, 4)
            rows.append(replace(source.row, id=name, path=str(path), seconds=seconds, phones=phones))
    return write_manifest(chunk.out / chunk.rows, rows)


def read_sources(manifests: Sequence[str | Path], config: PerturbConfig) -> list[Source]:
    """The rows that get copies. Raises ValueError for an id in two files, or corpora that are not there."""
    sources, seen = [], {}
    corpora: Counter = Counter()
    for manifest in manifests:
        for row in read_manifest(manifest):
            if row.id in seen:
                raise ValueError(f"id {row.id!r} is in {seen[row.id]} and in {manifest}")
            seen[row.id] = manifest
            corpora[row.corpus] += 1
            if row.split == SPLIT and (copies := config.count(row.corpus)):
                sources.append(Source(row, row.audio(manifest), copies))
    found = ", ".join(repr(c) for c in sorted(corpora))
    if isinstance(config.copies, dict) and (missing := sorted(set(config.copies) - set(corpora))):
        raise ValueError(f"copies names {', '.join(missing)}; the manifests have rows of {found}")
    if not sources:
        raise ValueError(f"no row of split {SPLIT!r} is to be copied; the manifests have rows of {found}")
    return sources


def plan(sources: list[Source], config: PerturbConfig, seed: int, out: Path) -> list[Chunk]:
    """Chunks of about `CHUNK` copies; the same plan whenever it is made."""
    parts: list[list[Source]] = [[]]
    for source in sources:
        if sum(s.copies for s in parts[-1]) >= CHUNK:
            parts.append([])
        parts[-1].append(source)
    settings = json.dumps({k: v for k, v in asdict(config).items() if k != "copies"})
    chunks = []
    for number, part in enumerate(parts):
        talking = random.Random(f"{seed} talkers {number}").sample(sources, min(TALKERS, len(sources)))
        talking = talking if config.babble_share else []
        key = text_hash(VERSION, seed, settings, *([s.key() for s in some] for some in (part, talking)))
        rows = Path("rows") / f"{number:05d}.{key}.jsonl"
        chunks.append(Chunk(part, config, seed, out, rows, tuple(s.audio for s in talking)))
    return chunks


def perturb(
    manifests: Sequence[str | Path], out: Path, config: PerturbConfig, seed: int = 0, jobs: int = 0
) -> int:
    """Writes OUT/audio and, last, OUT/manifest.jsonl in the manifests' order; returns the row count.

    `jobs` 0 is one for each CPU core. Files of earlier runs with other recordings or settings are removed.
    """
    chunks = plan(read_sources(manifests, config), config, seed, out)
    # First of all: rows of other settings must not vouch for audio that is about to be replaced.
    _remove(out.glob("rows/*.jsonl"), {out / chunk.rows for chunk in chunks})
    left = [chunk for chunk in chunks if not chunk.finished()]
    if left:
        (out / "manifest.jsonl").unlink(missing_ok=True)
    total = sum(chunk.copies for chunk in chunks)
    with tqdm(total=total, unit=" copies", disable=None, desc="perturb") as bar:
        bar.update(total - sum(chunk.copies for chunk in left))
        for count in in_processes(perturb_chunk, left, jobs):
            bar.update(count)
    rows = [row for chunk in chunks for _, row in read_jsonl(out / chunk.rows)]
    count = write_jsonl(out / "manifest.jsonl", rows)
    # Whatever else lies there: copies of other settings, and parts of files that a kill left behind.
    kept = {out / row["path"] for row in rows}
    for pattern in ("audio/*/*.flac", "audio/*/.*.part.flac", "rows/.*.part.jsonl"):
        _remove(out.glob(pattern), kept)
    return count


def _remove(files: Iterator[Path], kept: set[Path]) -> None:
    for path in set(files) - kept:
        path.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt perturb", description=__doc__)
    parser.add_argument("--manifest", nargs="+", required=True, help="only rows of split train are copied")
    parser.add_argument("--out", type=Path, required=True, help="folder for audio/ and manifest.jsonl")
    parser.add_argument("--config", required=True, help="perturb.yaml")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=0, help="processes; default: one for each core")
    args = parser.parse_args(argv)
    if args.jobs < 0:
        raise ValueError(f"--jobs {args.jobs}: expected 0 or more")
    count = perturb(args.manifest, args.out, load_settings(PerturbConfig, args.config), args.seed, args.jobs)
    print(f"{args.out / 'manifest.jsonl'}: {count} rows")
    return 0
