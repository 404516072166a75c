"""Delete: remove a snapshot from the disks, whether the guest runs or is off."""

from contextlib import suppress

from drivers.base import DiskFailed
from worker.procedures.disks import without
from worker.procedures.power import claimed
from worker.procedures.work import Next, Procedure, Work, over
from worker.store.model import Step


async def _delete(work: Work) -> Next:
    hypervisor, task = work.hypervisor, work.task
    await claimed(work)
    if not work.interrupted:
        with suppress(DiskFailed):  # some disks may have deleted it, one may be inconsistent: repair and retry below
            await hypervisor.delete_snapshot(task.server_id, task.tag)
            return Next(step=None, facts=work.facts)
    await without(hypervisor, task.server_id, task.tag)
    return Next(step=None, facts=work.facts)


DELETE = Procedure(first=Step.DELETING, steps={Step.DELETING: _delete}, if_it_fails={Step.DELETING: over})
