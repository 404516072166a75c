"""The disks of a domain's XML: which of them a snapshot holds, which it leaves out, which it can't hold."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field

LOST_IN_XML = frozenset("\n\r\t")  # libvirt writes them so that it reads blanks when it starts the next time

# Storage pool and volume to the path of its file. Raises NoVolumeFile.
VolumePath = Callable[[str, str], str]


class NoVolumeFile(Exception):
    """A volume of a storage pool that is no file; the text goes on after the disk's name."""


class VolumeAway(NoVolumeFile):
    """It may be a file, but its storage pool does not say now: not active, not known, no answer."""


@dataclass(frozen=True, kw_only=True)
class BackingFile:
    """What lies below an image, as the XML gives it."""

    kind: str  # libvirt's word: file, block, network, ...
    path: str  # "" where it is no file
    format: str | None


@dataclass(frozen=True, kw_only=True)
class FileDisk:
    """A disk of the kind that qemu-img can snapshot: a writable qcow2 file of this domain alone."""

    target: str
    path: str
    # What lies below, from the top down. None: the XML says nothing, QEMU goes by the image's header. Not compared: in
    # the XML of a running domain libvirt adds what it has found.
    backing: tuple[BackingFile, ...] | None = field(default=None, compare=False)
    backing_ends: bool = field(default=False, compare=False)  # nothing lies below the last of `backing`


_REFUSED = {
    "./transient": "is transient: it forgets what is written to it",
    "./encryption": "is encrypted by the hypervisor, which can't be snapshotted",
    "./source/encryption": "is encrypted by the hypervisor, which can't be snapshotted",
    "./source/slices": "is a slice of its file, which can't be snapshotted",
    "./source/dataStore": "keeps its data in a file beside it, which can't be snapshotted",
    "./source[@fdgroup]": "is handed to QEMU as an open file, which can't be snapshotted",
}


def target_of(disk: ET.Element) -> str:
    return _attribute(disk, "target", "dev") or "unnamed"


def left_out(disk: ET.Element) -> str | None:
    """Why no snapshot needs to hold it: it can't be written to, or whoever owns the server says so."""
    device = disk.get("device", "disk")
    if device in {"cdrom", "floppy"}:
        return f"it is a {device}"
    if disk.find("readonly") is not None:
        return "it is read-only"
    if disk.get("snapshot") == "no":
        return "its definition leaves it out of snapshots"
    return None


def refusal(disk: ET.Element) -> str | None:
    """Why it can't be snapshotted, to go on after the disk's name."""
    kind, form = disk.get("type", "file"), _attribute(disk, "driver", "type")
    if kind not in {"file", "volume"}:
        return f"is no file but of type {kind}, which can't be snapshotted"
    if (device := disk.get("device", "disk")) != "disk":
        return f"is a {device}, which can't be snapshotted"
    if disk.find("shareable") is not None:
        return "is shared with other servers, which can't be snapshotted"
    if form != "qcow2":
        return f"is {form or 'of no stated format'}, and only qcow2 can be snapshotted"
    return next((text for found, text in _REFUSED.items() if disk.find(found) is not None), None)


def file_disk(disk: ET.Element, volume_path: VolumePath) -> FileDisk:
    """Raises NoVolumeFile, also for a disk without a path that could be used."""
    path = _path(disk, volume_path)
    if not path.startswith("/"):
        raise NoVolumeFile("has no file")
    if LOST_IN_XML & {*path}:
        raise NoVolumeFile("has a line break or a tab in the name of its file, which libvirt forgets when it restarts")
    backing, ends = _backing(disk, volume_path)
    return FileDisk(target=target_of(disk), path=path, backing=backing, backing_ends=ends)


def disk_path(disk: ET.Element, volume_path: VolumePath) -> str | None:
    """Of any disk, whether it can be snapshotted or not; None for one that is no file, or can't be told now."""
    if disk.get("type", "file") not in {"file", "volume"}:
        return None
    try:
        return _path(disk, volume_path) or None
    except NoVolumeFile:
        return None


def _path(element: ET.Element, volume_path: VolumePath) -> str:
    """Of a disk or of what lies below one."""
    if element.get("type", "file") != "volume":
        return _attribute(element, "source", "file") or ""
    pool, volume = _attribute(element, "source", "pool"), _attribute(element, "source", "volume")
    if not pool or not volume:
        raise NoVolumeFile("names no volume of a storage pool")
    return volume_path(pool, volume)


def _backing(disk: ET.Element, volume_path: VolumePath) -> tuple[tuple[BackingFile, ...] | None, bool]:
    element = disk.find("backingStore")
    if element is None:
        return None, False
    files = []
    while element is not None and (kind := element.get("type")):
        path = _path(element, volume_path) if kind in {"file", "volume"} else ""
        files.append(BackingFile(kind=kind, path=path, format=_attribute(element, "format", "type")))
        element = element.find("backingStore")
    return tuple(files), element is not None


def _attribute(parent: ET.Element, child: str, name: str) -> str | None:
    element = parent.find(child)
    return None if element is None else element.get(name)
