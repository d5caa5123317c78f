import numpy as np
import pytest

from speechgpt.data.rows import Utterance, read_manifest, write_manifest
from speechgpt.units.cutting import SHORTEST, cut_ends, cut_phones, retime_phones
from speechgpt.units.perturb import perturb
from speechgpt.units.perturb_config import PerturbConfig

RATE = 16_000


def soft_loud_soft(soft_db=-20.0):
    """0.4 s of a soft tone, 0.3 s of a loud one, 0.5 s of a soft one; float32."""
    tone = np.sin(np.arange(round(1.2 * RATE)) * 0.3).astype(np.float32)
    tone[: round(0.4 * RATE)] *= 10 ** (soft_db / 20)
    tone[round(0.7 * RATE) :] *= 10 ** (soft_db / 20)
    return tone


def test_ends_are_cut_at_random_and_something_is_left():
    waveform = np.arange(RATE, dtype=np.float32)
    lost = set()
    for name in "abcdefgh":
        cut, front = cut_ends(waveform, None, 0.3, 1, name)
        assert cut[0] == front and RATE * 0.4 <= len(cut) < RATE
        lost.add(front)
    assert len(lost) == 8 and max(lost) <= 0.3 * RATE
    short = waveform[:2500]
    for name in "abcdefgh":
        assert len(cut_ends(short, None, 0.49, 1, name)[0]) >= SHORTEST * RATE
    assert len(cut_ends(waveform[:1000], None, 0.49, 1, "a")[0]) == 1000  # too short to lose anything


def test_what_is_quieter_than_asked_is_cut_and_the_rest_stays():
    waveform = soft_loud_soft()
    cut, front = cut_ends(waveform, (10, 10), 0.0, 0, "six")
    assert front == 0.4 * RATE and np.array_equal(cut, waveform[front : round(0.7 * RATE)])
    assert len(cut_ends(waveform, (30, 30), 0.0, 0, "six")[0]) == len(waveform)
    lengths = {len(cut_ends(waveform, (10, 30), 0.0, 0, name)[0]) for name in "abcdefghij"}
    assert lengths == {4800, 11_200, 12_800, 19_200}  # each end by a draw of its own


def test_of_what_the_quiet_ends_leave_a_share_is_cut_too():
    waveform = soft_loud_soft()
    quiet, before = cut_ends(waveform, (10, 10), 0.0, 0, "six")
    both, front = cut_ends(waveform, (10, 10), 0.3, 0, "six")
    assert np.array_equal(both, waveform[front : front + len(both)])  # of the whole recording
    after, more = cut_ends(quiet, None, 0.3, 0, "six")
    assert np.array_equal(both, after) and front == before + more and 0 < more <= 0.3 * len(quiet)


def test_little_is_left_of_a_click_but_never_less_than_the_shortest():
    waveform = soft_loud_soft() * 1e-3
    waveform[8000:8010] = 1.0
    cut, front = cut_ends(waveform, (20, 20), 0.0, 0, "a")
    assert SHORTEST * RATE <= len(cut) <= SHORTEST * RATE + 2 and 1.0 in cut
    assert cut_ends(waveform[:100], (20, 20), 0.0, 0, "a")[0].size == 100
    assert len(cut_ends(np.zeros(RATE, np.float32), (20, 20), 0.0, 0, "a")[0]) == RATE


def test_copies_are_cut_with_their_phones(tmp_path):
    import soundfile

    phones = [["S", 0.4], ["IH", 0.7], ["K", 0.9], ["S", 1.2]]
    assert cut_phones(phones, 0.5, 0.3) == [["IH", pytest.approx(0.2)], ["K", 0.3]]
    assert retime_phones(phones[:2], 0.5) == [["S", 0.2], ["IH", 0.35]]
    soundfile.write(tmp_path / "six.wav", soft_loud_soft(), RATE)
    row = Utterance("six", "six.wav", 1.2, corpus="digits", text="six", phones=phones)
    write_manifest(tmp_path / "manifest.jsonl", [row])
    config = PerturbConfig({"digits": 2}, (1.0, 1.0), trim_quiet_db={"digits": [12, 12]})
    perturb([tmp_path / "manifest.jsonl"], tmp_path / "quiet", config, 1, jobs=1)
    for copy in read_manifest(tmp_path / "quiet" / "manifest.jsonl"):
        assert abs(copy.seconds - 0.3) < 0.01 and [phone for phone, _ in copy.phones] == ["IH"]
    config = PerturbConfig({"digits": 2}, (1.0, 1.0), trim={"digits": 0.3})
    perturb([tmp_path / "manifest.jsonl"], tmp_path / "shares", config, 1, jobs=1)
    for copy in read_manifest(tmp_path / "shares" / "manifest.jsonl"):
        assert 0.4 * 1.2 <= copy.seconds < 1.2 and abs(copy.phones[-1][1] - copy.seconds) < 2e-3
