"""`speechgpt listen`: an HTML page of recordings, their resyntheses and answers, side by side.

They are held out, unless --split says train. The page holds everything itself (sound as MP3, pictures as
WebP), so that it can be sent as it is. The same rows are drawn for the same seed, in turn from every corpus.
"""

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from speechgpt.command_options import add_model, command_parser
from speechgpt.command_results import emit
from speechgpt.data import coffee
from speechgpt.data.audio import SAMPLE_RATE, read_audio, resample
from speechgpt.data.chain import Recordings
from speechgpt.data.files import write_text
from speechgpt.data.qa_file import QuestionAnswer, read_questions
from speechgpt.data.questions import recorded_answer
from speechgpt.data.rows import Utterance, read_manifest
from speechgpt.data.text_normal import normalise
from speechgpt.judge import word_errors
from speechgpt.listen_page import Clip, Item, Line, Section, render
from speechgpt.model_dir import find_model
from speechgpt.picture import draw_sound
from speechgpt.right_answers import is_right, order_slots

ROWS = 10  # items of a section
LONGEST = 15.0  # seconds of a recording; longer ones would make the page large
FEWEST_WORDS = 3  # of a sentence that is spoken or resynthesised, where the split has such
SHORTEST_AXIS = 1.0  # seconds of a picture: a single word does not fill it
LOUDNESS = 0.08  # root mean square that every clip is scaled to, as far as its peak allows
PEAK = 0.95
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)  # Hz
MP3_COMPRESSION = 0.5  # 0 (best) to 1 (smallest): about 45 kbit/s of speech

