"""The scores of an evaluation: hearing, speaking, resynthesis, units, turns; each a section of the report."""

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from speechgpt.data.audio import SAMPLE_RATE, read_audio
from speechgpt.data.chain import Recordings
from speechgpt.data.qa_file import QuestionAnswer
from speechgpt.data.rows import UnitRow, Utterance
from speechgpt.data.text_normal import normalise
from speechgpt.judge import Judge, Pocketsphinx, word_errors
from speechgpt.measures import Measure, measure, perplexity, ratio
from speechgpt.pipeline import SpeechGPT, deduplicated
from speechgpt.right_answers import same_words

SHOWN = 8  # samples of a section on the page
SHUFFLED = "texts of other items"


def section(title: str, text: str, measures: list[Measure], shown: dict | None = None) -> dict[str, Any]:
    return {"title": title, "text": text, "measures": [m.to_dict() for m in measures], "samples": shown}


def word_measure(name: str, references: Sequence[str], heard: Sequence[str], seed: int, **more) -> Measure:
    """The pooled word error rate. Its floor, unless given, is what the next item's hypothesis would get."""
    counts = [word_errors(r, h) for r, h in zip(references, heard, strict=True)]
    if "floor" not in more and len(heard) > 1:
        shifted = [word_errors(r, h) for r, h in zip(references, [*heard[1:], heard[0]], strict=True)]
        more |= {"floor": ratio(*zip(*shifted, strict=True)), "floor_name": SHUFFLED}
    errors, words = zip(*counts, strict=True)
    return measure(name, errors, words, better="lower", seed=seed, **more)


def samples(columns: list[str], *lists: Sequence) -> dict[str, Any]:
    return {"columns": columns, "rows": [list(row) for row in zip(*lists, strict=True)][:SHOWN]}


def hearing(model: SpeechGPT, rows: list[tuple[Utterance, Path]], judge: Judge, seed: int) -> dict[str, Any]:
    """Word error rate of the model's transcripts of natural recordings."""
    waveforms = [read_audio(path) for _, path in rows]
    texts = [row.text for row, _ in rows]
    heard = [model.transcribe(w) for w in tqdm(waveforms, "hearing", disable=None)]
    more = {"ceiling": 0.0, "ceiling_name": "the text itself"}
    if isinstance(judge, Pocketsphinx):
        baseline = judge.hear_all(waveforms, SAMPLE_RATE)
        counts = [word_errors(t, h) for t, h in zip(texts, baseline, strict=True)]
        more |= {"floor": ratio(*zip(*counts, strict=True)), "floor_name": "pocketsphinx, untrained"}
    found = word_measure("ASR word error rate", texts, heard, seed, **more)
    shown = samples(["said", "heard"], texts, heard)
    return section("Hearing", "Held-out recordings, written down by the model.", [found], shown)


def speaking(model: SpeechGPT, rows: list[tuple[Utterance, Path]], judge: Judge, seed: int) -> dict[str, Any]:
    """Word error rate of the judge on the model's speech, beside natural recordings of the same texts."""
    texts = [row.text for row, _ in rows]
    natural = judge.hear_all([read_audio(path) for _, path in rows], SAMPLE_RATE)
    ceiling = word_measure("", texts, natural, seed).value
    said = [model.speak(t) for t in tqdm(texts, "speaking", disable=None)]
    heard = judge.hear_all(said, model.sample_rate)
    more = {"ceiling": ceiling, "ceiling_name": "natural recordings"}
    measures = [word_measure("TTS word error rate", texts, heard, seed, **more, note=f"judge: {judge.name}")]
    if isinstance(judge, Pocketsphinx) and shutil.which("flite"):
        flite = judge.hear_all([flite_says(normalise(t)) for t in texts], SAMPLE_RATE)
        measures.append(word_measure("the same texts by flite's voice slt", texts, flite, seed, **more))
    shown = samples(["text", "the judge heard"], texts, heard)
    return section(
        "Speaking", "Held-out texts, spoken by the model, written down by the judge.", measures, shown
    )


def flite_says(text: str) -> np.ndarray:
    """(T,) at 16 kHz."""
    with tempfile.TemporaryDirectory(prefix="speechgpt-") as folder:
        wav = Path(folder) / "said.wav"
        subprocess.run(
            ["flite", "-voice", "slt", "-t", text, "-o", str(wav)], check=True, capture_output=True
        )
        return read_audio(wav)


def resynthesis(
    model: SpeechGPT, rows: list[tuple[Utterance, Path]], judge: Judge, seed: int
) -> dict[str, Any]:
    """Encode, decode, judge: no language model, so what is lost here is lost by the units and the vocoder."""
    natural = judge.hear_all([read_audio(path) for _, path in rows], SAMPLE_RATE)
    measures, shown = resynthesised(model, rows, judge, seed, natural)
    return section("Resynthesis", resynthesis_text(judge), measures, shown)


