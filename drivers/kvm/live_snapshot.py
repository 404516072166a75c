"""Takes a snapshot of the disks of a running domain, in one transaction of its QEMU. All calls block, and raise
libvirt's own errors.

QEMU stops the writes to each disk until all of them have the snapshot, so the snapshot is of one instant across all
disks: it contains no write that the guest began after a write that it lacks. If one disk refuses, QEMU deletes the
snapshot from the others.
"""

from collections.abc import Iterable
from typing import Any

import libvirt

from drivers.base import DiskFailed, InvalidState, Power, ServerInUse, SnapshotExists, UnsupportedServer
from drivers.kvm import block_nodes, readiness
from drivers.kvm.block_nodes import Node
from drivers.kvm.disks_xml import FileDisk


class QemuRefused(Exception):
    """QEMU's own text, which may name files of the host."""


def refuse_unfit(domain: Any, disks: Iterable[FileDisk]) -> None:
    """Raises the errors of `Hypervisor.refuse_live` that concern the disks."""
    _nodes(domain, disks)


def qemu_answers(domain: Any) -> bool:
    try:
        block_nodes.ask(domain, "query-status")
    except libvirt.libvirtError:
        return False
    return True


def take(domain: Any, disks: Iterable[FileDisk], tag: str) -> None:
    """Raises what `Hypervisor.take_live_snapshot` raises."""
    nodes = _nodes(domain, disks)
    if any(name == tag for node in nodes for _, name in node.snapshots):
        raise SnapshotExists(f"a disk of the server already has the tag {tag}")
    actions = [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": node.name, "name": tag}} for node in nodes
    ]
    answer = block_nodes.answer_to(domain, "transaction", {"actions": actions})
    if "error" in answer:
        raise DiskFailed("QEMU could not take the snapshot of the running server") from QemuRefused(answer["error"])


def _nodes(domain: Any, disks: Iterable[FileDisk]) -> list[Node]:
    if readiness.power(domain) is not Power.ON:
        raise InvalidState("the server is not running")
    if block_nodes.is_migrating(domain):
        raise ServerInUse("the server is being migrated")
    nodes = []
    for disk, node in block_nodes.by_disk(domain, disks).items():
        if node is None:
            raise InvalidState(f"the running server does not have disk {disk.target}: restart it first")
        if not node.is_root:
            raise UnsupportedServer(f"disk {disk.target} has a filter in QEMU, so its server must be stopped")
        nodes.append(node)
    return nodes
