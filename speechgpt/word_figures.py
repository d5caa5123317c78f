"""Figures of words: single digits and sentences written down, sentences said, recordings said again."""

from collections import Counter
from typing import Any

from speechgpt.data.audio import SAMPLE_RATE
from speechgpt.data.text_normal import ONES, normalise
from speechgpt.held_out import (
    Figure,
    FigureSettings,
    HeldOut,
    needed,
    transcribe_all,
    waveforms_of,
    wrong_first,
)
from speechgpt.judge import Pocketsphinx
from speechgpt.measures import accuracy
from speechgpt.order_figures import said_by_flite
from speechgpt.right_answers import same_words
from speechgpt.scores import resynthesis_text, resynthesised, word_measure

DIGIT_JSGF = f"#JSGF V1.0;\ngrammar digit;\npublic <digit> = {' | '.join(ONES[:10])};\n"
TEN_WORDS = "pocketsphinx restricted to the ten words"


def digits(held: HeldOut, settings: FigureSettings) -> Figure:
    """Right is the word or the numeral. The goal is a share of digits."""
    rows = held.draw(needed(held.digits, "single digits"), settings.rows)
    waveforms = waveforms_of(rows)
    said = [normalise(row.text) for row, _ in rows]
    heard = [normalise(text) for text in transcribe_all(held.model, waveforms)]
    right = [same_words(h, s) for h, s in zip(heard, said, strict=True)]
    common = Counter(said).most_common(1)[0][1] / len(said)
    more: dict[str, Any] = {"floor": common, "floor_name": "always the same digit"}
    more |= {"ceiling": 1.0, "ceiling_name": "all of them"}
    baseline = []
    if held.sphinx:
        found = Pocketsphinx(DIGIT_JSGF).hear_all(waveforms, SAMPLE_RATE)
        good = [same_words(f, s) for f, s in zip(found, said, strict=True)]
        baseline = [accuracy(TEN_WORDS, good, seed=held.seed)]
        more["beside"] = {TEN_WORDS: baseline[0].value}
    speakers = sorted({row.speaker for row, _ in rows if row.speaker})
    note = f"speakers: {', '.join(speakers)}" if speakers else ""
    share = accuracy("single digits right", right, seed=held.seed, goal=settings.goal, note=note, **more)
    text = "Recorded single digits, written down; right is the word or the numeral."
    shown = wrong_first(right, ["said", "heard"], said, heard)
    return Figure("Single digits", text, (share, *baseline), shown)


def sentences(held: HeldOut, settings: FigureSettings) -> Figure:
    """A word error rate a corpus. The goal is a rate."""
    rows = needed(held.sentences(settings.corpora), "sentences with a text")
    measures, said, heard = [], [], []
    for corpus in sorted({row.corpus for row, _ in rows}):
        some = held.draw([(row, path) for row, path in rows if row.corpus == corpus], settings.rows)
        waveforms = waveforms_of(some)
        texts = [normalise(row.text) for row, _ in some]
        found = transcribe_all(held.model, waveforms)
        more: dict[str, Any] = {"ceiling": 0.0, "ceiling_name": "the text itself", "goal": settings.goal}
        baseline = []
        if held.sphinx:
            name = f"pocketsphinx on {corpus}"
            baseline = [word_measure(name, texts, held.hear_people(some), held.seed)]
            more["beside"] = {name: baseline[0].value}
        speakers = len({row.speaker for row, _ in some if row.speaker})
        more["note"] = f"{speakers} speakers" if speakers > 1 else ""
        rate = word_measure(f"word error rate on {corpus}", texts, found, held.seed, **more)
        measures += [rate, *baseline]
        said, heard = said + texts, heard + [normalise(f) for f in found]
    right = [s == h for s, h in zip(said, heard, strict=True)]
    text = "Recorded sentences, written down by the model."
    return Figure("Sentences", text, tuple(measures), wrong_first(right, ["said", "heard"], said, heard))


def spoken_sentences(held: HeldOut, settings: FigureSettings) -> Figure:
    """Unseen sentences, said. The goal is how many times flite's error rate is still good."""
    rows = needed(held.sentences(settings.corpora), "sentences with a text")
    rows = held.draw(list({normalise(row.text): (row, path) for row, path in rows}.values()), settings.rows)
    texts = [normalise(row.text) for row, _ in rows]
    units = held.model.generator.speak_batch(texts)
    said = [held.model.decode(u) for u in units]
    heard = held.judge.hear_all(said, held.model.sample_rate)
    ceiling = word_measure("", texts, held.hear_people(rows), held.seed).value
    more, measures, note = said_by_flite(
        held, texts, settings.goal, "the same sentences by flite's voice slt"
    )
    more |= {"ceiling": ceiling, "ceiling_name": "recordings of the same texts"}
    name, note = "word error rate of spoken sentences", f"judge: {held.judge.name}{note}"
    rate = word_measure(name, texts, heard, held.seed, note=note, **more)
    alike = [t == h for t, h in zip(texts, heard, strict=True)]
    shown = wrong_first(alike, ["text", "the judge heard"], texts, heard)
    text = "Sentences that the model never saw, said by it, written down by the judge."
    return Figure("Spoken sentences", text, (rate, *measures), shown)


def said_again(held: HeldOut, settings: FigureSettings) -> Figure:
    """Encode and decode, default voice. The goal is how many times the natural error rate is still good."""
    rows = held.draw(needed(held.sentences(settings.corpora), "sentences with a text"), settings.rows)
    natural = held.hear_people(rows)
    measures, shown = resynthesised(held.model, rows, held.judge, held.seed, natural, settings.goal)
    return Figure("Resynthesis", resynthesis_text(held.judge), tuple(measures), shown)
