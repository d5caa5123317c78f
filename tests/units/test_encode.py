"""Manifests become unit rows: in order, once each, whatever is killed, sharded or unreadable."""

import json
import subprocess
import tracemalloc
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechgpt.data.audio import read_audio, write_wav
from speechgpt.data.files import read_jsonl
from speechgpt.data.rows import Utterance, read_manifest, read_units, write_manifest
from speechgpt.units import encode as module
from speechgpt.units import extraction, half_kernels
from speechgpt.units.codebook import Codebook, Provenance
from speechgpt.units.dedup import deduplicate, expand
from speechgpt.units.encode import encode_manifest, parse_shard
from speechgpt.units.padding import length_batches
from speechgpt.units.unit_encoder import UnitEncoder

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


@pytest.mark.parametrize("budget", [2.5, 4.0])
def test_batch_seconds_bound_the_padded_audio_as_well(units, corpus, budget, monkeypatch):
    units.encoder.to(dtype=torch.bfloat16)  # which a CPU pads
    plain, padded = units.encoder.pad, []

    def pad(waveforms):
        padded.append(len(waveforms) * max(map(len, waveforms)) / 16_000)
        return plain(waveforms)

    monkeypatch.setattr(units.encoder, "pad", pad)
    rows = sorted(read_manifest(corpus), key=lambda row: row.id)  # long ones among short ones
    found = list(extraction.encode_rows(units.encoder, corpus, rows, 2, units.start, budget))
    assert len(found) == 14 and max(padded) <= budget + 1e-6 and len(padded) < 14


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
        extraction, "read_audio", lambda path, *given: read.append(path) or read_audio(path, *given)
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


@pytest.mark.parametrize("killed", [False, True], ids=["failed", "killed"])
def test_repaired_files_of_every_part_are_tried_again(units, corpus, tmp_path, monkeypatch, killed):
    """Also those of earlier parts, whose bad file was tolerated when the run ended at a later one."""
    straight, out = tmp_path / "straight.jsonl", tmp_path / "units.jsonl"
    encode_manifest(units, corpus, straight)
    good = {index: (tmp_path / f"audio/{index}.wav").read_bytes() for index in (0, 13)}
    for index in good:
        (tmp_path / f"audio/{index}.wav").write_text("no audio")
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr(module, "_write_rejects", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception if killed else ValueError):
            encode_manifest(units, corpus, out, part_seconds=2, max_bad=1)
    for index, content in good.items():
        (tmp_path / f"audio/{index}.wav").write_bytes(content)
    assert encode_manifest(units, corpus, out, part_seconds=2, max_bad=1) == 14
    assert out.read_bytes() == straight.read_bytes() and not (tmp_path / "units.jsonl.rejects.jsonl").exists()


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
    for dtype, computed_in in (("auto", "float32"), ("int8", "int8")):
        assert module.main([*arguments, "--dtype", dtype]) == 0
        made_by = json.loads((tmp_path / "units.provenance.json").read_text())
        assert made_by["computed_in"] == computed_in
    with pytest.raises(ValueError, match="layer 1, |of layer 2, here it is 1"):
        module.main([*arguments, "--layer", "1"])


def test_shards_are_checked():
    assert parse_shard("2/3") == (2, 3)
    for text in ("3/3", "1", "a/2", "-1/2", "0/0"):
        with pytest.raises(ValueError, match="expected i/n"):
            parse_shard(text)


def test_repeated_ids_are_named_before_anything_is_computed(units, corpus, tmp_path):
    write_manifest(corpus, [*read_manifest(corpus), Utterance("row3", "audio/1.wav", 0.5)])
    with pytest.raises(ValueError, match="id 'row3' appears twice"):
        encode_manifest(units, corpus, tmp_path / "units.jsonl")
    assert not list(tmp_path.glob("units.jsonl*"))


def test_what_made_the_units_stands_beside_them(units, corpus, tmp_path):
    encode_manifest(units, corpus, tmp_path / "units.jsonl")
    found = json.loads((tmp_path / "units.provenance.json").read_text())
    assert (found["encoder"], found["computed_in"], found["rows"]) == (
        units.encoder.fingerprint,
        "float32",
        14,
    )


def test_parts_of_another_precision_are_not_continued(units, corpus, tmp_path, monkeypatch):
    exact = encode_manifest(units, corpus, tmp_path / "exact.jsonl")
    units.precision = "int8"
    assert encode_manifest(units, corpus, tmp_path / "small.jsonl") == exact
    keys = [json.loads((tmp_path / f"{n}.provenance.json").read_text())["key"] for n in ("exact", "small")]
    assert keys[0] != keys[1]


