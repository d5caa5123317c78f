"""Corpora to manifests: a layout finds the recordings; this module opens them, cuts segments, writes rows."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from speechgpt.data import layouts, segmented
from speechgpt.data.audio import RECEPTIVE_FIELD, SAMPLE_RATE, mono_blocks, open_audio, probe, read_audio
from speechgpt.data.files import atomic_path
from speechgpt.data.layouts import Flaw, Found, LayoutOptions, Recording
from speechgpt.data.rejects import Rejects
from speechgpt.data.rows import SPLITS, Utterance, path_from, write_manifest
from speechgpt.data.text_normal import normalise

READERS: dict[str, Callable[[Path, LayoutOptions], Found]] = {
    "librispeech": layouts.librispeech,
    "ljspeech": layouts.ljspeech,
    "common-voice": layouts.common_voice,
    "gigaspeech": segmented.gigaspeech,
    "librilight": layouts.librilight,
    "audio-tree": layouts.audio_tree,
    "wav-txt": layouts.text_pairs,
    "kaldi": segmented.kaldi,
    "speech-to-intent": layouts.speech_to_intent,
    "spoken-digits": layouts.spoken_digits,
    "tsv": layouts.tsv,
}
MIN_SECONDS = RECEPTIVE_FIELD / SAMPLE_RATE
OVERHANG = 0.1  # seconds that a segment may reach beyond its file's end: transcribers round
BATCH = 1024  # recordings opened before the next are looked for


@dataclass(frozen=True)
class Opening:
    """What is done to each recording."""

    manifest: Path
    corpus: str  # where the layout names none
    split: str = ""  # overrides the corpus's own
    cut_to: Path | None = None  # folder for segments
    decode: bool = False  # decode every file, to find the damaged ones now
    plain: bool = False  # transcripts as plain words: lower case, no punctuation, numbers spelled out


def open_recording(recording: Recording, opening: Opening) -> Utterance | Flaw:
    """Reads the header (and cuts the segment); a file that cannot be used becomes a Flaw."""
    try:
        path = cut(recording, opening.cut_to) if recording.is_segment else recording.path
        seconds = probe(path).seconds
        if seconds < MIN_SECONDS:
            return Flaw(str(path), f"{seconds:.4f} s of audio; the encoder needs {MIN_SECONDS} s")
        if opening.decode:
            read_audio(path)
    except (FileNotFoundError, ValueError) as error:
        return Flaw(recording.id, str(error))
    return Utterance(
        id=recording.id,
        path=path_from(opening.manifest, path),
        seconds=round(seconds, 4),
        speaker=recording.speaker,
        corpus=recording.corpus or opening.corpus,
        text=normalise(recording.text) if opening.plain else recording.text,
        split=opening.split or recording.split,
        slots=recording.slots,
    )


def cut(recording: Recording, folder: Path | None) -> Path:
    """Writes the segment as mono FLAC at the file's own rate, unless it is there; returns its path."""
    if folder is None:
        raise ValueError(f"{recording.path}: holds several utterances; give --cut-to DIR to cut them out")
    source = probe(recording.path)
    end = source.seconds if recording.end is None else recording.end
    if not 0 <= recording.begin < end <= source.seconds + OVERHANG:
        span = f"{recording.begin} to {end} s"
        raise ValueError(
            f"segment {recording.id}: {span} of {recording.path}, which has {source.seconds:.3f} s"
        )
    path = folder / recording.path.stem / f"{recording.id.replace('/', '_')}.flac"
    # The comment tells a segment of an earlier run with other times from the one that is wanted.
    origin = f"{recording.path.name} {recording.begin} {recording.end}"
    if path.exists():
        with soundfile.SoundFile(path) as old:
            if old.comment == origin:
                return path
    first, last = (min(round(time * source.sample_rate), source.samples) for time in (recording.begin, end))
    with open_audio(recording.path) as file:
        file.seek(first)
        samples = np.concatenate([np.zeros(0, np.float32), *mono_blocks(file, last - first)])  # T
    if len(samples) < last - first:
        raise ValueError(f"{recording.path}: truncated, {first + len(samples)} of {source.samples} samples")
    with atomic_path(path) as part:
        with soundfile.SoundFile(part, "w", source.sample_rate, 1, "PCM_16", format="FLAC") as out:
            out.comment = origin
            out.write(samples)
    return path


