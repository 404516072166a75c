"""The disks of one server: read, refused or changed together, foreign errors turned into the port's."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from drivers import qcow2
from drivers.base import DiskBusy, DiskCorrupt, DiskFailed, DriverError, Pool, UnsupportedServer
from drivers.kvm.domain_xml import FileDisk
from drivers.qcow2 import Image, QemuImgFailed

BACKING_DEPTH = 200  # images in one chain, as many as libvirt itself follows; more is a loop


@contextmanager
def refused_as(kind: type[DriverError], text: str) -> Iterator[None]:
    """A file or qemu-img that refuses is `kind(text)`; the text names the disk as the customer knows it."""
    try:
        yield
    except (QemuImgFailed, OSError) as error:
        raise kind(text) from error


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
    """Raises UnsupportedServer or DiskCorrupt for an image that can't be snapshotted."""
    if image.corrupt:
        raise DiskCorrupt(f"disk {disk.target} is marked corrupt")
    if image.encrypted:
        raise UnsupportedServer(f"disk {disk.target} is encrypted, which can't be snapshotted")
    if image.data_file is not None:
        raise UnsupportedServer(f"disk {disk.target} keeps its data in a file beside it, which can't be snapshotted")
    if not await asyncio.to_thread(os.access, disk.path, os.W_OK):
        raise UnsupportedServer(f"disk {disk.target} can't be written to")
    for _ in range(BACKING_DEPTH):
        if image.backing_file is None:
            return
        if image.backing_format is None:  # whoever opened it would have to guess, and a guest can forge a header
            raise UnsupportedServer(f"disk {disk.target} does not say of what format its backing file is")
        with refused_as(UnsupportedServer, f"the backing file of disk {disk.target} can't be looked at"):
            if not await asyncio.to_thread(Path(image.backing_file).is_file):
                raise UnsupportedServer(f"the backing file of disk {disk.target} is missing")
        if image.backing_format != "qcow2":
            return
        with refused_as(UnsupportedServer, f"the backing file of disk {disk.target} can't be read as qcow2"):
            image = await qcow2.image(image.backing_file)
    raise UnsupportedServer(f"the backing files of disk {disk.target} have no end")


async def held_tags(disks: Iterable[FileDisk]) -> dict[str, frozenset[str]]:
    """Each tag with the targets of the disks that hold it."""
    holders: dict[str, frozenset[str]] = {}
    for disk in disks:
        for tag in (await readable(disk)).tags:
            holders[tag] = holders.get(tag, frozenset()) | {disk.target}
    return holders


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
