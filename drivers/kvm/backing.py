"""The backing files of a disk's image: checks the whole chain, and refuses disks that cannot be snapshotted on it."""

import asyncio
import stat

from drivers import image_locks, qcow2, safe_files
from drivers.base import UnsupportedServer
from drivers.image_chain import DEPTH
from drivers.image_locks import Holder
from drivers.kvm.domain_xml import FileDisk
from drivers.qcow2 import QemuImgFailed
from drivers.qcow2_image import Backing, Image, UnknownBacking

_File = tuple[int, int, int]  # device, inode and type of a file, independent of its path


async def refuse_unfit(disk: FileDisk, image: Image) -> None:
    """Raises UnsupportedServer if a backing file is missing, cannot be read in its stated format or is being written
    to, or if the domain's XML names another chain than the images."""
    chain: list[tuple[Backing, _File]] = []
    top: Image | None = image
    while top is not None and (below := _below(disk, top)) is not None:
        file = await _looked_at(disk, below)
        if len(chain) == DEPTH or file in {seen for _, seen in chain}:
            raise UnsupportedServer(f"the chain of backing files of disk {disk.target} is a loop or too long")
        chain.append((below, file))
        top = await _image_of(disk, below)
    if not await asyncio.to_thread(_is_as_listed, disk, chain):
        raise UnsupportedServer(f"the definition of disk {disk.target} names a different backing file than its image")


def _below(disk: FileDisk, image: Image) -> Backing | None:
    try:
        below = image.backing
    except UnknownBacking as error:
        raise UnsupportedServer(f"the backing file of disk {disk.target} {error}") from error
    if below is not None and below.format is None:
        # its format would have to be probed, and a guest can forge a header
        raise UnsupportedServer(f"disk {disk.target} does not state the format of its backing file")
    return below


async def _looked_at(disk: FileDisk, below: Backing) -> _File:
    name = f"the backing file of disk {disk.target}"
    try:
        file = await asyncio.to_thread(_file, below.path)
        if file[2] not in {stat.S_IFREG, stat.S_IFBLK}:
            raise UnsupportedServer(f"{name} is neither a file nor a block device")
        holder = await asyncio.to_thread(image_locks.holder, below.path)
    except FileNotFoundError as error:
        raise UnsupportedServer(f"{name} is missing") from error
    except (OSError, ValueError) as error:
        raise UnsupportedServer(f"{name} cannot be accessed") from error
    if holder is Holder.WRITER:
        raise UnsupportedServer(f"{name} is being written to by another program")
    return file


async def _image_of(disk: FileDisk, below: Backing) -> Image | None:
    """The image's header; None for formats other than qcow2, which have no backing file or one that only QEMU can
    find."""
    if below.format == "luks":
        raise UnsupportedServer(f"the backing file of disk {disk.target} is encrypted, which cannot be snapshotted")
    if below.format != "qcow2":
        return None
    try:
        image = await qcow2.image(below.path)
    except QemuImgFailed as error:
        raise UnsupportedServer(f"the backing file of disk {disk.target} cannot be read as qcow2") from error
    if image.encrypted:
        raise UnsupportedServer(f"the backing file of disk {disk.target} is encrypted, which cannot be snapshotted")
    return image


def _file(path: str) -> _File:
    status = safe_files.status(path)
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


def _is_as_listed(disk: FileDisk, chain: list[tuple[Backing, _File]]) -> bool:
    """Whether the chain in the domain's XML, which the guest uses, is the one in the images, which qemu-img uses."""
    if disk.backing is None:
        return True
    if len(disk.backing) > len(chain) or (disk.backing_ends and len(disk.backing) < len(chain)):
        return False
    for listed, (below, file) in zip(disk.backing, chain, strict=False):
        if listed.format not in {None, below.format}:
            return False
        if listed.kind == "block" and file[2] == stat.S_IFBLK and not listed.path:
            continue
        try:
            if not listed.path or _file(listed.path) != file:
                return False
        except (OSError, ValueError):
            return False
    return True