def cut_evenly(recording: Recording | Flaw, every: float) -> list[Recording | Flaw]:
    """A long recording as equal parts of `every` seconds at most; others, and damaged ones, as they are."""
    if isinstance(recording, Flaw) or recording.is_segment or recording.text:
        return [recording]
    try:
        seconds = probe(recording.path).seconds
    except (FileNotFoundError, ValueError):
        return [recording]  # opening it says what is wrong
    count = int(-(-seconds // every))
    if count < 2:
        return [recording]
    step = seconds / count
    return [
        replace(
            recording, id=f"{recording.id}-{n:04d}", begin=round(n * step, 3), end=round((n + 1) * step, 3)
        )
        for n in range(count)
    ]


def only_parts(found: Found, parts: tuple[str, ...], seen: set[str]) -> Found:
    """The recordings of the named parts (all when none is named); `seen` collects the parts there are."""
    for item in found:
        if isinstance(item, Recording):
            seen.update(item.parts)
            if parts and not set(parts) & set(item.parts):
                continue
        yield item


def open_all(found: Found, opening: Opening, jobs: int) -> Iterator[Utterance | Flaw]:
    """In order, `jobs` files at a time (libsndfile works outside Python's lock)."""

    def open_one(item: Recording | Flaw) -> Utterance | Flaw:
        return item if isinstance(item, Flaw) else open_recording(item, opening)

    with ThreadPoolExecutor(jobs) as pool, tqdm(unit="file", disable=None) as bar:
        while batch := list(islice(found, BATCH)):
            for item in pool.map(open_one, batch):
                bar.update()
                yield item


def sift(opened: Iterable[Utterance | Flaw], rejects: Rejects) -> Iterator[Utterance]:
    """The utterances; flaws and repeated ids go to `rejects`."""
    ids: set[str] = set()
    for item in opened:
        if isinstance(item, Flaw):
            rejects.add(item.name, item.reason)
        elif item.id in ids:
            rejects.add(item.id, f"the id of {item.path} was there already")
        else:
            ids.add(item.id)
            yield item


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    epilog = "readers:\n" + "\n".join(
        f"  {name:<17} {f.__doc__.splitlines()[0]}" for name, f in READERS.items()
    )
    parser = argparse.ArgumentParser(
        prog="speechgpt manifest",
        description="Read a corpus into a manifest (data/CORPORA.md says where corpora come from).",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--reader", required=True, choices=READERS, metavar="NAME", help="how the corpus lies: see below")
    add("--root", type=Path, required=True, help="the corpus's folder")
    add("--out", type=Path, required=True, help="the manifest; audio paths in it count from its folder")
    add("--splits", nargs="+", default=[], metavar="PART", help="the corpus's own names, e.g. dev-clean, XS")
    add("--split", choices=SPLITS, help="put every row there (default: as the corpus says, else train)")
    add("--corpus", help="name of the corpus in the rows (default: the reader's name)")
    add("--cut-to", type=Path, metavar="DIR", help="cut utterances out of longer files, as FLAC; resumes")
    add("--cut-every", type=float, metavar="SECONDS", help="cut files without text into equal parts")
    add(
        "--speaker-level", type=int, default=0, metavar="N", help="the Nth folder below the root is a speaker"
    )
    add("--audio-root", type=Path, help="kaldi: where relative paths count from (default: wav.scp's folder)")
    add("--plain", action="store_true", help="transcripts as plain words: lower case, numbers spelled out")
    add("--decode", action="store_true", help="decode every file now, to find damaged ones (slower)")
    add("--max-bad", type=int, default=0, help="rejects to tolerate; they go to OUT's .rejects.jsonl")
    add("--jobs", type=int, default=4, help="files opened at once (default 4)")
    args = parser.parse_args(argv)
    if not args.root.exists():
        raise FileNotFoundError(f"{args.root}: no such folder")
    if args.cut_every is not None and (args.cut_every < 1 or args.cut_to is None):
        raise ValueError("--cut-every needs at least 1 second, and --cut-to DIR")
    return args


def main(argv: list[str]) -> int:
    args = parse_arguments(argv)
    parts = tuple(args.splits)
    opening = Opening(
        args.out, args.corpus or args.reader, args.split or "", args.cut_to, args.decode, args.plain
    )
    found = READERS[args.reader](args.root, LayoutOptions(parts, args.speaker_level, args.audio_root))
    seen: set[str] = set()
    found = only_parts(found, parts, seen)
    if args.cut_every:
        found = (piece for item in found for piece in cut_evenly(item, args.cut_every))
    rows, seconds = Counter(), Counter()
    with Rejects.beside(args.out, args.max_bad) as rejects:

        def counted() -> Iterator[Utterance]:
            for row in sift(open_all(found, opening, args.jobs), rejects):
                rows[row.split] += 1
                seconds[row.split] += row.seconds
                yield row
            if missing := sorted(set(parts) - seen):
                raise ValueError(
                    f"{args.root}: no part {', '.join(missing)}; found {', '.join(sorted(seen))}"
                )
            if not rows:
                layout = READERS[args.reader].__doc__
                raise ValueError(f"{args.root}: no utterances found; {args.reader} expects {layout}")

        write_manifest(args.out, counted())
    sizes = (f"{rows[split]} {split} ({seconds[split] / 3600:.2f} h)" for split in SPLITS if rows[split])
    print(f"{args.out}: " + ", ".join(sizes) + str(rejects))
    return 0
