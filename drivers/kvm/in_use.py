"""Whether another tool is at work on a domain; asked in a thread, libvirt's own errors pass through."""

from typing import Any

import libvirt

from drivers.base import ServerInUse
from drivers.kvm.libvirt_xml import read

# libvirt's own constants, some of which its older Python bindings lack
_SAVE, _RESTORE, _MIGRATION_OUT, _SNAPSHOT, _REVERT, _DUMP, _BACKUP, _DELETE = 2, 3, 5, 6, 7, 8, 9, 10
_AT_WORK = {
    _SAVE: "the server's memory is being saved",
    _RESTORE: "the server's saved memory is being read",
    _MIGRATION_OUT: "the server is being moved to another node",
    _SNAPSHOT: "another tool is taking a snapshot of the server",
    _REVERT: "another tool is taking the server back to a snapshot",
    _DUMP: "the server's memory is being copied",
    _BACKUP: "the server is being backed up",
    _DELETE: "another tool is deleting a snapshot of the server",
}
_ON_A_DISK = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "is being taken off its backing file",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "is being copied",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "is being merged into its backing file",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "is being merged into its backing file",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "is being backed up",
}
_MOVED = frozenset({libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP})
_MOVED_RUNNING = libvirt.VIR_DOMAIN_RUNNING_POSTCOPY
_POSTCOPY = frozenset({libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED})


def is_incoming(domain: Any) -> bool:
    """Whether a migration is bringing the domain to this node and has not ended: it is the other node's until then.

    Takes no lock of libvirt's, so that it waits for nothing.
    """
    state, reason = domain.state()
    if state == libvirt.VIR_DOMAIN_RUNNING:
        return bool(reason == _MOVED_RUNNING)
    if state != libvirt.VIR_DOMAIN_PAUSED or reason not in _MOVED | _POSTCOPY:
        return False
    try:
        domain.jobStats(0)
    except libvirt.libvirtError as error:
        # "migration statistics are available only on the source host"
        return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED)
    return False


def has_left(domain: Any) -> bool:
    """Whether a migration took the domain to another node and left its definition here: it is that node's now."""
    return list(domain.state()) == [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED]


def refuse(domain: Any) -> None:
    """Raises ServerInUse."""
    if not domain.isActive():
        return
    at_work = _job(domain)
    if at_work is not None:
        raise ServerInUse(at_work)
    for target in _targets(domain.XMLDesc(0)):
        kind = _block_job(domain, target)
        if kind is not None:
            raise ServerInUse(f"disk {target} {_ON_A_DISK.get(kind, 'is being worked on by another tool')}")


def _job(domain: Any) -> str | None:
    try:
        job = domain.jobStats(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return "the server is being moved to this node"
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:  # it went off meanwhile
            return None
        raise
    if job.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    operation = job.get("operation", libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN)
    if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_START:
        return None
    return _AT_WORK.get(operation, "another tool is at work on the server")


def _targets(xml: str) -> list[str]:
    """Of all disks, whatever they are: another tool may copy one that no snapshot holds."""
    targets = (element.get("dev", "") for element in read(xml).iterfind("./devices/disk/target"))
    return [target for target in targets if target]


def _block_job(domain: Any, target: str) -> int | None:
    try:
        found = domain.blockJobInfo(target, 0)
    except libvirt.libvirtError as error:
        # a drive without a medium has no job, and a domain that went off has none
        if error.get_error_code() in {libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INVALID_ARG}:
            return None
        raise
    return int(found["type"]) if found else None
