"""Devices other than disks that a server can write to: refused if they are storage, otherwise left out (ADR 14)."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise

from drivers.base import SkippedDisk

QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# QEMU arguments that give a server storage that libvirt does not know of
DRIVES = frozenset({"-drive", "-blockdev", "-hda", "-hdb", "-hdc", "-hdd", "-sd", "-mtdblock", "-pflash"})
SHARES = frozenset({"-fsdev", "-virtfs"})
READ_ONLY = ("readonly=on", "read-only=on", "readonly=true", "read-only=true", "media=cdrom", '"read-only":true')

_HOSTDEVS = {
    "pci": "a PCI device of the host",
    "usb": "a USB device of the host",
    "mdev": "a mediated device of the host",
    "scsi": "a SCSI device of the host",
    "scsi_host": "a SCSI controller of the host (vhost-scsi)",
}
_STORAGE = frozenset({"scsi", "scsi_host"})


def left_out(domain: ET.Element) -> Iterator[SkippedDisk]:
    """Devices that a snapshot leaves out: they are read-only, or their state is not storage."""
    for number, device in enumerate(domain.iterfind("./devices/hostdev"), 1):
        kind = device.get("type", "")
        if kind not in _STORAGE:
            yield SkippedDisk(target=f"hostdev {number}", reason=f"it is {_HOSTDEVS.get(kind, 'a device of the host')}")
        elif device.find("readonly") is not None:
            yield SkippedDisk(target=f"hostdev {number}", reason="it is read-only")
    for name, found in (("filesystem", "./devices/filesystem"), ("memory", "./devices/memory")):
        for number, device in enumerate(domain.iterfind(found), 1):
            if _is_storage(device) and _is_read_only(device):
                yield SkippedDisk(target=f"{name} {number}", reason="it is read-only")
    if domain.find("./devices/pstore") is not None:
        yield SkippedDisk(target="pstore", reason="it holds only the guest's crash messages")


def refusals(domain: ET.Element) -> Iterator[str]:
    """Why the server cannot be snapshotted: a text for the customer for each device."""
    for number, device in enumerate(domain.iterfind("./devices/hostdev"), 1):
        kind = device.get("type", "")
        if kind in _STORAGE and device.find("readonly") is None:
            yield f"hostdev {number} of the server is {_HOSTDEVS[kind]}, which cannot be snapshotted"
    for device in domain.iterfind("./devices/filesystem"):
        if not _is_read_only(device):
            yield "the server mounts a folder of the host, which cannot be snapshotted"
    for device in domain.iterfind("./devices/memory"):
        if _is_storage(device) and not _is_read_only(device):
            kind = "pmem" if device.get("model") == "virtio-pmem" else "nvdimm"
            yield f"the server has persistent memory ({kind}), which cannot be snapshotted"
    arguments = [argument.get("value", "") for argument in domain.iterfind(f"./{QEMU}commandline/{QEMU}arg")]
    for argument, value in pairwise([*arguments, ""]):
        if argument.replace("--", "-", 1) in DRIVES | SHARES and not _says_read_only(value):
            yield "the server has a drive that is passed to QEMU without libvirt, which cannot be snapshotted"


def _is_storage(device: ET.Element) -> bool:
    return device.tag == "filesystem" or device.get("model") in {"nvdimm", "virtio-pmem"}


def _is_read_only(device: ET.Element) -> bool:
    return device.find("readonly") is not None or device.find("./target/readonly") is not None


def _says_read_only(value: str) -> bool:
    return any(word in value.replace(" ", "") for word in READ_ONLY)
