"""Reading what a file announces without believing it: no memory for bytes that do not come."""

import bz2
import io
import lzma
import zlib
from typing import Any, BinaryIO

MAX_LINE = 1 << 16  # bytes of a text opcode's argument (names, and numbers of protocol 0)
CHUNK = 1 << 20  # bytes read at a time where a size is only claimed
LZMA_MEMORY = 1 << 28  # bytes; the strongest preset wants 65 MiB, a header can ask for 4 GiB


class Budget:
    """Bytes that may be taken beyond those of the file, because small records can ask for large copies."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"its values take more than {self._limit} bytes (max_bytes)")


class Reader:
    """Reads exactly what it is asked for, or says that the file ends too early.

    `limit` bounds what may be read in all, `size` is the file's where it is known; no memory is taken for
    bytes that do not come.
    """

    def __init__(self, file: BinaryIO, limit: int, size: int | None = None) -> None:
        self._file = file
        self._limit = limit
        self._size = size
        self._read = 0

    def tell(self) -> int:
        return self._read

    def read(self, size: int) -> bytes:
        if size < 0:
            raise ValueError(f"a size of {size} bytes")
        self._check(size)
        if size <= CHUNK:
            data = self._file.read(size)
        else:
            pieces = bytearray()
            while len(pieces) < size and (piece := self._file.read(min(CHUNK, size - len(pieces)))):
                pieces += piece
            data = bytes(pieces)
        self._read += len(data)
        if len(data) < size:
            raise ValueError(f"ends after {self._read} bytes, in the middle of {size} that it announced")
        return data

    def readline(self) -> bytes:
        line = self._file.readline(MAX_LINE)
        self._read += len(line)
        self._check(0)
        if len(line) == MAX_LINE:
            raise ValueError(f"a line of more than {MAX_LINE} bytes")
        return line

    def _check(self, size: int) -> None:
        if self._size is not None and self._read + size > self._size:
            raise ValueError(f"ends after {self._size} bytes, where {size} more are announced")
        if self._read + size > self._limit:
            raise ValueError(f"holds or claims more than {self._limit} bytes (max_bytes)")


class Inflated(io.RawIOBase):
    """What a compressed file holds (zlib, gzip, bz2, lzma or xz by its first bytes), a piece at a time."""

    def __init__(self, file: BinaryIO, magic: bytes) -> None:
        self._file = file
        self._pending = b""
        if magic.startswith(b"BZ"):
            self._machine: Any = bz2.BZ2Decompressor()
        elif magic.startswith((b"\xfd7zXZ", b"\x5d\x00")):
            self._machine = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
        else:
            self._machine = zlib.decompressobj(wbits=47)  # 32 + 15: zlib or gzip

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._machine.eof:
            # zlib hands back what it did not get to; the other two keep it.
            hungry = getattr(self._machine, "needs_input", True)
            data = self._pending or (self._file.read(CHUNK) if hungry else b"")
            found = self._machine.decompress(data, len(buffer))
            self._pending = getattr(self._machine, "unconsumed_tail", b"")
            if found:
                buffer[: len(found)] = found
                return len(found)
            if hungry and not data:
                raise ValueError("the compressed data ends too early")
        return 0
