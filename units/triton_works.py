"""Whether Triton's kernels run on a device: it comes with torch, but the first launch needs a C compiler."""

import logging
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch

from speechgpt.units.devices import on_device

CAPABILITY = (8, 0)  # of what is older Triton promises nothing, nor does attention over rows laid end to end
REASON = 300  # characters of an error that a warning shows

Probe = Callable[[torch.device], None]  # imports some kernels and runs them once, on small tensors

logger = logging.getLogger(__name__)


@cache
def probe_of(module: str) -> Probe:
    """The function `probe` of a module of kernels, imported when it is called: Triton may be missing."""
    return lambda device: import_module(module).probe(device)


def triton_refusal(probe: Probe, device: torch.device) -> str:
    """Why the kernels of `probe` cannot run on a CUDA device; empty when they can."""
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return "compute capability {}.{}, expected {}.{}".format(*found, *CAPABILITY)
    try:
        with on_device(device):
            probe(device)
    except _failures() as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:REASON]
    return ""


@cache
def triton_runs(probe: Probe, device: torch.device, instead: str) -> bool:
    """Whether they do, tried once a process; where not, one warning says what happens `instead`, and why."""
    reason = triton_refusal(probe, device)
    if reason:
        logger.warning("Triton's kernels cannot be used, %s: %s", instead, reason)
    return not reason


def _failures() -> tuple[type[Exception], ...]:
    """What comes of a machine without Triton or a compiler, or with less memory than a tile takes."""
    known = (ImportError, RuntimeError, OSError, subprocess.CalledProcessError)
    try:
        from triton import TritonError
    except ImportError:
        return known
    return (*known, TritonError)
