"""Disks: the checks before anything is touched, and how they are put right again after an interruption."""

from dataclasses import replace

import structlog

from drivers.base import DiskFailed, DriverError, Hypervisor, Layout, Power
from worker.procedures import notes
from worker.procedures.work import Facts, Work
from worker.store.model import ServerId

CLEANING_TRIES = 3  # to delete a tag at once; then it is deleted some time after the job

log = structlog.stdlib.get_logger()


class NotEnoughSpace(DriverError):
    """The storage is too full to take a snapshot on. Nothing was changed."""

    code = "not_enough_space"


async def roomy_layout(work: Work) -> Layout:
    """The server's layout, checked: all that can be refused is refused before it costs the guest its uptime."""
    layout = await work.hypervisor.layout(work.task.server_id)
    if layout.skipped:
        log.info("disks.skipped", **{disk.target: disk.reason for disk in layout.skipped})
    floor = work.policy.free_floor_bytes
    if layout.free_bytes < floor:
        raise NotEnoughSpace(
            f"the storage of the server has {layout.free_bytes >> 20} MiB free; {floor >> 20} MiB are kept for guests"
        )
    return layout


async def checked(work: Work) -> Facts:
    """Whole disks before the first change: on a damaged image it could cost data that were there until now.

    Damage that can be repaired is repaired and noted. Raises DiskCorrupt for what can't.
    """
    if work.interrupted:  # someone may have started the guest since
        await work.hypervisor.cut_power(work.task.server_id)
    mended = await work.hypervisor.repair(work.task.server_id)
    if not mended:
        return work.facts
    log.warning("disks.repaired", disks=mended)
    return work.facts.noting(notes.repaired(mended))


async def cleaned(work: Work, tag: str) -> Facts:
    """Whole disks, and the tag gone from them if they let it go: the guest is not to wait for more than that."""
    try:
        await without(work.hypervisor, work.task.server_id, tag)
    except DiskFailed:  # they are whole; after any other error they are not known to be, and nothing may boot on them
        return replace(work.facts, taken=False, spare_tag=tag)
    return replace(work.facts, taken=False, spare_tag=None)


async def without(hypervisor: Hypervisor, server_id: ServerId, tag: str) -> None:
    """Every disk whole and free of the tag, whatever an interrupted change has left behind.

    Raises DiskFailed where a disk does not let go of the tag: whole they are then all the same. After any other error
    they are not known to be.
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
    """Check the disks, and repair what is not whole; of a guest that runs they are."""
    # Before anything else touches a disk: a boot or a change on a torn image destroys its snapshots for good.
    # The disks of a guest that runs are QEMU's alone, and it opened them whole.
    if await hypervisor.power(server_id) is Power.OFF:
        await hypervisor.repair(server_id)
