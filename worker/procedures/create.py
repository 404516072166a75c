"""Create: stop the guest, snapshot every disk, start the guest again, measure the snapshot's size."""

from dataclasses import replace

from drivers.base import SnapshotExists
from worker.procedures import notes
from worker.procedures.disks import checked, cleaned, roomy_layout, without
from worker.procedures.power import as_found, claimed, ensure_off, ensure_off_gently, power_remembered
from worker.procedures.work import Facts, Next, Procedure, Work, over, then
from worker.store.model import Step


async def _check(work: Work) -> Next:
    """Every check that can refuse a create before the guest is stopped. Changes nothing."""
    layout = await roomy_layout(work)
    contents = notes.contents_of(layout)
    if any(found.tag == work.task.tag for found in await work.hypervisor.snapshots(work.task.server_id)):
        raise SnapshotExists(f"the server's disks already have the tag {work.task.tag}")
    noted = (*notes.left_out(contents), *notes.resources_reduced(layout.reduced))
    return Next(step=None, facts=replace(work.facts, contents=contents).noting(*noted))


async def _preflight(work: Work) -> Next:
    checked_facts = (await _check(work)).facts
    return Next(step=Step.STOPPING, facts=await power_remembered(replace(work, facts=checked_facts)))


async def _stop(work: Work) -> Next:
    await claimed(work)
    # Gracefully: data that the guest has not written to its disks yet would be missing from the snapshot.
    await ensure_off_gently(work.hypervisor, work.task.server_id, work.policy)
    return Next(step=Step.CHECKING, facts=work.facts)


async def _check_disks(work: Work) -> Next:
    return Next(step=Step.SNAPSHOTTING, facts=await checked(work))


async def _snapshot(work: Work) -> Next:
    if work.interrupted:
        # Someone may have started the guest since, and some disks may already have the tag.
        await ensure_off(work.hypervisor, work.task.server_id)
        await without(work.hypervisor, work.task.server_id, work.task.tag)
    await work.hypervisor.take_snapshot(work.task.server_id, work.task.spec)
    return Next(step=Step.STARTING, facts=replace(work.facts, taken=True))


async def _clean(work: Work) -> Next:
    return Next(step=Step.STARTING, facts=await cleaned(work, work.task.tag))


def _after_starting(facts: Facts) -> Step | None:
    # Also if the guest did not start: the snapshot is complete and needed all the more. Not if measuring has failed.
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
    # interrupted: the host may have gone down since the guest was started
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
        Step.SNAPSHOTTING: _snapshot,
        Step.CLEANING: _clean,
        Step.STARTING: _start,
        Step.MEASURING: _measure,
    },
    if_it_fails={
        Step.PREFLIGHT: over,
        Step.STOPPING: then(Step.STARTING),
        Step.CHECKING: then(Step.STARTING),  # nothing was changed, so it may start, damaged or not
        Step.SNAPSHOTTING: then(Step.CLEANING),
        Step.CLEANING: over,
        Step.STARTING: _after_starting,
        Step.MEASURING: _after_measuring_failed,
    },
    strands=frozenset({Step.CLEANING, Step.STARTING}),
)

CHECK_CREATE = Procedure(first=Step.PREFLIGHT, steps={Step.PREFLIGHT: _check}, if_it_fails={Step.PREFLIGHT: over})
