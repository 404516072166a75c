"""Reads the tables of a qcow2 image from its file without locks: the header, the snapshot table, the L1 tables.

qemu-img does not report which clusters a snapshot holds, nor its time in nanoseconds. An image may come from a customer
and contain any numbers: each is checked against QEMU's limits before it is used, and the total size of reads is
bounded. This works while a VM uses the image, because QEMU writes a new snapshot table elsewhere before it updates the
header. The L1 tables are only valid while no VM uses it.
"""

import os
import stat
import struct
from dataclasses import dataclass, replace
from typing import NamedTuple

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_L1_BYTES = 32 << 20  # of one table; this and the next three are QEMU's limits
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS
MAX_EXTRA_BYTES = 1024
MAX_REFCOUNT_ORDER = 6
MAX_OFFSET = (1 << 63) - 1
READ_TRIES = 5  # if the header changes during the read
VERSION_WITH_FEATURES = 3

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
_ENTRY = struct.Struct(">QIHHIIQII")
_ENTRY_ALIGNMENT = 8
_U64 = struct.Struct(">Q")
_WITHOUT_COPIED = bytes(value & 0x7F for value in range(256))


class TablesUnreadable(Exception):
    """The file cannot be read, or is not a valid qcow2 image; the text names the first problem."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of the image's snapshot table."""

    id: str
    name: str
    stamp: str  # "SECONDS.NANOSECONDS" when it was taken: does not change when the file is moved
    virtual_bytes: int | None  # None: an old entry without it; the image was never resized since
    l1: bytes | None = None  # big-endian L1 entries without COPIED bits and trailing zeros; None: not read


@dataclass(frozen=True, kw_only=True)
class Tables:
    version: int
    virtual_bytes: int
    snapshots: tuple[Entry, ...]
    l1: bytes | None = None  # of the active disk, in the same form; None: not read

    def named(self, tag: str) -> tuple[Entry, ...]:
        """The snapshots of this name, of which qcow2 allows several. Ids are not compared."""
        return tuple(entry for entry in self.snapshots if entry.name == tag)

    def is_at(self, tag: str) -> bool:
        """Whether the disk is identical to the snapshot: any later write would have copied an L2 table and changed the
        L1 entry that points to it. False if the image lacks the tag or has it twice.

        Raises ValueError if the L1 tables were not read.
        """
        entries = self.named(tag)
        if len(entries) != 1:
            return False
        (entry,) = entries
        if self.l1 is None:
            raise ValueError("the L1 tables were not read: read(path, l1_of=tag)")
        return entry.l1 == self.l1 and entry.virtual_bytes in {None, self.virtual_bytes}


def read(path: str, *, l1_of: str | None = None) -> Tables:
    """Read the header and the snapshot table; with `l1_of`, also the L1 tables of the disk and of that snapshot.

    Blocks. Raises TablesUnreadable.
    """
    try:
        # opening a FIFO must not block
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TablesUnreadable("it is not a regular file")
            return _read(file.fileno(), l1_of)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TablesUnreadable(str(error)) from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _read(file: int, l1_of: str | None) -> Tables:
    for _ in range(READ_TRIES):
        head = _head(file)
        try:
            return _read_once(file, head, l1_of)
        except TablesUnreadable:
            if _head(file) == head:
                raise
        # the tables may have been replaced since the header was read
    raise TablesUnreadable("its header keeps changing")


def _read_once(file: int, head: bytes, l1_of: str | None) -> Tables:
    header = _header(head)
    found = _snapshot_table(file, header)
    reads_l1 = sum(entry.name == l1_of for entry, _, _ in found) == 1
    tables = Tables(
        version=header.version,
        virtual_bytes=header.virtual_bytes,
        snapshots=tuple(
            replace(entry, l1=_l1(file, header.cluster_bits, at, count)) if reads_l1 and entry.name == l1_of else entry
            for entry, at, count in found
        ),
        l1=_l1(file, header.cluster_bits, header.l1_at, header.l1_entries) if reads_l1 else None,
    )
    if _head(file) != head:
        raise TablesUnreadable("its header has changed")
    return tables


class _Header(NamedTuple):
    version: int
    cluster_bits: int
    virtual_bytes: int
    l1_entries: int
    l1_at: int
    snapshots: int
    snapshots_at: int


