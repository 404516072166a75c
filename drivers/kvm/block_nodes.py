"""The disks of a running domain, as its QEMU reports them. All calls block, and raise libvirt's own errors."""

import json
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

HANDED_OVER = frozenset({"inmigrate", "postmigrate", "finish-migrate"})  # states in query-status
NOT_MIGRATING = frozenset({"none", "completed", "failed", "cancelled"})  # states in query-migrate


@dataclass(frozen=True, kw_only=True)
class Node:
    """The qcow2 node of a disk in QEMU's block graph."""

    name: str
    is_root: bool  # no filter such as copy_on_read is on top of it
    snapshots: tuple[tuple[str, str], ...]  # ID and name


@dataclass(frozen=True, kw_only=True)
class RunningDisk:
    target: str
    path: str | None  # None: not a file, or a volume of a storage pool that does not answer
    node: str


def by_disk(domain: Any, disks: Iterable[FileDisk]) -> dict[FileDisk, Node | None]:
    """The node of each disk; None for a disk that the running domain does not have. Raises DiskFailed if QEMU does not
    report the node of a disk that it has."""
    running = {here.target: here for here in _running_disks(domain.XMLDesc(0), paths_by(domain.connect()))}
    nodes = _nodes(domain)
    found: dict[FileDisk, Node | None] = {}
    for disk in disks:
        here = running.get(disk.target)
        if here is None or here.path not in {None, disk.path}:
            found[disk] = None
        elif here.node in nodes:
            found[disk] = nodes[here.node]
        else:
            raise DiskFailed(f"QEMU does not report disk {disk.target} of the running server")
    return found


def running_disks_of(domain: Any) -> list[RunningDisk]:
    """The disks of a running domain; empty if it has vanished meanwhile."""
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
        return [*_running_disks(domain.XMLDesc(0), paths_by(domain.connect()))]
    return []


def is_migrating(domain: Any) -> bool:
    """Whether QEMU is being migrated or does not own its disks: it crashes on a command that changes them."""
    status = ask(domain, "query-status")["status"]
    migration = ask(domain, "query-migrate").get("status", "none")
    return status in HANDED_OVER or migration not in NOT_MIGRATING


def ask(domain: Any, command: str, **arguments: object) -> Any:
    """Raises DiskFailed if QEMU refuses the command."""
    answer = answer_to(domain, command, arguments)
    if "error" in answer:
        raise DiskFailed("QEMU does not report the disks of the running server")
    return answer["return"]


def answer_to(domain: Any, command: str, arguments: Mapping[str, object]) -> Any:
    """QEMU's whole answer, with `return` or `error`."""
    return json.loads(
        libvirt_qemu.qemuMonitorCommand(domain, json.dumps({"execute": command, "arguments": arguments}), 0)
    )


def _running_disks(xml: str, volume_path: VolumePath) -> Iterable[RunningDisk]:
    for element in read(xml).iterfind("./devices/disk"):
        target, source = element.find("target"), element.find("source")
        if target is not None and source is not None:
            yield RunningDisk(
                target=target.get("dev", ""),
                path=disk_path(element, volume_path),
                node=f"libvirt-{source.get('index')}-format",
            )


def _nodes(domain: Any) -> dict[str, Node]:
    """The qcow2 nodes by node name. QEMU's file names are not reliable: they may be those of the overlay, or
    options."""
    roots = {device["inserted"].get("node-name") for device in ask(domain, "query-block") if "inserted" in device}
    return {
        node["node-name"]: Node(
            name=node["node-name"],
            is_root=node["node-name"] in roots,
            snapshots=tuple((snapshot["id"], snapshot["name"]) for snapshot in node["image"].get("snapshots", [])),
        )
        for node in ask(domain, "query-named-block-nodes", flat=True)
        if node["drv"] == "qcow2"
    }
