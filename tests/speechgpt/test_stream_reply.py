"""Turns as they come: text first, then sound in pieces that joined are the whole, and when they came."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from speechgpt import SpeechGPT, events
from speechgpt.events import AnswerText, HeardText, Reply, Sound, TurnClock
from speechgpt.paced_speech import GROWTH, UNITS_AT_ONCE, PacedSpeech

QUESTION = Path(__file__).parents[2] / "speechgpt" / "models" / "mini" / "question.wav"
ORDER = [HeardText, AnswerText, Sound, Reply]


@pytest.fixture(scope="module")
def mini() -> SpeechGPT:
    return SpeechGPT.load("mini", device="cpu")


@pytest.fixture(scope="module")
def tiny(tiny_model) -> SpeechGPT:
    return SpeechGPT.load(tiny_model, device="cpu")


def check(found: list) -> Reply:
    """Order and joined pieces; returns the reply."""
    kinds = [ORDER.index(type(event)) for event in found]
    assert kinds == sorted(kinds) and kinds.count(3) == 1
    *pieces, reply = found
    assert "".join(p.text for p in pieces if isinstance(p, HeardText)) == reply.transcript
    assert "".join(p.text for p in pieces if isinstance(p, AnswerText)) == reply.answer
    sounds = [p for p in pieces if isinstance(p, Sound)]
    assert all(len(s.waveform) and s.sample_rate == reply.sample_rate for s in sounds)
    if reply.waveform is None:
        assert not sounds
    else:
        assert np.array_equal(np.concatenate([s.waveform for s in sounds]), reply.waveform)
    return reply


def test_the_joined_pieces_are_the_whole_answer(mini):
    found = list(mini.stream_reply(QUESTION))
    reply = check(found)
    whole = mini.generator.turn(reply.turn[0])
    assert reply.turn[1] == whole and reply.units.tolist() == whole.units
    scale = mini.model_dir.config.duration_scale
    offline = mini.synthesizer.synthesize([whole.units], duration_scale=scale)[0]
    assert len(offline) == len(reply.waveform)
    assert np.abs(offline - reply.waveform).max() < 1e-5 * np.abs(offline).max()
    kinds = [type(event) for event in found]
    assert kinds.count(HeardText) > 3 and kinds.count(AnswerText) > 3 and kinds.count(Sound) > 2
    again = mini.reply(QUESTION)
    assert np.array_equal(again.waveform, reply.waveform) and again.turn == reply.turn


def test_the_first_piece_is_short_and_later_ones_are_longer(mini):
    lengths = [len(e.waveform) / e.sample_rate for e in mini.stream_reply(QUESTION) if isinstance(e, Sound)]
    assert 0.2 <= lengths[0] < 0.5 and lengths[-2] > 1.5 * lengths[0]


def test_sound_comes_before_the_last_unit(mini):
    heard = []
    units = mini.reply(QUESTION).units.tolist()
    for low_latency in (False, True):
        speech = PacedSpeech(mini.synthesizer, 1.1, low_latency)
        heard.append(next(n for n, unit in enumerate(units, 1) if len(speech.push(unit))))
    assert heard[1] < heard[0] < len(units) / 2


def test_low_latency_errs_a_little(mini):
    exact, fast = mini.reply(QUESTION), check(list(mini.stream_reply(QUESTION, low_latency=True)))
    assert len(exact.waveform) == len(fast.waveform) and exact.turn == fast.turn
    error = np.square(exact.waveform - fast.waveform).sum() / np.square(exact.waveform).sum()
    assert 1e-9 < error < 0.02  # 17 dB


def test_typed_questions_and_answers_in_text_alone(tiny):
    found = list(tiny.stream_reply(text="no less moss", speech=False))
    assert check(found).waveform is None and found[0] == HeardText("no less moss")
    assert found[-1].timings["first_sound"] is None and found[-1].stalls == 0
    assert check(list(tiny.stream_reply(text="no less moss", history=[found[-1]]))).waveform is not None


def test_beams_come_whole_at_the_end(tiny, recording):
    kept = tiny.generator.decoding
    tiny.generator.decoding = replace(kept, beams=2)
    try:
        found = list(tiny.stream_reply(recording))
        whole = tiny.generator.turn(found[-1].turn[0])
    finally:
        tiny.generator.decoding = kept
    reply = check(found)
    assert reply.turn[1] == whole
    offline = tiny.synthesizer.synthesize([whole.units])[0]
    assert np.abs(offline - reply.waveform).max() < 1e-6


def test_what_cannot_be_answered_is_refused_at_the_call(tiny):
    with pytest.raises(ValueError, match="zero"):
        tiny.stream_reply(np.zeros(16_000, np.float32))
    with pytest.raises(ValueError, match="either"):
        tiny.stream_reply()


def test_a_vocoder_of_other_units_still_refuses(tiny):
    speech = PacedSpeech(tiny.synthesizer, 1.0, low_latency=False)
    with pytest.raises(ValueError, match="out of range"):
        for unit in [1, 2, 3, 400]:
            speech.push(unit)


class Hands:
    """A clock whose time passes when it is told."""

    def __init__(self, monkeypatch):
        self.now = 5.0
        monkeypatch.setattr(events.time, "perf_counter", lambda: self.now)


def test_the_clock_stands_while_the_consumer_has_an_event(monkeypatch):
    hands = Hands(monkeypatch)

    def work():
        for _ in range(3):
            hands.now += 1
            yield clock.now()

    clock = TurnClock()
    seen = []
    for second in clock.timed(work()):
        seen.append(second)
        hands.now += 10
    assert seen == [1, 2, 3] and clock.timings()["total"] == 3


def test_late_sound_is_a_stall(monkeypatch):
    hands = Hands(monkeypatch)
    clock = TurnClock()
    hands.now += 2
    clock.play(1.0)  # heard from 2 to 3
    hands.now += 0.5
    clock.play(1.0)  # to 4
    assert clock.stalls == 0
    hands.now += 2.25  # 4.75
    clock.play(0.5)  # to 5.25
    assert clock.stalls == 0.75
    hands.now += 1.0
    clock.play(0.5)
    assert clock.stalls == 1.25
    assert clock.timings() == {"encode": None, "first_token": None, "first_sound": 2, "total": 5.75}


@pytest.mark.parametrize(("speed", "stalls"), [(20.0, False), (1.05 * GROWTH, False), (0.8, True)])
def test_sound_that_is_made_fast_enough_never_stalls(mini, monkeypatch, speed, stalls):
    """Units arrive at `speed` times the pace of their sound, and the vocoder takes no time."""
    speech = PacedSpeech(mini.synthesizer, 1.0, low_latency=False)
    units = mini.reply(QUESTION).units.tolist() * 8
    frames = mini.synthesizer.durations([units])[0]
    hands = Hands(monkeypatch)
    clock = TurnClock()
    total = 0
    for unit, count in zip(units, frames, strict=True):
        hands.now += count * 0.02 / speed
        sound = speech.push(unit)
        total += len(sound)
        if len(sound):
            clock.play(len(sound) / 16_000)
    total += len(speech.finish())
    assert total == frames.sum() * 320
    assert (clock.stalls > 0) == stalls


def test_pieces_grow_by_no_more_than_their_factor_and_stay_bounded(mini):
    speech = PacedSpeech(mini.synthesizer, 1.0, low_latency=False)
    units = mini.reply(QUESTION).units.tolist() * 8
    frames = [len(sound) // 320 for unit in units if len(sound := speech.push(unit))]
    durations = mini.synthesizer.durations([units])[0]
    slack = np.convolve(durations, np.ones(UNITS_AT_ONCE)).max()  # what comes at once cannot be cut
    assert 100 <= max(frames) < 100 + slack
    assert all(
        later <= GROWTH * max(frames[: n + 1]) + slack for n, (_, later) in enumerate(pairwise(frames))
    )
