"""Which device is chosen, that choosing moves nothing, and where a second GPU's work is launched."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from speechgpt.units import half_hubert
from speechgpt.units.devices import choose_device, on_device
from speechgpt.units.half_hubert import HalfHubert
from speechgpt.units.half_kernels import Kernels

from .conftest import GROUP, make_encoder, noise

TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture
def cards(monkeypatch):
    """As if there were two; holds the devices that were made the current one."""
    entered = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("choosing moves nothing"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    return entered


def test_devices_that_are_not_here_are_refused(monkeypatch):
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    for wrong in ("mps", "meta", "xpu:1"):
        with pytest.raises(ValueError, match=f"^device '{wrong}': expected auto, cpu or cuda$"):
            choose_device(wrong)
    with pytest.raises(ValueError, match="^unknown device 'gpu'; expected auto, cpu or cuda$"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda:1': no CUDA device here; `--device cpu`"):
        choose_device("cuda:1")


def test_a_numbered_device_is_chosen_and_not_made_current(cards):
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match="device 'cuda:2': this machine's CUDA devices are cuda:0 to cuda:1"):
        choose_device("cuda:2")
    assert cards == []


def test_a_cuda_device_is_current_within_and_a_cpu_needs_nothing(cards):
    with on_device(torch.device("cuda", 1)):
        assert cards == [torch.device("cuda", 1)]
    with on_device(torch.device("cpu")):
        assert len(cards) == 1


def test_half_precision_launches_on_its_encoders_device(monkeypatch):
    encoder, entered = make_encoder(GROUP), []
    plan = HalfHubert(encoder, 2, torch.float16)
    monkeypatch.setattr(half_hubert, "on_device", lambda device: entered.append(device) or nullcontext())
    plan([noise(2000)])
    assert entered == [encoder.device]


@TWO
def test_a_second_gpu_encodes_as_the_first():
    widths = {"conv_dim": [64] * 7, "hidden_size": 64, "num_hidden_layers": 3}
    given, found = [noise(n, n) for n in (4000, 9000, 16_000)], []
    for number in (0, 1):
        encoder = make_encoder(GROUP | widths).to(f"cuda:{number}")
        features, _ = HalfHubert(encoder, 3, torch.float16, Kernels.of(encoder.device))(given)
        assert features.device == encoder.device and torch.cuda.current_device() == 0
        found.append(features.float().cpu().numpy())
    np.testing.assert_allclose(*found, atol=1e-3 * np.abs(found[0]).max())
