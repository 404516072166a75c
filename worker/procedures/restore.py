"""Restore: a safety snapshot first, then every disk back to the snapshot, or all of them back to where they were."""

from dataclasses import replace

from drivers.base import SnapshotNotFound, SnapshotSpec
from worker.jobs.model import Step
from worker.procedures.disks import cleaned, roomy_layout, without
from worker.procedures.power import as_found, ensure_off, power_remembered
from worker.procedures.work import Next, Procedure, Work, over, then


async def _check(work: Work) -> Next:
    """All that can refuse a restore before it costs the guest its uptime; changes nothing."""
    await roomy_layout(work)
    found = {snapshot.tag: snapshot for snapshot in await work.hypervisor.snapshots(work.task.server_id)}
    if work.task.tag not in found or not found[work.task.tag].complete:
        raise SnapshotNotFound("not every disk that the server has today holds the snapshot")
    return Next(step=None, facts=work.facts)


async def _preflight(work: Work) -> Next:
    await _check(work)
    return Next(step=Step.STOPPING, facts=await power_remembered(work))


async def _stop(work: Work) -> Next:
    # At once: what the guest has not yet written is about to be overwritten.
    await ensure_off(work.hypervisor, work.task.server_id)
    return Next(step=Step.SAFEGUARDING, facts=work.facts)


async def _safeguard(work: Work) -> Next:
    task = work.task
    if work.interrupted:
        await ensure_off(work.hypervisor, task.server_id)
        await without(work.hypervisor, work.task.server_id, task.safety_tag)
    spec = SnapshotSpec(
        tag=task.safety_tag,
        name="safety",
        description=f"What the restore of {task.tag} overwrote",
        created_at=task.created_at,
    )
    await work.hypervisor.take_snapshot(task.server_id, spec)
    return Next(step=Step.REVERTING, facts=replace(work.facts, spare_tag=task.safety_tag))


async def _revert(work: Work) -> Next:
    if work.interrupted:
        await ensure_off(work.hypervisor, work.task.server_id)
        await work.hypervisor.repair(work.task.server_id)
    await work.hypervisor.revert(work.task.server_id, work.task.tag)
    # From the next step on the guest may write: whoever runs this job again must not revert again.
    return Next(step=Step.STARTING, facts=work.facts)


async def _undo(work: Work) -> Next:
    await ensure_off(work.hypervisor, work.task.server_id)
    await work.hypervisor.repair(work.task.server_id)
    await work.hypervisor.revert(work.task.server_id, work.task.safety_tag)
    return Next(step=Step.CLEANING, facts=work.facts)


async def _clean(work: Work) -> Next:
    return Next(step=Step.STARTING, facts=await cleaned(work, work.task.safety_tag))


async def _start(work: Work) -> Next:
    return Next(step=None, facts=await as_found(work))


RESTORE = Procedure(
    first=Step.PREFLIGHT,
    steps={
        Step.PREFLIGHT: _preflight,
        Step.STOPPING: _stop,
        Step.SAFEGUARDING: _safeguard,
        Step.REVERTING: _revert,
        Step.UNDOING: _undo,
        Step.CLEANING: _clean,
        Step.STARTING: _start,
    },
    if_it_fails={
        Step.PREFLIGHT: over,
        Step.STOPPING: then(Step.STARTING),
        Step.SAFEGUARDING: then(Step.CLEANING),
        Step.REVERTING: then(Step.UNDOING),
        Step.UNDOING: over,  # the disks are torn: the VM stays off
        Step.CLEANING: over,
        Step.STARTING: over,
    },
    strands=frozenset({Step.UNDOING, Step.CLEANING, Step.STARTING}),
)

CHECK_RESTORE = Procedure(first=Step.PREFLIGHT, steps={Step.PREFLIGHT: _check}, if_it_fails={Step.PREFLIGHT: over})
