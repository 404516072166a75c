"""The disks of one server: reads, checks and changes them together, and translates errors to the port's."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from drivers import image_locks, qcow2, qcow2_tables
from drivers.base import (
    DiskBusy,
    DiskCorrupt,
    DiskFailed,
    DriverError,
    Pool,
    ServerInUse,
    SnapshotNotFound,
    UnsupportedServer,
)
from drivers.image_locks import Holder
from drivers.kvm import backing
from drivers.kvm.domain_xml import FileDisk
from drivers.qcow2 import ImageRefused, QemuImgFailed
from drivers.qcow2_header import MAX_SNAPSHOTS, TablesUnreadable
from drivers.qcow2_image import Image, NoSuchSnapshot
from drivers.safe_files import Planted

LEAST_REFCOUNT_BITS = 4  # with two bits an image can take one snapshot, but not revert to it


@contextmanager
def refused_as(kind: type[DriverError], text: str) -> Iterator[None]:
    """Raise errors of files and qemu-img as `kind(text)`; the text names the disk by its target."""
    try:
        yield
    except (QemuImgFailed, NoSuchSnapshot, OSError) as error:
        # A killed qemu-img (the host is out of memory?) does not mean that the disk is unsupported.
        died = kind is UnsupportedServer and isinstance(error, QemuImgFailed) and error.killed
        why = f": {reason}" if (reason := _reason(error)) else ""
        raise (DiskBusy if died else kind)(f"{text}{why}") from error


def _reason(error: Exception) -> str | None:
    """The part of an error's text that is about the disk alone and contains no path of the host."""
    match error:
        case ImageRefused():
            return error.reason
        case Planted():
            return error.strerror
    return None


@contextmanager
def unchecked(disk: FileDisk) -> Iterator[None]:
    """Translate the error of an unfinished check: DiskBusy if a retry may succeed, otherwise DiskCorrupt."""
    try:
        yield
    except QemuImgFailed as error:
        kind = DiskBusy if error.locked or error.killed else DiskCorrupt
        raise kind(f"disk {disk.target} cannot be checked") from error


async def readable(disk: FileDisk) -> Image:
    """The image of the disk. Raises UnsupportedServer if its file is missing or not a qcow2 image."""
    with refused_as(UnsupportedServer, f"disk {disk.target} cannot be accessed"):
        if not await asyncio.to_thread(Path(disk.path).is_file):
            raise UnsupportedServer(f"the file of disk {disk.target} is missing")
    with refused_as(UnsupportedServer, f"disk {disk.target} cannot be read as qcow2"):
        return await qcow2.image(disk.path)


async def refuse_unfit(disk: FileDisk, image: Image) -> None:
    """Raises UnsupportedServer or DiskCorrupt for an image that cannot be snapshotted or could not be reverted
    later."""
    name = f"disk {disk.target}"
    if image.corrupt:
        raise DiskCorrupt(f"{name} is marked corrupt")
    if image.encrypted:
        raise UnsupportedServer(f"{name} is encrypted, which cannot be snapshotted")
    if image.data_file is not None:
        raise UnsupportedServer(f"{name} stores its data in an external data file, which cannot be snapshotted")
    if not await asyncio.to_thread(os.access, disk.path, os.W_OK):
        raise UnsupportedServer(f"{name} cannot be written to")
    _refuse_too_many(name, image)
    await backing.refuse_unfit(disk, image)


async def refuse_unopenable(disk: FileDisk) -> None:
    """Raises UnsupportedServer if QEMU cannot open the disk with its backing files; see also `readable`."""
    with refused_as(UnsupportedServer, f"disk {disk.target} cannot be accessed"):
        if not await qcow2.can_be_opened_with_backing(disk.path):
            raise UnsupportedServer(f"QEMU cannot open disk {disk.target} with all its backing files")


def _refuse_too_many(name: str, image: Image) -> None:
    """Raises UnsupportedServer if the image cannot take one more snapshot.

    The refcount of a cluster counts the disk, each snapshot, the new one, and one more reference during a revert.
    """
    max_refcount = (1 << image.refcount_bits) - 1
    if image.refcount_bits < LEAST_REFCOUNT_BITS:
        raise UnsupportedServer(f"{name} has {image.refcount_bits}-bit refcounts, which are too small for snapshots")
    if len(image.snapshots) + 3 > max_refcount or len(image.snapshots) + 1 > MAX_SNAPSHOTS:
        raise UnsupportedServer(f"{name} already has the maximum number of snapshots: {len(image.snapshots)}")


async def refuse_held(disks: Iterable[FileDisk], *, patience_seconds: float = qcow2.LOCK_SECONDS) -> None:
    """Raises ServerInUse if another program holds a disk of a server that is off.

    `patience_seconds`: how long to wait for a QEMU that has just exited to release its locks.
    """
    deadline = time.monotonic() + patience_seconds
    for disk in disks:
        with refused_as(UnsupportedServer, f"disk {disk.target} cannot be accessed"):
            holder = await _holder(disk, deadline)
        if holder is Holder.WRITER:
            raise ServerInUse(f"disk {disk.target} is being written to by another program")
        if holder is Holder.READER:
            raise ServerInUse(f"disk {disk.target} is being read by another program, which blocks writes to it")


