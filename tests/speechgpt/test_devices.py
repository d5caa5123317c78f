import pytest
import torch

from speechgpt.devices import choose_device


def test_devices_that_are_not_here_are_refused(monkeypatch):
    assert choose_device("cpu") == "cpu"
    for wrong, said in (("mps", "expected auto, cpu or cuda"), ("nonsense", "unknown device")):
        with pytest.raises(ValueError, match=said):
            choose_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device here"):
        choose_device("cuda:1")


def test_a_numbered_device_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == "cuda:1" and chosen == [torch.device("cuda:1")]
    assert choose_device("cuda") == "cuda" and len(chosen) == 1
    with pytest.raises(ValueError, match="there are 2 CUDA devices here"):
        choose_device("cuda:2")
