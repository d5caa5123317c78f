"""Tensors and arrays as pickles describe them: types, storages, and sizes checked before they are used."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from speechgpt.data.inert_record import Inert

MAX_DIMENSIONS = 32
STORAGE_TYPES = {  # torch storage class -> numpy type; bfloat16 is read as its bits
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "UntypedStorage": "u1",
}
TENSOR_TYPES = {  # torch dtype -> numpy type, for tensors over untyped storages
    **{"float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": "bfloat16", "bool": "?"},
    **{"int64": "i8", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1"},
    **{"double": "f8", "float": "f4", "half": "f2", "long": "i8", "int": "i4"},
}
PLAIN_KINDS = "biufcSU"  # of numpy types; records, dates and objects are not numbers

# Key of a storage to its bytes (n,) uint8. Raises ValueError when the file has none.
Storages = Callable[[str], np.ndarray]


def item_size(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def storage_id(raw: Inert) -> tuple[str, str, int, tuple[int, int] | None]:
    """(numpy type, key, count, (first, count) of a view) of torch's ("storage", class, key, place, count)."""
    args = raw.args or ()
    if len(args) < 5 or args[0] != "storage" or not isinstance(args[1], Inert):
        raise ValueError("a persistent id that names no storage")
    kind = STORAGE_TYPES.get(args[1].name)
    if kind is None or args[1].module.partition(".")[0] != "torch":
        raise ValueError(f"a storage of class {args[1].path}, which is not read here")
    if not isinstance(args[2], (str, int)):  # and never str() of it: what shares its parts prints for ever
        raise ValueError("a storage whose key is no name")
    (count,) = check_sizes((args[4],))
    view = args[5] if len(args) > 5 else None
    if view is not None:
        if not isinstance(view, tuple) or len(view) != 3:
            raise ValueError("a view of a storage that names no part of it")
        view = check_sizes(view[1:])
    return kind, str(args[2])[:100], count, view


def check_sizes(values: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets that can be computed with: whole numbers of at most 63 bits, 0 and up."""
    good = isinstance(values, (tuple, list)) and len(values) <= MAX_DIMENSIONS
    if not good or any(type(v) is not int or not 0 <= v < 1 << 62 for v in values):
        raise ValueError("a tensor or array whose shape is no shape")
    return tuple(values)


def array_from(data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    """An array over the bytes, which must be exactly those of the shape."""
    shape = check_sizes(shape if isinstance(shape, (tuple, list)) else (shape,))
    if not isinstance(data, bytes) or not isinstance(dtype, np.dtype) or dtype.kind not in PLAIN_KINDS:
        raise ValueError("a numpy array of contents that are no numbers")
    if len(data) != math.prod(shape) * dtype.itemsize or not dtype.itemsize:
        raise ValueError(f"a numpy array of shape {shape} with {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
