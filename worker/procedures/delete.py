"""Delete: free the space of a snapshot, under the running guest or on the disks of one that is off."""

from worker.jobs.model import Step
from worker.procedures.disks import without
from worker.procedures.work import Next, Procedure, Work, over


async def _delete(work: Work) -> Next:
    if work.interrupted:
        await without(work.hypervisor, work.task.server_id, work.task.tag)
    else:
        await work.hypervisor.delete_snapshot(work.task.server_id, work.task.tag)
    return Next(step=None, facts=work.facts)


DELETE = Procedure(
    first=Step.DELETING,
    steps={Step.DELETING: _delete},
    if_it_fails={Step.DELETING: over},
)