@pytest.fixture
def overflowing(units, monkeypatch):
    """Half precision that does not hold one frame of each waveform of more than 1.5 s; holds how many
    waveforms were asked for in which precision."""
    plain, asked = units.encoder.frames_of, []

    def frames_of(waveforms, layer, precision="float32", batch_seconds=1e9):
        asked.append((precision, len(waveforms)))
        features, frames = plain(waveforms, layer)
        if precision == "float16":
            rows = features.split(frames)
            for waveform, row in zip(waveforms, rows, strict=True):
                row[3, 5] = torch.inf if len(waveform) > 24_000 else row[3, 5]
        return features, frames

    monkeypatch.setattr(units.encoder, "frames_of", frames_of)
    units.precision = "float16"
    return asked


def test_rows_that_half_precision_cannot_hold_are_computed_again_and_counted(
    units, corpus, tmp_path, overflowing, monkeypatch, caplog
):
    units.precision = "float32"
    encode_manifest(units, corpus, tmp_path / "exact.jsonl")
    units.precision, wide = "float16", sum(row.seconds > 1.5 for row in read_manifest(corpus))
    overflowing.clear()
    encode_manifest(units, corpus, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "exact.jsonl").read_bytes()
    assert overflowing == [("float16", 14), ("float32", wide)] and 2 < wide < 10
    found = [json.loads((tmp_path / f"{n}.provenance.json").read_text()) for n in ("exact", "again")]
    assert [made["rows_redone_in_float32"] for made in found] == [0, wide]
    said = f"{tmp_path / 'again.jsonl'}: {wide} of 14 rows were computed in float32"
    assert [record.getMessage().startswith(said) for record in caplog.records] == [True]
    # Those of parts that a killed run left are counted as well.
    with monkeypatch.context() as patch:
        patch.setattr(module, "join_files", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            encode_manifest(units, corpus, tmp_path / "again.jsonl", part_seconds=3)
    overflowing.clear()
    encode_manifest(units, corpus, tmp_path / "again.jsonl", part_seconds=3)
    made = json.loads((tmp_path / "again.provenance.json").read_text())
    assert made["rows_redone_in_float32"] == wide and not overflowing


def test_waveforms_that_half_precision_cannot_hold_are_computed_again(units, overflowing, caplog):
    waveforms = [noise(n, n) for n in (2000, 30_000, 20_000)]
    found = units.encode(waveforms)
    assert overflowing == [("float16", 3), ("float32", 1)]
    assert ["1 of 3 waveforms were computed in float32" in r.getMessage() for r in caplog.records] == [True]
    units.precision = "float32"
    for half, exact in zip(found, units.encode(waveforms), strict=True):
        assert np.array_equal(half, exact)


def test_rows_whose_features_are_not_finite_are_named(units, corpus, tmp_path, monkeypatch):
    plain = units.encoder.frames_of

    def frames_of(waveforms, layer, precision="float32", batch_seconds=1e9):
        features, frames = plain(waveforms, layer)
        features.split(frames)[0][0] = torch.nan
        return features, frames

    monkeypatch.setattr(units.encoder, "frames_of", frames_of)
    with pytest.raises(ValueError, match="manifest.jsonl, row0: features that are no finite numbers"):
        encode_manifest(units, corpus, tmp_path / "units.jsonl")


def test_a_batch_is_fetched_while_the_next_is_encoded(units, corpus, monkeypatch):
    events = []
    plain = units.encoder.frames_of

    def started(*given):
        events.append("start")
        return plain(*given)

    def handle(features, frames, rows):
        fetch = units.start(features, frames)
        return lambda: events.append("fetch") or fetch()

    monkeypatch.setattr(units.encoder, "frames_of", started)
    rows = read_manifest(corpus)
    found = list(extraction.encode_rows(units.encoder, corpus, rows, units.layer, handle, 4.0))
    assert [row.id for row, _, _ in found] == [row.id for row in rows]
    assert events[:4] == ["start", "start", "fetch", "start"] and events[-2:] == ["fetch", "fetch"]


def test_memory_does_not_grow_with_hours(tmp_path, monkeypatch):
    """Peak memory of Python and numpy, with an encoder that only counts frames; hashes of ids may grow."""
    encoder = make_encoder(GROUP, normalize=False)
    provenance = Provenance(encoder.fingerprint, 1, 16_000, 320, False)
    units = UnitEncoder(encoder, Codebook(torch.randn(5, 16), provenance))
    generator = torch.Generator().manual_seed(0)

    def frames_of(waveforms, layer, precision, batch_seconds):
        frames = [50] * len(waveforms)
        return torch.randn(sum(frames), 16, generator=generator), frames

    monkeypatch.setattr(encoder, "frames_of", frames_of)
    monkeypatch.setattr(extraction, "read_audio", lambda path, *given: np.zeros(3200, np.float32))
    peaks = []
    for number, count in enumerate((300, 300, 9000)):  # 3 and 90 hours; the first run also loads things
        rows = (Utterance(f"row-{n:07d}", "a.wav", 36.0, text="word " * 20) for n in range(count))
        write_manifest(tmp_path / "manifest.jsonl", rows)
        tracemalloc.start()
        out = tmp_path / f"{number}.jsonl"
        assert encode_manifest(units, tmp_path / "manifest.jsonl", out, part_seconds=3600.0) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Hashes of ids, sorted once, are 24 bytes a row; what is decoded ahead differs by a tenth between runs.
    assert peaks[2] < 1.25 * peaks[1] + 24 * 8700, peaks


def test_precisions_are_those_of_the_device(units):
    assert units.use("auto").computed_in == "float32" and units.use("int8").computed_in == "int8"
    exact, small = units.use("float32").encode([noise(9000)])[0], units.use("int8").encode([noise(9000)])[0]
    assert (exact == small).mean() > 0.8
    with pytest.raises(ValueError, match="precision float16 on cpu: expected one of float32, int8"):
        units.use("float16")


@pytest.fixture
def gpu(units, monkeypatch):
    """As if the encoder lay on a GPU of capability 8.0 whose kernels run."""
    kernels = SimpleNamespace(probe=lambda device: None)
    monkeypatch.setattr(type(units.encoder), "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(half_kernels, "gpu_kernels", lambda: kernels)
    return kernels


def test_auto_is_half_precision_on_a_gpu_that_can(units, gpu, caplog):
    assert units.use("auto").precision == "float16" and not caplog.records


@pytest.mark.parametrize(
    "error",
    [
        ImportError("No module named 'triton'"),
        RuntimeError("Failed to find C compiler"),
        OSError("no gcc"),
        subprocess.CalledProcessError(1, "gcc"),
    ],
)
def test_auto_is_float32_where_the_kernels_do_not_run(units, gpu, caplog, error):
    def probe(device):
        raise error

    gpu.probe = probe
    assert units.use("auto").precision == "float32"
    assert [str(error) in record.message for record in caplog.records] == [True]


def test_auto_is_float32_on_an_old_gpu_and_for_positions_with_a_batch_norm(units, gpu, caplog, monkeypatch):
    units.encoder.config = replace(units.encoder.config, conv_pos_batch_norm=True)
    assert units.use("auto").precision == "float32"
    units.encoder.config = replace(units.encoder.config, conv_pos_batch_norm=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert units.use("auto").precision == "float32"
    first, second = (record.message for record in caplog.records)
    assert "conv_pos_batch_norm" in first and "capability 7.5, expected 8.0" in second


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_waveform_that_is_not_finite_is_named(units, value):
    waveforms = [noise(samples, samples) for samples in (4000, 5000, 20_000)]
    for index in (1, 2):
        bad = [w.copy() for w in waveforms]
        bad[index][1000] = value
        units.window_seconds = 1.0  # the last one goes in windows
        with pytest.raises(ValueError, match=f"^waveform {index}: features that are no finite numbers"):
            units.encode(bad)


def test_one_long_file_whose_features_are_not_finite_does_not_end_the_run(
    units, corpus, tmp_path, monkeypatch
):
    plain = extraction.window_features

    def features(encoder, waveform, layer):
        for piece in plain(encoder, waveform, layer):
            yield piece * (np.inf if len(waveform) > 32_000 else 1)  # of the last row alone

    monkeypatch.setattr(extraction, "WINDOW_SECONDS", 1.0)
    monkeypatch.setattr(extraction, "window_features", features)
    assert encode_manifest(units, corpus, tmp_path / "units.jsonl", max_bad=1) == 13
    ((_, reject),) = read_jsonl(tmp_path / "units.jsonl.rejects.jsonl")
    assert reject["id"] == "row13" and "row13" in reject["reason"] and "no finite numbers" in reject["reason"]
