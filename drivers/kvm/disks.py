"""The disks of one server: read, refused or changed together, foreign errors turned into the port's."""

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
from drivers.qcow2 import QemuImgFailed
from drivers.qcow2_image import Image, NoSuchSnapshot
from drivers.qcow2_tables import MAX_SNAPSHOTS, TablesUnreadable

LEAST_REFCOUNT_BITS = 4  # two can count one snapshot, but not revert to it


@contextmanager
def refused_as(kind: type[DriverError], text: str) -> Iterator[None]:
    """A file or qemu-img that refuses is `kind(text)`; the text names the disk as the customer knows it."""
    try:
        yield
    except (QemuImgFailed, NoSuchSnapshot, OSError) as error:
        # One that was killed (the host had no memory left?) has not said that the disk is unfit.
        died = kind is UnsupportedServer and isinstance(error, QemuImgFailed) and error.killed
        raise (DiskBusy if died else kind)(text) from error


@contextmanager
def unchecked(disk: FileDisk) -> Iterator[None]:
    """A check that came to no end: DiskBusy where it may the next time, else DiskCorrupt."""
    try:
        yield
    except QemuImgFailed as error:
        kind = DiskBusy if error.locked or error.killed else DiskCorrupt
        raise kind(f"disk {disk.target} can't be checked") from error


async def readable(disk: FileDisk) -> Image:
    """Raises UnsupportedServer for a file that is not there or no qcow2 image."""
    with refused_as(UnsupportedServer, f"disk {disk.target} can't be looked at"):
        if not await asyncio.to_thread(Path(disk.path).is_file):
            raise UnsupportedServer(f"disk {disk.target} has no file")
    with refused_as(UnsupportedServer, f"disk {disk.target} can't be read as qcow2"):
        return await qcow2.image(disk.path)


async def refuse_unfit(disk: FileDisk, image: Image) -> None:
    """Raises UnsupportedServer or DiskCorrupt for an image that can't be snapshotted, or not be reverted afterwards."""
    name = f"disk {disk.target}"
    if image.corrupt:
        raise DiskCorrupt(f"{name} is marked corrupt")
    if image.encrypted:
        raise UnsupportedServer(f"{name} is encrypted, which can't be snapshotted")
    if image.data_file is not None:
        raise UnsupportedServer(f"{name} keeps its data in a file beside it, which can't be snapshotted")
    if not await asyncio.to_thread(os.access, disk.path, os.W_OK):
        raise UnsupportedServer(f"{name} can't be written to")
    _refuse_too_many(name, image)
    await backing.refuse_unfit(disk, image)
    with refused_as(UnsupportedServer, f"{name} can't be looked at"):
        if not await qcow2.can_be_opened(disk.path):
            raise UnsupportedServer(f"QEMU can't open {name} with all its backing files")


def _refuse_too_many(name: str, image: Image) -> None:
    """A cluster is counted once for the disk, for each snapshot, and while it is reverted once more; and there is to be
    one snapshot more."""
    counted = (1 << image.refcount_bits) - 1
    if image.refcount_bits < LEAST_REFCOUNT_BITS:
        raise UnsupportedServer(f"{name} counts to {counted} only, too little for snapshots (refcount_bits)")
    if len(image.snapshots) + 3 > counted or len(image.snapshots) + 1 > MAX_SNAPSHOTS:
        raise UnsupportedServer(f"{name} has as many snapshots as it can hold: {len(image.snapshots)}")


async def refuse_held(disks: Iterable[FileDisk], *, patience_seconds: float = qcow2.LOCK_SECONDS) -> None:
    """Of a server that is off: raises ServerInUse where another program holds a disk.

    `patience_seconds`: what a QEMU that has just ended may take to let go of it.
    """
    deadline = time.monotonic() + patience_seconds
    for disk in disks:
        with refused_as(UnsupportedServer, f"disk {disk.target} can't be looked at"):
            holder = await _holder(disk, deadline)
        if holder is Holder.WRITER:
            raise ServerInUse(f"disk {disk.target} is being written to by another program")
        if holder is Holder.READER:
            raise ServerInUse(f"disk {disk.target} is being read by another program, which lets nobody write to it")


async def _holder(disk: FileDisk, deadline: float) -> Holder | None:
    while True:
        holder = await asyncio.to_thread(image_locks.holder, disk.path)
        if holder is None or time.monotonic() > deadline:
            return holder
        await asyncio.sleep(qcow2.LOCK_RETRY_SECONDS)


