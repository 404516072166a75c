"""Deletes a snapshot from the disks of a running domain. The guest is paused meanwhile.

The commands go directly to QEMU, one disk at a time. libvirt 9.0's own delete uses `delvm`, which fails for all disks
if one is writable and not qcow2 (UEFI variables, a shared disk), and still reports success. All calls block, and raise
libvirt's own errors.
"""

import os
import secrets
import time
from collections.abc import Iterable
from typing import Any

import libvirt

from drivers.base import DiskFailed
from drivers.kvm import block_nodes
from drivers.kvm.block_nodes import Node, answer_to, ask
from drivers.kvm.disks_xml import FileDisk

JOB_PREFIX = "vps-delete-"
JOB_SECONDS = 600.0  # limit; a fully allocated disk of 1 TB takes 6 s
JOB_RETRY_SECONDS = 0.02


def delete_under_guest(domain: Any, disks: Iterable[FileDisk], tag: str) -> list[FileDisk]:
    """Delete the snapshot from the disks that the running guest has; a disk may lack it.

    Returns the other disks, which QEMU does not hold. Raises DiskFailed before any change if QEMU does not report a
    disk's node; raised later, some disks may have lost the snapshot.
    """
    if block_nodes.is_migrating(domain):
        raise DiskFailed("the snapshot could not be deleted: the server is being migrated")
    nodes = block_nodes.by_disk(domain, disks)
    for disk, node in nodes.items():
        for snapshot_id, name in node.snapshots if node is not None else ():
            if node is not None and name == tag and not _deleted(domain, node, snapshot_id, tag):
                raise DiskFailed(f"the snapshot could not be deleted from disk {disk.target} of the running server")
    return [disk for disk, node in nodes.items() if node is None]


def delete_where_it_runs(handle: Any, disk: FileDisk, tag: str) -> bool:
    """Delete the snapshot from a file through the running domain that has it as a disk. Returns False if there is no
    such domain. Raises DiskFailed."""
    for domain in handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        for here in block_nodes.running_disks_of(domain):
            if here.path is not None and os.path.realpath(here.path) == os.path.realpath(disk.path):
                return not delete_under_guest(domain, [FileDisk(target=here.target, path=here.path)], tag)
    return False


def _deleted(domain: Any, node: Node, snapshot_id: str, tag: str) -> bool:
    if not node.is_root:
        return _deleted_by_job(domain, node, tag)
    command = "blockdev-snapshot-delete-internal-sync"
    return "error" not in answer_to(domain, command, {"device": node.name, "id": snapshot_id, "name": tag})


def _deleted_by_job(domain: Any, node: Node, tag: str) -> bool:
    """Delete with a job, which accepts any node; the command accepts only root nodes. The job deletes the first
    snapshot with the name."""
    _dismiss_ended(domain)
    job_id = f"{JOB_PREFIX}{secrets.token_hex(4)}"
    if "error" in answer_to(domain, "snapshot-delete", {"job-id": job_id, "tag": tag, "devices": [node.name]}):
        return False
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        job = next((job for job in ask(domain, "query-jobs") if job["id"] == job_id), None)
        if job is None or job["status"] == "concluded":
            _dismiss_ended(domain)
            return job is not None and "error" not in job
        time.sleep(JOB_RETRY_SECONDS)
    return False


def _dismiss_ended(domain: Any) -> None:
    """Dismiss our concluded jobs. One is left behind if its worker dies."""
    for job in ask(domain, "query-jobs"):
        if job["id"].startswith(JOB_PREFIX) and job["status"] == "concluded":
            answer_to(domain, "job-dismiss", {"id": job["id"]})
