"""Kills at every moment, before, during and after each step of every operation: the worker, its child, everything."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.chaos import model
from tests.chaos.campaign import REFUSALS, Campaign
from tests.chaos.halts import Halt, Moment
from tests.chaos.model import Expected
from tests.chaos.summary import Summary
from worker.store.model import STEPS, WITHOUT_A_STOP, JobKind, Step

KINDS = (JobKind.CREATE, JobKind.RESTORE, JobKind.UNDO, JobKind.DELETE)
POWER_STEPS = {Step.STOPPING, Step.STARTING}
ON_THE_WAY_BACK = {Step.UNDOING, Step.CLEANING}  # reached if a disk has refused
# the qemu-img call to stop at; in other steps, the first one
PATTERNS = {
    Step.SNAPSHOTTING: "-c",
    Step.SAFEGUARDING: "-c",
    Step.REVERTING: "-a",
    Step.UNDOING: "-a",
    Step.CLEANING: "-d",
    Step.CHECKING: "check",
    Step.CLEARING: "bitmap",
    Step.ADAPTING: "resize",
}
FOR_OTHERS_SAKE = {Step.CLEARING, Step.ADAPTING}  # reached if backups or resizes have left something
# In the power steps, the child is QEMU, and only these moments have one.
QEMU_MOMENTS = {
    (Step.STOPPING, Moment.BEFORE),
    (Step.STOPPING, Moment.DURING),
    (Step.STARTING, Moment.DURING),
    (Step.STARTING, Moment.AFTER),
}


@dataclass(frozen=True, kw_only=True)
class Play:
    kind: JobKind
    step: Step
    moment: Moment
    target: str
    running: bool  # whether the server is running
    live: bool = False  # a live create


def plays() -> Iterator[Play]:
    for kind in KINDS:
        for step in STEPS[kind]:
            if step in WITHOUT_A_STOP:
                continue
            for moment in Moment:
                for target in ("worker", "qemu" if step in POWER_STEPS else "qemu-img", "everything"):
                    for running in (False, True):
                        if target == "qemu-img" and not _has_child(step, running=running):
                            continue
                        if target != "qemu" or (running and (step, moment) in QEMU_MOMENTS):
                            yield Play(kind=kind, step=step, moment=moment, target=target, running=running)


def live_plays() -> Iterator[Play]:
    """Live creates of a running server without an agent; `freezing` has one with an agent."""
    for step in (Step.PREFLIGHT, Step.SNAPSHOTTING, Step.RECORDING, Step.MEASURING):
        for moment in Moment:
            for target in ("worker", "qemu", "everything"):
                yield Play(kind=JobKind.CREATE, step=step, moment=moment, target=target, running=True, live=True)


def _has_child(step: Step, *, running: bool) -> bool:
    """Whether the step starts a qemu-img. While the guest is running, QEMU itself deletes."""
    return step not in POWER_STEPS and not (step is Step.DELETING and running)


async def run(campaign: Campaign, wanted: Iterable[Play], *, off: Expected, running: Expected) -> Summary:
    """`off` and `running`: servers whose disks take long enough to change."""
    for play in wanted:
        campaign.summary.moments_wanted += 1
        expected = running if play.running else off
        await _make_possible(campaign, play.kind, expected)
        if expected.running is not play.running:
            await campaign.upkeep()
        if play.step in FOR_OTHERS_SAKE:
            await campaign.while_off(expected, functools.partial(_others_act, campaign, play.step, expected))
        if PATTERNS.get(play.step) == "-a":  # an unchanged disk is not reverted
            write = functools.partial(model.write, expected, campaign.chance.randrange(1, 256))
            await campaign.while_off(expected, write)
        if play.step in ON_THE_WAY_BACK:
            campaign.halts.refuse(REFUSALS[play.kind], expected.server.disks[-1])
        await _hit(campaign, play, expected)
        if campaign.summary.violations:
            break
    return await campaign.end()


def _others_act(campaign: Campaign, step: Step, expected: Expected) -> None:
    if step is Step.CLEARING:
        campaign.others.add_bitmap(expected)
    else:
        campaign.others.enlarge(expected)


async def _hit(campaign: Campaign, play: Play, expected: Expected) -> None:
    has_child = _has_child(play.step, running=play.running) and not play.live
    by_child = has_child and (play.target == "qemu-img" or play.moment is Moment.DURING)
    pattern = PATTERNS.get(play.step, "")
    if play.step is Step.DELETING and not play.running:
        pattern = "-d"
    halt = Halt(
        kind=play.kind,
        step=play.step,
        moment=play.moment,
        seconds=campaign.chance.uniform(0.01, 0.12) if by_child else campaign.chance.uniform(0.0, 0.3),
        child=by_child,
        pattern=pattern,
    )
    await campaign.play(
        expected,
        "live" if play.live else play.kind,
        play.target,
        lambda: campaign.kill_at(halt, play.target, expected),
        may_fail=play.step in ON_THE_WAY_BACK,
    )


async def _make_possible(campaign: Campaign, kind: JobKind, expected: Expected) -> None:
    async def nothing() -> str:
        return "nothing"

    if kind is JobKind.CREATE and len(expected.snapshots) == 5:
        await campaign.play(expected, JobKind.DELETE, "nothing", nothing)
    if kind is not JobKind.CREATE and not expected.snapshots:
        await campaign.play(expected, JobKind.CREATE, "nothing", nothing)
    if kind is JobKind.UNDO and expected.undoable is None:
        await campaign.play(expected, JobKind.RESTORE, "nothing", nothing)