async def _holder(disk: FileDisk, deadline: float) -> Holder | None:
    while True:
        holder = await asyncio.to_thread(image_locks.holder, disk.path)
        if holder is None or time.monotonic() > deadline:
            return holder
        await asyncio.sleep(qcow2.LOCK_RETRY_SECONDS)


async def ids_of(disks: Sequence[FileDisk], tag: str) -> dict[FileDisk, str]:
    """The snapshot's ID in each image.

    Raises SnapshotNotFound if a disk lacks the tag, or its name or id is not unique in the image, and UnsupportedServer
    if one cannot be read as qcow2.
    """
    return {disk: await asyncio.to_thread(_id_of, disk, tag) for disk in disks}


def _id_of(disk: FileDisk, tag: str) -> str:
    try:
        entries = qcow2_tables.read(disk.path).snapshots
    except TablesUnreadable as error:
        raise UnsupportedServer(f"disk {disk.target} cannot be read as qcow2") from error
    ids = [entry.id for entry in entries if entry.name == tag]
    if len(ids) != 1 or sum(entry.id == ids[0] for entry in entries) != 1:
        raise SnapshotNotFound(f"disk {disk.target} has no snapshot of this name, or several")
    return ids[0]


async def are_at(disks: Iterable[FileDisk], tag: str) -> bool:
    """Whether every disk is identical to the tag; False if that cannot be determined. No QEMU may use the disks."""
    for disk in disks:
        try:
            tables = await asyncio.to_thread(qcow2_tables.read, disk.path, l1_of=tag)
        except TablesUnreadable:
            return False
        if not tables.is_at(tag):
            return False
    return True


async def repaired(disks: Sequence[FileDisk]) -> tuple[str, ...]:
    """Check and repair every disk; returns the targets of those that were corrupt.

    Leaked clusters, which only waste space, are repaired but not reported. Raises DiskBusy, or DiskCorrupt naming the
    first disk that stays corrupt.
    """
    ends = await asyncio.gather(*map(_repaired, disks), return_exceptions=True)  # returns when every disk is done
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return tuple(disk.target for disk, was_corrupt in zip(disks, ends, strict=True) if was_corrupt)


async def _repaired(disk: FileDisk) -> bool:
    """Repair one disk; returns whether it was corrupt."""
    with unchecked(disk):
        before = await qcow2.damage(disk.path)
        if not before.any or before.can_wait:
            return False
        had = (await qcow2.image(disk.path)).snapshots
        await qcow2.repair(disk.path)
        after = await qcow2.damage(disk.path)
        has = (await qcow2.image(disk.path)).snapshots
    if after.corruptions:
        raise DiskCorrupt(f"disk {disk.target} is damaged and cannot be repaired")
    if {*had} - {*has}:  # QEMU drops snapshots with invalid entries
        raise DiskCorrupt(f"disk {disk.target} was damaged and has lost snapshots")
    return before.corruptions and not before.dirty


async def without_bitmaps(disks: Iterable[FileDisk]) -> tuple[str, ...]:
    """Remove the dirty bitmaps of every disk; returns the targets that had some. Raises DiskFailed."""
    text = "its dirty bitmaps could not be removed"
    had = []
    for disk in disks:
        with refused_as(DiskFailed, f"disk {disk.target}: {text}"):
            if (await qcow2.image(disk.path)).bitmaps:
                had.append(disk)
    await on_every(had, lambda disk: qcow2.remove_bitmaps(disk.path), text=text)
    return tuple(disk.target for disk in had)


async def on_every(disks: Iterable[FileDisk], change: Callable[[FileDisk], Awaitable[None]], *, text: str) -> None:
    """Make the change to all disks concurrently, and wait for all. Raises DiskFailed naming the first that failed, with
    the text."""

    async def on_one(disk: FileDisk) -> None:
        with refused_as(DiskFailed, f"disk {disk.target}: {text}"):
            await change(disk)

    ends = await asyncio.gather(*[on_one(disk) for disk in disks], return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end


def free_bytes(disks: Iterable[FileDisk]) -> int:
    """Bytes available to this process on the file system of the disks with the least space."""
    file_systems = [os.statvfs(Path(disk.path).parent) for disk in disks]
    return min((file_system.f_bavail * file_system.f_frsize for file_system in file_systems), default=0)


def pools(paths: Iterable[str]) -> tuple[Pool, ...]:
    """The file systems that hold these files, one for each mount point; missing files and storage are left out."""
    found: dict[Path, Pool] = {}
    for path in sorted(paths):
        with suppress(OSError):  # missing, or its storage is unavailable
            mount = _mount(Path(path).resolve(strict=True).parent)
            found[mount] = found.get(mount) or _pool(mount)
    return tuple(found.values())


def _pool(mount: Path) -> Pool:
    file_system = os.statvfs(mount)
    size = file_system.f_frsize
    return Pool(path=str(mount), free_bytes=file_system.f_bavail * size, total_bytes=file_system.f_blocks * size)


def _mount(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if os.path.ismount(place))
