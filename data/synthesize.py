"""Speaks given sentences with flite, espeak-ng and festival in many voices: audio files and a manifest.

Sentences are spoken in chunks. A chunk's rows are written when all its audio is, and the manifest after the
last chunk: a killed run goes on with the same command, and ends with the same rows.
"""

import argparse
import hashlib
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from speechgpt.data.audio import SAMPLE_RATE
from speechgpt.data.files import atomic_path, read_jsonl, write_jsonl
from speechgpt.data.parallel import in_processes
from speechgpt.data.rows import Utterance, write_manifest
from speechgpt.data.speaking import check_programs, speak
from speechgpt.data.voices import VOICES, resolve

CHUNK = 100  # sentences: what a kill can cost each job
VERSION = 2  # of the way in which sentences become audio: another one speaks everything again
FOLDERS = 256  # audio files lie in this many, since a folder of 60,000 files is slow everywhere
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Sentence:
    id: str
    text: str
    voice: str = ""  # "" draws one
    split: str = "train"
    corpus: str = ""
    speaker: str = ""  # "" is the voice's name
    slots: str = ""


def read_sentences(path: str | Path) -> list[Sentence]:
    """Raises ValueError naming the line for an unknown field, a bad or repeated id, an empty text."""
    known = list(Sentence.__dataclass_fields__)
    sentences, seen = [], set()
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if unknown := sorted(row.keys() - set(known)):
            raise ValueError(f"{where}: unknown field {', '.join(unknown)}; known: {', '.join(known)}")
        if not isinstance(row.get("id"), str) or not SAFE_ID.fullmatch(row["id"]):
            raise ValueError(f"{where}: id {row.get('id')!r} cannot be a file name (letters, digits, . _ -)")
        if row["id"] in seen:
            raise ValueError(f"{where}: id {row['id']!r} appears twice")
        if not isinstance(row.get("text"), str):
            raise ValueError(f"{where}: no text")
        if row.get("voice") and row["voice"] not in VOICES:
            resolve(row["voice"])
            raise ValueError(f"{where}: {row['voice']!r} is a group; a sentence needs one voice or none")
        seen.add(row["id"])
        sentences.append(Sentence(**row))
    return sentences


def audio_path(identity: str, suffix: str) -> Path:
    folder = hashlib.blake2b(identity.encode(), digest_size=2).digest()[0] % FOLDERS
    return Path("audio") / f"{folder:02x}" / f"{identity}.{suffix}"


def choose_voice(sentence: Sentence, voices: Sequence[str], seed: int) -> str:
    """The named voice, or one that depends on seed and id alone: other sentences do not change it."""
    return sentence.voice or random.Random(f"{seed} {sentence.id}").choice(voices)


@dataclass(frozen=True)
class Chunk:
    sentences: list[Sentence]  # each with its voice
    out: Path
    rows: Path  # relative to out; its name holds a hash of all that decides the audio
    suffix: str  # wav or flac


def speak_chunk(chunk: Chunk) -> tuple[int, list[dict]]:
    """Speaks every sentence, then writes the chunk's rows if all went well. Returns (count, rejects)."""
    import soundfile

    rows, rejects = [], []
    with tempfile.TemporaryDirectory(prefix="speechgpt-") as folder:
        for sentence in chunk.sentences:
            try:
                waveform, phones = speak(sentence.text, VOICES[sentence.voice], Path(folder))
            except (ValueError, subprocess.TimeoutExpired) as error:
                rejects.append({"id": sentence.id, "voice": sentence.voice, "text": sentence.text})
                rejects[-1]["reason"] = str(error)
                continue
            path = audio_path(sentence.id, chunk.suffix)
            with atomic_path(chunk.out / path) as part:
                soundfile.write(str(part), waveform, SAMPLE_RATE, subtype="PCM_16")
            seconds = round(len(waveform) / SAMPLE_RATE, 4)
            row = Utterance(sentence.id, str(path), seconds, sentence.speaker or sentence.voice)
            row.corpus, row.text, row.split = sentence.corpus, sentence.text, sentence.split
            row.slots, row.phones = sentence.slots, phones
            rows.append(row)
    # With rejects the rows go under a name that the next run does not take for finished.
    path = chunk.out / chunk.rows
    write_manifest(path if not rejects else path.with_suffix(".partial"), rows)
    return len(rows), rejects


