"""What is asked of one libvirt domain, in a thread; libvirt's own errors pass through."""

import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from drivers.base import InvalidState, UnsupportedServer
from drivers.kvm import readiness
from drivers.kvm.domain_xml import Hardware, hardware
from drivers.kvm.libvirt_xml import escaped, read
from drivers.kvm.places import Places
from drivers.kvm.volumes import paths_by

_GENERATION_ID = re.compile(r"<genid>[^<]*</genid>|<genid/>")


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


def configured_hardware(domain: Any, places: Places) -> Hardware:
    """The hardware of the domain as it is when it is off and will be when it starts."""
    found = _hardware(domain, libvirt.VIR_DOMAIN_XML_INACTIVE, places)
    if any(part.assumed for part in found.parts) and domain.isActive():
        # it may have got a firmware that keeps no variables
        running = {part.kind for part in _hardware(domain, 0, places).parts}
        parts = tuple(part for part in found.parts if not part.assumed or part.kind in running)
        return replace(found, parts=parts)
    return found


def configured_paths(domain: Any, places: Places) -> tuple[str, ...]:
    """Where the disks lie that take part in snapshots."""
    return tuple(disk.path for disk in configured_hardware(domain, places).disks)


def ready_hardware(domain: Any, places: Places) -> Hardware:
    """The same, of a domain whose disks are all that there is to its state.

    Raises InvalidState or UnsupportedServer.
    """
    if not domain.isPersistent():
        raise UnsupportedServer("the server is transient: it would be gone once it is off")
    readiness.refuse_paused(domain)
    readiness.refuse_saved(domain)
    found = configured_hardware(domain, places)
    if domain.isActive():
        _must_stay_with_its_next_start(found, _hardware(domain, 0, places))
    return found


def _hardware(domain: Any, flags: int, places: Places) -> Hardware:
    return hardware(domain.XMLDesc(flags), places=places, volume_path=paths_by(domain.connect()))


def _must_stay_with_its_next_start(configured: Hardware, running: Hardware) -> None:
    if {*running.disks} != {*configured.disks}:
        raise InvalidState("the server's disks change with its next start: restart it once")
    assumed = {part.kind for part in configured.parts if part.assumed}
    now = {part for part in running.parts if part.kind not in assumed}
    if now != {part for part in configured.parts if not part.assumed}:
        raise InvalidState("the server's firmware or TPM changes with its next start: restart it once")


def listed_variables(domain: Any, tag: str) -> tuple[Path, ...]:
    """Where the UEFI variables were when libvirt was told of the snapshot."""
    xmls = [found.getXMLDesc(0) for found in domain.listAllSnapshots(0) if found.getName() == tag]
    paths = (file.text for xml in xmls for file in read(xml).iterfind(".//os/nvram"))
    return tuple(Path(path) for path in paths if path and path.startswith("/"))


def assumed_variables(domain: Any, places: Places) -> Path:
    """Where libvirt lays the UEFI variables of a domain that names no file for them."""
    return places.variables / f"{domain.name()}_VARS.fd"


def checkpoints(domain: Any) -> tuple[str, ...]:
    """libvirt's own records of incremental backups."""
    return tuple(checkpoint.getName() for checkpoint in domain.listAllCheckpoints(0))


def forget_checkpoints(domain: Any) -> None:
    """Make libvirt forget its records of incremental backups; none is fine. The disks' bitmaps are not touched."""
    for checkpoint in domain.listAllCheckpoints(0):
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def renew_generation_id(domain: Any) -> None:
    """Write a new generation id into the definition of a domain that has one. May be run again."""
    # the definition as `virsh edit` takes it: what is secret in it stays
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    # by its text: libvirt writes it once, before all that others could write into the definition
    renewed, found = _GENERATION_ID.subn(f"<genid>{uuid.uuid4()}</genid>", escaped(xml), count=1)
    if found:
        domain.connect().defineXML(renewed)
