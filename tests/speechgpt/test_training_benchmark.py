"""The training benchmark on toy sizes: that it counts right, and that every variant runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from speechgpt.training_benchmark import (
    JOBS,
    TOY,
    main,
    measure,
    packed_rows,
    parts,
    released_batches,
    useful_flops,
)
from speechgpt.training_growth import grow
from speechgpt.training_rows import PIECES, UNITS, VOCABULARY, training_rows
from speechgpt.units.machine import Machine


def test_rows_have_the_published_lengths():
    rows = training_rows(2000)
    lengths = np.array([len(ids) for ids, _, _ in rows])
    units = sum(int(((ids >= PIECES) & (ids < PIECES + UNITS)).sum()) for ids, _, _ in rows) / len(rows)
    assert 4.3 < units / 33 < 5.1, "seconds of speech in a row"
    assert 220 < lengths.mean() < 310
    long = training_rows(2000, "librispeech")
    assert 11.5 < np.mean([(ids >= PIECES).sum() for ids, _, _ in long]) / 33 < 13
    again = training_rows(2000)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(rows, again, strict=True))


def test_both_ways_get_the_same_rows_and_packs_are_full():
    job = JOBS["1B full"]
    rows, packs = packed_rows(job)
    assert len(packs) == job.packs
    held = sum(int((pack["labels"] != -100).sum()) for pack in packs)
    assert held == sum(int(mask.sum()) for _, mask, _ in rows)
    assert sum(len(ids) for ids, _, _ in rows) > 0.98 * job.packs * job.tokens
    padded = released_batches(rows)
    assert sum(len(batch["input_ids"]) for batch in padded) == len(rows)
    assert max(batch["input_ids"].shape[1] for batch in padded) <= 512


def test_useful_operations_are_six_a_weight_and_token_or_four_where_frozen():
    rows = [(np.zeros(100, dtype=np.int64), np.arange(100) >= 60, 0)]
    full, adapted = JOBS["1B full"], JOBS["7B LoRA"]
    assert full.weights == pytest.approx(0.97e9, rel=0.01)
    assert adapted.weights == pytest.approx(6.48e9, rel=0.01)
    head, attention = 6 * 33_006 * 2048 * 40, 6 * 2048 * 22 * 100**2
    assert useful_flops(full, rows) == pytest.approx(6 * full.weights * 100 + head + attention)
    assert useful_flops(adapted, rows) == pytest.approx(4 * adapted.weights * 100, rel=0.03)


@pytest.mark.parametrize("name", parts)
def test_every_part_measures_both_ways(name):
    [found] = parts[name](Machine("cpu", quick=True), True)
    assert found.baseline > 0 and found.ours > 0 and found.limit > 0
    assert "packed" in found.note and "padded" in found.note


def test_a_variant_and_its_kernels_are_printed(capsys):
    flags = ["--job", "mini", "--device", "cpu", "--quick", "--checkpointing", "--no-released", "--profile"]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    assert "'baseline': None" in printed and "aten::" in printed


def test_growth_has_points_by_tokens_a_pack_and_by_tokens_a_row():
    points = list(grow(Machine("cpu", quick=True), True))
    assert [p.size for p in points] == [512, 1024] * 2
    assert all(p.seconds > 0 and p.bytes > 0 for p in points)
    head = VOCABULARY * TOY["hidden"] * 4  # bytes of its gradient, whatever the tokens
    small, large = (point.bytes - head for point in points[:2])
    assert 1.8 < large / small < 2.2, "memory grows with the tokens"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_compiled_job_runs_on_cuda(dropout):
    job = replace(JOBS["mini"], layers=2, tokens=2048, packs=1, dropout=dropout, repeats=1)
    assert measure("small", job, Machine("cuda", quick=True), False, released=False).ours > 0
