"""How public corpora lie on disk: each function walks a folder and yields what it finds, opening no audio.

A layout yields a Recording for each utterance and a Flaw for each entry that cannot be one.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from speechgpt.data.files import read_json

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".sph")
DIGITS = "zero one two three four five six seven eight nine".split()


@dataclass
class Recording:
    """An utterance as its corpus describes it; with `end` (or a `begin`), a part of a longer file."""

    id: str
    path: Path
    speaker: str = ""
    text: str = ""
    slots: str = ""
    split: str = "train"
    corpus: str = ""
    parts: tuple[str, ...] = ()  # names that --splits may ask for
    begin: float = 0.0  # seconds
    end: float | None = None  # seconds; None: to the end of the file

    @property
    def is_segment(self) -> bool:
        return self.begin > 0 or self.end is not None


@dataclass
class Flaw:
    """An entry that is not usable: `name` is its file (and line), or its id."""

    name: str
    reason: str


@dataclass(frozen=True)
class LayoutOptions:
    parts: tuple[str, ...] = ()  # of the corpus; empty: those that the layout prefers
    speaker_level: int = 0  # which folder below the root names the speaker, from 1; 0: unknown
    audio_root: Path | None = None  # where relative paths in Kaldi's wav.scp count from


Found = Iterator[Recording | Flaw]


def audio_files(root: Path) -> Iterator[Path]:
    """All audio files below `root`, sorted, without hidden ones."""
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith("."):
                yield Path(folder) / name


def split_of(name: str) -> str:
    """The split that a folder's or file's name speaks of: train, dev (or valid), test (or eval)."""
    for split, starts in {"dev": ("dev", "valid"), "test": ("test", "eval")}.items():
        if name.lower().startswith(starts):
            return split
    return "train"


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end), for lines that are not blank. Raises ValueError for non-text."""
    with open(path, encoding="utf-8-sig", newline="\n") as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text ({error})") from error


def _name_in(root: Path, path: Path) -> str:
    """An id from the path below the root: a/b.wav is a-b."""
    return "-".join(path.relative_to(root).with_suffix("").parts)


def librispeech(root: Path, options: LayoutOptions) -> Found:
    """PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, with an ID.flac for each of its lines `ID TEXT`."""
    for table in sorted(root.rglob("*.trans.txt")):
        part = table.absolute().parents[2].name
        sounds = {path.stem: path for path in audio_files(table.parent)}
        for number, line in read_lines(table):
            name, _, text = line.partition(" ")
            if name not in sounds or not text.strip():
                reason = "no audio file of this name beside it" if text.strip() else "no transcript"
                yield Flaw(f"{table}:{number}", f"{name}: {reason}")
                continue
            # LibriLight numbers its readers alike, so that both give one person one name.
            speaker = f"librivox-{name.split('-')[0]}"
            yield Recording(name, sounds[name], speaker, text.strip(), split=split_of(part), parts=(part,))


def librilight(root: Path, options: LayoutOptions) -> Found:
    """[small|medium|large/]SPEAKER/BOOK/*.flac, without transcripts; files can be hours long."""
    for path in audio_files(root):
        inside = path.relative_to(root).parts
        part = inside[0] if inside[0] in ("small", "medium", "large", "duplicate") else ""
        folders = inside[bool(part) : -1]
        if len(folders) < 2:
            yield Flaw(str(path), "expected SPEAKER/BOOK/FILE below the root (or below small, medium, large)")
            continue
        yield Recording(_name_in(root, path), path, f"librivox-{folders[0]}", parts=(part,) if part else ())


def audio_tree(root: Path, options: LayoutOptions) -> Found:
    """Any folder of audio files, without transcripts."""
    for path in audio_files(root):
        folders = path.relative_to(root).parts[:-1]
        speaker = _speaker(folders, options)
        parts = (folders[0],) if folders else ()
        yield Recording(_name_in(root, path), path, speaker, split=split_of("".join(parts)), parts=parts)


def text_pairs(root: Path, options: LayoutOptions) -> Found:
    """NAME.wav (or another format) beside NAME.normalized.txt, NAME.txt or NAME.lab."""
    for path in audio_files(root):
        folders = path.relative_to(root).parts[:-1]
        texts = [path.with_suffix(end) for end in (".normalized.txt", ".txt", ".lab")]
        beside = next((text for text in texts if text.exists()), None)
        text = " ".join(line for _, line in read_lines(beside)) if beside else ""
        if not text.strip():
            yield Flaw(str(path), "its transcript is empty" if beside else f"no {texts[1].name} beside it")
            continue
        parts = (folders[0],) if folders else ()
        yield Recording(
            _name_in(root, path),
            path,
            _speaker(folders, options),
            " ".join(text.split()),
            split=split_of("".join(parts)),
            parts=parts,
        )


