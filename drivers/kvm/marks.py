"""Our XML in libvirt: the mark that makes a domain a customer's server, and snapshots for libvirt's own list."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from drivers.base import SnapshotSpec
from drivers.kvm.disks_xml import left_out
from drivers.kvm.domain_xml import Hardware
from drivers.kvm.libvirt_xml import read

PREFIX = "vps"


@dataclass(frozen=True, kw_only=True)
class ServerMark:
    """Our element in a domain's metadata: its server ID and account."""

    server_id: int
    account_id: int

    @property
    def xml(self) -> str:
        return f'<server id="{self.server_id}" account="{self.account_id}"/>'

    @classmethod
    def read(cls, xml: str) -> Self | None:
        """Parse the element; None if it is not one of ours."""
        try:
            element = ET.fromstring(xml)  # noqa: S314 - libvirt's own output
            return cls(server_id=int(element.get("id", "")), account_id=int(element.get("account", "")))
        except (ET.ParseError, ValueError):
            return None


def snapshot_xml(spec: SnapshotSpec, hardware_now: Hardware, domain: str) -> str:
    """XML that adds a snapshot taken by qemu-img to libvirt's list. `domain`: XML of the domain's definition."""
    targets = [disk.target for disk in hardware_now.disks]
    created = int(spec.created_at.timestamp())
    return entry_xml(spec.tag, f"{spec.name}\n{spec.description}", created, domain, holds=targets, excludes=left_out)


def entry_xml(
    name: str,
    description: str,
    created: int,
    domain: str,
    *,
    holds: Iterable[str],
    excludes: Callable[[ET.Element], object],
) -> str:
    """XML of an entry in libvirt's list. `holds`: the targets of its disks; `excludes`: which disks it does not
    hold."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = name
    ET.SubElement(root, "description").text = description
    ET.SubElement(root, "state").text = "shutoff"
    ET.SubElement(root, "creationTime").text = str(created)
    ET.SubElement(root, "memory", snapshot="no")
    disks = ET.SubElement(root, "disks")
    for held in holds:
        ET.SubElement(disks, "disk", name=held, snapshot="internal")
    definition = read(domain)
    for element in definition.iterfind("./devices/disk"):
        target = element.find("target")
        if excludes(element) and target is not None:
            # for a writable disk libvirt accepts "no" only if the domain has it as well
            element.set("snapshot", "no")
            ET.SubElement(disks, "disk", name=target.get("dev", ""), snapshot="no")
    root.append(definition)
    # ElementTree does not escape a carriage return in text, and an unescaped one is read back as a newline
    return ET.tostring(root, encoding="unicode").replace("\r", "&#13;")


def read_snapshot_xml(xml: str) -> SnapshotSpec:
    """Read an entry of libvirt's list. If it is not ours, the first line of its description is the name. An invalid
    time is read as 1970."""
    root = read(xml)
    name, _, description = (root.findtext("description") or "").partition("\n")
    try:
        created_at = datetime.fromtimestamp(int(root.findtext("creationTime") or 0), UTC)
    except (ValueError, OverflowError, OSError):  # libvirt accepts any number when an entry is redefined
        created_at = datetime.fromtimestamp(0, UTC)
    return SnapshotSpec(tag=root.findtext("name") or "", name=name, description=description, created_at=created_at)
