"""Restore: take a safety snapshot, then revert every disk to the snapshot. If one fails, revert all to the safety
snapshot."""

from dataclasses import replace
from datetime import UTC, datetime

import structlog

from drivers.base import GrownDisk, RestorePlan, SnapshotSpec
from worker.procedures import notes
from worker.procedures.disks import checked, cleaned, roomy_layout, without
from worker.procedures.power import as_found, claimed, ensure_off, power_remembered
from worker.procedures.work import Facts, Next, Procedure, Work, over, then
from worker.store.model import Note, Step

log = structlog.stdlib.get_logger()


async def _check(work: Work) -> Next:
    """Every check that can refuse a restore before the guest is stopped. Changes nothing."""
    plan = await _plan(work)
    return Next(step=None, facts=work.facts.noting(*_beforehand(plan), *_at_the_effect(plan)))


async def _plan(work: Work) -> RestorePlan:
    await roomy_layout(work)
    task = work.task
    return await work.hypervisor.restore_plan(task.server_id, task.tag, present_only=task.present_only)


def _beforehand(plan: RestorePlan) -> tuple[Note, ...]:
    return (*notes.not_restored(plan.not_restored), *notes.resources_reduced(plan.reduced))


def _at_the_effect(plan: RestorePlan) -> tuple[Note, ...]:
    """The notes that a dry run gives in advance, and a restore after the change."""
    ended = [notes.backup_chain_ended(plan.bitmaps)] if _clears(plan) else []
    renewed = [notes.GENERATION_ID_CHANGED] if plan.generation_id else []
    return (*ended, *notes.kept_sizes(plan.grown), *renewed)


def _clears(plan: RestorePlan) -> bool:
    return bool(plan.bitmaps or plan.checkpoints)


async def _preflight(work: Work) -> Next:
    planned = _planned(await _plan(work), work)
    return Next(step=Step.STOPPING, facts=await power_remembered(replace(work, facts=planned)))


def _planned(plan: RestorePlan, work: Work) -> Facts:
    overwritten = work.task.overwritten
    targets = frozenset(plan.targets) if overwritten is None else overwritten.intersection(plan.targets)
    return replace(
        work.facts.noting(*_beforehand(plan)),
        targets=targets,
        grown=tuple(disk for disk in plan.grown if disk.target in targets),
        clears=plan.bitmaps if _clears(plan) else None,
        renews_generation=plan.generation_id,
    )


async def _stop(work: Work) -> Next:
    await claimed(work)
    # Without a graceful shutdown: the restore overwrites whatever the guest would still write. In a hurry, because a
    # restore does not record how the guest was stopped.
    await ensure_off(work.hypervisor, work.task.server_id, in_a_hurry=True)
    return Next(step=Step.CHECKING, facts=work.facts)


async def _check_disks(work: Work) -> Next:
    facts, task = await checked(work), work.task
    # Plan again: another tool may have enlarged a disk or started a backup chain between preflight and the stop. From
    # here on the server is off and held.
    plan = await work.hypervisor.restore_plan(task.server_id, task.tag, present_only=task.present_only)
    return Next(step=Step.SAFEGUARDING, facts=_planned(plan, replace(work, facts=facts)))


async def _safeguard(work: Work) -> Next:
    task = work.task
    if work.interrupted:
        await ensure_off(work.hypervisor, task.server_id)
        await without(work.hypervisor, work.task.server_id, task.safety_tag)
    spec = SnapshotSpec(
        tag=task.safety_tag,
        name="safety",
        description=f"State before the restore of {task.tag}",
        created_at=datetime.now(UTC),
    )
    await work.hypervisor.take_snapshot(task.server_id, spec)
    facts = replace(work.facts, spare_tag=task.safety_tag)
    if facts.clears is None:
        return Next(step=Step.REVERTING, facts=facts)
    # Noted before the first bitmap is removed, because an interrupted step has ended the chain too.
    return Next(step=Step.CLEARING, facts=facts.noting(notes.backup_chain_ended(facts.clears)))


