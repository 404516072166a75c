"""The records of a domain's snapshots. The calls block, and raise libvirt's own errors.

Our records are in the domain's metadata (see `records`). libvirt's own snapshot list has entries of other tools, of
older versions of this service, those listed for an operator and, while a job runs, the entry that blocks migration.
"""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Any

import libvirt

from drivers.base import SnapshotSpec, is_ours
from drivers.kvm import records
from drivers.kvm.domain import configured_hardware
from drivers.kvm.domain_xml import Hardware, hardware
from drivers.kvm.libvirt_errors import ignoring
from drivers.kvm.libvirt_xml import read
from drivers.kvm.marks import entry_xml, read_snapshot_xml, snapshot_xml
from drivers.kvm.places import Places
from drivers.kvm.records import Record
from drivers.kvm.volumes import paths_by

HOLD = "vps-job"  # the entry in libvirt's list that blocks migration while a job runs


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A snapshot in libvirt's own list."""

    spec: SnapshotSpec
    hardware: Hardware | None  # when it was taken; None: not in the entry


@dataclass(frozen=True, kw_only=True)
class Written:
    """Everything that is recorded about a domain's snapshots, by tag."""

    records: dict[str, Record]
    listed: dict[str, Listed]
    unsettled: frozenset[str]  # records in only one of the domain's definitions, which a start or a migration may lose
    current: str | None  # libvirt's current snapshot: set by `virsh snapshot-revert`, never by us

    def spec(self, tag: str) -> SnapshotSpec | None:
        if tag in self.records:
            return self.records[tag].spec
        return self.listed[tag].spec if tag in self.listed else None

    @property
    def ours(self) -> frozenset[str]:
        return frozenset(tag for tag in (*self.records, *self.listed) if is_ours(tag))


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


def write_record(domain: Any, record: Record) -> None:
    """Write the record to each of the domain's definitions, and remove it from libvirt's list, where older versions
    recorded it."""
    for which in _definitions(domain):
        _set_metadata(domain, records.with_record(_metadata(domain, which), record), which)
    unlist(domain, record.spec.tag)


def delete_record(domain: Any, tag: str) -> None:
    """Delete the snapshot's record and its entry in libvirt's list. The disks are not changed."""
    unlist(domain, tag)
    for which in _definitions(domain):
        before = _metadata(domain, which)
        if before is not None:
            _set_metadata(domain, records.without_record(before, tag), which)


def list_for_people(domain: Any, spec: SnapshotSpec, places: Places) -> None:
    """Add a snapshot to libvirt's list, for `virsh`. A domain with a listed snapshot cannot be migrated."""
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    xml = snapshot_xml(spec, configured_hardware(domain, places), inactive)
    domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def unlist(domain: Any, tag: str) -> None:
    """Remove a snapshot from libvirt's list, if it is there. The disks are not changed."""
    for snapshot in domain.listAllSnapshots(0):
        if snapshot.getName() == tag:
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def hold(domain: Any) -> None:
    """Prevent libvirt from migrating the domain. No effect if the domain is off and has checkpoints: then libvirt does
    not accept new snapshots in its list."""
    if is_held(domain):
        return
    # Without any disk, which works for every server. Its time is not 0: libvirt omits a 0 from its file, and after a
    # restart it rejects an entry without a time.
    text = "A snapshot job is running. This entry is removed when the job ends."
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    xml = entry_xml(HOLD, text, 1, inactive, holds=(), excludes=lambda _disk: True)
    with ignoring(libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
        domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def is_held(domain: Any) -> bool:
    return any(snapshot.getName() == HOLD for snapshot in domain.listAllSnapshots(0))


def let_go(domain: Any) -> None:
    unlist(domain, HOLD)


def _definitions(domain: Any) -> tuple[int, ...]:
    """Flags of the domain's definitions: of the running one and of the persistent one, as far as they exist."""
    running = (libvirt.VIR_DOMAIN_AFFECT_LIVE,) if domain.isActive() else ()
    return (*running, libvirt.VIR_DOMAIN_AFFECT_CONFIG) if domain.isPersistent() else running


def _metadata(domain: Any, which: int) -> str | None:
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN_METADATA):
        return str(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, records.NAMESPACE, which))
    return None


def _set_metadata(domain: Any, xml: str | None, which: int) -> None:
    prefix = None if xml is None else records.PREFIX
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, xml, prefix, records.NAMESPACE, which)


def _listed(domain: Any, xml: str, places: Places) -> Listed:
    then = read(xml).find("domain")
    if then is None:
        return Listed(spec=read_snapshot_xml(xml), hardware=None)
    found = hardware(ET.tostring(then, encoding="unicode"), places=places, volume_path=paths_by(domain.connect()))
    return Listed(spec=read_snapshot_xml(xml), hardware=found)
