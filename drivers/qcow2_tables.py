"""The tables of a qcow2 image, read from its file without locks: the header, the snapshot table, the L1 tables.

qemu-img does not tell of a snapshot by which clusters it holds, nor when exactly it was taken. A guest's owner may have
written any number into an image that was brought here: each is checked against QEMU's own limits before it is used, and
all that is read together has a bound. QEMU puts a new snapshot table beside the old one and then turns the header to
it, so this works while a VM runs on the image; the L1 tables are only meaningful while none does.
"""

import os
import stat
import struct
from dataclasses import dataclass, replace

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MAX_L1_BYTES = 32 << 20  # of one table, as QEMU has it; so are the next three
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 1024 * MAX_SNAPSHOTS
MAX_EXTRA_BYTES = 1024
MAX_REFCOUNT_ORDER = 6
MAX_OFFSET = (1 << 63) - 1
READ_TRIES = 5  # of an image whose header changes meanwhile
VERSION_WITH_FEATURES = 3

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
_ENTRY = struct.Struct(">QIHHIIQII")
_ENTRY_ALIGNMENT = 8
_U64 = struct.Struct(">Q")
_WITHOUT_COPIED = bytes(value & 0x7F for value in range(256))


class TablesUnreadable(Exception):
    """The file can't be read, or is no qcow2 image whose tables make sense; the text names the first thing."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A snapshot as the image's own table has it."""

    id: str
    name: str
    stamp: str  # "SECONDS.NANOSECONDS" of when it was taken: the same wherever the file is moved
    virtual_bytes: int | None  # None: an old entry that does not say; the image was never resized since
    vm_state_bytes: int
    l1: bytes | None = None  # big-endian L1 entries without COPIED bits and zeros at the end; None: not read


@dataclass(frozen=True, kw_only=True)
class Tables:
    version: int
    virtual_bytes: int
    cluster_bytes: int
    refcount_bits: int
    incompatible_features: int  # the header's bits
    snapshots: tuple[Entry, ...]
    l1: bytes | None = None  # of the disk as it is now; None: not read

    def named(self, tag: str) -> tuple[Entry, ...]:
        """The snapshots of this name: qcow2 allows several. One whose id is the tag is not among them."""
        return tuple(entry for entry in self.snapshots if entry.name == tag)

    def is_at(self, tag: str) -> bool:
        """Whether the disk holds just what the tag holds: any write since would have copied an L2 table and changed the
        L1 entry that points to it. False where the image lacks the tag or has it twice. Needs the L1 tables."""
        entries = self.named(tag)
        if len(entries) != 1:
            return False
        (entry,) = entries
        if self.l1 is None:
            raise ValueError("the L1 tables were not read: read(path, l1_of=tag)")
        return entry.l1 == self.l1 and entry.virtual_bytes in {None, self.virtual_bytes}


def read(path: str, *, l1_of: str | None = None) -> Tables:
    """Header and snapshot table; with `l1_of`, also the L1 tables of the disk and of the snapshots with that name.

    Blocks for as long as the reading takes. Raises TablesUnreadable.
    """
    try:
        # a FIFO in the place of a disk must not hold us up
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise TablesUnreadable("it is no regular file")
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
        # what lay there when the header was read may be something else now
    raise TablesUnreadable("its header does not stay the same")


def _read_once(file: int, head: bytes, l1_of: str | None) -> Tables:
    header = _header(head)
    found = _snapshot_table(file, header)
    wanted = sum(entry.name == l1_of for entry, _, _ in found) == 1
    tables = Tables(
        version=header.version,
        virtual_bytes=header.virtual_bytes,
        cluster_bytes=1 << header.cluster_bits,
        refcount_bits=1 << header.refcount_order,
        incompatible_features=header.incompatible_features,
        snapshots=tuple(
            replace(entry, l1=_l1(file, header.cluster_bits, at, count)) if wanted and entry.name == l1_of else entry
            for entry, at, count in found
        ),
        l1=_l1(file, header.cluster_bits, header.l1_at, header.l1_entries) if wanted else None,
    )
    if _head(file) != head:
        raise TablesUnreadable("its header has changed")
    return tables


@dataclass(frozen=True, kw_only=True)
class _Header:
    version: int
    cluster_bits: int
    virtual_bytes: int
    l1_entries: int
    l1_at: int
    snapshots: int
    snapshots_at: int
    incompatible_features: int
    refcount_order: int


def _head(file: int) -> bytes:
    return os.pread(file, _HEADER.size + _HEADER_V3.size, 0)


