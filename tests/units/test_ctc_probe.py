"""The recogniser learns units that spell, hears nothing in units that do not, and says where it breaks."""

import numpy as np
import pytest
import torch

from speechgpt.data.rows import UnitRow
from speechgpt.units import ctc_probe
from speechgpt.units.ctc_probe import (
    ProbeConfig,
    Recogniser,
    batches,
    examples_of,
    transcribe,
    word_error_rates,
)

SMALL = {"width": 48, "dropout": 0.0, "batch_units": 300, "learning_rate": 1e-2}
WORDS = "so long and thanks for this fish".split()
K = 27


def spelled(count: int, seed: int = 0, mute: bool = False) -> list[UnitRow]:
    """Rows whose units are their characters, or the same for every text."""
    generator, rows = np.random.default_rng(seed), []
    for n in range(count):
        text = " ".join(generator.choice(WORDS, 3))
        text = " ".join(w for i, w in enumerate(text.split()) if not i or w[0] != text.split()[i - 1][-1])
        units = [0 if c == " " else ord(c) - 96 for c in text]
        units = list(range(len(units))) if mute else units
        split = ("train", "train", "train", "train", "dev", "test")[n % 6]
        rows.append(UnitRow(f"{n}", units, [1] * len(units), corpus="pq"[n % 2], text=text, split=split))
    return rows


def test_units_that_spell_are_read():
    found = word_error_rates(spelled(150), K, ProbeConfig(140, **SMALL), "cpu")
    assert found["all"]["dev"]["wer"] < 0.2 and found["all"]["test"]["cer"] < 0.1
    assert found["training"]["last_loss"] < found["training"]["first_loss"]
    assert found["training"]["steps"] == 140 and found["train_rows"] == 100
    assert found["all"]["dev"]["rows"] == sum(
        c["dev"]["rows"] for c in found["corpora"].values() if "dev" in c
    )


def test_units_that_say_nothing_are_not_read_and_runs_repeat():
    mute = spelled(150, mute=True)
    found, again = (word_error_rates(mute, K, ProbeConfig(60, **SMALL), "cpu") for _ in range(2))
    assert found["all"]["dev"]["wer"] > 0.5
    assert again["all"] == found["all"] and again["corpora"] == found["corpora"]


def test_a_row_is_read_the_same_in_any_batch():
    torch.manual_seed(0)
    model = Recogniser(K, 16, 0.0).eval()
    long, short = examples_of(
        [UnitRow("a", list(range(20)), [1] * 20, text="a"), UnitRow("b", [3, 5], [1, 1], text="b")]
    )
    together = ctc_probe.padded(model, [long, short], torch.device("cpu"))
    alone = ctc_probe.padded(model, [short], torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(*together)[1, :4], model(*alone)[0])


def test_greedy_reading_merges_repeats_and_drops_blanks():
    class Fixed(torch.nn.Module):
        padding = K

        def forward(self, units, lengths):
            numbers = torch.tensor([[0, 3, 3, 0, 3, 4, 4, 1]])  # -, a, a, -, a, b, b, space
            return torch.nn.functional.one_hot(numbers, len(ctc_probe.CHARACTERS) + 1).float()

    example = examples_of([UnitRow("a", [1, 2, 3, 4], [1] * 4, text="a")])
    assert transcribe(Fixed(), example, torch.device("cpu")) == ["aab "]


def test_rows_without_frames_enough_are_left_out():
    fits, doubled, wordy, empty = (
        UnitRow(str(n), [1, 2], [1, 1], text=text) for n, text in enumerate(["good", "", "", ""])
    )
    doubled.text, wordy.text, empty.text = "abcd", "abcde", "!?"
    assert [e.fits() for e in examples_of([fits, doubled, wordy, empty])] == [False, True, False]


def test_batches_hold_every_row_once_under_the_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    for generator in (None, np.random.default_rng(1)):
        found = batches(lengths, 256, generator)
        assert sorted(np.concatenate(found)) == list(range(200))
        assert all(len(batch) * lengths[batch].max() <= 256 for batch in found)


def test_a_loss_that_is_not_finite_names_its_step(monkeypatch):
    monkeypatch.setattr(ctc_probe, "ctc_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(ValueError, match="the loss is nan at step 1"):
        word_error_rates(spelled(12), K, ProbeConfig(3, **SMALL), "cpu")


def test_minutes_end_the_training():
    found = word_error_rates(spelled(12), K, ProbeConfig(100_000, 0.01, **SMALL), "cpu")
    assert 0 < found["training"]["steps"] < 100_000 and found["training"]["minutes"] < 0.1


def test_what_is_missing_is_said():
    with pytest.raises(ValueError, match="found 2 of split train and 0 of dev and test"):
        word_error_rates(spelled(2), K, ProbeConfig(1), "cpu")
    with pytest.raises(ValueError, match="steps: 0"):
        ProbeConfig(0)
    with pytest.raises(ValueError, match="minutes: 0"):
        ProbeConfig(minutes=0)
