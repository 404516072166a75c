"""Disks: the checks before any change, and the repair after an interruption."""

from dataclasses import replace

import structlog

from drivers.base import DiskFailed, DriverError, Hypervisor, Layout, Power
from worker.procedures import notes
from worker.procedures.work import Facts, Work
from worker.store.model import ServerId

CLEANING_TRIES = 3  # attempts to delete a tag within the job; after that, housekeeping deletes it

log = structlog.stdlib.get_logger()


class NotEnoughSpace(DriverError):
    """The storage is too full for a snapshot. Nothing was changed."""

    code = "not_enough_space"


async def roomy_layout(work: Work) -> Layout:
    """The server's layout, if its storage has enough free space.

    Raises NotEnoughSpace and everything that `Hypervisor.layout` raises, before the guest is stopped.
    """
    layout = await work.hypervisor.layout(work.task.server_id)
    if layout.skipped:
        log.info("disks.skipped", **{disk.target: disk.reason for disk in layout.skipped})
    floor = work.policy.free_floor_bytes
    if layout.free_bytes < floor:
        raise NotEnoughSpace(
            f"the server's storage has {layout.free_bytes >> 20} MiB free; {floor >> 20} MiB are reserved for guests"
        )
    return layout


async def checked(work: Work) -> Facts:
    """Check and repair the disks before the first change, which could destroy data on a damaged image.

    Repaired disks are named in a note. Raises DiskCorrupt for damage that cannot be repaired.
    """
    if work.interrupted:  # someone may have started the guest meanwhile
        await work.hypervisor.cut_power(work.task.server_id)
    repaired = await work.hypervisor.repair(work.task.server_id)
    if not repaired:
        return work.facts
    log.warning("disks.repaired", disks=repaired)
    return work.facts.noting(notes.repaired(repaired))


async def cleaned(work: Work, tag: str) -> Facts:
    """Repair the disks and delete the tag from them. If the tag cannot be deleted now, housekeeping deletes it
    later, so that the guest does not wait."""
    try:
        await without(work.hypervisor, work.task.server_id, tag)
    # the disks are consistent; after any other error they may not be, and nothing may boot from them
    except DiskFailed:
        return replace(work.facts, taken=False, spare_tag=tag)
    return replace(work.facts, taken=False, spare_tag=None)


async def without(hypervisor: Hypervisor, server_id: ServerId, tag: str) -> None:
    """Repair every disk and delete the tag from it, whatever state an interrupted change has left.

    Raises DiskFailed if a disk keeps the tag; all disks are consistent even then. After any other error they may not
    be.
    """
    for tries_left in reversed(range(CLEANING_TRIES)):
        await whole(hypervisor, server_id)
        try:
            await hypervisor.delete_snapshot(server_id, tag)
        except DiskFailed:
            if not tries_left:
                await whole(hypervisor, server_id)
                raise
        else:
            return


async def whole(hypervisor: Hypervisor, server_id: ServerId) -> None:
    """Check and repair the disks of a guest that is off."""
    # Before anything else touches a disk: booting or changing an inconsistent image destroys its snapshots permanently.
    # A running guest's disks were consistent when QEMU opened them, and only QEMU may touch them.
    if await hypervisor.power(server_id) is Power.OFF:
        await hypervisor.repair(server_id)