def _header(head: bytes) -> _Header:
    if len(head) < _HEADER.size:
        raise TablesUnreadable("it is shorter than a header")
    magic, version, _, _, cluster_bits, size, _, l1_entries, l1_at, _, _, snapshots, snapshots_at = _HEADER.unpack_from(
        head
    )
    if magic != MAGIC or version not in {2, 3}:
        raise TablesUnreadable("it does not begin as qcow2 of version 2 or 3")
    features, refcount_order = 0, 4
    if version == VERSION_WITH_FEATURES:
        if len(head) < _HEADER.size + _HEADER_V3.size:
            raise TablesUnreadable("it is shorter than a header")
        features, _, _, refcount_order, _ = _HEADER_V3.unpack_from(head, _HEADER.size)
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise TablesUnreadable(f"its clusters would have {cluster_bits} bits")
    if refcount_order > MAX_REFCOUNT_ORDER:
        raise TablesUnreadable(f"its refcounts would have 2**{refcount_order} bits")
    if snapshots > MAX_SNAPSHOTS:
        raise TablesUnreadable(f"it would have {snapshots} snapshots")
    if size > MAX_OFFSET or size > l1_entries << (2 * cluster_bits - 3):
        raise TablesUnreadable("its L1 table is too small for its size")
    return _Header(
        version=version,
        cluster_bits=cluster_bits,
        virtual_bytes=size,
        l1_entries=l1_entries,
        l1_at=l1_at,
        snapshots=snapshots,
        snapshots_at=snapshots_at,
        incompatible_features=features,
        refcount_order=refcount_order,
    )


def _snapshot_table(file: int, header: _Header) -> list[tuple[Entry, int, int]]:
    """Each snapshot with where its L1 table lies and how many entries that has."""
    found = []
    at = _aligned(header.snapshots_at, header.cluster_bits) if header.snapshots else 0
    end = at + MAX_SNAPSHOT_TABLE_BYTES
    for _ in range(header.snapshots):
        fixed = _bytes_at(file, at, _ENTRY.size)
        l1_at, l1_entries, id_bytes, name_bytes, seconds, nanoseconds, _, state, extra_bytes = _ENTRY.unpack(fixed)
        if extra_bytes > MAX_EXTRA_BYTES:
            raise TablesUnreadable("a snapshot has too much extra data")
        rest = _bytes_at(file, at + _ENTRY.size, extra_bytes + id_bytes + name_bytes)
        at = -(-(at + _ENTRY.size + len(rest)) // _ENTRY_ALIGNMENT) * _ENTRY_ALIGNMENT
        if at > end:
            raise TablesUnreadable("its snapshot table is too long")
        extra = rest[:extra_bytes]
        has_state, has_size = extra_bytes >= _U64.size, extra_bytes >= 2 * _U64.size
        entry = Entry(
            id=_text(rest[extra_bytes : extra_bytes + id_bytes]),
            name=_text(rest[extra_bytes + id_bytes :]),
            stamp=f"{seconds}.{nanoseconds:09}",
            virtual_bytes=_U64.unpack_from(extra, _U64.size)[0] if has_size else None,
            vm_state_bytes=_U64.unpack_from(extra)[0] if has_state else state,
        )
        found.append((entry, l1_at, l1_entries))
    return found


def _l1(file: int, cluster_bits: int, at: int, entries: int) -> bytes:
    """The entries without their COPIED bits and without the zeros at the end."""
    size = entries * _U64.size
    if size > MAX_L1_BYTES:
        raise TablesUnreadable(f"an L1 table would have {entries} entries")
    if not size:
        return b""
    table = bytearray(_bytes_at(file, _aligned(at, cluster_bits), size))
    table[:: _U64.size] = table[:: _U64.size].translate(_WITHOUT_COPIED)  # bit 63 lies in each first byte
    return bytes(table.rstrip(b"\0"))


def _aligned(at: int, cluster_bits: int) -> int:
    if at > MAX_OFFSET or at % (1 << cluster_bits):
        raise TablesUnreadable("a table does not begin with a cluster")
    return at


def _bytes_at(file: int, at: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.pread(file, size - len(data), at + len(data))
        if not part:
            raise TablesUnreadable("a table goes past the end of the file")
        data += part
    return bytes(data)


def _text(data: bytes) -> str:
    # To QEMU a NUL is the end. Ours are ASCII; what else there is goes into logs, SQLite and Redis.
    return data.partition(b"\0")[0].decode(errors="backslashreplace")
