"""The metadata of a GGUF file (v2, v3), without its tensors.

Reads the header of a file of any size in a fraction of a second, where ``gguf.GGUFReader``
builds several numpy views for each of the hundred thousands of strings of a vocabulary.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS: dict[int, tuple[str, str]] = {  # value type: struct format, numpy type
    0: ("<B", "u1"),
    1: ("<b", "i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<?", "?"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
_STRING, _ARRAY = 8, 9
_MIN_ENTRY_BYTES = 13  # a key of no bytes, its type, and a value of one byte


class GGUFError(ValueError):
    """The file is not a GGUF file, or a damaged one."""


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All key-value pairs of the file.

    Returns:
        Numbers, booleans and strings as Python has them; arrays of strings as lists, arrays
        of numbers as numpy arrays. Bytes that are not UTF-8 become surrogate escapes.

    Raises:
        GGUFError: not a GGUF file of version 2 or 3, or it ends too early.
        OSError: the file cannot be read.
    """
    name = os.fspath(path)
    with Path(name).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 24:
            raise GGUFError(f"{name} is not a GGUF file: it holds {size} bytes")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(name, data).metadata()


class _Reader:
    def __init__(self, name: str, data: mmap.mmap) -> None:
        self.name = name
        self.data = data
        self.at = 0

    def metadata(self) -> dict[str, Any]:
        magic = self.take(4)
        if magic != b"GGUF":
            raise GGUFError(f"{self.name} is not a GGUF file: it begins with {magic!r}")
        version = self.scalar("<I")
        if version not in (2, 3):
            raise GGUFError(
                f"{self.name} is GGUF version {version}; "
                "versions 2 and 3 (little-endian) can be read"
            )
        self.scalar("<Q")  # tensors
        count = self.scalar("<Q")
        if count * _MIN_ENTRY_BYTES > len(self.data):
            raise GGUFError(
                f"{self.name} is damaged: its header announces {count} metadata entries"
            )
        result: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            result[key] = self.value(key, self.scalar("<I"))
        return result

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise GGUFError(f"{self.name} is cut off: {n} bytes wanted at offset {self.at}")
        part = self.data[self.at : self.at + n]
        self.at += n
        return part

    def scalar(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8", "surrogateescape")

    def value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind = self.scalar("<I")
            count = self.scalar("<Q")
            if kind == _STRING:
                return self.strings(key, count)
            if kind in _SCALARS:
                element = np.dtype(_SCALARS[kind][1])
                return np.frombuffer(self.take(count * element.itemsize), dtype=element)
            raise GGUFError(f"{self.name}: the array '{key}' has elements of type {kind}")
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind][0])
        raise GGUFError(f"{self.name}: '{key}' is of the unknown value type {kind}")

    def strings(self, key: str, count: int) -> list[str]:
        if count * 8 > len(self.data) - self.at:
            raise GGUFError(f"{self.name} is damaged: '{key}' announces {count} strings")
        # The one loop that runs hundreds of thousands of times: no calls of our own in it.
        data, at, end = self.data, self.at, len(self.data)
        length_at = struct.Struct("<Q").unpack_from
        result: list[str] = []
        for _ in range(count):
            if at + 8 > end:
                raise GGUFError(f"{self.name} is cut off inside '{key}'")
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > end:
                raise GGUFError(f"{self.name} is cut off inside '{key}'")
            result.append(data[start:at].decode("utf-8", "surrogateescape"))
        self.at = at
        return result
