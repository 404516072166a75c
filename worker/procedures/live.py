"""A create without a stop: freeze the guest's file systems, snapshot every disk in one transaction, thaw, record.

A guest whose file systems stay frozen hangs. So every step that may find it frozen thaws it first. `Facts.frozen` is
set before the freeze and cleared after the thaw: while it is set, the guest must be thawed. Once it is cleared, the job
does not freeze the guest again.
"""

from dataclasses import replace

import structlog

from drivers.base import AgentFailed, DriverError, HypervisorUnavailable, Power
from worker.procedures import notes
from worker.procedures.disks import without
from worker.procedures.power import claimed
from worker.procedures.work import Facts, Next, Work
from worker.store.model import Consistency, Failure, Step


class LiveRefused(DriverError):
    """This node does not allow snapshots without a stop. Nothing was changed."""

    code = "live_refused"


WITHOUT_A_STOP = frozenset({Consistency.AGENT_FROZEN, Consistency.CRASH_CONSISTENT})

log = structlog.stdlib.get_logger()


async def prospect(work: Work) -> Consistency | None:
    """The consistency of a snapshot taken now without a stop; None if the server must be stopped, or is off.

    Raises the error that prevents a snapshot of the running server. Changes nothing.
    """
    task = work.task
    if not task.live or await work.hypervisor.power(task.server_id) is not Power.ON:
        return None
    if not work.policy.live:
        raise LiveRefused("this node takes no snapshots of running servers")
    answers = await work.hypervisor.refuse_live(task.server_id)
    freezes = answers and work.policy.freeze_seconds > 0
    return Consistency.AGENT_FROZEN if freezes else Consistency.CRASH_CONSISTENT


def begun(facts: Facts, *, freezes: bool) -> Next:
    """The first step that changes something."""
    facts = replace(facts, live=True, off_since=None)
    if freezes:
        return Next(step=Step.FREEZING, facts=replace(facts, frozen=True))
    return Next(step=Step.SNAPSHOTTING, facts=facts)


async def freeze(work: Work) -> Next:
    hypervisor, task = work.hypervisor, work.task
    if not work.facts.frozen:  # thawed after an interruption: the guest has waited long enough
        return Next(step=Step.SNAPSHOTTING, facts=work.facts)
    if work.interrupted:
        await hypervisor.thaw(task.server_id)
    try:
        await claimed(work)
        await hypervisor.save_state(task.server_id, task.tag)
        frozen = await hypervisor.freeze(task.server_id, timeout_seconds=work.policy.freeze_seconds)
    except HypervisorUnavailable:
        raise
    except AgentFailed as error:
        log.warning("guest.not_frozen", reason=str(error))
        await hypervisor.thaw(task.server_id)
        frozen = False
    except DriverError as error:
        # Refused before the freeze: a guest that another tool has frozen meanwhile must stay frozen.
        log.warning("step.failed", step=Step.FREEZING, code=error.code, cause=error.cause or None, exc_info=error)
        said = f"{Step.FREEZING}: {error.cause}" if error.cause else ""
        facts = work.facts.failed(Failure(code=error.code, detail=error.detail), said)
        return Next(step=Step.CLEANING, facts=replace(facts, frozen=False))
    return Next(step=Step.SNAPSHOTTING, facts=replace(work.facts, frozen=frozen))


async def snapshot(work: Work) -> Next:
    hypervisor, task, facts = work.hypervisor, work.task, work.facts
    if work.interrupted:
        if facts.frozen:
            await hypervisor.thaw(task.server_id)
        facts = replace(facts, frozen=False)  # do not retry: the guest has waited long enough
        await without(hypervisor, task.server_id, task.tag)
    if not facts.frozen:
        await claimed(work)
        await hypervisor.save_state(task.server_id, task.tag)
    await hypervisor.take_live_snapshot(task.server_id, task.spec)
    after = Step.THAWING if facts.frozen else Step.RECORDING
    return Next(step=after, facts=replace(facts, consistency=Consistency.CRASH_CONSISTENT))


def after_snapshot_failed(facts: Facts) -> Step:
    return Step.THAWING if facts.frozen else Step.CLEANING


def thawed(facts: Facts, *, were_frozen: bool) -> Facts:
    """`were_frozen`: until this thaw."""
    log.info("guest.thawed", were_frozen=were_frozen)
    # Only if the snapshot is complete. If not `were_frozen`, the freeze has already ended, perhaps before the snapshot,
    # by the guest itself or by an earlier process.
    is_labeled = were_frozen and facts.consistency is not None
    return replace(facts, frozen=False, consistency=Consistency.AGENT_FROZEN if is_labeled else facts.consistency)


async def thaw(work: Work) -> Next:
    facts = work.facts
    if facts.frozen:
        facts = thawed(facts, were_frozen=await work.hypervisor.thaw(work.task.server_id))
    return Next(step=Step.RECORDING if facts.failure is None else Step.CLEANING, facts=facts)


async def record(work: Work) -> Next:
    hypervisor, task, facts = work.hypervisor, work.task, work.facts
    if not await hypervisor.state_is_at(task.server_id, task.tag):
        # the snapshot outlives the job and its note, so its label must not promise one instant of everything
        facts = replace(facts.noting(notes.STATE_CHANGED), consistency=Consistency.CRASH_CONSISTENT)
    await hypervisor.list_snapshot(task.server_id, task.spec, consistency=facts.consistency)
    # The job does not stop a guest, but the host may have.
    is_off = await hypervisor.power(task.server_id) is Power.OFF
    return Next(step=Step.STARTING if is_off else Step.MEASURING, facts=replace(facts, taken=True))
