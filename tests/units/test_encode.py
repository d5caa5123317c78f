"""Manifests become unit rows: in order, once each, whatever is killed, sharded or unreadable."""

import numpy as np
import pytest
import torch

from speechgpt.data.audio import write_wav
from speechgpt.data.files import read_jsonl
from speechgpt.data.rows import Utterance, read_manifest, read_units, write_manifest
from speechgpt.units import encode as module
from speechgpt.units import extraction
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.dedup import deduplicate, expand
from speechgpt.units.encode import UnitEncoder, encode_manifest, parse_shard
from speechgpt.units.extraction import length_batches

from .conftest import GROUP, make_encoder, noise


@pytest.fixture
def units(tmp_path):
    encoder = make_encoder(GROUP)
    features = torch.cat(encoder.features([noise(16_000, seed) for seed in range(3)], 2))
    centroids = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:9]]
    provenance = Provenance(encoder.fingerprint, 2, 16_000, 320, True)
    encoder.save(tmp_path / "encoder")
    Codebook(centroids, provenance).save(tmp_path / "book.safetensors")
    return UnitEncoder.load(tmp_path / "encoder", tmp_path / "book.safetensors", device="cpu")


@pytest.mark.parametrize("frames", [[], [3], [3, 3, 3], [1, 1, 2, 1, 0, 0], list(range(9))])
def test_dedup_and_expand_are_inverse(frames):
    found, durations = deduplicate(frames)
    assert found.dtype == durations.dtype == np.int64
    assert expand(found, durations).tolist() == frames
    assert durations.sum() == len(frames) and (np.diff(found) != 0).all() and (durations >= 1).all()


def test_dedup_and_expand_refuse_other_shapes():
    with pytest.raises(ValueError, match="shape"):
        deduplicate(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="2 units but 1 durations"):
        expand([1, 2], [1])


def test_units_are_the_same_in_any_batch(units):
    waveforms = [noise(samples, samples) for samples in (400, 9_000, 16_000, 720, 30_000)]
    alone = [units.encode([w])[0] for w in waveforms]
    for budget in (0.01, 1.0, 100.0):
        for first, second in zip(alone, units.encode(waveforms, budget), strict=True):
            assert np.array_equal(first, second)
    assert [len(frames) for frames in alone] == [(len(w) - 400) // 320 + 1 for w in waveforms]
    assert units.frame_rate == 50 and units.num_units == 9


@pytest.mark.parametrize("rate", [16_000, 22_050])
def test_a_long_file_keeps_every_frame(units, tmp_path, rate):
    seconds = 3.21
    write_wav(tmp_path / "long.wav", noise(round(seconds * rate)), rate)
    whole = units.encode_file(tmp_path / "long.wav")
    units.window_seconds, units.context_seconds = 0.6, 0.4
    parts = units.encode_file(tmp_path / "long.wav")
    assert len(parts) == len(whole) == (round(seconds * 16_000) - 400) // 320 + 1
    assert (parts == whole).mean() > 0.9


def test_batches_hold_the_budget_and_every_row():
    seconds = [3.0, 1.0, 9.0, 2.0, 2.0, 30.0]
    batches = length_batches(seconds, 10.0)
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or max(seconds[i] for i in b) * len(b) <= 10 for b in batches)


def test_rows_come_in_manifest_order_and_a_shard_is_its_part(units, corpus, tmp_path):
    out = tmp_path / "units.jsonl"
    assert encode_manifest(units, corpus, out, part_seconds=3) == 14
    rows = read_units(out)
    assert [row.id for row in rows] == [row.id for row in read_manifest(corpus)]
    assert rows[0].corpus == "even" and rows[13].split == "dev"
    for row, utterance in zip(rows, read_manifest(corpus), strict=True):
        assert sum(row.durations) == (round(utterance.seconds * 16_000) - 400) // 320 + 1
    for index in range(3):
        encode_manifest(units, corpus, tmp_path / f"{index}.jsonl", (index, 3))
    joined = b"".join((tmp_path / f"{index}.jsonl").read_bytes() for index in range(3))
    assert joined == out.read_bytes()


