"""Where the model runs: CUDA is used where it is there and never assumed. And how it starts."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def choose_device(device: str = "auto") -> str:
    """ "auto" is cuda if there is one, else cpu; cuda:1 also becomes the current one, on which graphs are
    captured and kernels launched. Raises ValueError for a device that this machine lacks."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; expected auto, cpu or cuda") from error
    if wanted.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected auto, cpu or cuda")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: no CUDA device here; `--device cpu` or `--device auto` works")
    if wanted.type == "cuda" and wanted.index is not None:
        if wanted.index >= torch.cuda.device_count():
            raise ValueError(f"device {device!r}: there are {torch.cuda.device_count()} CUDA devices here")
        torch.cuda.set_device(wanted)
    return device


@contextmanager
def quick_start() -> Iterator[None]:
    """For imports and loading: they make half a million objects, and nearly all stay. Looking for garbage
    among them takes a tenth of the start, and would again in the middle of an answer.

    What was made is never looked at again; in a process that starts several times, of the first time alone.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
        gc.enable()