Held = tuple[Utterance, Path]  # a row and its audio file


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    if args.rows < 1:
        raise ValueError(f"--rows is {args.rows}; expected at least 1")
    if args.out.is_dir():
        raise ValueError(f"{args.out}: is a folder; --out names the page to write")
    model_dir = find_model(args.model)
    rows = held_out(args.manifest, args.split, min(LONGEST, model_dir.config.max_question_seconds))
    expected = right_answers([row for row, _ in rows], [q for path in args.qa for q in read_questions(path)])
    from speechgpt.pipeline import SpeechGPT

    asking = [held for held in rows if held[0].id in expected] or rows
    texts = [held for held in rows if normalise(held[0].text)]
    long = [held for held in texts if len(normalise(held[0].text).split()) >= FEWEST_WORDS] or texts
    sentences = spread(long, args.rows, args.seed)
    model = SpeechGPT(model_dir, args.device, encoder=True, vocoder=True)
    sections = [
        turns(model, spread(asking, args.rows, args.seed), expected, args.seed),
        resynthesis(model, sentences),
        speaking(model, sentences, args.seed),
        hearing(model, spread(texts, args.rows, args.seed), args.seed),
    ]
    sections = [section for section in sections if section.items]
    facts = {"model": model_dir.config.name, "split": args.split, "seed": args.seed}
    whose = "Recordings of the train split" if args.split == "train" else "Held-out recordings"
    write_text(args.out, render(f"{model_dir.config.name}: listen", facts, sections, whose))
    for section in sections:
        emit(f"{section.title:<13}{len(section.items)} items{f', {section.summary}' * bool(section.summary)}")
    emit(f"{args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "listen", "Writes one HTML page: recordings of a split, and what a model makes of them."
    )
    add = parser.add_argument
    add("--manifest", type=Path, nargs="+", required=True, metavar="MANIFEST", help="recordings (JSON lines)")
    add("--qa", type=Path, nargs="*", default=[], metavar="FILE", help="question-answer files: what is right")
    add("--split", default="test", help="rows that are drawn from: test (default), dev or train")
    add("--rows", type=int, default=ROWS, metavar="N", help=f"items of each section (default {ROWS})")
    add("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    add_model(parser, seed=False)
    add("--seed", type=int, default=0, help="of the draw, and for models that sample (default 0)")
    return parser


# ---- which rows --------------------------------------------------------------------------------------------


def held_out(manifests: Sequence[Path], split: str, longest: float) -> list[Held]:
    """The rows of the split, up to `longest` seconds. ValueError when there is none says what was found."""
    found = [(row, row.audio(manifest)) for manifest in manifests for row in read_manifest(manifest)]
    rows = [(row, path) for row, path in found if row.split == split and row.seconds <= longest]
    if not rows:
        splits = Counter(row.split for row, _ in found)
        there = ", ".join(f"{count} of {name}" for name, count in splits.items()) or "none"
        raise ValueError(
            f"{', '.join(map(str, manifests))}: no rows of split {split!r} up to {longest:g} s; rows: {there}"
        )
    return rows


def spread(rows: Sequence[Held], count: int, seed: int) -> list[Held]:
    """`count` of the rows, from each corpus in turn; the same for the same seed. Sorted by corpus."""
    corpora: dict[str, list[Held]] = defaultdict(list)
    for held in sorted(rows, key=lambda held: held[0].id):
        corpora[held[0].corpus].append(held)
    for corpus, own in corpora.items():
        random.Random(f"{seed} {corpus}").shuffle(own)
    names, drawn = sorted(corpora), []
    while len(drawn) < min(count, len(rows)):
        drawn += [corpora[name].pop() for name in names if corpora[name]]
    return sorted(drawn[:count], key=lambda held: held[0].corpus)


def right_answers(rows: Sequence[Utterance], questions: Sequence[QuestionAnswer]) -> dict[str, str]:
    """Row id -> the expected answer, for the rows that ask something: in `questions`, an order, a digit."""
    recordings = Recordings(rows)
    known = {
        row.id: question.answer
        for question in questions
        for _, row in recordings.find(question.question_id or question.id, "q", whole=True)
    }
    for row in rows:
        # An order's words may be unknown where its slots are not.
        text = normalise(row.text) or row.slots
        if answer := recorded_answer(row, text):
            known[row.id] = answer
    return known


# ---- the sections ------------------------------------------------------------------------------------------


def turns(model, rows: Sequence[Held], expected: Mapping[str, str], seed: int) -> Section:
    """Spoken questions and their spoken answers."""
    items = []
    for row, path in tqdm(rows, "turns", disable=None):
        waveform = read_audio(path)
        reply = model.reply(waveform, seed=seed)
        said = Line("said", row.text) if row.text else Line("asked for", _meaning(row))
        right = is_right(row, expected[row.id], reply.answer) if row.id in expected else None
        lines = [said, Line("heard", reply.transcript), Line("answer", reply.answer, right)]
        if right is False:
            lines.append(Line("expected", expected[row.id]))
        sounds = [("question", waveform, SAMPLE_RATE), ("spoken answer", reply.waveform, reply.sample_rate)]
        items.append(Item(_source(row), lines, clips(*sounds)))
    known = [line.right for item in items for line in item.lines if line.right is not None]
    text = (
        "A recording, what the model heard, what it answers in writing, and what it says. The mark is the "
        "written answer's: an order is right when every slot of it is, and nothing else, other answers word "
        "for word; whether the voice says what is written is for you to hear."
    )
    summary = f"{sum(known)} of {len(known)} answered right" if known else ""
    return Section("Turns", text, items, summary)


def _meaning(row: Utterance) -> str:
    """An order's slots in words, where its own are not known; other slots as they are."""
    slots = order_slots(row)
    return coffee.phrase(slots) if slots else row.slots


def resynthesis(model, rows: Sequence[Held]) -> Section:
    """Encode, decode: no language model."""
    from speechgpt.pipeline import deduplicated

    items = []
    for row, path in tqdm(rows, "resynthesis", disable=None):
        waveform = read_audio(path)
        frames = model.encode(waveform)  # N
        sounds = [
            ("natural", waveform, SAMPLE_RATE),
            ("units, true durations", model.decode(frames), model.sample_rate),
            ("units, predicted durations", model.decode(deduplicated(frames)), model.sample_rate),
        ]
        items.append(Item(_source(row), [Line("said", row.text)], clips(*sounds)))
    text = (
        "Recordings to units and back, without the language model: what is lost here is the units' and the "
        "vocoder's. The voice is the vocoder's own, whoever speaks."
    )
    return Section("Resynthesis", text, items)


def speaking(model, rows: Sequence[Held], seed: int) -> Section:
    """Text to speech."""
    items = []
    for row, path in tqdm(rows, "speak", disable=None):
        sounds = [
            ("natural", read_audio(path), SAMPLE_RATE),
            ("spoken by the model", model.speak(row.text, seed=seed), model.sample_rate),
        ]
        items.append(Item(_source(row), [Line("text", row.text)], clips(*sounds)))
    text = "The same sentences, spoken from their text alone, beside a person who reads them."
    return Section("Speak", text, items)


def hearing(model, rows: Sequence[Held], seed: int) -> Section:
    """Speech to text."""
    items, errors, words = [], 0, 0
    for row, path in tqdm(rows, "transcribe", disable=None):
        waveform = read_audio(path)
        heard = model.transcribe(waveform, seed=seed)
        wrong, length = word_errors(row.text, heard)
        errors, words = errors + wrong, words + length
        note = f"{wrong} word error{'s' * (wrong != 1)} in {length}" if wrong else ""
        lines = [Line("said", row.text), Line("heard", heard, not wrong, note)]
        items.append(Item(_source(row), lines, clips(("recording", waveform, SAMPLE_RATE))))
    summary = f"{errors} word errors in {words} words" if words else ""
    return Section("Transcribe", "Recordings, written down by the model.", items, summary)


def _source(row: Utterance) -> str:
    return " · ".join(filter(None, (row.corpus, row.speaker * (row.speaker != row.corpus), row.id)))


# ---- sounds ------------------------------------------------------------------------------------------------


def clips(*sounds: tuple[str, np.ndarray, int]) -> list[Clip]:
    """(name, waveform (T,), rate) each. All pictures of an item share its longest clip's time axis."""
    span = max(SHORTEST_AXIS, *(len(waveform) / rate for _, waveform, rate in sounds))
    return [_clip(name, level(waveform), rate, span) for name, waveform, rate in sounds]


def _clip(name: str, waveform: np.ndarray, rate: int, span: float) -> Clip:
    if not len(waveform):
        return Clip(name)
    return Clip(name, len(waveform) / rate, mp3(waveform, rate), draw_sound(waveform, rate, span))


def level(waveform: np.ndarray) -> np.ndarray:
    """(T,) as loud as the others, as far as its peak allows: nothing shall sound better for being louder."""
    peak = float(np.abs(waveform).max(initial=0.0))
    power = float(np.sqrt(np.mean(np.square(waveform)))) if peak else 1.0
    return waveform * min(LOUDNESS / power, PEAK / peak if peak else 1.0)


def mp3(waveform: np.ndarray, rate: int) -> bytes:
    """(T,) as an MP3 file: the compact format that every browser plays. It knows only some rates."""
    if rate not in MP3_RATES:
        waveform, rate = resample(waveform, rate, SAMPLE_RATE), SAMPLE_RATE
    encoded = BytesIO()
    options = {"compression_level": MP3_COMPRESSION, "bitrate_mode": "VARIABLE"}
    soundfile.write(encoded, waveform, rate, format="MP3", subtype="MPEG_LAYER_III", **options)
    return encoded.getvalue()
