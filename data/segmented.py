"""Layouts whose utterances are parts of longer files: Kaldi data folders and GigaSpeech's JSON."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from speechgpt.data.layouts import Flaw, Found, LayoutOptions, Recording, read_lines, split_of

PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
NOT_SPEECH = ("<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>")
BLOCK = 1 << 20  # characters read at once of a JSON file that may not fit in memory


def kaldi(root: Path, options: LayoutOptions) -> Found:
    """wav.scp and perhaps segments, text, utt2spk, in the root or in its folders (train, dev, test...)."""
    folders = [root] if (root / "wav.scp").exists() else sorted(p.parent for p in root.glob("*/wav.scp"))
    for folder in folders:
        parts = (folder.name,)
        audio = _kaldi_audio(folder, options.audio_root or folder)
        texts = _kaldi_map(folder / "text")
        speakers = _kaldi_map(folder / "utt2spk")
        known = set()
        for name, recording, begin, end in _kaldi_spans(folder, audio):
            known.add(name)
            if recording not in audio:
                yield Flaw(f"{folder / 'segments'}: {name}", f"recording {recording} is not in wav.scp")
                continue
            if texts and name not in texts:
                yield Flaw(f"{folder / 'text'}: {name}", "no line for this utterance")
                continue
            yield Recording(
                name,
                audio[recording],
                speakers.get(name, ""),
                texts.get(name, ""),
                split=split_of(folder.name),
                parts=parts,
                begin=begin,
                end=end,
            )
        for name in texts.keys() - known:
            yield Flaw(f"{folder / 'text'}: {name}", "no audio for this utterance")


def _kaldi_audio(folder: Path, audio_root: Path) -> dict[str, Path]:
    table = folder / "wav.scp"
    found = {}
    for number, line in read_lines(table):
        name, value = (*line.split(None, 1), "", "")[:2]
        value = value.strip()
        if value.endswith("|") or value.startswith("|"):
            raise ValueError(
                f"{table}:{number}: {value!r} is a command; commands are not run. Write the audio to files "
                "(e.g. with Kaldi's wav-copy) and name these files in wav.scp"
            )
        if not value or re.search(r"\.ark:[0-9]+$", value):
            raise ValueError(f"{table}:{number}: {line!r}; expected NAME and the path of an audio file")
        found[name] = audio_root / value
    return found


def _kaldi_map(table: Path) -> dict[str, str]:
    if not table.exists():
        return {}
    pairs = (line.split() for _, line in read_lines(table))
    return {words[0]: " ".join(words[1:]) for words in pairs if words}


def _kaldi_spans(folder: Path, audio: dict[str, Path]) -> Iterator[tuple[str, str, float, float | None]]:
    """(utterance, recording, begin, end) in seconds."""
    table = folder / "segments"
    if not table.exists():
        yield from ((name, name, 0.0, None) for name in audio)
        return
    for number, line in read_lines(table):
        fields = line.split()
        try:
            name, recording, begin, end = fields[0], fields[1], float(fields[2]), float(fields[3])
        except (IndexError, ValueError) as error:
            raise ValueError(f"{table}:{number}: {line!r}; expected UTTERANCE RECORDING BEGIN END") from error
        yield name, recording, begin, end if end > 0 else None  # Kaldi writes -1 for "to the end"


def gigaspeech(root: Path, options: LayoutOptions) -> Found:
    """GigaSpeech.json beside the folder `audio`; segments of silence, music and noise are left out."""
    table = root if root.is_file() else root / "GigaSpeech.json"
    for number, audio in enumerate(json_items(table, "audios"), 1):
        where = f"{table}: audio {number} ({audio.get('aid', 'without aid')})"
        try:
            path, segments, whole = table.parent / audio["path"], audio["segments"], audio.get("subsets", [])
            for segment in segments:
                text = segment["text_tn"]
                if any(tag in text.split() for tag in NOT_SPEECH):
                    continue
                parts = tuple(name.strip("{}") for name in [*segment.get("subsets", []), *whole])
                speaker = segment.get("speaker") or audio.get("speaker") or ""
                yield Recording(
                    segment["sid"],
                    path,
                    "" if speaker == "N/A" else speaker,
                    _punctuated(text),
                    split=next((split_of(name) for name in parts if split_of(name) != "train"), "train"),
                    parts=parts,
                    begin=float(segment["begin_time"]),
                    end=float(segment["end_time"]),
                )
        except (KeyError, TypeError, ValueError) as error:
            yield Flaw(where, f"not as GigaSpeech 1.0 describes audio: {error!r}")


def _punctuated(text: str) -> str:
    """ "HELLO <COMMA> YOU <PERIOD>" -> "HELLO, YOU." """
    for tag, mark in PUNCTUATION.items():
        text = re.sub(rf"\s*{tag}", mark, text)
    return " ".join(text.split())


def json_items(path: Path, name: str) -> Iterator[dict]:
    """The items of the list `name` of a JSON object, one by one: the file may be larger than memory."""
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8") as file:
        text, at = "", None
        while at is None:
            block = file.read(BLOCK)
            text += block
            at = re.search(rf'"{name}"\s*:\s*\[', text)
            if not block and at is None:
                raise ValueError(f"{path}: no list {name!r} in it")
        text = text[at.end() :]
        while True:
            text = text.lstrip().removeprefix(",").lstrip()
            if text.startswith("]"):
                return
            try:
                item, end = decoder.raw_decode(text)
            except json.JSONDecodeError as error:
                block = file.read(BLOCK)
                if not block:
                    raise ValueError(f"{path}: not valid JSON, or cut short ({error})") from error
                text += block
                continue
            yield item
            text = text[end:]