def _head(file: int) -> bytes:
    return os.pread(file, _HEADER.size + _HEADER_V3.size, 0)


def _header(head: bytes) -> _Header:
    if len(head) < _HEADER.size:
        raise TablesUnreadable("it is shorter than a header")
    magic, version, _, _, cluster_bits, size, _, l1_entries, l1_at, _, _, snapshots, snapshots_at = _HEADER.unpack_from(
        head
    )
    if magic != MAGIC or version not in {2, 3}:
        raise TablesUnreadable("it is not qcow2 of version 2 or 3")
    if version == VERSION_WITH_FEATURES:
        if len(head) < _HEADER.size + _HEADER_V3.size:
            raise TablesUnreadable("it is shorter than a header")
        _, _, _, refcount_order, _ = _HEADER_V3.unpack_from(head, _HEADER.size)
        if refcount_order > MAX_REFCOUNT_ORDER:
            raise TablesUnreadable(f"its refcount_order is out of range: {refcount_order}")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise TablesUnreadable(f"its cluster_bits are out of range: {cluster_bits}")
    if snapshots > MAX_SNAPSHOTS:
        raise TablesUnreadable(f"its number of snapshots is out of range: {snapshots}")
    if size > MAX_OFFSET or size > l1_entries << (2 * cluster_bits - 3):
        raise TablesUnreadable("its L1 table is too small for its size")
    return _Header(version, cluster_bits, size, l1_entries, l1_at, snapshots, snapshots_at)


def _snapshot_table(file: int, header: _Header) -> list[tuple[Entry, int, int]]:
    """Each snapshot with the offset of its L1 table and the number of its entries."""
    found = []
    at = _aligned(header.snapshots_at, header.cluster_bits) if header.snapshots else 0
    end = at + MAX_SNAPSHOT_TABLE_BYTES
    for _ in range(header.snapshots):
        fixed = _bytes_at(file, at, _ENTRY.size)
        l1_at, l1_entries, id_bytes, name_bytes, seconds, nanoseconds, _, _, extra_bytes = _ENTRY.unpack(fixed)
        if extra_bytes > MAX_EXTRA_BYTES:
            raise TablesUnreadable("a snapshot has too much extra data")
        rest = _bytes_at(file, at + _ENTRY.size, extra_bytes + id_bytes + name_bytes)
        at = -(-(at + _ENTRY.size + len(rest)) // _ENTRY_ALIGNMENT) * _ENTRY_ALIGNMENT
        if at > end:
            raise TablesUnreadable("its snapshot table is too long")
        extra = rest[:extra_bytes]
        has_size = extra_bytes >= 2 * _U64.size  # behind the size of the VM's memory
        entry = Entry(
            id=_text(rest[extra_bytes : extra_bytes + id_bytes]),
            name=_text(rest[extra_bytes + id_bytes :]),
            stamp=f"{seconds}.{nanoseconds:09}",
            virtual_bytes=_U64.unpack_from(extra, _U64.size)[0] if has_size else None,
        )
        found.append((entry, l1_at, l1_entries))
    return found


def _l1(file: int, cluster_bits: int, at: int, entries: int) -> bytes:
    """An L1 table without COPIED bits and trailing zeros."""
    size = entries * _U64.size
    if size > MAX_L1_BYTES:
        raise TablesUnreadable(f"an L1 table has too many entries: {entries}")
    if not size:
        return b""
    table = bytearray(_bytes_at(file, _aligned(at, cluster_bits), size))
    table[:: _U64.size] = table[:: _U64.size].translate(_WITHOUT_COPIED)  # bit 63 is in the first byte
    return bytes(table.rstrip(b"\0"))


def _aligned(at: int, cluster_bits: int) -> int:
    if at > MAX_OFFSET or at % (1 << cluster_bits):
        raise TablesUnreadable("a table is not aligned to a cluster")
    return at


def _bytes_at(file: int, at: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.pread(file, size - len(data), at + len(data))
        if not part:
            raise TablesUnreadable("a table extends beyond the end of the file")
        data += part
    return bytes(data)


def _text(data: bytes) -> str:
    # QEMU ends the text at a NUL. Ours are ASCII; others must be valid text for logs, SQLite and Redis.
    return data.partition(b"\0")[0].decode(errors="backslashreplace")
