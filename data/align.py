"""Phone times of recorded speech whose words are known, by forced alignment with pocketsphinx.

With `--jsgf-slots`, orders whose slots are known but not their words are first decoded with a grammar of all
the wordings that say these slots. What cannot be aligned keeps its row, without phones, and its reason is
written beside the manifest. A killed run goes on with the same command.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speechgpt.data import coffee
from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.data.files import write_jsonl
from speechgpt.data.parallel import in_processes
from speechgpt.data.rows import Utterance, path_from, read_manifest, write_manifest
from speechgpt.data.speaking import ARPABET, DEBIAN_PACKAGE, FLITE_TO_ARPABET
from speechgpt.data.text_normal import normalise

CHUNK = 25  # utterances: what a kill can cost each job
FRAME_SECONDS = 0.01  # pocketsphinx's
LEVEL = 0.7  # peak of what pocketsphinx hears, which does not like quiet recordings
BEAMS = {"beam": 1e-80, "pbeam": 1e-80, "wbeam": 1e-60}  # wider than usual: the words are known to be there
SHORTEST = 3  # frames of a phone: one for each state of its model
MOST_SHORTEST = 0.5  # a larger share of such phones means that the text is not what was said


@dataclass(frozen=True)
class Options:
    manifest: Path
    jsgf_slots: bool = False
    agreeing: bool = False  # keep recovered words only where a decode of any order finds the same slots


@dataclass
class Aligner:
    """One pocketsphinx decoder with what it was taught; one a process."""

    pronunciations: dict[str, str] = field(default_factory=dict)  # of words that its dictionary lacks

    @cached_property
    def decoder(self):
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ValueError("alignment needs pocketsphinx: pip install 'speechgpt[judge]'") from error
        # With its bestpath it drops last words, and the second pass of an alignment fails.
        decoder = Decoder(samprate=SAMPLE_RATE, lm=None, bestpath=False, loglevel="FATAL", **BEAMS)
        decoder.add_jsgf_string("any order", coffee.any_order_jsgf())
        return decoder

    def decode(self, pcm: bytes) -> None:
        self.decoder.start_utt()
        self.decoder.process_raw(pcm, full_utt=True)
        self.decoder.end_utt()

    def hear(self, pcm: bytes) -> str:
        """What the active search finds; "" for nothing."""
        self.decode(pcm)
        found = self.decoder.hyp()
        return found.hypstr if found else ""

    def words(self, pcm: bytes, slots: dict[str, str], agreeing: bool) -> str:
        """The wording of these slots that is heard. Raises ValueError when none is."""
        self.decoder.add_jsgf_string("order", coffee.jsgf(slots))
        self.decoder.activate_search("order")
        text = self.hear(pcm)
        if not coffee.is_wording(text, slots):
            raise ValueError(f"no wording of the slots fits, heard {text!r}")
        if agreeing:
            self.decoder.activate_search("any order")
            if coffee.parse(heard := self.hear(pcm)) != slots:
                raise ValueError(f"words are in doubt, heard {heard!r}")
        return text

    def phones(self, pcm: bytes, text: str, seconds: float) -> list[list]:
        """[[phone, end in seconds], ...] of the words in `text`. Raises ValueError when they do not fit."""
        words = normalise(text).split()
        if not words:
            raise ValueError("no words to align")
        for word in set(words):
            self._learn(word)
        try:
            self.decoder.set_align_text(" ".join(words))
            if not self.hear(pcm):
                raise ValueError("the words do not fit the recording")
            self.decoder.set_alignment()
            self.decode(pcm)  # and not hear(): pocketsphinx crashes when an alignment is asked for its words
        except RuntimeError as error:
            raise ValueError(f"pocketsphinx cannot align it ({error})") from error
        spoken = [phone for word in self.decoder.get_alignment() or () for phone in word]
        return timed(((phone.name, phone.start + phone.duration) for phone in spoken), seconds)

    def _learn(self, word: str) -> None:
        if word in self.pronunciations or self.decoder.lookup_word(word):
            return
        self.pronunciations[word] = pronounce(word)
        self.decoder.add_word(word, self.pronunciations[word])


def timed(phones, seconds: float) -> list[list]:
    """(name, end in frames) to [[phone, end in seconds], ...] to the end of the audio, silences joined."""
    found: list[list] = []
    lengths, start = [], 0
    for name, end in phones:
        label = name if name in ARPABET else "SIL"
        if label != "SIL":
            lengths.append(end - start)
        start = end
        if found and label == found[-1][0] == "SIL":
            found[-1][1] = end
        else:
            found.append([label, end])
    if not lengths:
        raise ValueError("no phone was found")
    if sum(n <= SHORTEST for n in lengths) > MOST_SHORTEST * len(lengths):
        raise ValueError("most phones are as short as can be: the words are not those that were said")
    result = [[label, round(min(end * FRAME_SECONDS, seconds), 3)] for label, end in found]
    if result[-1][0] == "SIL":
        result[-1][1] = round(seconds, 3)
    elif seconds - result[-1][1] > FRAME_SECONDS * SHORTEST:
        result.append(["SIL", round(seconds, 3)])
    else:
        result[-1][1] = round(seconds, 3)
    return result


def pronounce(word: str) -> str:
    """flite's pronunciation of a word, as ARPAbet: "zorbax" -> "Z AO R B AE K S"."""
    if shutil.which("flite") is None:
        package = DEBIAN_PACKAGE["flite"]
        raise FileNotFoundError(
            f"flite: program not found, needed to pronounce {word!r}; on Debian: apt-get install {package}"
        )
    # The words are normalised: letters and apostrophes, so that none looks like an option.
    done = subprocess.run(
        ["flite", "-t", word, "-ps", "-o", "none"], capture_output=True, text=True, timeout=30
    )
    phones = [FLITE_TO_ARPABET.get(p, p.upper()) for p in done.stdout.split()]
    phones = [p for p in phones if p in ARPABET]
    if not phones:
        raise ValueError(f"flite cannot pronounce {word!r}")
    return " ".join(phones)


