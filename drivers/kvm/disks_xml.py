"""The disks in a domain's XML: those that a snapshot holds, leaves out or cannot hold."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field

LOST_IN_XML = frozenset("\n\r\t")  # libvirt does not escape them, and reads spaces when it restarts

# (storage pool, volume) -> path of the volume's file. Raises NoVolumeFile.
VolumePath = Callable[[str, str], str]


class NoVolumeFile(Exception):
    """A volume of a storage pool that is not a file; the text follows the disk's name."""


class VolumeAway(NoVolumeFile):
    """The volume may be a file, but its storage pool is inactive, unknown or does not answer now."""


@dataclass(frozen=True, kw_only=True)
class BackingFile:
    """A backing file as the XML names it."""

    kind: str  # libvirt's word: file, block, network, ...
    path: str  # "" if it is not a file
    format: str | None


@dataclass(frozen=True, kw_only=True)
class FileDisk:
    """A disk that qemu-img can snapshot: a writable qcow2 file that only this domain uses."""

    target: str
    path: str
    # The backing files, top down. None: not in the XML, QEMU uses the image's header. Not compared: in the XML of a
    # running domain libvirt adds the chain that it has found.
    backing: tuple[BackingFile, ...] | None = field(default=None, compare=False)
    backing_ends: bool = field(default=False, compare=False)  # the last of `backing` has no backing file


_REFUSED = {
    "./transient": "is transient: it discards all writes when the server stops",
    "./encryption": "is encrypted by the hypervisor, which cannot be snapshotted",
    "./source/encryption": "is encrypted by the hypervisor, which cannot be snapshotted",
    "./source/slices": "is a slice of its file, which cannot be snapshotted",
    "./source/dataStore": "stores its data in an external data file, which cannot be snapshotted",
    "./source[@fdgroup]": "is passed to QEMU as an open file descriptor, which cannot be snapshotted",
}


def target_of(disk: ET.Element) -> str:
    return _attribute(disk, "target", "dev") or "unnamed"


def left_out(disk: ET.Element) -> str | None:
    """Why snapshots leave the disk out: it is not writable, or its definition excludes it. None: they include it."""
    device = disk.get("device", "disk")
    if device in {"cdrom", "floppy"}:
        return f"it is a {device}"
    if disk.find("readonly") is not None:
        return "it is read-only"
    if disk.get("snapshot") == "no":
        return "its definition excludes it from snapshots"
    return None


def refusal(disk: ET.Element) -> str | None:
    """Why the disk cannot be snapshotted, to follow its name; None if it can."""
    kind, form = disk.get("type", "file"), _attribute(disk, "driver", "type")
    if kind not in {"file", "volume"}:
        return f"is not a file but of type {kind}, which cannot be snapshotted"
    if (device := disk.get("device", "disk")) != "disk":
        return f"is a {device}, which cannot be snapshotted"
    if disk.find("shareable") is not None:
        return "is shared with other servers, which cannot be snapshotted"
    if form != "qcow2":
        return f"is {form or 'of unknown format'}, and only qcow2 can be snapshotted"
    return next((text for found, text in _REFUSED.items() if disk.find(found) is not None), None)


def file_disk(disk: ET.Element, volume_path: VolumePath) -> FileDisk:
    """Raises NoVolumeFile, also for a disk without a usable path."""
    path = _path(disk, volume_path)
    if not path.startswith("/"):
        raise NoVolumeFile("has no file")
    if LOST_IN_XML & {*path}:
        raise NoVolumeFile("has a line break or a tab in its file name, which libvirt loses when it restarts")
    backing, ends = _backing(disk, volume_path)
    return FileDisk(target=target_of(disk), path=path, backing=backing, backing_ends=ends)


def disk_path(disk: ET.Element, volume_path: VolumePath) -> str | None:
    """The path of any disk, supported or not; None if it is not a file or its storage pool does not report it."""
    if disk.get("type", "file") not in {"file", "volume"}:
        return None
    try:
        return _path(disk, volume_path) or None
    except NoVolumeFile:
        return None


def _path(element: ET.Element, volume_path: VolumePath) -> str:
    """The path of a disk or of a backing file."""
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
