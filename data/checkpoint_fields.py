"""Settings and tensors of a foreign checkpoint, by name: an error says which is absent, inert or odd."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from speechgpt.data.inert import Inert

REQUIRED = object()
MAX_SHARING = 2  # names of one tensor, on the whole
LONGEST_NAME = 200  # characters; the longest of fairseq's have 60


class Fields:
    """A mapping out of `read_inert`; `where` names it in errors (the file, and the part of it)."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected settings, found {describe(values)}")
        self._values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def part(self, name: str) -> "Fields":
        return Fields(self._values.get(name), f"{self.where}: {name}")

    def integer(self, name: str, default: Any = REQUIRED, most: int = 1 << 20) -> int:
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise ValueError(self._wrong(name, f"a whole number from 0 to {most}", value))
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, int) or value not in (0, 1):
            raise ValueError(self._wrong(name, "true or false", value))
        return bool(value)

    def text(self, name: str, default: Any = REQUIRED) -> str:
        """A text, or the value of an enum's member, which is what a call of an unknown class with it was."""
        value = self._get(name, default)
        if isinstance(value, Inert) and value.args is not None and len(value.args) == 1:
            (value,) = value.args
        if not isinstance(value, str):
            raise ValueError(self._wrong(name, "a text", value))
        return value

    def raw(self, name: str, default: Any = REQUIRED) -> Any:
        return self._get(name, default)

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is REQUIRED:
                raise ValueError(f"{self.where}: {name} is missing")
            return default
        return value

    def _wrong(self, name: str, expected: str, found: Any) -> str:
        return f"{self.where}: {name} is {describe(found)}; expected {expected}"


def describe(value: Any) -> str:
    """A short word on any value out of a file; a crafted one could print for ever."""
    if isinstance(value, Inert):
        return f"an object of {value.path}, which is not read here"
    if isinstance(value, str):
        return repr(value[:80])
    if (
        isinstance(value, (bool, float))
        or value is None
        or isinstance(value, int)
        and value.bit_length() < 64
    ):
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}"


def named_arrays(state: Any, where: str) -> dict[str, np.ndarray]:
    """The tensors of a state dict. Raises ValueError for anything in it that is no array of numbers.

    Also for tensors that share their storages so much that copies of them would outgrow the file.
    """
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{where}: expected named tensors, found {describe(state)}")
    for name, value in state.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{where}: {describe(name)} as the name of a tensor")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise ValueError(f"{where}: {describe(name)} is {describe(value)}; expected a tensor")
    claimed, held = sum(array.nbytes for array in state.values()), _bytes_held(state.values())
    if claimed > MAX_SHARING * held:
        raise ValueError(f"{where}: its tensors would take {claimed} bytes, the file has {held} of them")
    return state


def _bytes_held(arrays: Iterable[np.ndarray]) -> int:
    """Bytes of memory under the arrays, each counted once."""
    total = reached = 0
    for first, last in sorted(map(_extent, arrays)):
        total += max(0, last - max(first, reached))
        reached = max(reached, last)
    return total


def _extent(array: np.ndarray) -> tuple[int, int]:
    """Addresses of the first byte and of the one behind the last; strides are never below 0 here."""
    first = array.__array_interface__["data"][0]
    steps = sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True))
    return first, first + (steps + array.itemsize if array.size else 0)
