"""Deletes a snapshot from images: through the QEMU that uses them, or with qemu-img if none does."""

from collections.abc import Sequence

from drivers import qcow2
from drivers.base import DiskFailed
from drivers.kvm import disks, live_delete
from drivers.kvm.connection import Connection
from drivers.kvm.domain_xml import FileDisk


async def from_disks(
    connection: Connection, server_id: int, tag: str, held: Sequence[FileDisk], *, running: bool
) -> None:
    """Delete the tag from these disks of a server; a disk may lack it. Raises DiskFailed."""
    if running:
        held = await connection.on(
            server_id,
            lambda domain: live_delete.delete_under_guest(domain, held, tag),
            otherwise=DiskFailed,
            text="the snapshot could not be deleted from a disk of the running server",
        )
    await disks.on_every(
        held, lambda disk: qcow2.delete_snapshot(disk.path, tag), text="the snapshot could not be deleted"
    )


async def from_former_disk(connection: Connection, tag: str, disk: FileDisk) -> None:
    """Delete the tag from a file that is no longer attached to the server, through the QEMU that uses it now, if any.
    Raises DiskFailed."""
    text = "the snapshot could not be deleted; the disk is no longer attached to the server"
    in_qemu = await connection.call(
        lambda handle: live_delete.delete_where_it_runs(handle, disk, tag),
        otherwise=DiskFailed,
        text=f"disk {disk.target}: {text}",
    )
    if not in_qemu:
        await disks.on_every([disk], lambda disk: qcow2.delete_snapshot(disk.path, tag), text=text)
