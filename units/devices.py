"""Where torch computes: CUDA is used where it is there and never assumed."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # who only names a device does not wait for torch
    import torch

EXPECTED = "expected auto, cpu or cuda"


def choose_device(device: "str | torch.device" = "auto") -> "torch.device":
    """ "auto" is cuda if there is one, else cpu. Chooses and no more: see `on_device`.

    Raises ValueError for other types of device, and for one that this machine lacks.
    """
    import torch

    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {str(device)!r}; {EXPECTED}") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r}: {EXPECTED}")
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f"device {str(device)!r}: no CUDA device here; `--device cpu` or `--device auto` works"
            )
        count = torch.cuda.device_count()
        if wanted.index is not None and wanted.index >= count:
            raise ValueError(
                f"device {str(device)!r}: this machine's CUDA devices are cuda:0 to cuda:{count - 1}"
            )
    return wanted


def on_device(device: "torch.device") -> AbstractContextManager:
    """Within it a CUDA device is this thread's current one: Triton launches its kernels there, and streams,
    events and captures are of it, wherever their tensors lie. On a CPU it does nothing."""
    if device.type != "cuda":
        return nullcontext()
    import torch

    return torch.cuda.device(device)
