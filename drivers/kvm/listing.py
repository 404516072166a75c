"""Where a domain's snapshots are written down, asked in a thread; libvirt's own errors pass through.

Ours stand in the domain's metadata (see `records`). libvirt's own list has what other tools made, what older versions
of us have left there, what an operator had put there for a while, and, while a job is at work, the entry that holds
the domain on this node.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

import libvirt

from drivers.base import SnapshotSpec
from drivers.kvm import records
from drivers.kvm.domain import configured_hardware
from drivers.kvm.domain_xml import Hardware, hardware
from drivers.kvm.libvirt_xml import read
from drivers.kvm.marks import read_snapshot_xml, snapshot_xml
from drivers.kvm.places import Places
from drivers.kvm.records import Record
from drivers.kvm.volumes import paths_by

HOLD = "vps-job"  # the entry in libvirt's list while a job is at work
OURS = "vps-"  # begins each tag of ours


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A snapshot in libvirt's own list."""

    spec: SnapshotSpec
    hardware: Hardware | None  # as it was then; None: the entry does not say


@dataclass(frozen=True, kw_only=True)
class Written:
    """All that is written down of a domain's snapshots, by tag."""

    records: dict[str, Record]
    listed: dict[str, Listed]
    unsettled: frozenset[str]  # records that the next start, or the next migration, could lose
    current: str | None  # libvirt's: `virsh snapshot-revert` makes it that, we never do

    def spec(self, tag: str) -> SnapshotSpec | None:
        if tag in self.records:
            return self.records[tag].spec
        return self.listed[tag].spec if tag in self.listed else None

    @property
    def ours(self) -> frozenset[str]:
        return frozenset(tag for tag in (*self.records, *self.listed) if tag.startswith(OURS))


def written_down(domain: Any, places: Places) -> Written:
    current = domain.snapshotCurrent(0).getName() if domain.hasCurrentSnapshot(0) else None
    listed = [_listed(domain, snapshot.getXMLDesc(0), places) for snapshot in domain.listAllSnapshots(0)]
    definitions = [records.read(_metadata(domain, which)) for which in _definitions(domain)]
    together = {tag: record for definition in reversed(definitions) for tag, record in definition.items()}
    return Written(
        records=together,
        listed={entry.spec.tag: entry for entry in listed if entry.spec.tag != HOLD},
        unsettled=frozenset(tag for tag in together if any(tag not in definition for definition in definitions)),
        current=current,
    )


def write_down(domain: Any, record: Record) -> None:
    """In each of the domain's definitions; and no longer in libvirt's list, where older versions of us wrote it."""
    for which in _definitions(domain):
        _set_metadata(domain, records.with_record(_metadata(domain, which), record), which)
    unlist(domain, record.spec.tag)


def strike_out(domain: Any, tag: str) -> None:
    """Nothing is written down about the snapshot any more; the disks are not touched."""
    unlist(domain, tag)
    for which in _definitions(domain):
        before = _metadata(domain, which)
        if before is not None:
            _set_metadata(domain, records.without_record(before, tag), which)


def list_for_people(domain: Any, spec: SnapshotSpec, places: Places) -> None:
    """Put a snapshot into libvirt's list, for `virsh`. A domain with an entry there can't be migrated."""
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    xml = snapshot_xml(spec, configured_hardware(domain, places), inactive)
    domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def unlist(domain: Any, tag: str) -> None:
    """Take a snapshot out of libvirt's list, if it is there; the disks are not touched."""
    for snapshot in domain.listAllSnapshots(0):
        if snapshot.getName() == tag:
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def hold(domain: Any) -> None:
    """Keep libvirt from migrating the domain. One that is off and has checkpoints can't be held: libvirt adds nothing
    to its list then."""
    if is_held(domain):
        return
    xml = _hold_xml(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    try:
        domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            raise


def is_held(domain: Any) -> bool:
    return any(snapshot.getName() == HOLD for snapshot in domain.listAllSnapshots(0))


def let_go(domain: Any) -> None:
    unlist(domain, HOLD)


def _definitions(domain: Any) -> tuple[int, ...]:
    """The definitions that the domain has: the one that runs, and the one that it will start with."""
    running = (libvirt.VIR_DOMAIN_AFFECT_LIVE,) if domain.isActive() else ()
    return (*running, libvirt.VIR_DOMAIN_AFFECT_CONFIG) if domain.isPersistent() else running


def _metadata(domain: Any, which: int) -> str | None:
    try:
        xml: str = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, records.NAMESPACE, which)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise
    return xml


def _set_metadata(domain: Any, xml: str | None, which: int) -> None:
    prefix = None if xml is None else records.PREFIX
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, prefix, records.NAMESPACE, which)


def _listed(domain: Any, xml: str, places: Places) -> Listed:
    then = read(xml).find("domain")
    if then is None:
        return Listed(spec=read_snapshot_xml(xml), hardware=None)
    found = hardware(ET.tostring(then, encoding="unicode"), places=places, volume_path=paths_by(domain.connect()))
    return Listed(spec=read_snapshot_xml(xml), hardware=found)


def _hold_xml(inactive: str) -> str:
    """An entry that holds no disk: of a server of any kind, as it is."""
    root = ET.Element("domainsnapshot")
    ET.SubElement(root, "name").text = HOLD
    ET.SubElement(root, "description").text = "a snapshot job is at work; it ends with the job"
    ET.SubElement(root, "state").text = "shutoff"
    # Not 0: libvirt writes no 0 into its file, and a libvirt that is started anew reads no entry without a time.
    ET.SubElement(root, "creationTime").text = "1"
    ET.SubElement(root, "memory", snapshot="no")
    disks = ET.SubElement(root, "disks")
    domain = read(inactive)
    for disk in domain.iterfind("./devices/disk"):
        target = disk.find("target")
        if target is not None:
            disk.set("snapshot", "no")  # libvirt takes a "no" for a writable disk only where the domain says so too
            ET.SubElement(disks, "disk", name=target.get("dev", ""), snapshot="no")
    root.append(domain)
    return ET.tostring(root, encoding="unicode").replace("\r", "&#13;")
