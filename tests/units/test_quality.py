"""Quality figures are those of the definitions, on counts that can be worked out by hand."""

import math

import numpy as np
import pytest

from speechgpt.data.files import read_json
from speechgpt.data.rows import UnitRow, Utterance, write_manifest, write_units
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.quality import main, measure, phone_map_shares, purities


def test_purity_and_pnmi_of_known_counts():
    assert purities(np.array([[5, 0], [0, 5]])) == pytest.approx((1, 1, 1))
    assert purities(np.array([[5, 5], [5, 5]])) == pytest.approx((0.5, 0.5, 0))
    # Three units for two phones: each unit tells its phone, no phone tells its unit.
    assert purities(np.array([[4, 4, 0], [0, 0, 8]])) == pytest.approx((1, 0.75, 1))
    assert all(math.isnan(value) for value in purities(np.zeros((2, 2), dtype=int)))


def test_measure_of_two_rows():
    rows = [
        UnitRow("a", [0, 1], [24, 25], corpus="x"),  # SIL then AA, cut where the phones are
        UnitRow("b", [2, 0, 1], [10, 20, 19], corpus="y"),
    ]
    phones = [["SIL", (24 * 320 + 40) / 16_000], ["AA", 1.0]]
    manifest = [Utterance("a", "a.wav", 1.0, phones=phones), Utterance("b", "b.wav", 1.0)]
    found = measure(rows, manifest, 4, 320, 400, 16_000)
    assert (found.rows, found.frames, found.phone_frames, found.used) == (2, 98, 49, 3)
    assert found.phone_purity == pytest.approx(1) and found.pnmi == pytest.approx(1)
    assert found.units_per_second == 2.5 and found.used_share == 0.75
    entropy = -(0.4 * math.log2(0.4) * 2 + 0.2 * math.log2(0.2))
    assert found.bits_per_second == pytest.approx(entropy * 2.5)
    assert found.bits_per_second_fixed == pytest.approx(5.0)
    with pytest.raises(ValueError, match="out of range: the codebook has 2"):
        measure(rows, manifest, 2, 320, 400, 16_000)
    with pytest.raises(ValueError, match="not in the manifest, the first is b"):
        measure(rows, manifest[:1], 4, 320, 400, 16_000)


def test_phones_are_learnt_from_train_alone():
    """Unit 0 is silence and 1 is AA on split train; on dev 1 is AE half of the time and 2 is new."""
    half = (24 * 320 + 40) / 16_000
    rows = [
        UnitRow("a", [0, 1], [24, 25], corpus="x"),
        UnitRow("b", [0, 1], [24, 25], corpus="x", split="dev"),
        UnitRow("c", [1, 2], [24, 25], corpus="y", split="dev"),
        UnitRow("d", [2], [49], corpus="y", split="test"),  # has no phones
    ]
    manifest = [
        Utterance("a", "a.wav", 1.0, phones=[["SIL", half], ["AA", 1.0]]),
        Utterance("b", "b.wav", 1.0, phones=[["SIL", half], ["AE", 1.0]]),
        Utterance("c", "c.wav", 1.0, phones=[["AA", 1.0]]),
        Utterance("d", "d.wav", 1.0),
    ]
    found = phone_map_shares(rows, manifest, 4, 320, 400, 16_000)
    assert found["all"]["train"] == {"frames": 49, "right": 1, "speech_frames": 25, "speech_right": 1}
    assert found["x"]["dev"]["right"] == pytest.approx(24 / 49) and found["x"]["dev"]["speech_right"] == 0
    assert found["y"]["dev"]["right"] == pytest.approx(24 / 49) and "test" not in found["y"]
    assert found["all"]["dev"]["right"] == pytest.approx(48 / 98)
    assert phone_map_shares(rows[1:], manifest, 4, 320, 400, 16_000) == {}


def test_command_with_a_recogniser(tmp_path, capsys):
    import torch

    rows = [
        UnitRow(f"{n}", [0, 1, 2], [1, 1, 1], f"{n}", "x", "good", ("train", "dev")[n % 2]) for n in range(4)
    ]
    write_units(tmp_path / "units.jsonl", rows)
    write_manifest(tmp_path / "manifest.jsonl", [Utterance(r.id, "a.wav", 1.0, corpus="x") for r in rows])
    Codebook(torch.eye(3), Provenance("", 1, 16_000, 320, False)).save(tmp_path / "k.safetensors")
    arguments = ["--units", str(tmp_path / "units.jsonl"), "--manifest", str(tmp_path / "manifest.jsonl")]
    arguments += ["--codebook", str(tmp_path / "k.safetensors"), "--out", str(tmp_path / "quality.json")]
    assert main([*arguments, "--split", "dev", "--ctc", "--ctc-steps", "2", "--device", "cpu"]) == 0
    found = read_json(tmp_path / "quality.json")
    assert found["rows"] == 2 and found["speakers"]["other_speaker"] == {
        "pairs": 1, "distance": 0.0, "corpora": {"x": {"pairs": 1, "distance": 0.0}}
    }  # fmt: skip
    assert found["ctc"]["all"]["dev"]["rows"] == 2 and found["ctc"]["training"]["steps"] == 2
    told = capsys.readouterr().out
    assert "units that differ, other speaker: 0.0 % (1 pairs)" in told
    assert "heard from units alone, x: dev WER" in told


def test_command(tmp_path, capsys):
    import torch

    write_units(tmp_path / "units.jsonl", [UnitRow("a", [0, 1], [24, 25], corpus="x")])
    write_manifest(tmp_path / "manifest.jsonl", [Utterance("a", "a.wav", 1.0, corpus="x")])
    Codebook(torch.eye(3), Provenance("", 1, 16_000, 320, False)).save(tmp_path / "k.safetensors")
    arguments = ["--units", str(tmp_path / "units.jsonl"), "--manifest", str(tmp_path / "manifest.jsonl")]
    out = tmp_path / "quality.json"
    assert main([*arguments, "--codebook", str(tmp_path / "k.safetensors"), "--out", str(out)]) == 0
    found = read_json(out)
    assert found["pnmi"] is None and found["used"] == 2 and found["corpora"]["x"]["codebook_size"] == 3
    assert found["phone_map"] == {} and found["speakers"]["same_speaker"]["pairs"] == 0 and "ctc" not in found
    assert "2.0 units/s" in capsys.readouterr().out
