"""Our XML in libvirt: the mark that makes a domain a customer's server, and snapshots for libvirt's own list."""

import xml.etree.ElementTree as ET
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
    """Our element in a domain's metadata: its server id and account."""

    server_id: int
    account_id: int

    @property
    def xml(self) -> str:
        return f'<server id="{self.server_id}" account="{self.account_id}"/>'

    @classmethod
    def read(cls, xml: str) -> Self | None:
        """None if the element is not one of ours."""
        try:
            element = ET.fromstring(xml)  # noqa: S314 - libvirt's own output
            return cls(server_id=int(element.get("id", "")), account_id=int(element.get("account", "")))
        except (ET.ParseError, ValueError):
            return None


def snapshot_xml(spec: SnapshotSpec, hardware_now: Hardware, domain: str) -> str:
    """XML that adds a snapshot taken by qemu-img to libvirt's list. `domain`: XML of the domain's definition."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = spec.tag
    ET.SubElement(root, "description").text = f"{spec.name}\n{spec.description}"
    ET.SubElement(root, "state").text = "shutoff"
    ET.SubElement(root, "creationTime").text = str(int(spec.created_at.timestamp()))
    ET.SubElement(root, "memory", snapshot="no")
    disks = ET.SubElement(root, "disks")
    for disk in hardware_now.disks:
        ET.SubElement(disks, "disk", name=disk.target, snapshot="internal")
    definition = read(domain)
    for element in definition.iterfind("./devices/disk"):
        target = element.find("target")
        if left_out(element) and target is not None:
            # for a writable disk libvirt accepts "no" only if the domain has it as well
            element.set("snapshot", "no")
            ET.SubElement(disks, "disk", name=target.get("dev", ""), snapshot="no")
    root.append(definition)
    return _with_carriage_returns(ET.tostring(root, encoding="unicode"))


def read_snapshot_xml(xml: str) -> SnapshotSpec:
    """Read an entry of libvirt's list. If it is not ours, the first line of its description is the name. An invalid
    time is read as 1970."""
    root = read(xml)
    name, _, description = (root.findtext("description") or "").partition("\n")
    try:
        created_at = datetime.fromtimestamp(int(root.findtext("creationTime") or 0), UTC)
    except (ValueError, OverflowError, OSError):  # libvirt accepts any number when an entry is redefined
        created_at = datetime.fromtimestamp(0, UTC)
    return SnapshotSpec(
        tag=root.findtext("name") or "",
        name=name,
        description=description,
        created_at=created_at,
    )


def _with_carriage_returns(xml: str) -> str:
    # ElementTree does not escape them in text, and an unescaped one is read back as a newline
    return xml.replace("\r", "&#13;")
