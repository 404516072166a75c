"""Files that a server's disks have in common with other domains of the node.

Two domains on one file overwrite each other's data, and a revert of a disk changes what the domains see that are based
on it. Files are compared by device and inode: a hard link or a symlink is the same file under another name.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import libvirt

from drivers import image_chain, qcow2_tables
from drivers.base import ServerInUse, SkippedDisk
from drivers.kvm.disks_xml import FileDisk, VolumePath, disk_path
from drivers.kvm.libvirt_xml import read
from drivers.kvm.volumes import paths_by
from drivers.qcow2_tables import TablesUnreadable

FileId = tuple[int, int]  # device and inode


class Use(StrEnum):
    """What another domain does with a file."""

    DISK = "disk"
    BASE = "base"  # it only reads it: it lies below one of its disks, or is a read-only disk


Uses = Mapping[str, frozenset[tuple[Use, FileId]]]  # by the domain's UUID


def uses(handle: Any) -> Uses:
    """The files of every domain of this libvirt, whether it runs or not: it could be started at any time."""
    found = {}
    for domain in handle.listAllDomains(0):
        try:
            xml = [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), *([domain.XMLDesc(0)] if domain.isActive() else [])]
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue
        found[domain.UUIDString()] = frozenset(use for text in xml for use in _uses(text, paths_by(handle)))
    return found


def shared(disks: Iterable[FileDisk], uuid: str, every: Uses) -> Iterator[SkippedDisk]:
    """The disks of this domain that others have, or have theirs based on.

    Each comes with the reason, in words for the customer. That a disk is based on another's is no reason: a template
    may be a domain that nobody starts. A base that is written to, or was changed since a snapshot, is found elsewhere.
    """
    others = frozenset[tuple[Use, FileId]]().union(*(found for other, found in every.items() if other != uuid))
    for disk in disks:
        for _, file_id in itertools.islice(_files(disk.path), 1):
            if (Use.DISK, file_id) in others:
                yield SkippedDisk(target=disk.target, reason="it is a disk of another server as well")
            elif (Use.BASE, file_id) in others:
                yield SkippedDisk(target=disk.target, reason="a disk of another server is based on it, or reads it")


def refusal(disk: SkippedDisk) -> str:
    """Why a server with this shared disk can't be snapshotted."""
    return f"disk {disk.target} can't be snapshotted: {disk.reason}"


def refuse_overlays(disks: Iterable[FileDisk], tags: Collection[str]) -> None:
    """Raises ServerInUse where the image below a disk holds snapshots of this server.

    Another tool has put an overlay over the disk for a while: a backup, most likely. What is snapshotted in the overlay
    is gone when it is merged, and the snapshots below can't be reached now.
    """
    for disk in disks:
        for number, (path, _) in enumerate(image_chain.files(disk.path)):
            if number and not {*tags}.isdisjoint(_tags(path)):
                raise ServerInUse(
                    f"disk {disk.target} has an overlay of another tool over the image with its snapshots"
                )


def _tags(path: str) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in qcow2_tables.read(path).snapshots)
    except TablesUnreadable:  # no qcow2 image
        return frozenset()


def uses_of(disks: Iterable[tuple[str, bool]]) -> Iterator[tuple[Use, FileId]]:
    """`disks`: of one domain, each with its path and whether it is read-only."""
    for path, read_only in disks:
        # one that only reads a file is to it as a disk that is based on it: both see what another writes
        yield from ((Use.BASE, file_id) if read_only else (use, file_id) for use, file_id in _files(path))


def _uses(xml: str, volume_path: VolumePath) -> Iterator[tuple[Use, FileId]]:
    for disk in read(xml).iterfind("./devices/disk"):
        path = disk_path(disk, volume_path)
        if path and disk.get("device", "disk") == "disk":
            yield from uses_of([(path, disk.find("readonly") is not None)])


def _files(path: str) -> Iterator[tuple[Use, FileId]]:
    for number, (_, status) in enumerate(image_chain.files(path)):
        yield Use.BASE if number else Use.DISK, (status.st_dev, status.st_ino)
