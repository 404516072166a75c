"""Dirty bitmaps of a qcow2 image, set aside while the image is repaired.

`qemu-img check -r` reads an image's snapshots only after it has opened it. Where it finds a bitmap that it may use it
writes the header before that, with no snapshots: all of them are lost, also of an image that is not damaged (QEMU 7.2:
`qcow2_load_dirty_bitmaps` comes before `qcow2_check_read_snapshot_table`). A bitmap that is marked as in use, as a
killed QEMU leaves it, is left alone. So each is marked, in its place, before a repair, and afterwards as it was: a
process that dies in between leaves bitmaps that every tool refuses.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

MAGIC = b"QFI\xfb"
VERSION_WITH_FEATURES = 3
BITMAPS = 1  # the header's autoclear bit: the extension is up to date
EXTENSION = 0x23852875
IN_USE = 1
MAX_DIRECTORY_BYTES = 4 << 20  # far above what a backup tool makes: a server has one bitmap for each backup in a chain
MAX_CLUSTER_BITS = 21

_AUTOCLEAR_AT, _HEADER_BYTES_AT, _CLUSTER_BITS_AT = 88, 100, 20
_EXTENSION = struct.Struct(">II")
_POINTER = struct.Struct(">IIQQ")  # how many, reserved, bytes and offset of the directory
_ENTRY = struct.Struct(">QIIBBHI")  # table: offset, size; flags; type; granularity; bytes of the name, of extra data
_FLAGS_AT = 12
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")


class BitmapsUnreadable(Exception):
    """The image's bitmaps make no sense, or its header would be written anew by a mere opening."""


@dataclass(frozen=True)
class _Directory:
    offset: int
    content: bytes

    @property
    def marked(self) -> Self:
        """With every bitmap in use."""
        marked = bytearray(self.content)
        for at in _flags_at(self.content):
            (flags,) = _U32.unpack_from(self.content, at)
            _U32.pack_into(marked, at, flags | IN_USE)
        return replace(self, content=bytes(marked))


@dataclass(frozen=True)
class Aside:
    """The bitmaps of an image that are set aside; None: it has none that need it."""

    path: str
    was: _Directory | None

    def put_back(self) -> None:
        """Blocks. Those of which anything was changed meanwhile stay in use."""
        if self.was is None:
            return
        with suppress(BitmapsUnreadable):
            if _read(self.path) == self.was.marked:
                _write(self.path, self.was)


def set_aside(path: str) -> Aside:
    """Nobody else may hold the image. Blocks. Raises BitmapsUnreadable or OSError before any change."""
    found = _read(path)
    if found is None or found.marked == found:
        return Aside(path, None)
    _write(path, found.marked)
    return Aside(path, found)


def _read(path: str) -> _Directory | None:
    """None: the image has no bitmaps."""
    with Path(path).open("rb") as file:
        header = file.read(1 << MAX_CLUSTER_BITS)
        if header[:4] != MAGIC or len(header) < _HEADER_BYTES_AT + 4:
            raise BitmapsUnreadable("no qcow2 header")
        if _U32.unpack_from(header, 4)[0] < VERSION_WITH_FEATURES:
            return None
        (autoclear,) = _U64.unpack_from(header, _AUTOCLEAR_AT)
        if autoclear & ~(BITMAPS | 2):
            raise BitmapsUnreadable("features that are not known here")
        pointer = _extension(header)
        if pointer is None:
            return None
        if not autoclear & BITMAPS:
            raise BitmapsUnreadable("a program that knows no bitmaps has changed the image")
        _count, _reserved, size, offset = pointer
        if not 0 < size <= MAX_DIRECTORY_BYTES:
            raise BitmapsUnreadable("too many bitmaps")
        if offset + size > os.fstat(file.fileno()).st_size:
            raise BitmapsUnreadable("the bitmaps lie behind the end of the file")
        file.seek(offset)
        content = file.read(size)
    return _Directory(offset, content)


def _extension(header: bytes) -> tuple[int, int, int, int] | None:
    (bits,) = _U32.unpack_from(header, _CLUSTER_BITS_AT)
    end = min(len(header), 1 << min(bits, MAX_CLUSTER_BITS))
    (at,) = _U32.unpack_from(header, _HEADER_BYTES_AT)
    while at + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(header, at)
        if not kind:
            return None
        if kind == EXTENSION:
            if size != _POINTER.size or at + _EXTENSION.size + size > end:
                raise BitmapsUnreadable("the pointer to the bitmaps makes no sense")
            return _POINTER.unpack_from(header, at + _EXTENSION.size)
        at += _EXTENSION.size + -(-size // 8) * 8
    return None


def _flags_at(content: bytes) -> Iterator[int]:
    at = 0
    while at + _ENTRY.size <= len(content):
        *_, name_bytes, extra_bytes = _ENTRY.unpack_from(content, at)
        yield at + _FLAGS_AT
        at += -(-(_ENTRY.size + name_bytes + extra_bytes) // 8) * 8


def _write(path: str, directory: _Directory) -> None:
    with Path(path).open("r+b") as file:
        file.seek(directory.offset)
        file.write(directory.content)
        file.flush()
        os.fsync(file.fileno())
