"""Records of a pickle to plain values: the few constructors that checkpoints use, each rebuilt by our code.

torch's tensors and numpy's and joblib's arrays become numpy arrays; OrderedDict, argparse.Namespace and
omegaconf's nodes become dicts and lists. Every other class stays an `Inert` record.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from speechgpt.data.bounded_reader import Budget, Reader
from speechgpt.data.inert_arrays import (
    PLAIN_KINDS,
    TENSOR_TYPES,
    Storages,
    array_from,
    check_sizes,
    item_size,
    storage_id,
)
from speechgpt.data.inert_record import PERSISTENT, Inert, check_key
from speechgpt.data.pickle_machine import Machine

MAX_DEPTH = 100  # containers inside containers
# Bytes of CPython 3.12, rounded up.
PAIR_BYTES = 180  # a tuple of two, its place in a list, and 110 in a dict that grows
CONTAINER_BYTES = 450  # an empty one, and its place in the two tables of what is open and done


class Plain:
    """Turns what the machine left into plain values, each record once, however often it is shared."""

    def __init__(
        self,
        budget: Budget,
        storages: Storages | None = None,
        swapped: bool = False,
        bits: bool = False,
    ) -> None:
        self._budget = budget
        self._storages = storages
        self._swapped = swapped  # the file was written on a machine of the other byte order
        self._bits = bits  # bfloat16 stays as it is, uint16
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def value(self, raw: Any, depth: int = 0) -> Any:
        """Raises ValueError for containers that hold themselves, or nest too deep."""
        if isinstance(raw, bytearray):
            self._budget.take(len(raw))
            return bytes(raw)
        if not isinstance(raw, (dict, list, tuple, set, frozenset, Inert)):
            return raw
        key = id(raw)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            if isinstance(raw, Inert):  # objects know their parents; a record is never walked by itself
                return raw
            raise ValueError("a container that holds itself")
        each = PAIR_BYTES if isinstance(raw, dict) else 8
        self._budget.take(CONTAINER_BYTES + (0 if isinstance(raw, Inert) else each * len(raw)))
        self._open.add(key)
        self._done[key] = found = self._convert(raw, depth + 1)
        self._open.discard(key)
        return found

    def _convert(self, raw: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"values nested more than {MAX_DEPTH} deep")
        if isinstance(raw, dict):
            return {self._key(k, depth): self.value(v, depth) for k, v in raw.items()}
        if isinstance(raw, tuple):
            return tuple(self.value(v, depth) for v in raw)
        if not isinstance(raw, Inert):
            return [self.value(v, depth) for v in raw]
        if raw.args is not None:
            if rebuild := _CONSTRUCTORS.get((raw.module.partition(".")[0], raw.name)):
                return rebuild(self, raw, depth)
            if raw.module.startswith("omegaconf."):
                return self._omegaconf(raw, depth)
            raw.args = self.value(raw.args, depth)
        raw.state = self.value(raw.state, depth)
        raw.items = self.value(raw.items, depth)
        raw.pairs = self.value(raw.pairs, depth)
        return raw

    def _key(self, key: Any, depth: int) -> Any:
        found = self.value(key, depth) if isinstance(key, Inert) else key
        return found if isinstance(found, (str, bytes, int, float)) else key

    # ---- containers
    def _mapping(self, raw: Inert, depth: int) -> dict:
        """OrderedDict, defaultdict (its factory comes first), Counter."""
        pairs: list = []
        for argument in raw.args:
            given = self.value(argument, depth)
            if isinstance(given, (dict, list)):
                self._budget.take(PAIR_BYTES * len(given))
            if isinstance(given, dict):
                pairs += given.items()
            elif isinstance(given, list):  # Python 2 gave the pairs, each a list
                pairs += [tuple(p) if isinstance(p, (list, tuple)) and len(p) == 2 else None for p in given]
        self._budget.take(PAIR_BYTES * len(raw.pairs or ()))
        pairs += [(self._key(k, depth), self.value(v, depth)) for k, v in raw.pairs or ()]
        if None in pairs:
            raise ValueError(f"a {raw.path} of things that are no pairs of key and value")
        return {check_key(key): value for key, value in pairs}

    def _namespace(self, raw: Inert, depth: int) -> dict:
        state = self.value(raw.state, depth)
        if not isinstance(state, dict):
            raise ValueError("an argparse.Namespace without attributes")
        return state

    def _omegaconf(self, raw: Inert, depth: int) -> Any:
        """What a node holds. Its parent and its declared types are left alone."""
        state = raw.state
        if isinstance(state, dict) and "_content" in state:
            return self.value(state["_content"], depth)
        if isinstance(state, dict) and "_val" in state:
            return self.value(state["_val"], depth)
        return raw

    def _set(self, raw: Inert, depth: int) -> list:
        members = self.value(raw.args[0], depth) if len(raw.args) == 1 else []
        return members if isinstance(members, list) else []

    def _encoded(self, raw: Inert, depth: int) -> bytes:
        """How Python 3 writes bytes in old protocols: text, and the codec that gives the bytes back."""
        text = raw.args[0] if raw.args else None
        if not isinstance(text, str) or raw.args[1:] not in (("latin1",), ("latin-1",)):
            raise ValueError("bytes written in a codec other than latin-1")
        self._budget.take(len(text))
        return text.encode("latin-1")

    # ---- numpy
    def _dtype(self, raw: Inert, depth: int) -> "np.dtype | Inert":
        """Types of plain numbers and texts; records and dates stay inert."""
        code, state = raw.args[0] if raw.args else None, raw.state
        if isinstance(code, bytes):
            code = code.decode("latin-1")
        if not isinstance(code, str) or len(code) > 12 or code.lstrip("<>=|")[:1] not in (*PLAIN_KINDS, "O"):
            return raw
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        try:
            found = np.dtype(code)
        except TypeError as error:
            raise ValueError("a numpy type that numpy does not know") from error
        if isinstance(order, bytes):
            order = order.decode("latin-1")
        return found.newbyteorder(order) if order in ("<", ">") else found

    def _array(self, raw: Inert, depth: int) -> Any:
        """ndarray from the state (version, shape, type, Fortran order, bytes)."""
        state = raw.state if isinstance(raw.state, tuple) else ()
        if len(state) != 5:
            raise ValueError("a numpy array without contents")
        _, shape, dtype, fortran, data = (self.value(part, depth) for part in state)
        if isinstance(dtype, Inert):
            return raw
        if isinstance(data, list):  # an array of objects
            return data
        return array_from(self._bytes(data), dtype, shape, bool(fortran))

    def _bytes(self, data: Any) -> Any:
        """Python 2 wrote bytes as text; every array over one text is a copy of it."""
        if not isinstance(data, str):
            return data
        self._budget.take(len(data))
        return data.encode("latin-1")

    def _wrapped(self, raw: Inert, depth: int) -> Any:
        """joblib's wrapper: its array was read when the machine came past it."""
        return self.value(raw.state, depth)

    def _array_from_buffer(self, raw: Inert, depth: int) -> np.ndarray:
        """How protocol 5 writes arrays: (bytes, type, shape, order)."""
        args = [self.value(part, depth) for part in raw.args]
        if len(args) != 4:
            raise ValueError("a numpy array without contents")
        return array_from(self._bytes(args[0]), args[1], args[2], args[3] == "F")

    def _scalar(self, raw: Inert, depth: int) -> Any:
        args = [self.value(part, depth) for part in raw.args]
        if len(args) != 2:
            raise ValueError("a numpy number without a value")
        found = array_from(self._bytes(args[1]), args[0], (), False)
        self._budget.take(found.nbytes)  # a text is a copy
        return found.item()

    # ---- torch
    def _storage(self, raw: Any) -> tuple[np.ndarray, str]:
        """The bytes that a persistent id stands for, no more than it claims, and their type."""
        if not isinstance(raw, Inert) or raw.name != PERSISTENT or self._storages is None:
            raise ValueError("a tensor without a storage")
        kind, key, count, view = storage_id(raw)
        found = self._storages(key)
        size, itemsize = count * item_size(kind), item_size(kind)
        start = 0
        if view is not None:
            start, size = view[0] * itemsize, view[1] * itemsize
        if start + size > len(found):
            raise ValueError(f"storage {key[:40]} claims {start + size} bytes, the file has {len(found)}")
        return found[start : start + size], kind

    def _tensor(self, raw: Inert, depth: int) -> np.ndarray:
        """_rebuild_tensor(_v2)(storage, offset, size, stride, ...), v3 with the type as seventh."""
        if len(raw.args) < 4:
            raise ValueError("a tensor of too few parts")
        data, kind = self._storage(raw.args[0])
        if raw.name == "_rebuild_tensor_v3":
            named = raw.args[6] if len(raw.args) > 6 else None
            kind = TENSOR_TYPES.get(named.name if isinstance(named, Inert) else "", "")
            if not kind:
                raise ValueError("a tensor of a type that is not read here")
        shape, strides = self.value(raw.args[2], depth), self.value(raw.args[3], depth)
        return self._view(data, kind, raw.args[1], shape, strides)

    def _view(self, data: np.ndarray, kind: str, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        count = len(data) // item_size(kind)
        shape, strides = check_sizes(shape), check_sizes(strides)
        (offset,) = check_sizes((offset,))
        if len(shape) != len(strides):
            raise ValueError("a tensor with as many strides as it has no dimensions")
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and (last >= count or math.prod(shape) > count):
            raise ValueError(f"a tensor of shape {shape} in a storage of {count} numbers")
        bits = kind == "bfloat16"
        dtype = np.dtype("u2" if bits else kind).newbyteorder("S" if self._swapped else "=")
        size = dtype.itemsize
        if not math.prod(shape):
            return np.zeros(shape, np.float32 if bits else dtype)
        found = np.ndarray(
            shape, dtype, data[: count * size], offset * size, tuple(step * size for step in strides)
        )
        if not bits or self._bits:
            return found
        self._budget.take(4 * found.size)
        return (found.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)

    def _parameter(self, raw: Inert, depth: int) -> Any:
        if not raw.args:
            raise ValueError("a parameter without a tensor")
        return self.value(raw.args[0], depth)

    def _of_type(self, raw: Inert, depth: int) -> Any:
        """_rebuild_from_type_v2(function, type, arguments, state): the type adds nothing to the numbers."""
        if len(raw.args) < 3 or not isinstance(raw.args[0], Inert) or not isinstance(raw.args[2], tuple):
            raise ValueError("a tensor of too few parts")
        inner = Inert(raw.args[0].module, raw.args[0].name, raw.args[2])
        return self._convert(inner, depth + 1)

    def _size(self, raw: Inert, depth: int) -> Any:
        return check_sizes(self.value(raw.args[0] if raw.args else (), depth))


def read_joblib_array(record: Inert, reader: Reader, machine: Machine) -> None:
    """joblib puts an array's bytes right behind the record that describes it; they become its state."""
    if record.name != "NumpyArrayWrapper" or record.module.rpartition(".")[2] != "numpy_pickle":
        return
    state = record.state if isinstance(record.state, dict) else {}
    dtype = Plain(machine.budget).value(state.get("dtype"))
    shape = check_sizes(state.get("shape"))
    if not isinstance(dtype, np.dtype):
        raise ValueError("a joblib array without a type")
    if dtype.kind == "O":  # a whole pickle of its own
        record.state = machine.load_nested()
        return
    if state.get("numpy_array_alignment_bytes") is not None:  # joblib 1.2 and later
        reader.read(reader.read(1)[0])
    data = reader.read(math.prod(shape) * dtype.itemsize)
    record.state = array_from(data, dtype, shape, state.get("order") == "F")


_CONSTRUCTORS: dict[tuple[str, str], Callable[[Plain, Inert, int], Any]] = {
    **{("collections", name): Plain._mapping for name in ("OrderedDict", "defaultdict", "Counter")},
    ("argparse", "Namespace"): Plain._namespace,
    **{(module, "set"): Plain._set for module in ("builtins", "__builtin__")},
    ("_codecs", "encode"): Plain._encoded,
    ("numpy", "dtype"): Plain._dtype,
    ("numpy", "_reconstruct"): Plain._array,
    ("numpy", "ndarray"): Plain._array,
    ("numpy", "_frombuffer"): Plain._array_from_buffer,
    ("numpy", "scalar"): Plain._scalar,
    **{("torch", f"_rebuild_tensor{v}"): Plain._tensor for v in ("", "_v2", "_v3")},
    ("torch", "_rebuild_parameter"): Plain._parameter,
    ("torch", "_rebuild_parameter_with_state"): Plain._parameter,
    ("torch", "_rebuild_from_type_v2"): Plain._of_type,
    ("torch", "Size"): Plain._size,
    **{(package, "NumpyArrayWrapper"): Plain._wrapped for package in ("joblib", "sklearn")},
}