def resynthesised(
    model: SpeechGPT,
    rows: list[tuple[Utterance, Path]],
    judge: Judge,
    seed: int,
    heard_naturally: Sequence[str],
    goal: float | None = None,
) -> tuple[list[Measure], dict[str, Any]]:
    """(measures, samples). `goal`: how many times the natural recordings' error rate is still good."""
    texts = [row.text for row, _ in rows]
    frames = model.encoder.encode([read_audio(path) for _, path in rows])  # N of each
    true = [model.decode(f) for f in tqdm(frames, "true durations", disable=None)]
    predicted = [model.decode(deduplicated(f)) for f in tqdm(frames, "predicted durations", disable=None)]
    heard = {"true": judge.hear_all(true, model.sample_rate)}
    heard["predicted"] = judge.hear_all(predicted, model.sample_rate)
    natural = word_measure("natural recordings", texts, heard_naturally, seed)
    more: dict[str, Any] = {"ceiling": natural.value, "ceiling_name": "natural recordings"}
    more["goal"] = goal and goal * natural.value
    measures = [natural] + [
        word_measure(f"units with {name} durations", texts, heard[name], seed, **more)
        for name in ("true", "predicted")
    ]
    columns = ["said", "true durations", "predicted durations"]
    return measures, samples(columns, texts, heard["true"], heard["predicted"])


def resynthesis_text(judge: Judge) -> str:
    return (
        f"Recordings to units and back, written down by the judge ({judge.name}). What is lost against the "
        "natural recordings is the units' and the vocoder's; what speaking loses beyond that is the "
        "language model's."
    )


@torch.no_grad()
def unit_losses(generator, rows: Sequence[UnitRow]) -> tuple[list[float], list[int]]:
    """Summed loss in nats, and tokens, of each row's units given those before (with the closing marker)."""
    losses, tokens = [], []
    decoder = generator.decoder
    limit = decoder.sizes.context
    for row in rows:
        rendered = generator.format.render_units(row.units)
        ids = torch.tensor([rendered.ids[:limit]], device=decoder.device)  # 1 L
        scored = torch.tensor([generator.vocabulary.is_unit(i) for i in rendered.ids[1:limit]])  # L-1
        logits = decoder.score(ids)[0, :-1].cpu()  # L-1 V
        nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:].cpu(), reduction="none")  # L-1
        losses.append(float(nats[scored].sum()))
        tokens.append(int(scored.sum()))
    return losses, tokens


def unit_perplexity(
    stages: dict[str, Any], rows: list[UnitRow], train: list[UnitRow], seed: int
) -> dict[str, Any]:
    """`stages`: a name to a function that gives its Generator, so that one is in memory at a time."""
    size = 1 + max((max(r.units) for r in (*rows, *train)), default=0)
    counts = np.ones(size)  # one each, so that an unseen unit has a probability
    for row in train:
        np.add.at(counts, row.units, 1)
    surprise = -np.log(counts / counts.sum())  # K
    losses = [float(surprise[r.units].sum()) for r in rows]
    floor = float(np.exp(ratio(losses, [len(r.units) for r in rows])))
    measures = []
    for name, load in tqdm(stages.items(), "perplexity", disable=None):
        found = unit_losses(load(), rows)
        anchors = {"floor": floor, "floor_name": "unit frequencies alone"}
        measures.append(perplexity(f"unit perplexity after {name}", *found, seed=seed, **anchors))
    return section(
        "Units as a language", "Perplexity of a unit given those before it, on held-out rows.", measures
    )


def turns(
    model: SpeechGPT,
    questions: list[QuestionAnswer],
    manifest: list[tuple[Utterance, Path]],
    judge: Judge,
    limit: int,
    seed: int,
) -> dict[str, Any]:
    """Share of held-out questions with exactly the expected answer; spoken where recordings exist."""
    paths = {row.id: path for row, path in manifest}
    recordings = Recordings(row for row, _ in manifest)
    asked = [
        (q, paths[row.id]) for q in questions for _, row in recordings.find(q.question_id or q.id, "q", True)
    ]
    order = np.random.default_rng(seed).permutation(len(asked))[:limit]
    asked = [asked[i] for i in sorted(order)]
    order = np.random.default_rng(seed).permutation(len(questions))[:limit]
    typed = [questions[i] for i in sorted(order)]
    common = Counter(normalise(q.answer) for q in questions).most_common(1)[0][1] / len(questions)
    floor = {"floor": common, "floor_name": "always the commonest answer", "better": "higher", "seed": seed}
    written = [model.reply(None, text=q.question, speech=False) for q in tqdm(typed, "typed", disable=None)]
    right = [same_words(r.answer, q.answer) for q, r in zip(typed, written, strict=True)]
    by_text = measure("typed questions answered right", right, [1] * len(right), **floor)
    measures, shown = [by_text], None
    if asked:
        replies = [model.reply(read_audio(path)) for _, path in tqdm(asked, "spoken", disable=None)]
        right = [same_words(r.answer, q.answer) for (q, _), r in zip(asked, replies, strict=True)]
        anchors = {"ceiling": by_text.value, "ceiling_name": "typed"}
        measures.insert(
            0, measure("spoken questions answered right", right, [1] * len(right), **floor, **anchors)
        )
        heard = judge.hear_all([r.waveform for r in replies], model.sample_rate)
        answers = [r.answer for r in replies]
        if any(normalise(a) for a in answers):
            note = f"judge: {judge.name}; against the answer's own text"
            measures.append(word_measure("answers as heard by the judge", answers, heard, seed, note=note))
        names = ["asked", "understood", "expected", "answered", "the judge heard"]
        questions_asked, expected = [q.question for q, _ in asked], [q.answer for q, _ in asked]
        shown = samples(names, questions_asked, [r.transcript for r in replies], expected, answers, heard)
    return section(
        "Turns", "Held-out questions; right is the expected answer, word for word.", measures, shown
    )