async def _recover(work: Work) -> None:
    """After an interruption: power off a guest that someone has started meanwhile, and repair the disks."""
    if work.interrupted:
        await ensure_off(work.hypervisor, work.task.server_id)
        await work.hypervisor.repair(work.task.server_id)


async def _clear(work: Work) -> Next:
    await _recover(work)
    targets = await work.hypervisor.clear_bitmaps(work.task.server_id)
    log.warning("backup_chain.ended", disks=targets or work.facts.clears)
    return Next(step=Step.REVERTING, facts=work.facts)


async def _revert(work: Work) -> Next:
    await _recover(work)
    await work.hypervisor.revert(work.task.server_id, work.task.tag, targets=work.facts.targets)
    facts = work.facts if work.facts.targets is not None else await _facts_of_earlier_version(work)
    # From the next step on, the guest may write: a job that is resumed there must not revert again.
    adapts = facts.grown or facts.renews_generation
    return Next(step=Step.ADAPTING if adapts else Step.STARTING, facts=facts)


async def _facts_of_earlier_version(work: Work) -> Facts:
    """The facts of a restore started by a version that did not record them, read from its safety snapshot."""
    found = await work.hypervisor.snapshots(work.task.server_id)
    safety = next((one.contents for one in found if one.tag == work.task.safety_tag), None)
    then = {disk.target: disk.virtual_bytes for disk in safety.disks} if safety is not None else {}
    now = (await work.hypervisor.layout(work.task.server_id)).disks
    grown = tuple(
        GrownDisk(target=disk.target, snapshot_bytes=disk.virtual_bytes, virtual_bytes=then[disk.target])
        for disk in now
        if then.get(disk.target, 0) > disk.virtual_bytes
    )
    return replace(work.facts, grown=grown, renews_generation=True)  # if the server has no such ID, nothing is renewed


async def _adapt(work: Work) -> Next:
    hypervisor, server_id, facts = work.hypervisor, work.task.server_id, work.facts
    await _recover(work)
    if facts.grown:
        virtual_bytes = {disk.target: disk.virtual_bytes for disk in facts.grown}
        enlarged = await hypervisor.resize(server_id, virtual_bytes)
        log.info("disks.enlarged", **{target: virtual_bytes[target] for target in enlarged})
        facts = facts.noting(*notes.kept_sizes(disk for disk in facts.grown if disk.target in enlarged))
    if facts.renews_generation:
        await hypervisor.renew_generation_id(server_id)
        facts = facts.noting(notes.GENERATION_ID_CHANGED)
    return Next(step=Step.STARTING, facts=facts)


async def _undo(work: Work) -> Next:
    hypervisor, task = work.hypervisor, work.task
    await ensure_off(hypervisor, task.server_id)
    await hypervisor.repair(task.server_id)
    # If nothing has changed, skip the revert: it would fail for the same reason as the first one.
    if not await hypervisor.is_at(task.server_id, task.safety_tag):
        await hypervisor.clear_bitmaps(task.server_id)
        await hypervisor.revert(task.server_id, task.safety_tag)
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
        Step.CHECKING: _check_disks,
        Step.SAFEGUARDING: _safeguard,
        Step.CLEARING: _clear,
        Step.REVERTING: _revert,
        Step.ADAPTING: _adapt,
        Step.UNDOING: _undo,
        Step.CLEANING: _clean,
        Step.STARTING: _start,
    },
    if_it_fails={
        Step.PREFLIGHT: over,
        Step.STOPPING: then(Step.STARTING),
        Step.CHECKING: then(Step.STARTING),  # nothing was changed, so it may start, damaged or not
        Step.SAFEGUARDING: then(Step.CLEANING),
        Step.CLEARING: then(Step.UNDOING),
        Step.REVERTING: then(Step.UNDOING),
        Step.ADAPTING: then(Step.UNDOING),
        Step.UNDOING: over,  # the disks differ from any point in time: the VM stays off
        Step.CLEANING: over,
        Step.STARTING: over,
    },
    strands=frozenset({Step.UNDOING, Step.CLEANING, Step.STARTING}),
)

CHECK_RESTORE = Procedure(first=Step.PREFLIGHT, steps={Step.PREFLIGHT: _check}, if_it_fails={Step.PREFLIGHT: over})
