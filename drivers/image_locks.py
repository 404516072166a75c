"""Tells who holds an image, from the byte locks of QEMU and qemu-img. Takes no lock itself.

QEMU locks byte 100 + N for each permission that it uses on the image, and byte 200 + N for each that it denies to
others (`block/file-posix.c`; N as in `BLK_PERM_*`). Every process of the node sees these locks, and so do other nodes
on a shared file system that supports locks.
"""

import fcntl
import os
import struct
from enum import StrEnum

from drivers import safe_files

_DOES, _FORBIDS = 100, 200
_WRITE, _RESIZE = 1, 3  # bits of BLK_PERM_*
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux


class Holder(StrEnum):
    WRITER = "writer"
    READER = "reader"  # denies writes to others: a VM with this image as its base, a backup, a copy


def holder(path: str) -> Holder | None:
    """The kind of program that holds the file; None if nothing prevents writing to it. Raises OSError."""
    file = safe_files.opened(path, os.O_RDONLY)
    try:
        if _locked(file, _DOES + _WRITE) or _locked(file, _DOES + _RESIZE):
            return Holder.WRITER
        if _locked(file, _FORBIDS + _WRITE) or _locked(file, _FORBIDS + _RESIZE):
            return Holder.READER
        return None
    finally:
        os.close(file)


def _locked(file: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind = _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
    return bool(kind != fcntl.F_UNLCK)
