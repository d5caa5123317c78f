"""Foreign checkpoints as plain values, without the packages that wrote them: torch files and pickles.

`read_inert` reads what torch.save wrote (the zip of torch 1.6 and later, and the older format), and pickles,
joblib's among them, raw or compressed. No class that a file names is imported or called (`pickle_machine`).
The tensors of a torch file are views of the mapped file, so what nobody looks at is never read.
"""

import io
import lzma
import mmap
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from speechgpt.data.bounded_reader import Budget, Inflated, Reader
from speechgpt.data.inert_arrays import Storages, item_size, storage_id
from speechgpt.data.inert_record import Inert
from speechgpt.data.inert_values import Plain, read_joblib_array
from speechgpt.data.pickle_machine import Machine

__all__ = ["Inert", "read_inert"]

MAX_BYTES = 1 << 30
MAX_DIRECTORY = 1 << 24  # bytes of a zip's list of members: 200,000 tensors
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's older format
ZIP_MAGIC, ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
COMPRESSED = (  # zlib at its four levels, gzip, bz2, xz, lzma
    *(b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"),
    *(b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00"),
)
# First bytes of what looks like a checkpoint to its owner and is none of these formats.
OTHERS = {
    b"\x04\x22\x4d\x18": "joblib compressed with lz4; save it again with compress='zlib'",
    b"\x28\xb5\x2f\xfd": "zstd; decompress it first",
    b"ZF": "joblib before 0.10; load it there and save it again",
    b"version https://git-lfs": "a git-lfs pointer, not the file itself; `git lfs pull` fetches it",
    b"<": "a web page or XML; the download went wrong",
    b"{": "JSON text",
}


def is_safetensors(magic: bytes) -> bool:
    """Their first eight bytes are the length of a header in JSON, under 100 MB."""
    return len(magic) > 8 and magic[5:9] == b"\0\0\0{"


def read_inert(path: str | Path, max_bytes: int = MAX_BYTES, bits: bool = False) -> Any:
    """The file's value: dicts, lists, tuples, str, bytes, numbers, None, numpy arrays and `Inert` records.

    Tensors of any float, int or bool type become arrays of the same type, bfloat16 float32, read-only; with
    `bits` bfloat16 stays in the file, as uint16. `max_bytes` bounds the memory for pickles, decompressed data
    and copies; mapped tensors cost none. Raises FileNotFoundError, or one ValueError that names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with naming(path), open(path, "rb") as file:
        magic = file.read(24)
        file.seek(0)
        if is_safetensors(magic):
            raise ValueError("is a safetensors file")
        for start, what in OTHERS.items():
            if magic.startswith(start):
                raise ValueError(f"is {what}")
        if magic.startswith(ZIP_MAGIC):
            return _read_zip(file, max_bytes, bits)
        if magic.startswith(COMPRESSED):
            unpacked: BinaryIO = io.BufferedReader(Inflated(file, magic))
            return _read_pickle(unpacked, max_bytes)
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise ValueError("is empty")
        file.seek(0)
        return _read_pickle(file, max_bytes, size, bits)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever is wrong with the file becomes one ValueError that begins with its name."""
    broken = (struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError)
    try:
        yield
    except (ValueError, EOFError, OverflowError, OSError, *broken) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the contents
        what = " ".join(str(error).split())[:300] or type(error).__name__
        what = "".join(c if c.isprintable() else "?" for c in what)  # names out of the file
        raise ValueError(f"{path}: cannot be read as a torch file or pickle: {what}") from error


def _read_pickle(stream: BinaryIO, limit: int, size: int | None = None, bits: bool = False) -> Any:
    """A pickle of joblib, of sklearn, or (in a raw file, of known size) the first of torch's older format."""
    reader = Reader(stream, limit, size)
    budget = Budget(limit)
    value = Machine(reader, budget, read_joblib_array).load()
    if isinstance(value, int) and value == TORCH_MAGIC and size is not None:
        return _read_old_torch(stream, reader, limit, bits)
    return Plain(budget).value(value)


def _read_old_torch(file: BinaryIO, reader: Reader, limit: int, bits: bool) -> Any:
    """Pickles of version, system, value and storage keys; then each storage as its count and its bytes."""
    data = _mapped(file)
    budget = Budget(limit + 2 * len(data))  # bfloat16 doubles
    version = Machine(reader, budget).load()
    system = Plain(budget).value(Machine(reader, budget).load())
    if version != 1001:
        raise ValueError("a torch file of an unknown version")
    machine = Machine(reader, budget)
    value, keys = machine.load(), Machine(reader, budget).load()
    kinds = {key: kind for kind, key, _, _ in map(storage_id, machine.persistent)}
    places: dict[str, np.ndarray] = {}
    position = reader.tell()
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in kinds:
            raise ValueError("a storage that no tensor names")
        count = int.from_bytes(data[position : position + 8].tobytes(), "little")
        size = count * item_size(kinds[key])
        position += 8
        if position + size > len(data):
            raise ValueError(f"storage {key[:40]} claims {size} bytes, the file ends before")
        places[key] = data[position : position + size]
        position += size
    swapped = isinstance(system, dict) and system.get("little_endian") is False
    return Plain(budget, _lookup(places), swapped, bits).value(value)


def _lookup(places: dict[str, np.ndarray]) -> Storages:
    def find(key: str) -> np.ndarray:
        if key not in places:
            raise ValueError(f"storage {key[:40]} is not in the file")
        return places[key]

    return find


def _mapped(file: BinaryIO) -> np.ndarray:
    """The whole file as bytes (n,) uint8 that are read when they are looked at."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def _read_zip(file: BinaryIO, max_bytes: int, bits: bool) -> Any:
    """NAME/data.pkl, NAME/byteorder and NAME/data/KEY; torch stores its members uncompressed."""
    _check_directory(file)
    data = _mapped(file)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(not 0 <= info.header_offset < len(data) for info in members.values()):
            raise ValueError("the zip's list of members points outside the file")
        pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("is a zip, but not one that torch.save wrote (no single data.pkl in it)")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in members:
            raise ValueError("is a TorchScript program, not a checkpoint")
        budget = Budget(max_bytes + 2 * len(data))  # bfloat16 doubles
        with archive.open(members[pickles[0]]) as stream:
            value = Machine(Reader(stream, max_bytes), budget).load()
        order = members.get(f"{root}byteorder")
        swapped = order is not None and order.file_size < 10 and archive.read(order) == b"big"

        def find(key: str) -> np.ndarray:
            info = members.get(f"{root}data/{key}")
            if info is None:
                raise ValueError(f"storage {key[:40]} is not in the file")
            if info.compress_type == zipfile.ZIP_STORED:
                return _member(data, info)
            budget.take(info.file_size)
            with archive.open(info) as stream:
                return np.frombuffer(Reader(stream, max_bytes).read(info.file_size), np.uint8)

        return Plain(budget, find, swapped, bits).value(value)


def _member(data: np.ndarray, info: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of an uncompressed member, behind its own header."""
    header = data[info.header_offset : info.header_offset + 30].tobytes()
    if len(header) < 30 or not header.startswith(ZIP_MAGIC):
        raise ValueError(f"member {info.filename[:60]} is not where the zip says")
    names, extra = struct.unpack("<HH", header[26:30])
    start = info.header_offset + 30 + names + extra
    if info.file_size != info.compress_size or start + info.file_size > len(data):
        raise ValueError(f"member {info.filename[:60]} claims {info.file_size} bytes, the file ends before")
    return data[start : start + info.file_size]


def _check_directory(file: BinaryIO) -> None:
    """zipfile reads the whole list of members at once: its size is looked at first."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 65_557))  # the end record and its longest comment
    tail = file.read()
    end = tail.rfind(ZIP_END)
    if end < 0 or len(tail) < end + 22:
        raise ValueError("the zip has no end; the file is cut short")
    (length,) = struct.unpack("<I", tail[end + 12 : end + 16])
    if length == 0xFFFFFFFF and end >= 76:  # zip64: its own end record, then a locator, then this one
        (length,) = struct.unpack("<Q", tail[end - 36 : end - 28])
    if length > MAX_DIRECTORY:
        raise ValueError(f"the zip's list of members claims {length} bytes")
    file.seek(0)
