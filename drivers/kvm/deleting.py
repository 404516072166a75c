"""Deletes a snapshot from images: by the QEMU that runs on them, or with qemu-img where none does."""

from collections.abc import Sequence

from drivers import qcow2
from drivers.base import DiskFailed
from drivers.kvm import disks, live_delete
from drivers.kvm.connection import Connection
from drivers.kvm.domain_xml import FileDisk


async def from_disks(
    connection: Connection, server_id: int, tag: str, held: Sequence[FileDisk], *, running: bool
) -> None:
    """From these disks of a server; one that lacks the tag is fine. Raises DiskFailed."""
    if running:
        held = await connection.on(
            server_id,
            lambda domain: live_delete.delete_under_guest(domain, held, tag),
            otherwise=DiskFailed,
            text="a disk of the running server kept the snapshot",
        )
    await disks.on_every(held, lambda disk: qcow2.delete_snapshot(disk.path, tag), text="kept the snapshot")


async def from_former_disk(connection: Connection, tag: str, disk: FileDisk) -> None:
    """From a file that is no disk of the server any more: by the QEMU that runs on it now, if one does. Raises
    DiskFailed."""
    in_qemu = await connection.call(
        lambda handle: live_delete.delete_where_it_runs(handle, disk, tag),
        otherwise=DiskFailed,
        text=f"disk {disk.target}, which is not the server's any more, kept the snapshot",
    )
    if not in_qemu:
        text = "is not the server's any more and kept the snapshot"
        await disks.on_every([disk], lambda disk: qcow2.delete_snapshot(disk.path, tag), text=text)
