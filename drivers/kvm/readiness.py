"""Whether a server may be stopped: what would keep it from starting again, or would make a snapshot hold another state.

Read from libvirt and the files, in a thread. Changes nothing.
"""

import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libvirt

from drivers import image_locks
from drivers.base import InvalidState, Power
from drivers.kvm.disks_xml import FileDisk
from drivers.kvm.libvirt_xml import read

# of a shut-off domain: its memory lies in a file that `virsh restore` brings back over its disks
_SAVED = libvirt.VIR_DOMAIN_SHUTOFF_SAVED
MEMORY_BLOCK_MIB = 128  # guests take memory in blocks of this size; less is how libvirt rounds when it starts a domain
_BOOT_FILES = {"kernel": "kernel", "initrd": "initrd", "dtb": "device tree", "loader": "firmware"}


def power(domain: Any) -> Power:
    if not domain.isActive():
        return Power.OFF
    state, _reason = domain.state()
    paused = state in {libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED}
    return Power.PAUSED if paused else Power.ON


def refuse_paused(domain: Any) -> None:
    """Raises InvalidState, with the reason where it is one that someone can do something about."""
    state, reason = domain.state()
    if power(domain) is not Power.PAUSED:
        return
    if (state, reason) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR):
        raise InvalidState("the server is paused: it can't write to its disks, which may be full")
    raise InvalidState("the server is suspended")


def refuse_saved(domain: Any) -> None:
    """Raises InvalidState for a domain whose memory was saved: it would not fit disks that were changed."""
    saved_to_file = not domain.isActive() and list(domain.state()) == [libvirt.VIR_DOMAIN_SHUTOFF, _SAVED]
    if domain.hasManagedSaveImage(0) or saved_to_file:
        raise InvalidState("the server has saved memory, which would not fit its disks: start it once")


def refuse_unstoppable(domain: Any, disks: Iterable[FileDisk]) -> None:
    """Raises InvalidState for a domain that runs and would not come back as it is."""
    if domain.isActive():
        refuse_unstartable(domain)
        refuse_other_files(disks)


def refuse_unstartable(domain: Any) -> None:
    """Of a domain that runs: raises InvalidState where it could not start again, or would come back without something
    that it has now."""
    configured = read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    for trouble in (*_missing_files(configured), *_inactive_networks(domain.connect(), configured)):
        raise InvalidState(f"the server could not be started again: {trouble}")
    if lost := lost_with_the_next_start(read(domain.XMLDesc(0)), configured):
        raise InvalidState(f"the server has {lost} that it would lose with its next start: restart it once")


def lost_with_the_next_start(running: ET.Element, configured: ET.Element) -> str | None:
    """The first kind of device that the definition that runs has, and the one that it will start with has not."""
    for what, identities in _LIVE_DEVICES.items():
        if {*identities(running)} - {*identities(configured)}:
            return what
    return None


def reduced(domain: Any) -> tuple[str, ...]:
    """What a domain that runs has now, and will have less of when it starts again."""
    if not domain.isActive():
        return ()
    configured = read(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    return tuple(less_with_the_next_start(read(domain.XMLDesc(0)), configured))


def less_with_the_next_start(running: ET.Element, configured: ET.Element) -> Iterator[str]:
    """Plugged into the domain that runs alone, or taken away for its next start: only its owner knows which. So it is
    told, and unlike a device that is lost no reason to refuse."""
    if (cpus := _cpus(configured)) < (before := _cpus(running)):
        yield f"{cpus} vCPU{'s' * (cpus > 1)} instead of {before}"
    if (memory := _memory_mib(configured)) + MEMORY_BLOCK_MIB <= (had := _memory_mib(running)):
        yield f"{memory} MiB of memory instead of {had}"


def _cpus(domain: ET.Element) -> int:
    element = domain.find("./vcpu")
    return 1 if element is None else int(element.get("current") or element.text or 1)


def _memory_mib(domain: ET.Element) -> int:
    """With the modules that were plugged in; what a balloon takes for a while counts as the domain's."""
    return int(domain.findtext("./memory") or 0) >> 10  # libvirt writes KiB


def refuse_other_files(disks: Iterable[FileDisk]) -> None:
    """Of a domain that runs: raises InvalidState where the file at a disk's path is not the one that QEMU has open.

    Someone put a copy in its place, or the storage is mounted anew. What the guest writes goes into a file without a
    name, and is gone with the guest's stop.
    """
    for disk in disks:
        try:
            if image_locks.holder(disk.path) is None and not _is_open_somewhere(disk.path):
                raise InvalidState(f"the file of disk {disk.target} is not the one that the server runs on")
        except OSError as error:
            raise InvalidState(f"the file of disk {disk.target} can't be looked at") from error


def _missing_files(domain: ET.Element) -> Iterator[str]:
    for name, word in _BOOT_FILES.items():
        path = domain.findtext(f"./os/{name}")
        if path and not Path(path).exists():
            yield f"its {word} has no file any more"
    for disk in domain.iterfind("./devices/disk[@type='file']"):
        source, target = disk.find("source"), disk.find("target")
        path = None if source is None else source.get("file")
        optional = source is not None and source.get("startupPolicy") == "optional"
        if path and not optional and not Path(path).exists():
            device = disk.get("device", "disk")
            yield f"{device} {'' if target is None else target.get('dev')} has no file any more"


def _inactive_networks(connection: Any, domain: ET.Element) -> Iterator[str]:
    for source in domain.iterfind("./devices/interface/source"):
        if (name := source.get("network")) and not _is_active(connection, name):
            yield f"its network {name} is not active"
        if (bridge := source.get("bridge")) and "network" not in source.attrib and not _has_interface(bridge):
            yield f"its bridge {bridge} is not there"


def _is_active(connection: Any, network: str) -> bool:
    try:
        return bool(connection.networkLookupByName(network).isActive())
    except libvirt.libvirtError as error:
        # a libvirt without networks of its own can't say
        return bool(error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK)


def _has_interface(name: str) -> bool:
    # an Open vSwitch bridge may have no interface of its name
    return Path("/sys/class/net", name).exists() or Path("/run/openvswitch/db.sock").exists()


def _addresses(domain: ET.Element) -> Iterator[str]:
    for address in domain.iterfind("./devices/interface/mac"):
        yield address.get("address", "").lower()


def _host_devices(domain: ET.Element) -> Iterator[str]:
    for source in domain.iterfind("./devices/hostdev/source"):
        # of a USB device that is named by its vendor and product, only a domain that runs has an address: where it is
        named = [*source.iterfind("./vendor"), *source.iterfind("./product")] or [*source]
        yield " ".join(ET.tostring(each, encoding="unicode").strip() for each in named)


_LIVE_DEVICES = {"a network card": _addresses, "a device of the host": _host_devices}


def _is_open_somewhere(path: str) -> bool:
    """Whether any process of this machine has the file open: on storage without locks nobody holds one."""
    wanted = os.stat(path)
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and any(_is_same(wanted, fd) for fd in _open_files(process)):
            return True
    return False


def _open_files(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:  # it has ended, or is not ours to look at
        return []


def _is_same(wanted: os.stat_result, fd: Path) -> bool:
    try:
        status = fd.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino)
