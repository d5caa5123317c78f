import time

import torch

from speechgpt.units.machine import Machine, alternate, seconds_of


def test_limits_are_measured_once_a_run(monkeypatch):
    machine = Machine("cpu", quick=True)
    assert machine.kind == "cpu" and "threads" in machine.name
    first = machine.matrix_flops(torch.float32), machine.bandwidth()
    assert min(first) > 1e6
    assert (machine.matrix_flops(torch.float32), machine.bandwidth()) == first


def test_times_are_medians_of_calls_in_turns():
    calls = []

    def slow():
        calls.append("slow")
        time.sleep(0.02)

    def fast():
        calls.append("fast")

    slow_seconds, fast_seconds = alternate([slow, fast], Machine("cpu"), repeats=3, warmup=1)
    assert calls == ["slow", "fast"] * 4
    assert slow_seconds >= 0.02 > fast_seconds
    assert seconds_of(slow, Machine("cpu"), repeats=1, warmup=0) >= 0.02
