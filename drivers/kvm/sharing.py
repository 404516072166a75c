"""Finds files that a server's disks share with other domains of the node.

Two domains on one file overwrite each other's data, and reverting a disk changes the data of domains based on it. Files
are compared by device and inode, so that hard links and symlinks are recognized.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import libvirt

from drivers import image_chain, qcow2_tables
from drivers.base import ServerInUse, SkippedDisk
from drivers.kvm.disks_xml import FileDisk, VolumePath, disk_path
from drivers.kvm.libvirt_errors import ignoring
from drivers.kvm.libvirt_xml import read
from drivers.kvm.volumes import paths_by
from drivers.qcow2_header import TablesUnreadable

FileId = tuple[int, int]  # device and inode


class Use(StrEnum):
    """How a domain uses a file."""

    DISK = "disk"
    BASE = "base"  # read-only: as the backing file of a disk, or as a read-only disk


Uses = Mapping[str, frozenset[tuple[Use, FileId]]]  # by UUID of the domain


def uses(handle: Any) -> Uses:
    """The files of every domain of this libvirt. Includes domains that are off, which could start at any time."""
    found = {}
    for domain in handle.listAllDomains(0):
        with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
            xml = [domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), *([domain.XMLDesc(0)] if domain.isActive() else [])]
            found[domain.UUIDString()] = frozenset(use for text in xml for use in _uses(text, paths_by(handle)))
    return found


def shared(disks: Iterable[FileDisk], uuid: str, every: Uses) -> Iterator[SkippedDisk]:
    """The disks of this domain that other domains use, directly or as a base, each with a reason for the customer.

    A disk that is based on another domain's disk is allowed: that domain may be a template that is never started. Other
    checks find a base that is being written to or was changed since a snapshot.
    """
    others = frozenset[tuple[Use, FileId]]().union(*(found for other, found in every.items() if other != uuid))
    for disk in disks:
        for _, file_id in itertools.islice(_files(disk.path), 1):
            if (Use.DISK, file_id) in others:
                yield SkippedDisk(target=disk.target, reason="it is also a disk of another server")
            elif (Use.BASE, file_id) in others:
                yield SkippedDisk(target=disk.target, reason="a disk of another server is based on it, or reads it")


def refusal(disk: SkippedDisk) -> str:
    """Why a server with this shared disk cannot be snapshotted."""
    return f"disk {disk.target} cannot be snapshotted: {disk.reason}"


def refuse_overlays(disks: Iterable[FileDisk], tags: Collection[str]) -> None:
    """Raises ServerInUse if a backing file of a disk has snapshots of this server.

    Another tool, most likely a backup, has created a temporary overlay. A snapshot in the overlay would be lost when it
    is merged, and the snapshots in the backing file cannot be reverted to now.
    """
    for disk in disks:
        for number, (path, _) in enumerate(image_chain.files(disk.path)):
            if number and not {*tags}.isdisjoint(_tags(path)):
                raise ServerInUse(f"disk {disk.target} has a temporary overlay of another tool on top of its snapshots")


def _tags(path: str) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in qcow2_tables.read(path).snapshots)
    except TablesUnreadable:  # not qcow2
        return frozenset()


def uses_of(disks: Iterable[tuple[str, bool]]) -> Iterator[tuple[Use, FileId]]:
    """`disks`: the disks of one domain, each as its path and whether it is read-only."""
    for path, read_only in disks:
        # a read-only disk counts like an overlay: both see what others write to the file
        yield from ((Use.BASE, file_id) if read_only else (use, file_id) for use, file_id in _files(path))


def _uses(xml: str, volume_path: VolumePath) -> Iterator[tuple[Use, FileId]]:
    for disk in read(xml).iterfind("./devices/disk"):
        path = disk_path(disk, volume_path)
        if path and disk.get("device", "disk") == "disk":
            yield from uses_of([(path, disk.find("readonly") is not None)])


def _files(path: str) -> Iterator[tuple[Use, FileId]]:
    for number, (_, status) in enumerate(image_chain.files(path)):
        yield Use.BASE if number else Use.DISK, (status.st_dev, status.st_ino)
