"""Files that a server's disks have in common with other domains of the node.

Two domains on one file overwrite each other's data, and a revert of a disk changes what the domains see that are based
on it. Files are compared by device and inode: a hard link or a symlink is the same file under another name.
"""

import json
import os
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import libvirt

from drivers.base import SkippedDisk
from drivers.kvm.domain_xml import FileDisk

DEPTH = 200  # images in one chain, as many as libvirt itself follows
MAGIC = b"QFI\xfb"
MAX_NAME_BYTES = 1023  # of a backing file, as QEMU has it
_HEAD = struct.Struct(">4sIQI")

FileId = tuple[int, int]  # device and inode


class Use(StrEnum):
    """What another domain does with a file."""

    DISK = "disk"
    BASE = "base"  # below one of its disks


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
        paths = {path for text in xml for path in _disk_paths(text)}
        found[domain.UUIDString()] = frozenset(use for path in paths for use in _files(path))
    return found


def shared(disks: Iterable[FileDisk], uuid: str, every: Uses) -> Iterator[SkippedDisk]:
    """The disks of this domain that others have, or have theirs based on, or that are based on disks of others; each
    with the reason, in words for the customer."""
    others = frozenset[tuple[Use, FileId]]().union(*(found for other, found in every.items() if other != uuid))
    for disk in disks:
        for use, file_id in _files(disk.path):
            reason = None
            if use is Use.DISK and (Use.DISK, file_id) in others:
                reason = "it is a disk of another server as well"
            elif use is Use.DISK and (Use.BASE, file_id) in others:
                reason = "a disk of another server is based on it"
            elif use is Use.BASE and (Use.DISK, file_id) in others:
                reason = "it is based on a disk of another server, which may change it"
            if reason is not None:
                yield SkippedDisk(target=disk.target, reason=reason)
                break


def _disk_paths(xml: str) -> Iterator[str]:
    for disk in ET.fromstring(xml).iterfind("./devices/disk[@type='file']"):  # noqa: S314 - libvirt's own output
        source = disk.find("source")
        path = None if source is None else source.get("file")
        if path and disk.get("device", "disk") == "disk":
            yield path


def _files(path: str) -> Iterator[tuple[Use, FileId]]:
    """The file itself and all that lies below it, as far as that can be read."""
    use, current = Use.DISK, path
    for _ in range(DEPTH):
        try:
            status = os.stat(current)
            below = _backing_file(current)
        except (OSError, ValueError):
            return
        yield use, (status.st_dev, status.st_ino)
        if below is None:
            return
        use, current = Use.BASE, below


def _backing_file(path: str) -> str | None:
    """What the image's header names below it; None for one that is no qcow2 image. Raises OSError or ValueError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not hold us up
    try:
        head = os.pread(file, _HEAD.size, 0)
        if len(head) < _HEAD.size:
            return None
        magic, _, name_at, name_bytes = _HEAD.unpack(head)
        if magic != MAGIC or not name_at or not 0 < name_bytes <= MAX_NAME_BYTES:
            return None
        name = os.fsdecode(os.pread(file, name_bytes, name_at))
    finally:
        os.close(file)
    if name.startswith("json:"):
        name = _file_name(json.loads(name.removeprefix("json:")))
    return os.path.join(os.path.dirname(path), name.removeprefix("file:"))


def _file_name(options: object) -> str:
    """Raises ValueError."""
    if isinstance(options, dict):
        for key in ("filename", "file.filename"):
            if isinstance(options.get(key), str):
                return str(options[key])
        if "file" in options:
            return _file_name(options["file"])
    raise ValueError("no file is named")
