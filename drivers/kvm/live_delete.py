"""Deletes a snapshot from the disks of a running domain. The guest is paused meanwhile.

The commands go directly to QEMU, one disk at a time. libvirt 9.0's own delete uses `delvm`, which fails for all disks
if one is writable and not qcow2 (UEFI variables, a shared disk), and still reports success. All calls block, and raise
libvirt's own errors.
"""

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt
import libvirt_qemu

from drivers.base import DiskFailed
from drivers.kvm.disks_xml import FileDisk, VolumePath, disk_path
from drivers.kvm.libvirt_errors import ignoring
from drivers.kvm.libvirt_xml import read
from drivers.kvm.volumes import paths_by

JOB_PREFIX = "vps-delete-"
HANDED_OVER = frozenset({"inmigrate", "postmigrate", "finish-migrate"})  # of query-status
NOT_MIGRATING = frozenset({"none", "completed", "failed", "cancelled"})  # of query-migrate
JOB_SECONDS = 600.0  # limit; a fully allocated disk of 1 TB takes 6 s
JOB_RETRY_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class _Node:
    """The qcow2 node of a disk in QEMU's block graph."""

    name: str
    is_root: bool  # no filter such as copy_on_read is on top of it
    snapshots: tuple[tuple[str, str], ...]  # id and name


def delete_under_guest(domain: Any, disks: Iterable[FileDisk], tag: str) -> list[FileDisk]:
    """Delete the snapshot from those of the disks that the running guest has; a disk may lack it.

    Returns the other disks, which QEMU does not hold. Raises DiskFailed before any change if QEMU does not report a
    disk's node; raised later, some disks may have lost the snapshot.
    """
    _refuse_migrating(domain)
    running = {here.target: here for here in _running_disks(domain.XMLDesc(0), paths_by(domain.connect()))}
    nodes = _nodes(domain)
    found: list[tuple[FileDisk, _Node]] = []
    elsewhere: list[FileDisk] = []
    for disk in disks:
        here = running.get(disk.target)
        if here is None or here.path not in {None, disk.path}:
            elsewhere.append(disk)
        elif here.node in nodes:
            found.append((disk, nodes[here.node]))
        else:
            raise DiskFailed(f"QEMU does not report disk {disk.target} of the running server")
    for disk, node in found:
        for snapshot_id, name in node.snapshots:
            if name == tag and not _deleted(domain, node, snapshot_id, tag):
                raise DiskFailed(f"the snapshot could not be deleted from disk {disk.target} of the running server")
    return elsewhere


def _refuse_migrating(domain: Any) -> None:
    """Raises DiskFailed during a migration: a QEMU that does not own its disks crashes on the command."""
    status = _ask(domain, "query-status")["status"]
    migration = _ask(domain, "query-migrate").get("status", "none")
    if status in HANDED_OVER or migration not in NOT_MIGRATING:
        raise DiskFailed("the snapshot could not be deleted: the server is being migrated")


def delete_where_it_runs(handle: Any, disk: FileDisk, tag: str) -> bool:
    """Delete the snapshot from a file through the running domain that has it as a disk. Returns False if there is no
    such domain. Raises DiskFailed."""
    for domain in handle.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        for here in _running_disks_of(domain):
            if here.path is not None and os.path.realpath(here.path) == os.path.realpath(disk.path):
                return not delete_under_guest(domain, [FileDisk(target=here.target, path=here.path)], tag)
    return False


@dataclass(frozen=True, kw_only=True)
class _RunningDisk:
    target: str
    path: str | None  # None: not a file, or a volume of a storage pool that does not answer
    node: str


def _running_disks_of(domain: Any) -> list[_RunningDisk]:
    """The disks of a running domain; empty if it has vanished meanwhile."""
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
        return [*_running_disks(domain.XMLDesc(0), paths_by(domain.connect()))]
    return []


def _running_disks(xml: str, volume_path: VolumePath) -> Iterable[_RunningDisk]:
    for element in read(xml).iterfind("./devices/disk"):
        target, source = element.find("target"), element.find("source")
        if target is not None and source is not None:
            yield _RunningDisk(
                target=target.get("dev", ""),
                path=disk_path(element, volume_path),
                node=f"libvirt-{source.get('index')}-format",
            )


def _nodes(domain: Any) -> dict[str, _Node]:
    """The qcow2 nodes by node name. QEMU's file names are not reliable: they are those of the overlay, or options."""
    roots = {device["inserted"].get("node-name") for device in _ask(domain, "query-block") if "inserted" in device}
    return {
        node["node-name"]: _Node(
            name=node["node-name"],
            is_root=node["node-name"] in roots,
            snapshots=tuple((snapshot["id"], snapshot["name"]) for snapshot in node["image"].get("snapshots", [])),
        )
        for node in _ask(domain, "query-named-block-nodes", flat=True)
        if node["drv"] == "qcow2"
    }


def _deleted(domain: Any, node: _Node, snapshot_id: str, tag: str) -> bool:
    if not node.is_root:
        return _deleted_by_job(domain, node, tag)
    command = "blockdev-snapshot-delete-internal-sync"
    return "error" not in _answer(domain, command, {"device": node.name, "id": snapshot_id, "name": tag})


def _deleted_by_job(domain: Any, node: _Node, tag: str) -> bool:
    """Delete with a job, which accepts any node; the command accepts only root nodes. The job deletes the first
    snapshot with the name."""
    _dismiss_ended(domain)
    job_id = f"{JOB_PREFIX}{secrets.token_hex(4)}"
    if "error" in _answer(domain, "snapshot-delete", {"job-id": job_id, "tag": tag, "devices": [node.name]}):
        return False
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        job = next((job for job in _ask(domain, "query-jobs") if job["id"] == job_id), None)
        if job is None or job["status"] == "concluded":
            _dismiss_ended(domain)
            return job is not None and "error" not in job
        time.sleep(JOB_RETRY_SECONDS)
    return False


def _dismiss_ended(domain: Any) -> None:
    """Dismiss our concluded jobs. One is left behind if its worker dies."""
    for job in _ask(domain, "query-jobs"):
        if job["id"].startswith(JOB_PREFIX) and job["status"] == "concluded":
            _answer(domain, "job-dismiss", {"id": job["id"]})


def _ask(domain: Any, command: str, **arguments: object) -> Any:
    answer = _answer(domain, command, arguments)
    if "error" in answer:
        raise DiskFailed("QEMU does not report the disks of the running server")
    return answer["return"]


def _answer(domain: Any, command: str, arguments: Mapping[str, object]) -> Any:
    return json.loads(
        libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 0)
    )
