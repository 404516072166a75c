"""Reads the header of a qcow2 image, with its extensions, as QEMU does. Each number is checked before it is used."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_SNAPSHOTS = 4096  # QEMU allows 65,536, but then each `qemu-img info` takes seconds and hundreds of MB
MAX_REFCOUNT_ORDER = 6
MAX_OFFSET = (1 << 63) - 1
MAX_NAME_BYTES = 1023  # QEMU's limit for the name of a backing file
VERSION_WITH_FEATURES = 3
DIRTY, CORRUPT, NEEDS_DATA_FILE = 1 << 0, 1 << 1, 1 << 2  # bits of the incompatible features

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
HEAD_BYTES = _HEADER.size + _HEADER_V3.size
_EXTENSION = struct.Struct(">II")
_EXTENSION_ALIGNMENT = 8
_BACKING_FORMAT = 0xE2792ACA


class TablesUnreadable(Exception):
    """The file cannot be read, or is not a valid qcow2 image; the text names the first problem."""


@dataclass(frozen=True, kw_only=True)
class Header:
    version: int
    cluster_bits: int
    virtual_bytes: int
    l1_entries: int
    l1_at: int
    snapshots: int
    snapshots_at: int
    incompatible_features: int
    refcount_order: int
    backing_at: int
    backing_bytes: int
    header_bytes: int

    @property
    def dirty(self) -> bool:
        return bool(self.incompatible_features & DIRTY)

    @property
    def corrupt(self) -> bool:
        return bool(self.incompatible_features & CORRUPT)

    @property
    def needs_data_file(self) -> bool:
        return bool(self.incompatible_features & NEEDS_DATA_FILE)


def header_of(head: bytes) -> Header:
    """Parse the first HEAD_BYTES of an image. Raises TablesUnreadable."""
    if len(head) < _HEADER.size:
        raise TablesUnreadable("it is shorter than a header")
    magic, version, backing_at, backing_bytes, cluster_bits, size, _, l1_entries, l1_at, _, _, snapshots, at = (
        _HEADER.unpack_from(head)
    )
    if magic != MAGIC or version not in {2, 3}:
        raise TablesUnreadable("it is not qcow2 of version 2 or 3")
    features, refcount_order, header_bytes = 0, 4, _HEADER.size
    if version == VERSION_WITH_FEATURES:
        if len(head) < HEAD_BYTES:
            raise TablesUnreadable("it is shorter than a header")
        features, _, _, refcount_order, header_bytes = _HEADER_V3.unpack_from(head, _HEADER.size)
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise TablesUnreadable(f"its cluster_bits are out of range: {cluster_bits}")
    if refcount_order > MAX_REFCOUNT_ORDER:
        raise TablesUnreadable(f"its refcount_order is out of range: {refcount_order}")
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_bytes=size,
        l1_entries=l1_entries,
        l1_at=l1_at,
        snapshots=snapshots,
        snapshots_at=at,
        incompatible_features=features,
        refcount_order=refcount_order,
        backing_at=backing_at,
        backing_bytes=backing_bytes,
        header_bytes=header_bytes,
    )


def header_in(file: int) -> Header:
    """The header of an open image. Raises TablesUnreadable or OSError."""
    return header_of(os.pread(file, HEAD_BYTES, 0))


def backing_in(file: int, header: Header) -> tuple[str, str | None] | None:
    """The backing file's name and format, as an open image states them; None if it has none.

    Raises TablesUnreadable or OSError.
    """
    if not header.backing_at:
        return None
    cluster = 1 << header.cluster_bits
    if header.backing_at > cluster or header.backing_bytes > min(MAX_NAME_BYTES, cluster - header.backing_at):
        raise TablesUnreadable("the name of its backing file is too long")
    first = os.pread(file, cluster, 0)
    name = first[header.backing_at : header.backing_at + header.backing_bytes].partition(b"\0")[0]
    form = next((data for kind, data in _extensions(first, header) if kind == _BACKING_FORMAT), None)
    return os.fsdecode(name), form.partition(b"\0")[0].decode(errors="replace") if form else None


def _extensions(first: bytes, header: Header) -> Iterator[tuple[int, bytes]]:
    """Type and data of each extension in the first cluster."""
    at, end = header.header_bytes, header.backing_at or len(first)
    while at + _EXTENSION.size <= end:
        kind, size = _EXTENSION.unpack_from(first, at)
        at += _EXTENSION.size
        if not kind:
            return
        if size > end - at:
            raise TablesUnreadable("an extension of its header is too long")
        yield kind, first[at : at + size]
        at += -(-size // _EXTENSION_ALIGNMENT) * _EXTENSION_ALIGNMENT
