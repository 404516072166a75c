"""Calls on one libvirt domain. They block, and raise libvirt's own errors."""

import re
import time
import uuid
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from drivers.base import InvalidState, UnsupportedServer
from drivers.kvm import readiness
from drivers.kvm.domain_xml import Hardware, hardware
from drivers.kvm.libvirt_xml import escaped, read
from drivers.kvm.places import Places
from drivers.kvm.qemu_process import QemuProcess
from drivers.kvm.volumes import paths_by

STOP_SECONDS = 10.0  # limit for libvirt to stop a domain whose QEMU has ended: 0.005 were observed
STOPPED_POLL_SECONDS = 0.001

_GENERATION_ID = re.compile(r"<genid>[^<]*</genid>|<genid/>")


def press_power_button(domain: Any) -> None:
    try:
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def cut_power(domain: Any) -> None:
    """Returns when libvirt has stopped the domain, 0.2 s after the end of its QEMU."""
    try:
        domain.destroy()
    except libvirt.libvirtError:
        if domain.isActive():
            raise


def cut_power_in_a_hurry(domain: Any, *, pid_files: Path | None) -> None:
    """Like `cut_power`, but libvirt is told of QEMU's end when its process is gone, so that it need not wait for it.

    libvirt then stops the domain as after a shutdown. `destroy` beside that could end the domain's next QEMU: libvirt
    would stop the domain a second time, possibly after its next start.
    """
    qemu = qemu_of(domain, pid_files=pid_files)
    if qemu is not None:
        with closing(qemu):
            has_ended = qemu.end()
        deadline = time.monotonic() + STOP_SECONDS
        while has_ended and domain.isActive() and time.monotonic() < deadline:
            time.sleep(STOPPED_POLL_SECONDS)
    if domain.isActive():
        cut_power(domain)


def qemu_of(domain: Any, *, pid_files: Path | None) -> QemuProcess | None:
    """The domain's QEMU if it runs on this machine and can be found. `pid_files`: see `places.pid_files_of`."""
    return QemuProcess.found(pid_files / f"{domain.name()}.pid", domain.UUIDString()) if pid_files else None


def start(domain: Any) -> None:
    try:
        domain.create()
    except libvirt.libvirtError as error:
        # Only OPERATION_INVALID proves that it runs. After an interrupted start, libvirt considers a dead QEMU
        # active until its connection times out: then this call times out too, and must be retried.
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID or not domain.isActive():
            raise


def configured_hardware(domain: Any, places: Places) -> Hardware:
    """The domain's hardware from its persistent definition: as it will be at its next start."""
    found = _hardware(domain, libvirt.VIR_DOMAIN_XML_INACTIVE, places)
    if any(part.assumed for part in found.parts) and domain.isActive():
        # libvirt may have chosen a firmware that stores no variables
        running = {part.kind for part in _hardware(domain, 0, places).parts}
        parts = tuple(part for part in found.parts if not part.assumed or part.kind in running)
        return replace(found, parts=parts)
    return found


def ready_hardware(domain: Any, places: Places) -> Hardware:
    """Like `configured_hardware`. Raises InvalidState or UnsupportedServer if the domain is transient, paused, has
    saved memory, or will have other hardware at its next start."""
    if not domain.isPersistent():
        raise UnsupportedServer("the server's domain is transient: it disappears when it is shut off")
    readiness.refuse_paused(domain)
    readiness.refuse_saved(domain)
    found = configured_hardware(domain, places)
    if domain.isActive():
        _refuse_pending_changes(found, _hardware(domain, 0, places))
    return found


def _hardware(domain: Any, flags: int, places: Places) -> Hardware:
    return hardware(domain.XMLDesc(flags), places=places, volume_path=paths_by(domain.connect()))


def _refuse_pending_changes(configured: Hardware, running: Hardware) -> None:
    if {*running.disks} != {*configured.disks}:
        raise InvalidState("the server's disks will change at its next start: restart it first")
    assumed = {part.kind for part in configured.parts if part.assumed}
    now = {part for part in running.parts if part.kind not in assumed}
    if now != {part for part in configured.parts if not part.assumed}:
        raise InvalidState("the server's firmware or TPM will change at its next start: restart it first")


def listed_variables(domain: Any, tag: str) -> tuple[Path, ...]:
    """The paths of the UEFI variables in the snapshot's entries in libvirt's list."""
    xmls = [found.getXMLDesc(0) for found in domain.listAllSnapshots(0) if found.getName() == tag]
    paths = (file.text for xml in xmls for file in read(xml).iterfind(".//os/nvram"))
    return tuple(Path(path) for path in paths if path and path.startswith("/"))


def assumed_variables(domain: Any, places: Places) -> Path:
    """The default path of the UEFI variables of a domain whose XML names none."""
    return places.variables / f"{domain.name()}_VARS.fd"


def checkpoints(domain: Any) -> tuple[str, ...]:
    """The names of libvirt's checkpoints (records of incremental backups)."""
    return tuple(checkpoint.getName() for checkpoint in domain.listAllCheckpoints(0))


def forget_checkpoints(domain: Any) -> None:
    """Delete libvirt's checkpoints, if any. The disks' bitmaps are not changed."""
    for checkpoint in domain.listAllCheckpoints(0):
        checkpoint.delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)


def renew_generation_id(domain: Any) -> None:
    """Write a new generation ID into the definition of a domain that has one. Idempotent."""
    # VIR_DOMAIN_XML_SECURE, as `virsh edit` does: otherwise defining it would drop the secrets in it
    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    # edited as text: libvirt writes the element once, before any text that others can add to the definition
    renewed, found = _GENERATION_ID.subn(f"<genid>{uuid.uuid4()}</genid>", escaped(xml), count=1)
    if found:
        domain.connect().defineXML(renewed)
