"""What is asked of one libvirt domain, in a thread; libvirt's own errors pass through."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import libvirt
import libvirt_qemu

from drivers.base import DiskFailed, InvalidState, Power, UnsupportedServer
from drivers.kvm.domain_xml import FileDisk, Hardware, hardware

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


def has_generation_id(domain: Any) -> bool:
    """Whether the guest is told by a VM generation id when it has gone back in time."""
    return "<genid>" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def delete_where_it_runs(handle: Any, path: str, tag: str) -> bool:
    """Delete the snapshot from a file by the QEMU of the running domain that has it as a disk; whether there is one."""
    for domain in handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        with suppress(ValueError):
            for disk in hardware(domain.XMLDesc(0)).disks:
                if os.path.realpath(disk.path) == os.path.realpath(path):
                    delete_under_guest(domain, [disk], tag)
                    return True
    return False


def delete_under_guest(domain: Any, disks: Iterable[FileDisk], tag: str) -> None:
    """Delete the snapshot from these disks of a running domain; the guest pauses for as long as it takes.

    QEMU is asked itself, disk by disk. libvirt 9.0's own delete asks it for `delvm`, which refuses all disks where one
    is writable and no qcow2 (UEFI variables, a shared disk), and then tells us that all went well. Raises DiskFailed.
    """
    nodes = {
        node.get("file"): node["node-name"]
        for node in _ask_qemu(domain, "query-named-block-nodes", flat=True)["return"]
        if node["drv"] == "qcow2"
    }
    for disk in disks:
        command = "blockdev-snapshot-delete-internal-sync"
        if disk.path not in nodes or "error" in _ask_qemu(domain, command, device=nodes[disk.path], name=tag):
            raise DiskFailed(f"disk {disk.target} of the running server kept the snapshot")


def _ask_qemu(domain: Any, command: str, **arguments: object) -> Any:
    return json.loads(
        libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 0)
    )
