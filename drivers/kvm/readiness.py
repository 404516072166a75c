"""Checks whether a server may be stopped, that is, whether it could start again with the same devices and disks.

The calls block. They read libvirt and files, and change nothing.
"""

import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import libvirt

from drivers import image_locks
from drivers.base import InvalidState, Power
from drivers.kvm.disks_xml import FileDisk
from drivers.kvm.libvirt_xml import read

# the domain was shut off by `virsh save`: its memory is in a file from which `virsh restore` continues
_SAVED = libvirt.VIR_DOMAIN_SHUTOFF_SAVED
# guests take memory in blocks of this size; smaller differences come from libvirt's rounding at a start
MEMORY_BLOCK_MIB = 128
_BOOT_FILES = {"kernel": "kernel", "initrd": "initrd", "dtb": "device tree", "loader": "firmware"}


def power(domain: Any) -> Power:
    if not domain.isActive():
        return Power.OFF
    state, _reason = domain.state()
    return power_while_active(state)


def power_while_active(state: int) -> Power:
    """The power of an active domain in this state."""
    paused = state in {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}
    return Power.PAUSED if paused else Power.ON


def was_shut_down(domain: Any) -> bool | None:
    """Whether the guest of a domain that is off shut down, or its QEMU was ended with a signal that it handles; None:
    unknown, because libvirt forgets it when it restarts."""
    _state, reason = domain.state()
    return None if reason == libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN else reason == libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN


def refuse_paused(domain: Any) -> None:
    """Raises InvalidState if the domain is paused, with the reason if someone can fix it."""
    state, reason = domain.state()
    if power(domain) is not Power.PAUSED:
        return
    if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
        raise InvalidState("the server is paused because it cannot write to its disks, which may be full")
    raise InvalidState("the server is suspended")


def refuse_saved(domain: Any) -> None:
    """Raises InvalidState if the domain has saved memory, which would not match changed disks."""
    saved_to_file = not domain.isActive() and list(domain.state()) == [libvirt.VIR_DOMAIN_SHUTOFF, _SAVED]
    if domain.hasManagedSaveImage(0) or saved_to_file:
        raise InvalidState("the server has saved memory, which would no longer match its disks: start it first")


def refuse_unstoppable(domain: Any, disks: Iterable[FileDisk]) -> None:
    """Raises InvalidState if the domain runs and would not start again in the same state."""
    if domain.isActive():
        refuse_unstartable(domain)
        refuse_other_files(disks)


def refuse_unstartable(domain: Any) -> None:
    """Raises InvalidState if a running domain could not start again, or would start without a device it has now."""
    configured = read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    for trouble in (*_missing_files(configured), *_inactive_networks(domain.connect(), configured)):
        raise InvalidState(f"the server could not be started again: {trouble}")
    if lost := lost_with_the_next_start(read(domain.XMLDesc(0)), configured):
        raise InvalidState(f"the server has {lost} that it would lose at its next start: restart it first")


def lost_with_the_next_start(running: ET.Element, configured: ET.Element) -> str | None:
    """The first kind of device that the running definition has and the persistent one lacks; None if there is none."""
    for what, identities in _LIVE_DEVICES.items():
        if {*identities(running)} - {*identities(configured)}:
            return what
    return None


def reduced(domain: Any) -> tuple[str, ...]:
    """The resources that a running domain will have less of when it starts again, as "2 vCPUs instead of 4"."""
    if not domain.isActive():
        return ()
    configured = read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return tuple(less_with_the_next_start(read(domain.XMLDesc(0)), configured))


def less_with_the_next_start(running: ET.Element, configured: ET.Element) -> Iterator[str]:
    """Like `reduced`, from the two definitions. A note and not a refusal, unlike a lost device: the owner may have
    added the resources only to the running domain, or reduced them on purpose for the next start."""
    if (cpus := _cpus(configured)) < (before := _cpus(running)):
        yield f"{cpus} vCPU{'s' * (cpus > 1)} instead of {before}"
    if (memory := _memory_mib(configured)) + MEMORY_BLOCK_MIB <= (had := _memory_mib(running)):
        yield f"{memory} MiB of memory instead of {had}"


