"""Domain XML: what of it a snapshot must hold, what it may leave out, what it can't hold; and our marks in it."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from drivers.base import SkippedDisk, SnapshotSpec, UnsupportedServer

PREFIX = "vps"


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


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a domain's XML says of the things that hold state."""

    disks: tuple[FileDisk, ...]
    skipped: tuple[SkippedDisk, ...]
    unsupported: tuple[str, ...]  # texts for a customer, each naming the thing
    nvram: Path | None  # of UEFI variables
    uefi: bool


@dataclass(frozen=True, kw_only=True)
class ServerMark:
    """Our element in a domain's metadata: whose server it is."""

    server_id: int
    account_id: int

    @property
    def xml(self) -> str:
        return f'<server id="{self.server_id}" account="{self.account_id}"/>'

    @classmethod
    def read(cls, xml: str) -> Self | None:
        """None where someone has written something else there."""
        try:
            element = ET.fromstring(xml)  # noqa: S314 - libvirt's own output
            return cls(server_id=int(element.get("id", "")), account_id=int(element.get("account", "")))
        except (ET.ParseError, ValueError):
            return None


def hardware(xml: str) -> Hardware:
    """Read a domain's XML. libvirt has written it: it is trusted to be well-formed."""
    domain = ET.fromstring(xml)  # noqa: S314 - libvirt's own output, no stranger's
    disks: list[FileDisk] = []
    skipped: list[SkippedDisk] = []
    unsupported: list[str] = [*_other_state(domain)]
    for element in domain.iterfind("./devices/disk"):
        target = _attribute(element, "target", "dev") or "unnamed"
        if reason := _left_out(element):
            skipped.append(SkippedDisk(target=target, reason=reason))
        elif trouble := _unsupported(element):
            unsupported.append(f"disk {target} {trouble}")
        else:
            disks.append(FileDisk(target=target, path=_attribute(element, "source", "file") or ""))
    paths = [disk.path for disk in disks]
    unsupported += [f"disk {disk.target} shares its file" for disk in disks if paths.count(disk.path) > 1]
    nvram = domain.find("./os/nvram")
    uefi = nvram is not None or domain.find("./os[@firmware='efi']") is not None
    text = None if nvram is None else nvram.text or _attribute(nvram, "source", "file")
    return Hardware(
        disks=tuple(disks),
        skipped=tuple(skipped),
        unsupported=tuple(unsupported),
        nvram=Path(text) if text else None,
        uefi=uefi,
    )


def _attribute(parent: ET.Element, child: str, name: str) -> str | None:
    element = parent.find(child)
    return None if element is None else element.get(name)


def _left_out(disk: ET.Element) -> str | None:
    device = disk.get("device", "disk")
    if device in {"cdrom", "floppy"}:
        return f"it is a {device}"
    if disk.find("readonly") is not None:
        return "it is read-only"
    if disk.find("shareable") is not None:
        return "it is shared with other servers"
    return None


def _unsupported(disk: ET.Element) -> str | None:
    kind, form = disk.get("type"), _attribute(disk, "driver", "type")
    if kind != "file" or disk.get("device", "disk") != "disk":
        return f"is no file but of type {kind}, which can't be snapshotted"
    if form != "qcow2":
        return f"is {form or 'of no stated format'}, and only qcow2 can be snapshotted"
    if not (_attribute(disk, "source", "file") or "").startswith("/"):
        return "has no file"
    if disk.find("transient") is not None:
        return "is transient: it forgets what is written to it"
    if disk.find("encryption") is not None or disk.find("./source/encryption") is not None:
        return "is encrypted by the hypervisor, which can't be snapshotted"
    return None


def _other_state(domain: ET.Element) -> list[str]:
    """What holds a server's state beside its disks, and is in no snapshot of ours."""
    found = {
        "./devices/tpm": "the server has a TPM, whose state can't be snapshotted",
        "./devices/memory[@model='nvdimm']": "the server has persistent memory (nvdimm), which can't be snapshotted",
        "./devices/memory[@model='virtio-pmem']": "the server has persistent memory (pmem), which can't be snapshotted",
        "./devices/hostdev[@type='scsi']": "the server has a SCSI device of the host, which can't be snapshotted",
        "./devices/filesystem": "the server mounts a folder of the host, which can't be snapshotted",
    }
    return [text for path, text in found.items() if domain.find(path) is not None]


def snapshot_xml(spec: SnapshotSpec, hardware_now: Hardware, domain: str) -> str:
    """What libvirt is told of a snapshot that qemu-img has taken."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = spec.tag
    ET.SubElement(root, "description").text = f"{spec.name}\n{spec.description}"
    ET.SubElement(root, "state").text = "shutoff"
    ET.SubElement(root, "creationTime").text = str(int(spec.created_at.timestamp()))
    ET.SubElement(root, "memory", snapshot="no")
    disks = ET.SubElement(root, "disks")
    for disk in hardware_now.disks:
        ET.SubElement(disks, "disk", name=disk.target, snapshot="internal")
    for skipped in hardware_now.skipped:
        ET.SubElement(disks, "disk", name=skipped.target, snapshot="no")
    root.append(_with_left_out_marked(ET.fromstring(domain)))  # noqa: S314 - libvirt's own output
    return _with_carriage_returns(ET.tostring(root, encoding="unicode"))


def _with_left_out_marked(domain: ET.Element) -> ET.Element:
    # libvirt takes a "no" for a writable disk (a shared one) only where the domain itself says so
    for disk in domain.iterfind("./devices/disk"):
        if _left_out(disk):
            disk.set("snapshot", "no")
    return domain


def read_snapshot_xml(xml: str) -> SnapshotSpec:
    """A snapshot in libvirt's list; one that is not ours has its description for a name."""
    root = ET.fromstring(_with_carriage_returns(xml))  # noqa: S314 - libvirt's own output
    name, _, description = (root.findtext("description") or "").partition("\n")
    created = int(root.findtext("creationTime") or 0)
    return SnapshotSpec(
        tag=root.findtext("name") or "",
        name=name,
        description=description,
        created_at=datetime.fromtimestamp(created, UTC),
    )


def _with_carriage_returns(xml: str) -> str:
    # neither we nor libvirt escape them, and a bare one is read back as a newline
    return xml.replace("\r", "&#13;")


def refuse_unsupported(found: Hardware) -> None:
    """Raises UnsupportedServer, naming all that no snapshot can hold."""
    if found.unsupported:
        raise UnsupportedServer("; ".join(found.unsupported))
    if not found.disks:
        raise UnsupportedServer("the server has no disk that can be snapshotted")