def align_row(row: Utterance, aligner: Aligner, options: Options) -> tuple[Utterance, str]:
    """Returns the row with its phones (and recovered words), and "" or the reason why it has none."""
    if row.phones:
        return row, ""
    try:
        waveform = read_audio(row.audio(options.manifest), SAMPLE_RATE)  # T
        pcm = (waveform / np.abs(waveform).max() * LEVEL * 32767).astype("<i2").tobytes()
        if options.jsgf_slots and row.slots and not row.text:
            row = replace(row, text=aligner.words(pcm, coffee.parse_slots(row.slots), options.agreeing))
        return replace(row, phones=aligner.phones(pcm, row.text, len(waveform) / SAMPLE_RATE)), ""
    except (ValueError, subprocess.TimeoutExpired) as error:
        return row, str(error)


@dataclass(frozen=True)
class Chunk:
    rows: list[Utterance]
    part: Path  # where the result goes; its name holds a hash of all that decides it
    options: Options


_ALIGNER = Aligner()  # of this process: the model takes a second to load


def align_chunk(chunk: Chunk) -> int:
    """Aligns the rows and writes them, each with its reason, as one part."""
    done = [align_row(row, _ALIGNER, chunk.options) for row in chunk.rows]
    write_jsonl(chunk.part, ({"row": vars(row), "reason": reason} for row, reason in done))
    return len(done)


def align(options: Options, out: Path, jobs: int = 0) -> tuple[int, int, int]:
    """Writes OUT, and OUT's .rejects.jsonl if any; returns (rows, rows with phones, words recovered)."""
    rows = read_manifest(options.manifest)
    parts = out.with_suffix(".parts")
    chunks = []
    for number, first in enumerate(range(0, len(rows), CHUNK)):
        some = rows[first : first + CHUNK]
        key = json.dumps([options.jsgf_slots, options.agreeing, [vars(row) for row in some]])
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        chunks.append(Chunk(some, parts / f"{number:05d}.{digest}.jsonl", options))
    left = [chunk for chunk in chunks if not chunk.part.exists()]
    with tqdm(total=len(rows), unit=" utterances", disable=None, desc="align") as bar:
        bar.update(len(rows) - sum(len(chunk.rows) for chunk in left))
        for count in in_processes(align_chunk, left, jobs):
            bar.update(count)
    return _join(rows, chunks, options, out)


def _join(rows: list[Utterance], chunks: list[Chunk], options: Options, out: Path) -> tuple[int, int, int]:
    aligned, rejects, recovered = [], [], 0
    for chunk in chunks:
        for line in chunk.part.read_text(encoding="utf-8").splitlines():
            done = json.loads(line)
            row = Utterance(**done["row"])
            recovered += bool(row.text and not rows[len(aligned)].text)
            if done["reason"]:
                rejects.append({"id": row.id, "reason": done["reason"]})
            aligned.append(replace(row, path=path_from(out, row.audio(options.manifest))))
    rejected = out.with_suffix(".rejects.jsonl")
    if rejects:
        write_jsonl(rejected, rejects)
    else:
        rejected.unlink(missing_ok=True)
    count = write_manifest(out, aligned)
    shutil.rmtree(out.with_suffix(".parts"), ignore_errors=True)
    return count, count - len(rejects), recovered


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="speechgpt align", description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="utterances with text, or with slots")
    parser.add_argument("--out", type=Path, required=True, help="the manifest with phones")
    parser.add_argument("--jsgf-slots", action="store_true", help="find the words of coffee orders first")
    parser.add_argument(
        "--agreeing", action="store_true", help="with --jsgf-slots: drop words where free decoding differs"
    )
    parser.add_argument("--jobs", type=int, default=0, help="processes; 0 is one for each core")
    args = parser.parse_args(argv)
    count, good, recovered = align(
        Options(args.manifest, args.jsgf_slots, args.agreeing), args.out, args.jobs
    )
    print(f"{args.out}: {count} rows, {good} with phones, {count - good} without (see the rejects file)")
    if args.jsgf_slots:
        print(f"words recovered of {recovered} orders")
    return 0