def plan(sentences: list[Sentence], voices: Sequence[str], out: Path, seed: int, suffix: str) -> list[Chunk]:
    chunks = []
    for number, first in enumerate(range(0, len(sentences), CHUNK)):
        part = []
        for sentence in sentences[first : first + CHUNK]:
            voice = choose_voice(sentence, voices, seed)
            part.append(Sentence(**asdict(sentence) | {"voice": voice}))
        # repr(VOICES[..]) too: a changed voice table must not leave audio of the old one.
        key = json.dumps([VERSION, suffix, [[asdict(s), repr(VOICES[s.voice])] for s in part]])
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        chunks.append(Chunk(part, out, Path("rows") / f"{number:05d}.{digest}.jsonl", suffix))
    return chunks


def _finished(chunk: Chunk) -> bool:
    if not (chunk.out / chunk.rows).exists():
        return False
    return all((chunk.out / audio_path(s.id, chunk.suffix)).exists() for s in chunk.sentences)


def synthesize(
    sentences: list[Sentence],
    out: Path,
    voices: Sequence[str] = ("slt",),
    seed: int = 0,
    jobs: int = 0,
    suffix: str = "flac",
    max_bad: int = 0,
) -> int:
    """Writes OUT/audio and, last, OUT/manifest.jsonl in the order of `sentences`; returns the row count.

    `jobs` 0 is one for each CPU core. Raises ValueError when more than `max_bad` sentences cannot be spoken;
    these stand with their reason in OUT/rejects.jsonl.
    """
    chunks = plan(sentences, voices, out, seed, suffix)
    check_programs(VOICES[s.voice] for c in chunks for s in c.sentences)
    # What an earlier plan finished is gone before its audio is replaced: never old rows beside new audio.
    mine = {chunk.rows.stem for chunk in chunks}
    for path in (out / "rows").glob("*"):
        if path.stem not in mine:
            path.unlink()
    left = [c for c in chunks if not _finished(c)]
    if left:
        (out / "manifest.jsonl").unlink(missing_ok=True)
    rejects: list[dict] = []
    with tqdm(total=len(sentences), unit=" sentences", disable=None, desc="synthesize") as bar:
        bar.update(len(sentences) - sum(len(c.sentences) for c in left))
        for count, bad in in_processes(speak_chunk, left, jobs):
            bar.update(count + len(bad))
            rejects += bad
    if rejects:
        write_jsonl(out / "rejects.jsonl", rejects)
        if len(rejects) > max_bad:
            first = rejects[0]
            raise ValueError(
                f"{len(rejects)} of {len(sentences)} sentences could not be spoken (at most {max_bad} may), "
                f"first {first['id']} in voice {first['voice']}: {first['reason']}; "
                f"all are in {out}/rejects.jsonl"
            )
    else:
        (out / "rejects.jsonl").unlink(missing_ok=True)
    return _join(chunks, out)


def _join(chunks: list[Chunk], out: Path) -> int:
    """The chunks' rows as one manifest."""

    def rows():
        for chunk in chunks:
            path = out / chunk.rows
            for _, row in read_jsonl(path if path.exists() else path.with_suffix(".partial")):
                yield row

    return write_jsonl(out / "manifest.jsonl", rows())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt synthesize", description=__doc__.split("\n")[0])
    parser.add_argument("--sentences", type=Path, nargs="+", help="JSON lines: id, text, voice, split, ...")
    parser.add_argument("--out", type=Path, help="folder for audio/ and manifest.jsonl")
    parser.add_argument("--voices", default="slt", help="drawn from where a sentence names none: slt,rms,...")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one for each core")
    parser.add_argument("--format", choices=("flac", "wav"), default="flac")
    parser.add_argument("--max-bad", type=int, default=0, help="how many sentences may be unspeakable")
    parser.add_argument("--list-voices", action="store_true")
    args = parser.parse_args(argv)
    if args.list_voices:
        print("\n".join(VOICES))
        return 0
    if not args.sentences or not args.out:
        parser.error("--sentences and --out are needed")
    sentences = [s for path in args.sentences for s in read_sentences(path)]
    if repeated := len(sentences) - len({s.id for s in sentences}):
        raise ValueError(f"{repeated} ids stand in more than one of the sentence files")
    count = synthesize(
        sentences, args.out, resolve(args.voices), args.seed, args.jobs, args.format, args.max_bad
    )
    print(f"{args.out}/manifest.jsonl: {count} utterances")
    return 0
