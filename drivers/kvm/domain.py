"""What is asked of one libvirt domain, in a thread; libvirt's own errors pass through."""

from typing import Any

import libvirt

from drivers.base import InvalidState, Power, SnapshotSpec, UnsupportedServer
from drivers.kvm.domain_xml import Hardware, hardware, read_snapshot_xml, snapshot_xml

_PAUSED = frozenset({libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED})


def power(domain: Any) -> Power:
    if not domain.isActive():
        return Power.OFF
    state, _reason = domain.state()
    return Power.PAUSED if state in _PAUSED else Power.ON


def press_power_button(domain: Any) -> None:
    try:
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def cut_power(domain: Any) -> None:
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def start(domain: Any) -> None:
    try:
        domain.create()
    except libvirt.libvirtError as error:
        # Only this says that it runs. After a start that was cut off, libvirt takes a dead QEMU for active until it has
        # given up to reach it: then the call times out, and is to be made again.
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or not domain.isActive():
            raise


def configured_hardware(domain: Any) -> Hardware:
    """The hardware of the domain as it is when it is off and will be when it starts."""
    return hardware(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def configured_paths(domain: Any) -> tuple[str, ...]:
    """Where the disks lie that take part in snapshots."""
    return tuple(disk.path for disk in configured_hardware(domain).disks)


def ready_hardware(domain: Any) -> Hardware:
    """The same, of a domain whose disks are all that there is to its state.

    Raises InvalidState or UnsupportedServer.
    """
    if not domain.isPersistent():
        raise UnsupportedServer("the server is transient: it would be gone once it is off")
    if power(domain) is Power.PAUSED:
        raise InvalidState("the server is suspended")
    if domain.hasManagedSaveImage(0):
        raise InvalidState("the server has saved memory, which would not fit its disks: start it once")
    found = configured_hardware(domain)
    if domain.isActive():
        running = hardware(domain.XMLDesc(0))
        if {*running.disks} != {*found.disks}:
            raise InvalidState("the server's disks change with its next start: restart it once")
        for disk in found.disks:
            if domain.blockJobInfo(disk.target, 0):
                raise InvalidState(f"disk {disk.target} is being copied by the hypervisor")
    return found


def listed_snapshots(domain: Any) -> tuple[dict[str, SnapshotSpec], str | None]:
    """What libvirt lists, by tag, and which of it is its current one: `virsh snapshot-revert` makes it that, we never
    do."""
    current = domain.snapshotCurrent(0).getName() if domain.hasCurrentSnapshot(0) else None
    specs = [read_snapshot_xml(snapshot.getXMLDesc(0)) for snapshot in domain.listAllSnapshots(0)]
    return {spec.tag: spec for spec in specs}, current


def list_snapshot(domain: Any, spec: SnapshotSpec) -> None:
    """Make a snapshot that is on the disks known to libvirt, which does not look for it there."""
    inactive = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    xml = snapshot_xml(spec, hardware(inactive), inactive)
    domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def unlist_snapshot(domain: Any, tag: str) -> None:
    """Make libvirt forget the snapshot, if it knows it; the disks are not touched."""
    for snapshot in domain.listAllSnapshots(0):
        if snapshot.getName() == tag:
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def forget_checkpoints(domain: Any) -> None:
    """Make libvirt forget its records of incremental backups; none is fine. The disks' bitmaps are not touched."""
    for checkpoint in domain.listAllCheckpoints(0):
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
