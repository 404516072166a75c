"""Reads the tables of a qcow2 image from its file without locks: the header, the snapshot table, the L1 tables.

qemu-img does not report which clusters a snapshot holds, nor its time in nanoseconds. An image may come from a customer
and contain any numbers: each is checked against QEMU's limits before it is used, and the total size of reads is
bounded. This works while a VM uses the image, because QEMU writes a new snapshot table elsewhere before it updates the
header. The L1 tables are only valid while no VM uses it.
"""

import os
import struct
from dataclasses import dataclass, replace

from drivers import safe_files
from drivers.qcow2_header import HEAD_BYTES, MAX_OFFSET, MAX_SNAPSHOTS, Header, TablesUnreadable, header_of

MAX_L1_BYTES = 32 << 20  # QEMU's limit for one table
MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS
MAX_EXTRA_BYTES = 1024
READ_TRIES = 5  # if the header changes during the read

_ENTRY = struct.Struct(">QIHHIIQII")
_ENTRY_ALIGNMENT = 8
_U64 = struct.Struct(">Q")
_WITHOUT_COPIED = bytes(value & 0x7F for value in range(256))


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
    l1: bytes | None = None  # L1 table of the active disk, in the same form; None: not read

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
        with safe_files.regular(path) as file:
            return read_open(file, l1_of=l1_of)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise TablesUnreadable(str(error)) from error


def read_open(file: int, *, l1_of: str | None = None) -> Tables:
    """Like `read`, for an open image. Also raises OSError."""
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


def _head(file: int) -> bytes:
    return os.pread(file, HEAD_BYTES, 0)


def _header(head: bytes) -> Header:
    header = header_of(head)
    if header.snapshots > MAX_SNAPSHOTS:
        raise TablesUnreadable(f"it has too many snapshots: {header.snapshots}")
    size = header.virtual_bytes
    if size > MAX_OFFSET or size > header.l1_entries << (2 * header.cluster_bits - 3):
        raise TablesUnreadable("its L1 table is too small for its size")
    return header


def _snapshot_table(file: int, header: Header) -> list[tuple[Entry, int, int]]:
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
        has_size = extra_bytes >= 2 * _U64.size  # follows the size of the VM's memory
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
