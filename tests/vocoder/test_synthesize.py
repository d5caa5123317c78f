"""Batch synthesis: rows as they would be alone, durations, voices, errors."""

import numpy as np
import pytest

from speechgpt.vocoder import synthesize
from speechgpt.vocoder.synthesize import Synthesizer

K, HOP = 6, 320
UNITS = [[1, 2, 3, 4, 5, 0, 2], [3], [], [5, 4, 1]]


def test_batch_equals_alone(small, make_vocoder):
    synthesizer = Synthesizer(make_vocoder(small))
    together = synthesizer.synthesize(UNITS)
    durations = synthesizer.durations(UNITS)
    assert len(together) == 4
    for row, units in enumerate(UNITS):
        alone = synthesizer.synthesize([units])[0]
        assert np.array_equal(synthesizer.durations([units])[0], durations[row])
        assert together[row].shape == alone.shape == (durations[row].sum() * HOP,)
        assert together[row].dtype == np.float32
        assert np.abs(together[row] - alone).max(initial=0) < 1e-5


def test_batches_stay_within_their_budget(small, monkeypatch, make_vocoder):
    monkeypatch.setattr(synthesize, "BATCH_FRAMES", 4)
    synthesizer = Synthesizer(make_vocoder(small))
    sounds = synthesizer.synthesize([[1], [2, 3], [4], [5, 0, 1, 2, 3]], [[1], [1, 1], [2], [1] * 5])
    assert [len(s) // HOP for s in sounds] == [1, 2, 2, 5]


def test_given_durations(small, make_vocoder):
    sound = Synthesizer(make_vocoder(small)).synthesize([[1, 2]], [[3, 4]])[0]
    assert len(sound) == 7 * HOP


def test_nothing_to_say(small, make_vocoder):
    synthesizer = Synthesizer(make_vocoder(small))
    assert synthesizer.synthesize([]) == []
    assert synthesizer.synthesize([[]])[0].shape == (0,)


def test_duration_scale(small, make_vocoder):
    synthesizer = Synthesizer(make_vocoder(small))
    once, thrice = synthesizer.durations(UNITS[:1])[0], synthesizer.durations(UNITS[:1], duration_scale=3)[0]
    assert (thrice >= once).all() and thrice.sum() > once.sum()
    with pytest.raises(ValueError, match="duration_scale"):
        synthesizer.durations(UNITS, duration_scale=0)


def test_voices(two_voices, make_vocoder):
    synthesizer = Synthesizer(make_vocoder(two_voices))
    assert synthesizer.speakers == ["ann", "bob"]
    units, durations = [[1, 2]], [[2, 2]]
    ann, bob, default, first = (
        synthesizer.synthesize(units, durations, s)[0] for s in ("ann", "bob", None, 0)
    )
    assert np.array_equal(bob, default) and np.array_equal(ann, first) and not np.array_equal(ann, bob)
    with pytest.raises(ValueError, match="'eve'.*ann, bob"):
        synthesizer.synthesize(units, speaker="eve")
    with pytest.raises(ValueError, match="has 2"):
        synthesizer.synthesize(units, speaker=2)


def test_one_voice_refuses_another(small, make_vocoder):
    with pytest.raises(ValueError, match="one voice"):
        Synthesizer(make_vocoder(small)).synthesize([[1]], speaker="ann")


@pytest.mark.parametrize("units", [[1, K], [-1]])
def test_unit_out_of_range_names_the_codebook(small, units, make_vocoder):
    with pytest.raises(ValueError, match=f"row 1 is out of range.*K = {K}"):
        Synthesizer(make_vocoder(small)).synthesize([[1], units])


def test_durations_must_fit(small, make_vocoder):
    synthesizer = Synthesizer(make_vocoder(small))
    with pytest.raises(ValueError, match="2 units but 1 durations"):
        synthesizer.synthesize([[1, 2]], [[1]])
    with pytest.raises(ValueError, match="at least 1"):
        synthesizer.synthesize([[1, 2]], [[1, 0]])
