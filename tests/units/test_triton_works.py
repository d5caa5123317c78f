"""Why Triton's kernels are not used, said once."""

import subprocess
from contextlib import nullcontext

import pytest
import torch

from speechgpt.units.triton_works import triton_refusal, triton_runs

CUDA = torch.device("cuda", 1)


@pytest.fixture
def card(monkeypatch):
    """As if there were a GPU of capability 8.0; holds what was made the current device."""
    entered = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    triton_runs.cache_clear()
    yield entered
    triton_runs.cache_clear()


def errors() -> list[Exception]:
    found = [
        ImportError("No module named 'triton'"),
        RuntimeError("Failed to find\nC compiler"),
        OSError("no gcc"),
        subprocess.CalledProcessError(1, "gcc"),
    ]
    try:
        from triton.runtime.errors import OutOfResources
    except ImportError:
        return found
    return [*found, OutOfResources(147456, 101376, "shared memory")]


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_what_a_machine_lacks_is_said_once(card, caplog, error):
    tried = []

    def probe(device):
        tried.append(device)
        raise error

    assert not triton_runs(probe, CUDA, "others do it") and not triton_runs(probe, CUDA, "others do it")
    assert tried == card == [CUDA]
    (record,) = caplog.records
    said = f"Triton's kernels cannot be used, others do it: {type(error).__name__}: "
    assert record.getMessage() == said + " ".join(str(error).split())


def test_what_runs_is_not_spoken_of(card, caplog):
    tried = []
    assert triton_runs(tried.append, CUDA, "") and triton_runs(tried.append, CUDA, "") and tried == [CUDA]
    assert triton_refusal(tried.append, CUDA) == "" and not caplog.records


def test_an_old_gpu_is_not_tried(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_refusal(pytest.fail, CUDA) == "compute capability 7.5, expected 8.0" and card == []


def test_errors_of_the_kernels_themselves_are_not_hidden(card):
    with pytest.raises(TypeError, match="wrong argument"):
        triton_refusal(lambda device: (_ for _ in ()).throw(TypeError("wrong argument")), CUDA)