def test_a_killed_run_goes_on_with_nothing_lost_or_doubled(units, corpus, tmp_path, monkeypatch):
    encode_manifest(units, corpus, tmp_path / "straight.jsonl", part_seconds=2)
    out, calls = tmp_path / "units.jsonl", []
    original = module.write_jsonl

    def killed(path, rows):
        calls.append(path)
        if len(calls) == 4:
            next(iter(rows))  # in the middle of a part
            raise KeyboardInterrupt
        return original(path, rows)

    monkeypatch.setattr(module, "write_jsonl", killed)
    with pytest.raises(KeyboardInterrupt):
        encode_manifest(units, corpus, out, part_seconds=2)
    assert not out.exists()
    kept = sorted(p.name for p in tmp_path.glob("units.jsonl.parts/*/*.jsonl"))
    assert len(kept) == 3
    monkeypatch.setattr(module, "write_jsonl", original)
    read = []
    monkeypatch.setattr(
        extraction, "read_audio", lambda path, rate: read.append(path) or module.read_audio(path, rate)
    )
    encode_manifest(units, corpus, out, part_seconds=2)
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert 0 < len(read) < 14 and not list(tmp_path.glob("*.parts"))


def test_unreadable_files_go_to_a_file_with_the_reason(units, corpus, tmp_path):
    rows = read_manifest(corpus)
    (tmp_path / "text.wav").write_text("no audio")
    bad = Utterance("bad", "text.wav", 1.0), Utterance("gone", "gone.wav", 1.0)
    write_manifest(corpus, [*rows[:5], *bad, *rows[5:]])
    out, rejects = tmp_path / "units.jsonl", tmp_path / "units.jsonl.rejects.jsonl"
    with pytest.raises(ValueError, match="max_bad is 1; reasons in .*rejects.jsonl"):
        encode_manifest(units, corpus, out, max_bad=1)
    assert not out.exists() and {row["id"] for _, row in read_jsonl(rejects)} == {"bad", "gone"}
    assert encode_manifest(units, corpus, out, max_bad=2) == 14
    assert any("gone.wav: no such file" in row["reason"] for _, row in read_jsonl(rejects))
    write_manifest(corpus, rows)
    encode_manifest(units, corpus, out)
    assert not rejects.exists()


def test_long_rows_of_a_manifest_go_in_windows(units, corpus, tmp_path, monkeypatch):
    encode_manifest(units, corpus, tmp_path / "whole.jsonl")
    monkeypatch.setattr(extraction, "WINDOW_SECONDS", 1.0)
    encode_manifest(units, corpus, tmp_path / "windows.jsonl")
    whole, parts = read_units(tmp_path / "whole.jsonl"), read_units(tmp_path / "windows.jsonl")
    assert [sum(r.durations) for r in whole] == [sum(r.durations) for r in parts]


def test_command(units, corpus, tmp_path):
    arguments = ["--encoder", str(tmp_path / "encoder"), "--codebook", str(tmp_path / "book.safetensors")]
    arguments += ["--manifest", str(corpus), "--out", str(tmp_path / "units.jsonl"), "--device", "cpu"]
    assert module.main([*arguments, "--shard", "1/2"]) == 0
    assert [row.id for row in read_units(tmp_path / "units.jsonl")] == [f"row{i}" for i in range(7, 14)]
    with pytest.raises(ValueError, match="layer 1, |of layer 2, here it is 1"):
        module.main([*arguments, "--layer", "1"])


def test_shards_are_checked():
    assert parse_shard("2/3") == (2, 3)
    for text in ("3/3", "1", "a/2", "-1/2", "0/0"):
        with pytest.raises(ValueError, match="expected i/n"):
            parse_shard(text)