async def ids_of(disks: Sequence[FileDisk], tag: str) -> dict[FileDisk, str]:
    """What each image calls the snapshot.

    Raises SnapshotNotFound where a disk lacks the tag, or has several snapshots of this name.
    """

    async def id_of(disk: FileDisk) -> str:
        try:
            return (await readable(disk)).only(tag).id
        except NoSuchSnapshot as error:
            raise SnapshotNotFound(f"disk {disk.target} does not hold the snapshot exactly once") from error

    return dict(zip(disks, await asyncio.gather(*map(id_of, disks)), strict=True))


async def are_at(disks: Iterable[FileDisk], tag: str) -> bool:
    """Whether every disk, which no QEMU holds, holds just what the tag holds. False where that can't be told."""
    for disk in disks:
        try:
            tables = await asyncio.to_thread(qcow2_tables.read, disk.path, l1_of=tag)
        except TablesUnreadable:
            return False
        if not tables.is_at(tag):
            return False
    return True


async def mended(disks: Sequence[FileDisk]) -> tuple[str, ...]:
    """Check and mend every disk; the targets of those that were corrupt. Leaks, which are lost space and no damage, are
    mended without a word. Raises DiskBusy, or DiskCorrupt naming the first that stays corrupt."""
    ends = await asyncio.gather(*map(_mended, disks), return_exceptions=True)  # none is at a disk any more
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return tuple(disk.target for disk, was_corrupt in zip(disks, ends, strict=True) if was_corrupt)


async def _mended(disk: FileDisk) -> bool:
    """Whether it was corrupt."""
    with unchecked(disk):
        before = await qcow2.damage(disk.path)
        if not before.any or before.can_wait:
            return False
        await qcow2.repair(disk.path)
        after = await qcow2.damage(disk.path)
    if after.corruptions:
        raise DiskCorrupt(f"disk {disk.target} is damaged and can't be mended")
    if {*before.snapshots} - {*after.snapshots}:  # QEMU drops those whose entries make no sense
        raise DiskCorrupt(f"disk {disk.target} was damaged and has lost snapshots")
    return before.corruptions and not before.dirty


async def without_bitmaps(disks: Iterable[FileDisk]) -> tuple[str, ...]:
    """Remove the dirty bitmaps of every disk; the targets that had some. Raises DiskFailed."""
    had = []
    for disk in disks:
        with refused_as(DiskFailed, f"disk {disk.target} kept its dirty bitmaps"):
            if (await qcow2.image(disk.path)).bitmaps:
                had.append(disk)
    await on_every(had, lambda disk: qcow2.remove_bitmaps(disk.path), text="kept its dirty bitmaps")
    return tuple(disk.target for disk in had)


async def on_every(disks: Iterable[FileDisk], change: Callable[[FileDisk], Awaitable[None]], *, text: str) -> None:
    """Make the change to all disks side by side. Returns, or raises DiskFailed naming the first that refused, when
    none is at it any more."""

    async def on_one(disk: FileDisk) -> None:
        with refused_as(DiskFailed, f"disk {disk.target} {text}"):
            await change(disk)

    ends = await asyncio.gather(*[on_one(disk) for disk in disks], return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end


def free_bytes(disks: Iterable[FileDisk]) -> int:
    """What is free for us on the fullest of the file systems that hold the disks."""
    file_systems = [os.statvfs(Path(disk.path).parent) for disk in disks]
    return min((file_system.f_bavail * file_system.f_frsize for file_system in file_systems), default=0)


def pools(paths: Iterable[str]) -> tuple[Pool, ...]:
    """The file systems that hold these files, by where they are mounted. One that does not answer, and a file that is
    gone, are left out."""
    found: dict[Path, Pool] = {}
    for path in sorted(paths):
        with suppress(OSError):  # a storage that is away
            mount = _mount(Path(path).resolve(strict=True).parent)
            found[mount] = found.get(mount) or _pool(mount)
    return tuple(found.values())


def _pool(mount: Path) -> Pool:
    file_system = os.statvfs(mount)
    size = file_system.f_frsize
    return Pool(path=str(mount), free_bytes=file_system.f_bavail * size, total_bytes=file_system.f_blocks * size)


def _mount(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if os.path.ismount(place))
