"""Named tensors of files that others wrote, torch's or safetensors; what is only claimed takes no memory."""

import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from speechgpt.data.inert import read_inert

# What safetensors raises on damaged files.
_BROKEN = (
    SafetensorError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
)
# Tied tables stand in a file once and have two names.
MAX_SHARING = 2


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a torch file (mapped, not read, where the file allows it) or of a safetensors file.

    Tensors keep their dtype, bfloat16 too, and are not to be written to. A torch file is read as data: no
    class that it names is made. Raises ValueError that names the file, also where its tensors share storages
    so much that copies of them would outgrow it, FileNotFoundError where there is none.
    """
    found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    size, claimed = path.stat().st_size, sum(tensor.nbytes for tensor in found.values())
    if claimed > MAX_SHARING * size:
        raise ValueError(f"{path}: its tensors would take {claimed} bytes, the file has {size}")
    return found


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"{path}: cannot be read as .safetensors weights ({reason})") from error


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    arrays = read_inert(path, bits=True)
    if not isinstance(arrays, dict) or not all(
        isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "biufc"
        for name, array in arrays.items()
    ):
        raise ValueError(f"{path}: cannot be read as weights: it holds no plain table of names and tensors")
    with (
        warnings.catch_warnings()
    ):  # that the file cannot be written to through them, which is as it should be
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return {name: _tensor(array) for name, array in arrays.items()}


def _tensor(array: np.ndarray) -> torch.Tensor:
    """torch has a uint16 that no file of tensors holds: those are the bits of bfloat16."""
    found = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found
