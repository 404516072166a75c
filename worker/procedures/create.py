"""Create: stop the guest, snapshot every disk, start the guest again, measure the snapshot's size.

For a create without a stop, see `worker.procedures.live`.
"""

from dataclasses import replace

from drivers.base import InvalidState, Power, SnapshotExists
from worker.procedures import live, notes
from worker.procedures.disks import checked, cleaned, roomy_layout, without
from worker.procedures.power import as_found, claimed, ensure_off, ensure_off_gently, power_remembered
from worker.procedures.work import Facts, Next, Procedure, Work, over, then
from worker.store.model import Consistency, Step


async def _check(work: Work) -> Next:
    """Every check that can refuse a create before its first effect. Changes nothing.

    The contents have the consistency that the snapshot would have if the guest shuts down when requested.
    """
    layout = await roomy_layout(work)
    expected = await live.prospect(work)
    is_stopped = expected is None and await work.hypervisor.power(work.task.server_id) is not Power.OFF
    stopped = Consistency.CLEAN_SHUTDOWN if is_stopped else Consistency.ALREADY_OFF
    contents = replace(notes.contents_of(layout), consistency=expected or stopped)
    if any(found.tag == work.task.tag for found in await work.hypervisor.snapshots(work.task.server_id)):
        raise SnapshotExists(f"the server's disks already have the tag {work.task.tag}")
    noted = (*notes.left_out(contents), *notes.resources_reduced(layout.reduced if is_stopped else ()))
    return Next(step=None, facts=replace(work.facts, contents=contents).noting(*noted))


async def _preflight(work: Work) -> Next:
    facts = await power_remembered(replace(work, facts=(await _check(work)).facts))
    assert facts.contents is not None, "just checked"  # noqa: S101 - for mypy
    expected, facts = facts.contents.consistency, replace(facts, contents=replace(facts.contents, consistency=None))
    if expected in live.WITHOUT_A_STOP:
        return live.begun(facts, freezes=expected == Consistency.AGENT_FROZEN)
    return Next(step=Step.STOPPING, facts=facts)


async def _stop(work: Work) -> Next:
    if work.task.live and await work.hypervisor.power(work.task.server_id) is not Power.OFF:
        raise InvalidState("the server was started while the job began")  # the guest must not be stopped
    await claimed(work)
    # Gracefully, because data that the guest has not written to its disks would be missing from the snapshot.
    by_itself = await ensure_off_gently(work.hypervisor, work.task.server_id, work.policy)
    consistency = await _how_stopped(work) if by_itself else Consistency.FORCED_OFF
    return Next(step=Step.CHECKING, facts=replace(work.facts, consistency=consistency))


async def _how_stopped(work: Work) -> Consistency | None:
    """How a guest that is off was stopped; None: unknown. This run of the step did not cut its power, but an earlier
    process or another tool may have, or its QEMU may have been killed."""
    if work.facts.off_since is None:
        return Consistency.ALREADY_OFF
    was_shut_down = await work.hypervisor.was_shut_down(work.task.server_id)
    if was_shut_down is None:
        return None
    return Consistency.CLEAN_SHUTDOWN if was_shut_down else Consistency.FORCED_OFF


async def _check_disks(work: Work) -> Next:
    work = await _off_again(work)
    return Next(step=Step.SNAPSHOTTING, facts=await checked(work))


async def _off_again(work: Work) -> Work:
    """After an interruption: cut the power of a guest that someone has started meanwhile."""
    if not work.interrupted or await work.hypervisor.power(work.task.server_id) is Power.OFF:
        return work
    await ensure_off(work.hypervisor, work.task.server_id)
    return replace(work, facts=replace(work.facts, consistency=Consistency.FORCED_OFF))


async def _snapshot(work: Work) -> Next:
    if work.facts.live:
        return await live.snapshot(work)
    work = await _off_again(work)
    if work.interrupted:  # some disks may already have the tag
        await without(work.hypervisor, work.task.server_id, work.task.tag)
    facts = work.facts
    await work.hypervisor.take_snapshot(work.task.server_id, work.task.spec, consistency=facts.consistency)
    return Next(step=Step.STARTING, facts=replace(facts, taken=True))


async def _clean(work: Work) -> Next:
    return Next(step=Step.STARTING, facts=await cleaned(work, work.task.tag))


def _after_starting(facts: Facts) -> Step | None:
    # Also if the guest did not start: the snapshot is complete, and is needed even more. Not if measuring has failed.
    unmeasured = facts.taken and facts.size_mb is None
    return Step.MEASURING if unmeasured and (facts.failure is None or facts.failure.stranded) else None


async def _start(work: Work) -> Next:
    facts = await as_found(work)
    return Next(step=_after_starting(facts), facts=facts)


async def _measure(work: Work) -> Next:
    size_mb = await work.hypervisor.size_mb(work.task.server_id, work.task.tag)
    found = await work.hypervisor.snapshots(work.task.server_id)
    held = next((snapshot.contents for snapshot in found if snapshot.tag == work.task.tag), None)
    contents = work.facts.contents if held is None else notes.contents_held(held)
    # after an interruption, because the host may have gone down since the guest was started
    return Next(
        step=Step.STARTING if work.interrupted else None, facts=replace(work.facts, size_mb=size_mb, contents=contents)
    )


def _after_measuring_failed(facts: Facts) -> Step | None:
    # An unknown size is no reason to discard the snapshot or to leave the guest off.
    return None if facts.failure and facts.failure.stranded else Step.STARTING


CREATE = Procedure(
    first=Step.PREFLIGHT,
    steps={
        Step.PREFLIGHT: _preflight,
        Step.STOPPING: _stop,
        Step.CHECKING: _check_disks,
        Step.FREEZING: live.freeze,
        Step.SNAPSHOTTING: _snapshot,
        Step.THAWING: live.thaw,
        Step.RECORDING: live.record,
        Step.CLEANING: _clean,
        Step.STARTING: _start,
        Step.MEASURING: _measure,
    },
    if_it_fails={
        Step.PREFLIGHT: over,
        Step.STOPPING: then(Step.STARTING),
        Step.CHECKING: then(Step.STARTING),  # nothing was changed, so it may start, damaged or not
        Step.FREEZING: then(Step.THAWING),
        Step.SNAPSHOTTING: live.after_snapshot_failed,
        Step.THAWING: then(Step.CLEANING),
        Step.RECORDING: then(Step.CLEANING),
        Step.CLEANING: over,
        Step.STARTING: _after_starting,
        Step.MEASURING: _after_measuring_failed,
    },
    strands=frozenset({Step.THAWING, Step.CLEANING, Step.STARTING}),
)

CHECK_CREATE = Procedure(first=Step.PREFLIGHT, steps={Step.PREFLIGHT: _check}, if_it_fails={Step.PREFLIGHT: over})
