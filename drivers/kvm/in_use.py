"""Tells whether another tool is working on a domain. The calls block, and raise libvirt's own errors."""

from typing import Any

import libvirt

from drivers.base import ServerInUse
from drivers.kvm.libvirt_errors import ignoring
from drivers.kvm.libvirt_xml import read

# VIR_DOMAIN_JOB_OPERATION_*: libvirt's older Python bindings lack some of them
_SAVE, _RESTORE, _MIGRATION_OUT, _SNAPSHOT, _REVERT, _DUMP, _BACKUP, _DELETE = 2, 3, 5, 6, 7, 8, 9, 10
_AT_WORK = {
    _SAVE: "the server's memory is being saved",
    _RESTORE: "the server's saved memory is being restored",
    _MIGRATION_OUT: "the server is being migrated to another node",
    _SNAPSHOT: "another tool is taking a snapshot of the server",
    _REVERT: "another tool is reverting the server to a snapshot",
    _DUMP: "the server's memory is being dumped",
    _BACKUP: "the server is being backed up",
    _DELETE: "another tool is deleting a snapshot of the server",
}
_ON_A_DISK = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "is being merged with its backing file",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "is being copied",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "is being merged into its backing file",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "is being merged into its backing file",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "is being backed up",
}
# the states of a domain that is being migrated to this node
_INCOMING_RUNNING = libvirt.VIR_DOMAIN_RUNNING_POSTCOPY
_INCOMING_PAUSED = frozenset(
    {
        libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
        libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
        libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
        libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
    }
)


def is_of_another_node(domain: Any, state: int, reason: int) -> bool:
    """Whether the domain, whose state libvirt reports with this reason, is being migrated to this node, or was migrated
    away and its definition was left here.

    Takes no lock in libvirt, so it does not wait for another call on the domain.
    """
    left = (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED)
    return left or _is_incoming(domain, state, reason)


def _is_incoming(domain: Any, state: int, reason: int) -> bool:
    if state == libvirt.VIR_DOMAIN_RUNNING:
        return bool(reason == _INCOMING_RUNNING)
    if state != libvirt.VIR_DOMAIN_PAUSED or reason not in _INCOMING_PAUSED:
        return False
    try:
        domain.jobStats(0)
    except libvirt.libvirtError as error:
        # "migration statistics are available only on the source host"
        return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED)
    return False


def refuse(domain: Any) -> None:
    """Raises ServerInUse if another tool runs a job on the domain or on one of its disks."""
    if not domain.isActive():
        return
    if (at_work := _job(domain)) is not None:
        raise ServerInUse(at_work)
    # includes disks that snapshots leave out, because another tool may be copying one
    for element in read(domain.XMLDesc(0)).iterfind("./devices/disk/target"):
        if (target := element.get("dev")) and (kind := _block_job(domain, target)) is not None:
            raise ServerInUse(f"disk {target} {_ON_A_DISK.get(kind, 'is in use by another tool')}")


def _job(domain: Any) -> str | None:
    try:
        job = domain.jobStats(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_UNSUPPORTED:
            return "the server is being migrated to this node"
        if error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:  # it was shut off meanwhile
            return None
        raise
    if job.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    operation = job.get("operation", libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN)
    if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_START:
        return None
    return _AT_WORK.get(operation, "another tool is working on the server")


def _block_job(domain: Any, target: str) -> int | None:
    # ignored: a drive without a medium, or a domain that was shut off meanwhile
    with ignoring(libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_INVALID_ARG):
        if found := domain.blockJobInfo(target, 0):
            return int(found["type"])
    return None