def _cpus(domain: ET.Element) -> int:
    element = domain.find("./vcpu")
    return 1 if element is None else int(element.get("current") or element.text or 1)


def _memory_mib(domain: ET.Element) -> int:
    """Memory in MiB, including hotplugged modules and what the balloon has taken."""
    return int(domain.findtext("./memory") or 0) >> 10  # libvirt writes KiB


def refuse_other_files(disks: Iterable[FileDisk]) -> None:
    """Raises InvalidState if the file at a disk's path is not the one that the running domain has open.

    In that case someone has replaced the file with a copy or remounted the storage, and the guest writes to a
    deleted file, whose data is lost when the guest stops.
    """
    for disk in disks:
        try:
            if image_locks.holder(disk.path) is None and not _is_open_somewhere(disk.path):
                raise InvalidState(f"the file of disk {disk.target} is not the one that the running server uses")
        except OSError as error:
            raise InvalidState(f"the file of disk {disk.target} cannot be accessed") from error


def _missing_files(domain: ET.Element) -> Iterator[str]:
    for name, word in _BOOT_FILES.items():
        path = domain.findtext(f"./os/{name}")
        if path and not Path(path).exists():
            yield f"the file of its {word} is missing"
    for disk in domain.iterfind("./devices/disk[@type='file']"):
        source, target = disk.find("source"), disk.find("target")
        path = None if source is None else source.get("file")
        optional = source is not None and source.get("startupPolicy") == "optional"
        if path and not optional and not Path(path).exists():
            device = disk.get("device", "disk")
            yield f"the file of {device} {'' if target is None else target.get('dev')} is missing"


def _inactive_networks(connection: Any, domain: ET.Element) -> Iterator[str]:
    for source in domain.iterfind("./devices/interface/source"):
        if (name := source.get("network")) and not _is_active(connection, name):
            yield f"its network {name} is not active"
        if (bridge := source.get("bridge")) and "network" not in source.attrib and not _has_interface(bridge):
            yield f"its bridge {bridge} does not exist"


def _is_active(connection: Any, network: str) -> bool:
    try:
        return bool(connection.networkLookupByName(network).isActive())
    except libvirt.libvirtError as error:
        # any other error: this libvirt has no network driver, so assume that the network works
        return bool(error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK)


def _has_interface(name: str) -> bool:
    # an Open vSwitch bridge may have no interface with its name
    return Path("/sys/class/net", name).exists() or Path("/run/openvswitch/db.sock").exists()


def _addresses(domain: ET.Element) -> Iterator[str]:
    for address in domain.iterfind("./devices/interface/mac"):
        yield address.get("address", "").lower()


def _host_devices(domain: ET.Element) -> Iterator[str]:
    for source in domain.iterfind("./devices/hostdev/source"):
        # only the running definition has the address of a USB device that is named by vendor and product, so ignore it
        named = [*source.iterfind("./vendor"), *source.iterfind("./product")] or [*source]
        yield " ".join(ET.tostring(each, encoding="unicode").strip() for each in named)


_LIVE_DEVICES = {"a network card": _addresses, "a device of the host": _host_devices}


def _is_open_somewhere(path: str) -> bool:
    """Whether any process of this machine has the file open. Needed because some storage does not support locks.

    Without CAP_SYS_PTRACE, the files of QEMU cannot be seen, and it is always False.
    """
    status = os.stat(path)
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and any(_is_same(status, fd) for fd in _open_files(process)):
            return True
    return False


def _open_files(process: Path) -> list[Path]:
    with suppress(OSError):  # the process has ended, or may not be read
        return list((process / "fd").iterdir())
    return []


def _is_same(file: os.stat_result, fd: Path) -> bool:
    with suppress(OSError):
        status = fd.stat()
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, file)
    return False
