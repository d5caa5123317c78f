"""Figures whose right values are known: what is answered, said and heard is laid down, not a model's."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from speechgpt import order_figures, word_figures
from speechgpt.answers import Turn
from speechgpt.data import coffee
from speechgpt.data.measurement import NotMeasuredError
from speechgpt.data.rows import Utterance
from speechgpt.decoding import GREEDY
from speechgpt.held_out import FigureSettings, HeldOut
from speechgpt.judge import Pocketsphinx, SelfJudge

ORDERS = [  # words, slots
    ("brew a mocha", "coffeeDrink=mocha"),
    ("can i get a large latte", "coffeeDrink=latte; size=large"),
    ("make me an espresso", "coffeeDrink=espresso"),
    ("i want a small latte", "coffeeDrink=latte; size=small"),
]
RIGHT = [coffee.answer(coffee.parse_slots(slots)) for _, slots in ORDERS]
WRONG = [RIGHT[1], "", "okay here is your order an espresso with milk", "i did not get that"]
RATE = 16_000


def sound(number: float) -> np.ndarray:
    """(T,) float32 that is known again by its level."""
    return np.full(1600, (number + 1) / 100, np.float32)


def number_of(waveform: np.ndarray) -> int:
    return round(100 * float(np.max(waveform))) - 1


class FakeSphinx(Pocketsphinx):
    """Hears in `sound(n)` what `lines[n]` says; with a grammar, always the first line."""

    lines: list[str] = []

    def __init__(self, jsgf: str = ""):
        self.jsgf = jsgf

    def hear_all(self, waveforms, sample_rate):
        assert sample_rate == RATE
        return [self.lines[0 if self.jsgf else number_of(w)] for w in waveforms]


class FakeModel:
    """Answers and writes down by `turns`, in the order of the recordings; its speech is `sound` of a unit."""

    sample_rate = RATE

    def __init__(self, turns):
        config = SimpleNamespace(max_question_seconds=9.0, duration_scale=1.25, plain_text=True)
        self.turns, self.model_dir = turns, SimpleNamespace(config=config)
        self.encoder = self.generator = self.synthesizer = self
        self.decoding = GREEDY

    def encode(self, waveforms, seconds):
        return [np.array([number_of(w)] * 2) for w in waveforms]

    def turn_batch(self, asked, out):
        """Typed questions are answered right."""
        return [
            Turn(answer=RIGHT[i]) if isinstance(a, str) else self.turns[a[0]] for i, a in enumerate(asked)
        ]

    def transcribe_batch(self, units):
        return [self.turns[number].transcript for (number,) in units]

    def synthesize(self, units, duration_scale):
        assert duration_scale == 1.25
        return [sound(number) for (number,) in units]


@pytest.fixture
def held(tmp_path, monkeypatch):
    """`held(answers, lines)`: four orders, answered so, spoken as units 10 to 13; and what is heard."""

    def make(answers, lines=(), judge=None, texts=None, corpus="coffee"):
        rows = []
        for number, (text, slots) in enumerate(ORDERS):
            soundfile.write(tmp_path / f"{number}.wav", sound(number), RATE)
            said = texts[number] if texts else text
            row = Utterance(str(number), "", 1.0, "", corpus, said, "test", "" if texts else slots)
            rows.append((row, tmp_path / f"{number}.wav"))
        turns = [Turn(answer, answer, [10 + number]) for number, answer in enumerate(answers)]
        monkeypatch.setattr(FakeSphinx, "lines", list(lines))
        for module in (order_figures, word_figures):
            monkeypatch.setattr(module, "Pocketsphinx", FakeSphinx)
        monkeypatch.setattr(order_figures, "flite_says", lambda text: sound(20))
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
        return HeldOut(FakeModel(turns), judge or FakeSphinx(), rows, [], "test", 0)

    return make


MIXED = [RIGHT[0], WRONG[1], WRONG[2], RIGHT[3]]
# Of the second right answer, a latte, one word of eight is misheard; of flite's every word but "order".
HEARD = ["brew a mocha", *[""] * 9, RIGHT[0], "", "", RIGHT[3].replace("latte", "later"), *[""] * 6, "order"]


def test_right_answers_are_listened_to_beside_flites(held):
    found = order_figures.spoken_answers(held(MIXED, HEARD), FigureSettings(goal=0.5))
    ours, flite = found.measures
    words = [len(RIGHT[n].split()) for n in (0, 3)]
    assert (ours.n, ours.value) == (2, pytest.approx(1 / sum(words)))
    assert (flite.n, flite.value) == (2, pytest.approx((sum(words) - 2) / sum(words)))
    assert ours.beside == {flite.name: flite.value} and ours.goal == pytest.approx(0.5 * flite.value)
    assert ours.note == "2 right answers of 4 orders; judge: pocketsphinx"
    assert found.shown["rows"] == [[RIGHT[3], RIGHT[3].replace("latte", "later")], [RIGHT[0], RIGHT[0]]]


def test_all_and_none_of_the_answers_are_right(held):
    lines = [""] * 10 + RIGHT + [""] * 7
    ours, flite = order_figures.spoken_answers(held(RIGHT, lines), FigureSettings(goal=2.0)).measures
    assert (ours.value, ours.n, flite.value, ours.goal) == (0.0, 4, 1.0, 2.0)
    with pytest.raises(NotMeasuredError, match="none of 4 orders was answered right"):
        order_figures.spoken_answers(held(WRONG, lines), FigureSettings())


@pytest.mark.parametrize(
    ("goal", "said"), [(1.0, "; goal not applied: "), (None, "; nothing beside it: ")], ids=str
)
def test_a_goal_that_cannot_be_applied_says_why(held, monkeypatch, goal, said):
    judge = SelfJudge(lambda _: RIGHT[0])
    (ours,) = order_figures.spoken_answers(held(MIXED, judge=judge), FigureSettings(goal=goal)).measures
    assert ours.goal is None and ours.beside == {} and ours.note.endswith(f"{said}the judge is self")
    without = held(MIXED, HEARD)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (ours,) = order_figures.spoken_answers(without, FigureSettings(goal=goal)).measures
    assert ours.goal is None and ours.note.endswith(f"{said}flite is not installed")


@pytest.mark.parametrize(("answers", "share"), [(RIGHT, 1.0), (MIXED, 0.5), (WRONG, 0.0)])
def test_orders_stand_beside_the_grammars(held, answers, share):
    """The grammar hears the first order in all four."""
    ours, baseline = order_figures.orders(held(answers, HEARD), FigureSettings(goal=0.9)).measures
    assert (ours.value, ours.ceiling, ours.goal, ours.n) == (share, 1.0, 0.9, 4)
    assert baseline.name == order_figures.GRAMMAR_NAME and baseline.value == 0.25
    assert ours.beside == {order_figures.GRAMMAR_NAME: 0.25}


def test_noisy_orders_stand_beside_the_grammar_and_the_published(held, monkeypatch):
    behind = ([("elsewhere.wav", sound(1))], "readers")
    monkeypatch.setattr(order_figures, "_background", lambda *_: behind)
    monkeypatch.setattr(order_figures, "add_babble", lambda waveform, *_: waveform)
    found = order_figures.noisy_orders(held(MIXED, HEARD), FigureSettings())
    ours, baseline = found.measures
    assert (ours.value, ours.ceiling, baseline.value) == (0.5, 0.5, 0.25)
    assert ours.beside == {order_figures.GRAMMAR_NAME: 0.25} | order_figures.PUBLISHED
    assert [ours.note.count(f"{level} dB") for level in order_figures.LEVELS] == [1] * 4
    assert ours.note.count("1 of 1") == 2 and baseline.note.count("1 of 1") == 1


def test_digits_stand_beside_the_ten_words(held):
    digits = ["seven", "two", "seven", "nine"]
    given = held(["7", "too", "seven", "nine"], ["seven"], texts=digits, corpus="digits")
    ours, baseline = word_figures.digits(given, FigureSettings()).measures
    assert (ours.value, ours.floor, baseline.value) == (0.75, 0.5, 0.5)
    assert ours.beside == {word_figures.TEN_WORDS: 0.5}


def test_sentences_stand_beside_pocketsphinx(held):
    texts = ["men lean low", "see me soon", "no less moss", "who is there"]
    written = ["men lean low", "see me", "no less moss", "who was there"]
    heard = ["men lean low", "see me soon", "no less moss", "who is"]
    given = held(written, heard, texts=texts, corpus="reader")
    ours, baseline = word_figures.sentences(given, FigureSettings()).measures
    assert (ours.value, baseline.value) == (pytest.approx(2 / 12), pytest.approx(1 / 12))
    assert ours.beside == {"pocketsphinx on reader": baseline.value}