def _speaker(folders: tuple[str, ...], options: LayoutOptions) -> str:
    level = options.speaker_level
    return folders[level - 1] if 0 < level <= len(folders) else ""


def ljspeech(root: Path, options: LayoutOptions) -> Found:
    """metadata.csv with `ID|text|normalised text`, and wavs/ID.wav."""
    table = root / "metadata.csv"
    for number, line in read_lines(table):
        fields = line.split("|")
        text = fields[-1].strip()
        if len(fields) not in (2, 3) or not text:
            yield Flaw(f"{table}:{number}", f"{len(fields)} fields; expected ID|text|normalised text")
            continue
        yield Recording(fields[0], root / "wavs" / f"{fields[0]}.wav", "ljspeech", text)


def common_voice(root: Path, options: LayoutOptions) -> Found:
    """train.tsv, dev.tsv, test.tsv (else validated.tsv) with client_id, path, sentence; audio in clips/."""
    parts = options.parts or tuple(p for p in ("train", "dev", "test") if (root / f"{p}.tsv").exists())
    for part in parts or ("validated",):
        table = root / f"{part}.tsv"
        for where, row in read_table(table, ("client_id", "path", "sentence")):
            if isinstance(row, Flaw) or not row["sentence"].strip():
                yield row if isinstance(row, Flaw) else Flaw(where, "the sentence is empty")
                continue
            name = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
            # The names are hashes of 128 digits; 16 tell as many people apart.
            speaker = f"cv-{row['client_id'][:16]}"
            text = row["sentence"].strip()
            clip = root / "clips" / name
            yield Recording(clip.stem, clip, speaker, text, split=split_of(part), parts=(part,))


def read_table(table: Path, needed: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str] | Flaw]]:
    """(`path:line`, row) of a tab-separated file with a header and no quoting; a Flaw for a ragged line."""
    lines = read_lines(table)
    header = next(lines, (0, ""))[1].split("\t")
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{table}:1: no column {', '.join(missing)}; found {', '.join(header)}")
    for number, line in lines:
        fields, where = line.split("\t"), f"{table}:{number}"
        if len(fields) != len(header):
            yield where, Flaw(where, f"{len(fields)} columns; the header has {len(header)}")
        else:
            yield where, dict(zip(header, fields, strict=True))


def speech_to_intent(root: Path, options: LayoutOptions) -> Found:
    """Picovoice's data/label/label.json ({file: {"intent", "slots"}}) and data/speech/PART/*.wav."""
    table = root / "data" / "label" / "label.json"
    labels = read_json(table)
    folders = sorted(path for path in (root / "data" / "speech").iterdir() if path.is_dir())
    wanted = options.parts or ("clean",)
    for folder in folders:
        if folder.name not in wanted:
            continue
        for path in audio_files(folder):
            label = labels.get(path.name)
            if not isinstance(label, dict) or not isinstance(label.get("slots"), dict):
                yield Flaw(str(path), f"no entry with slots in {table}")
                continue
            slots = "; ".join(
                f"{name}={str(value).strip()}" for name, value in sorted(label["slots"].items())
            )
            name = path.stem if folder.name == "clean" else f"{path.stem}-{folder.name}"
            yield Recording(name, path, slots=slots, parts=(folder.name,))


def spoken_digits(root: Path, options: LayoutOptions) -> Found:
    """DIGIT_SPEAKER_NUMBER.wav, in recordings/ or in the root."""
    for path in audio_files(root / "recordings" if (root / "recordings").is_dir() else root):
        if not (match := re.fullmatch(r"([0-9])_([^_]+)_([0-9]+)", path.stem)):
            yield Flaw(str(path), "expected a name like 7_jackson_32.wav")
            continue
        yield Recording(path.stem, path, f"fsdd_{match[2]}", DIGITS[int(match[1])])


def tsv(root: Path, options: LayoutOptions) -> Found:
    """manifest.tsv (or the .tsv file itself): id, path and perhaps speaker, corpus, transcript, slots."""
    table = root if root.is_file() else root / "manifest.tsv"
    for _, row in read_table(table, ("id", "path")):
        if isinstance(row, Flaw):
            yield row
            continue
        speaker = row.get("speaker", "")
        corpus = row.get("corpus", "")
        yield Recording(
            row["id"],
            table.parent / row["path"],
            "" if speaker == "unknown" else speaker,
            row.get("transcript", "").strip(),
            "; ".join(
                "=".join(part.strip() for part in s.split("=", 1)) for s in row.get("slots", "").split("; ")
            ),
            row.get("split") or "train",
            corpus,
            (corpus,) if corpus else (),
        )
