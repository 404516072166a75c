"""Live creates: what the guest experiences, and that it never stays frozen, wherever the worker dies."""

import asyncio
import itertools
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from structlog.testing import capture_logs

from drivers.base import AgentFailed, HypervisorUnavailable, Power, ServerInUse, UnsupportedServer
from drivers.fake_faults import Effect, Happening, Killed, Moment
from drivers.fake_state import FakeServer
from tests.integration.conftest import SERVER, Cell
from tests.integration.dying import LIMITS, DyingNode
from tests.integration.pasts import Past
from tests.queueing import until
from worker.journal import Journal, JournalFailed
from worker.runner import Runner
from worker.store.model import Consistency, Job, JobId, JobKind, JobState, NoteCode, ServerId, Step
from worker.store.operators.operator_store import OperatorStore

REACHED = (
    *(Effect.LOOK, Effect.HOLD, Effect.SAVE_NVRAM, Effect.FREEZE, Effect.TRANSACTION, Effect.THAW, Effect.LIST),
    *(Effect.MEASURE, Effect.LET_GO),
)
STOPS = {Effect.PRESS, Effect.CUT, Effect.START}


async def fresh(cell: Cell, folder: Path, *, past: Past = Past.QUIET, power: Power = Power.ON) -> DyingNode:
    await cell.redis.flushdb()
    await cell.node.take_lease(seconds=600)
    folder.mkdir()
    return await DyingNode.make(cell, folder, power=power, past=past, live=True)


async def create(node: DyingNode) -> Job:
    return await node.settle(await node.admit(JobKind.CREATE))


def label(job: Job) -> str | None:
    assert job.contents is not None
    return job.contents.consistency


def effects(node: DyingNode) -> set[Effect]:
    return {happening.effect for happening in node.happened}


async def test_the_guest_is_frozen_for_the_transaction_and_never_stopped(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")
    frozen_at: dict[Effect, bool] = {}

    def watch(happening: Happening) -> None:
        frozen_at.setdefault(happening.effect, node.hypervisor.server(SERVER).frozen)

    node.hypervisor.faults.hook = watch
    job = await create(node)
    assert (job.state, label(job), job.downtime_seconds) == (JobState.COMPLETED, Consistency.AGENT_FROZEN, None)
    assert not frozen_at.keys() & STOPS
    assert [effect for effect, frozen in frozen_at.items() if frozen] == [Effect.TRANSACTION, Effect.THAW]
    await node.check(job, power=Power.ON)


async def test_a_server_that_is_off_is_snapshotted_as_ever(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", power=Power.OFF)
    job = await create(node)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.ALREADY_OFF)
    assert Effect.SNAPSHOT_DISK in effects(node)
    await node.check(job, power=Power.OFF)


async def test_a_stopped_guest_is_labeled_by_how_it_was_stopped(cell: Cell, tmp_path: Path) -> None:
    for deaf in (False, True):
        node = await fresh(cell, tmp_path / f"{deaf}")
        node.without_a_stop = False
        node.hypervisor.server(SERVER).deaf = deaf
        job = await create(node)
        assert label(job) == (Consistency.FORCED_OFF if deaf else Consistency.CLEAN_SHUTDOWN)
        await node.check(job, power=Power.ON)


async def test_a_guest_that_ended_otherwise_during_the_stop_is_not_labeled_clean(cell: Cell, tmp_path: Path) -> None:
    """Its QEMU was killed, someone cut its power, or libvirt has restarted and does not know."""
    for was_shut_down, expected in ((False, Consistency.FORCED_OFF), (None, None)):
        node = await fresh(cell, tmp_path / f"{was_shut_down}")
        node.without_a_stop = False
        server = node.hypervisor.server(SERVER)
        server.deaf = True

        def end(happening: Happening, server: FakeServer = server, how: bool | None = was_shut_down) -> None:
            if happening.effect is Effect.PRESS and happening.moment is Moment.AFTER:
                server.power, server.shut_down = Power.OFF, how

        node.hypervisor.faults.hook = end
        job = await create(node)
        assert (job.state, label(job)) == (JobState.COMPLETED, expected)
        await node.check(job, power=Power.ON)


async def test_a_stop_that_was_interrupted_is_labeled_by_how_it_ended(cell: Cell, tmp_path: Path) -> None:
    for effect, expected in ((Effect.PRESS, Consistency.CLEAN_SHUTDOWN), (Effect.CUT, Consistency.FORCED_OFF)):
        node = await fresh(cell, tmp_path / effect)
        node.without_a_stop = False
        node.hypervisor.server(SERVER).deaf = effect is Effect.CUT
        job_id = await node.admit(JobKind.CREATE)
        node.hypervisor.faults.fail(effect, at=Moment.AFTER, error=Killed("there"))
        assert not await node.live(job_id)
        assert label(await node.settle(job_id)) == expected


async def test_without_an_agent_it_is_crash_consistent(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")
    node.hypervisor.server(SERVER).agent = False
    job = await create(node)
    assert label(job) == Consistency.CRASH_CONSISTENT
    assert not effects(node) & {*STOPS, Effect.FREEZE, Effect.THAW}
    await node.check(job, power=Power.ON)


@pytest.mark.parametrize("at", list(Moment))
async def test_an_agent_that_fails_to_freeze_costs_the_label_and_nothing_else(
    cell: Cell, tmp_path: Path, at: Moment
) -> None:
    node = await fresh(cell, tmp_path / "n")
    node.hypervisor.faults.fail(Effect.FREEZE, at=at)
    job = await create(node)
    assert job.state is JobState.COMPLETED
    assert label(job) == (Consistency.AGENT_FROZEN if at is Moment.DURING else Consistency.CRASH_CONSISTENT)
    await node.check(job, power=Power.ON)


async def test_a_guest_that_ended_the_freeze_by_itself_is_labeled_as_it_is(cell: Cell, tmp_path: Path) -> None:
    """As Windows does after ten seconds."""
    node = await fresh(cell, tmp_path / "n")

    def give_up(happening: Happening) -> None:
        if happening.effect is Effect.TRANSACTION:
            node.hypervisor.server(SERVER).frozen = False

    node.hypervisor.faults.hook = give_up
    job = await create(node)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)


@pytest.mark.parametrize("at", [Effect.HOLD, Effect.FREEZE])  # after the checks, or as our freeze is sent
async def test_a_guest_that_another_tool_has_frozen_is_left_to_it(cell: Cell, tmp_path: Path, at: Effect) -> None:
    node = await fresh(cell, tmp_path / "n")
    job_id = await node.admit(JobKind.CREATE)

    def freeze(happening: Happening) -> None:
        if happening.effect is at:
            node.hypervisor.server(SERVER).frozen = True

    node.hypervisor.faults.hook = freeze
    job = await node.settle(job_id)
    assert (job.failure and job.failure.code) == "server_busy"
    assert node.hypervisor.server(SERVER).frozen, "its owner thaws it"
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).frozen


async def test_libvirts_error_of_a_refused_freeze_names_the_step(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")
    refused = ServerInUse("another tool is at work")
    refused.__cause__ = OSError("domain is locked")
    node.hypervisor.faults.fail(Effect.FREEZE, error=refused)
    job = await create(node)
    assert await cell.raw("HGET", f"job:{job.id}", "failure_cause") == b"freezing: domain is locked"


async def test_uefi_variables_that_change_meanwhile_are_reported(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")

    def change(happening: Happening) -> None:
        if happening.effect is Effect.TRANSACTION:
            node.hypervisor.server(SERVER).nvram = "changed"

    node.hypervisor.faults.hook = change
    job = await create(node)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)
    assert NoteCode.STATE_CHANGED in {note.code for note in job.notes}


@pytest.mark.parametrize("past", [Past.QUIET, Past.WORN])
async def test_a_job_whose_worker_dies_once_anywhere_is_completed(cell: Cell, tmp_path: Path, past: Past) -> None:
    node = await fresh(cell, tmp_path / "whole", past=past)
    job_id = await node.admit(JobKind.CREATE)
    node.start_over()
    await node.settle(job_id)
    moments = list(node.happened)
    assert {Effect.FREEZE, Effect.TRANSACTION, Effect.THAW} <= {happening.effect for happening in moments}
    for moment in range(1, len(moments) + 1):
        node = await fresh(cell, tmp_path / f"{moment}", past=past)
        job_id = await node.admit(JobKind.CREATE)
        node.start_over(die_at=[moment])
        job = await node.settle(job_id)
        assert job.state is JobState.COMPLETED, moments[moment - 1]
        assert label(job) in {Consistency.AGENT_FROZEN, Consistency.CRASH_CONSISTENT}
        assert not effects(node) & {Effect.PRESS, Effect.CUT}, "it was not stopped"
        await node.check(job, power=Power.ON)


@pytest.mark.parametrize("changing", [False, True])
async def test_the_thaw_comes_first_after_a_death(cell: Cell, tmp_path: Path, changing: bool) -> None:
    """`changing`: a change of the disks outside of a job was interrupted, too, and is to be repaired."""
    for effect, at in itertools.product(
        (Effect.FREEZE, Effect.TRANSACTION, Effect.THAW), (Moment.BEFORE, Moment.AFTER)
    ):
        node = await fresh(cell, tmp_path / f"{effect}{at}")
        job_id = await node.admit(JobKind.CREATE)
        node.hypervisor.faults.fail(effect, at=at, error=Killed("there"))
        assert not await node.live(job_id)
        if changing:
            with closing(Journal(node.folder / "journal.sqlite")) as journal:
                journal.change(SERVER)
        was_frozen = node.hypervisor.server(SERVER).frozen
        node.start_over()
        job = await node.settle(job_id)
        if was_frozen:
            assert node.happened[0].effect is Effect.THAW
        assert node.asked_while_frozen == []
        assert [one.effect for one in node.happened].count(Effect.THAW) <= 2, "before and after, once"
        if (effect, at) == (Effect.THAW, Moment.BEFORE):
            assert label(job) == Consistency.AGENT_FROZEN
        await node.check(job, power=Power.ON)


@pytest.mark.parametrize(
    ("away_at", "expected"),
    [
        (Effect.LOOK, Consistency.CRASH_CONSISTENT),
        (Effect.FREEZE, Consistency.CRASH_CONSISTENT),
        (Effect.TRANSACTION, Consistency.AGENT_FROZEN),
        (Effect.THAW, Consistency.AGENT_FROZEN),
    ],
)
async def test_the_thaw_comes_before_the_cell_is_asked_when_the_lease_runs_out(
    cell: Cell, tmp_path: Path, away_at: Effect, expected: Consistency
) -> None:
    node = await fresh(cell, tmp_path / "n")
    node.away_at = away_at
    job = await create(node)
    assert node.asked_while_frozen == []
    assert (job.state, label(job)) == (JobState.COMPLETED, expected)
    await node.check(job, power=Power.ON)


async def test_a_guest_that_does_not_thaw_when_the_lease_runs_out_gets_no_snapshot_until_it_does(
    cell: Cell, tmp_path: Path
) -> None:
    node = await fresh(cell, tmp_path / "n")
    node.away_at = Effect.FREEZE
    node.hypervisor.faults.fail(Effect.THAW, times=2)
    job = await create(node)
    effects = [one.effect for one in node.happened if one.moment is Moment.AFTER]
    assert effects.index(Effect.THAW) < effects.index(Effect.TRANSACTION)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)
    await node.check(job, power=Power.ON)


@pytest.mark.parametrize("away_at", [Effect.LOOK, Effect.FREEZE, Effect.TRANSACTION])
async def test_a_worker_cut_off_while_its_guest_is_frozen_leaves_a_server_alone_that_was_placed_elsewhere(
    cell: Cell, tmp_path: Path, away_at: Effect
) -> None:
    node = await fresh(cell, tmp_path / "n")
    job_id = await node.admit(JobKind.CREATE)
    begun = await cell.node.begin(job_id)
    await cell.raw("SADD", "nodes", "n2")
    await OperatorStore(cell.redis, cell.store, node_silent_seconds=0.001).place(SERVER, node="n2")
    node.start_over()
    node.away_at = away_at
    await node.live(job_id, begun)
    assert not node.hypervisor.server(SERVER).frozen
    assert (Effect.TRANSACTION in effects(node)) is (away_at is Effect.TRANSACTION)
    assert Effect.LIST not in effects(node)
    failure = (await node.job(job_id)).failure
    assert (failure and failure.code) == "node_unavailable"
    node.hypervisor.server(SERVER).frozen = True
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).frozen, "it is not ours any more"


async def test_a_worker_that_dies_again_and_again_leaves_no_guest_frozen(cell: Cell, tmp_path: Path) -> None:
    chance = random.Random("live")  # noqa: S311 - a campaign that can be repeated, not a secret
    for campaign in range(20):
        node = await fresh(cell, tmp_path / f"{campaign}", past=chance.choice([Past.QUIET, Past.WORN]))
        job_id = await node.admit(JobKind.CREATE)
        node.start_over(die_at=sorted(chance.sample(range(1, 60), chance.randint(2, 6))))
        job = await node.settle(job_id)
        await node.reconcile()
        await node.check(job, power=Power.ON)


@pytest.mark.parametrize("effect", REACHED)
async def test_an_effect_that_fails_once_or_for_ever_leaves_nothing_half_done(
    cell: Cell, tmp_path: Path, effect: Effect
) -> None:
    for at, times in itertools.product((Moment.BEFORE, Moment.AFTER), (1, 2)):
        node = await fresh(cell, tmp_path / f"{at}{times}")
        job_id = await node.admit(JobKind.CREATE)
        node.hypervisor.faults.fail(effect, times=times, at=at)
        job = await node.settle(job_id)
        node.hypervisor.faults.heal()
        await node.reconcile()
        await node.check(job, power=Power.ON)


async def test_a_qemu_that_dies_meanwhile_is_started_again_on_checked_disks(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")

    def die(happening: Happening) -> None:
        server = node.hypervisor.server(SERVER)
        if happening.effect is Effect.TRANSACTION and server.power is Power.ON:
            server.power, server.frozen = Power.OFF, False
            for disk in server.disks.values():
                disk.dirty = True
            raise HypervisorUnavailable("the connection to QEMU was lost")

    node.hypervisor.faults.hook = die
    job = await create(node)
    assert job.state is JobState.FAILED
    await node.check(job, power=Power.ON)


async def stranded(node: DyingNode) -> Job:
    """A job that could not thaw its guest, whose agent still does not answer."""
    job_id = await node.admit(JobKind.CREATE)
    node.limits = replace(LIMITS, thaw_seconds=0.05)
    node.hypervisor.faults.fail(Effect.THAW, times=10_000)
    return await node.settle(job_id)


async def test_a_guest_that_does_not_thaw_is_stranded_and_thawed_as_soon_as_it_answers(
    cell: Cell, tmp_path: Path
) -> None:
    node = await fresh(cell, tmp_path / "n")
    job = await stranded(node)
    assert job.failure is not None
    assert (job.failure.code, job.failure.stranded) == (AgentFailed.code, True)
    assert node.hypervisor.server(SERVER).frozen
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).frozen
    node.hypervisor.faults.heal()
    await _thaw_left(node)
    assert not node.hypervisor.server(SERVER).frozen
    node.hypervisor.server(SERVER).frozen = True
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).frozen, "it is not ours any more"


@pytest.mark.parametrize("readable", [True, False])
async def test_a_server_is_not_migrated_before_its_guest_is_thawed(cell: Cell, tmp_path: Path, readable: bool) -> None:
    node = await fresh(cell, tmp_path / "n")
    await stranded(node)
    assert node.hypervisor.server(SERVER).held
    if not readable:
        node.hypervisor.faults.fail(Effect.LOOK, error=UnsupportedServer("disk vda has no file"))
    await node.reconcile()
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).held
    node.hypervisor.faults.heal()
    node.hypervisor.faults.fail(Effect.THAW, at=Moment.AFTER)  # thawed, without an answer
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).held
    await _thaw_left(node)
    assert not node.hypervisor.server(SERVER).held


async def test_a_failed_release_after_a_late_thaw_is_done_by_reconciliation(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")
    await stranded(node)
    node.hypervisor.faults.heal()
    node.hypervisor.faults.fail(Effect.LET_GO)
    await _thaw_left(node)
    assert node.hypervisor.server(SERVER).held
    await node.reconcile()
    assert not node.hypervisor.server(SERVER).held


async def test_a_late_thaw_does_not_release_a_server_on_which_another_job_has_not_ended(
    cell: Cell, tmp_path: Path
) -> None:
    node = await fresh(cell, tmp_path / "n")
    job = await stranded(node)
    node.hypervisor.faults.heal()
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        left = journal.find(job.id)
        assert left is not None
        journal.begin(replace(left.task, job_id=JobId("f" * 32)), Step.PREFLIGHT)
    await _thaw_left(node)
    assert not node.hypervisor.server(SERVER).frozen
    assert node.hypervisor.server(SERVER).held


async def test_a_guest_does_not_stay_frozen_while_the_journal_cannot_be_written(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")
    job_id = await node.admit(JobKind.CREATE)
    with closing(sqlite3.connect(tmp_path / "n" / "journal.sqlite", isolation_level=None)) as disk:

        def fill(happening: Happening) -> None:
            if happening.effect is Effect.TRANSACTION:
                node.hypervisor.faults.hook = None
                disk.execute("CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT no_such_function(); END")
                filled.set()

        filled = asyncio.Event()
        node.hypervisor.faults.hook = fill
        running = asyncio.create_task(node.live(job_id))
        await filled.wait()
        assert node.hypervisor.server(SERVER).frozen
        await until(lambda: not node.hypervisor.server(SERVER).frozen)
        disk.execute("DROP TRIGGER full")
        await running
    job = await node.job(job_id)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)
    await node.check(job, power=Power.ON)


@pytest.mark.parametrize("change", ["UPDATE", "UPDATE OF step"])
async def test_a_guest_is_thawed_once_while_the_journal_cannot_be_written(
    cell: Cell, tmp_path: Path, change: str
) -> None:
    """Nor does the job look interrupted: its worker lives."""
    node = await fresh(cell, tmp_path / "n")
    node.limits = replace(LIMITS, journal_retry_seconds=0.01)
    job_id = await node.admit(JobKind.CREATE)
    with closing(sqlite3.connect(tmp_path / "n" / "journal.sqlite", isolation_level=None)) as disk:

        def fill(happening: Happening) -> None:
            if happening.effect is Effect.TRANSACTION:
                node.hypervisor.faults.hook = None
                disk.execute(f"CREATE TRIGGER full BEFORE {change} ON jobs BEGIN SELECT no_such_function(); END")
                filled.set()

        filled = asyncio.Event()
        node.hypervisor.faults.hook = fill
        with capture_logs() as lines:
            running = asyncio.create_task(node.live(job_id))
            await filled.wait()
            await until(lambda: not node.hypervisor.server(SERVER).frozen)
            node.hypervisor.server(SERVER).frozen = True  # another tool's
            tried, most = len(lines), LIMITS.interruptions + 2
            await until(lambda: [line["event"] for line in lines[tried:]].count("job.not_written_down") >= most)
            assert node.hypervisor.server(SERVER).frozen
            assert disk.execute("SELECT interruptions FROM jobs WHERE id = ?", (job_id,)).fetchone() == (0,)
        disk.execute("DROP TRIGGER full")
        await running
    job = await node.job(job_id)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)
    assert "job.resumed" not in {line["event"] for line in lines}
    assert node.hypervisor.server(SERVER).frozen, "its owner thaws it"


async def test_no_job_freezes_its_guest_once_the_time_of_a_stop_is_over(cell: Cell, tmp_path: Path) -> None:
    """The process exits soon and would leave the guest frozen."""
    node = await fresh(cell, tmp_path / "n")
    job_id = await node.admit(JobKind.CREATE)
    checks = node.hypervisor.faults.hang(Effect.LOOK)  # in the step before the freeze
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        runner = node._runner(journal)
        job = asyncio.create_task(runner.run(job_id))
        await until(lambda: Effect.LOOK in effects(node))
        asyncio.get_running_loop().call_later(0.05, checks.set)
        await runner.drain(0)
        await runner.thaw_interrupted()
        await asyncio.wait({job})
        assert Effect.FREEZE not in effects(node)
    done = await node.settle(job_id)  # the next process freezes it
    assert (done.state, label(done)) == (JobState.COMPLETED, Consistency.AGENT_FROZEN)
    await node.check(done, power=Power.ON)


async def test_every_guest_is_thawed_while_the_journal_cannot_be_written_and_only_once(
    cell: Cell, tmp_path: Path
) -> None:
    """Of guests that ended jobs have left frozen: a thaw needs no disk."""
    node = await fresh(cell, tmp_path / "n")
    job = await stranded(node)
    node.hypervisor.faults.heal()
    second = ServerId(SERVER + 1)
    other = FakeServer(name="web-server-02", server_id=second, agent=True, power=Power.ON, frozen=True)
    node.hypervisor.add(other)
    with (
        closing(Journal(node.folder / "journal.sqlite")) as journal,
        closing(sqlite3.connect(node.folder / "journal.sqlite", isolation_level=None)) as disk,
    ):
        left = journal.find(job.id)
        assert left is not None
        assert left.outcome is not None
        task = replace(left.task, job_id=JobId("f" * 32), server_id=second)
        facts = replace(left.facts, domain=None)
        also = replace(journal.begin(task, left.step), facts=facts)
        journal.conclude(also, left.outcome, safety_kept_seconds=0)
        journal.published(task.job_id)
        disk.execute("CREATE TRIGGER full BEFORE UPDATE ON jobs BEGIN SELECT no_such_function(); END")
        runner = node._runner(journal)
        with pytest.raises(JournalFailed):
            await runner.thaw_left()
        servers = (node.hypervisor.server(SERVER), other)
        assert [server.frozen for server in servers] == [False, False]
        other.frozen = True  # another tool's
        with pytest.raises(JournalFailed):
            await runner.thaw_left()
        assert other.frozen
        disk.execute("DROP TRIGGER full")
        assert len(journal.left_frozen()) == 2  # a read notices that the trigger is gone
        await runner.thaw_left()
        assert other.frozen
        assert not node.hypervisor.server(SERVER).held
        assert journal.left_frozen() == []


async def _frozen_by(
    node: DyingNode, journal: Journal, job_id: JobId
) -> tuple[Runner, "asyncio.Task[None]", asyncio.Event]:
    """Run the job until its guest is frozen. The event lets it go on."""
    hangs = node.hypervisor.faults.hang(Effect.TRANSACTION)
    runner = node._runner(journal)
    running = asyncio.create_task(runner.run(job_id))
    await until(lambda: node.hypervisor.server(SERVER).frozen)
    return runner, running, hangs


class _Unreadable:
    """A database on a disk that fails: neither reads nor writes work."""

    def execute(self, statement: str, _values: object = ()) -> NoReturn:
        raise sqlite3.DatabaseError(f"database disk image is malformed: {statement}")


@contextmanager
def _disk_failing(journal: Journal) -> Iterator[None]:
    works, journal._db = journal._db, cast("sqlite3.Connection", _Unreadable())
    yield
    journal._db = works


@pytest.mark.parametrize("readable", [True, False])
async def test_a_guest_does_not_stay_frozen_when_a_stop_ends_before_its_job(
    cell: Cell, tmp_path: Path, readable: bool
) -> None:
    node = await fresh(cell, tmp_path / "n")
    job_id = await node.admit(JobKind.CREATE)
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        runner, job, hangs = await _frozen_by(node, journal, job_id)
        with nullcontext() if readable else _disk_failing(journal):
            await runner.drain(0.01)
            assert node.hypervisor.server(SERVER).frozen
            await runner.thaw_interrupted()
            assert not node.hypervisor.server(SERVER).frozen
        job.cancel()
    hangs.set()
    done = await node.settle(job_id)  # the next process continues
    assert (done.state, label(done)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)
    await node.check(done, power=Power.ON)


async def test_a_guest_is_thawed_although_the_journal_cannot_be_read(cell: Cell, tmp_path: Path) -> None:
    """And its job goes on once it can be, without being given again."""
    node = await fresh(cell, tmp_path / "n")
    node.limits = replace(LIMITS, journal_retry_seconds=0.01)
    job_id = await node.admit(JobKind.CREATE)
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        _, running, hangs = await _frozen_by(node, journal, job_id)
        with _disk_failing(journal):
            hangs.set()
            await until(lambda: not node.hypervisor.server(SERVER).frozen)
            assert not running.done()
        await running
    job = await node.job(job_id)
    assert (job.state, label(job)) == (JobState.COMPLETED, Consistency.CRASH_CONSISTENT)
    await node.check(job, power=Power.ON)


async def test_the_guest_of_an_ended_job_is_thawed_although_the_journal_cannot_be_read(
    cell: Cell, tmp_path: Path
) -> None:
    node = await fresh(cell, tmp_path / "n")
    await stranded(node)
    node.hypervisor.faults.heal()
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        runner = node._runner(journal)
        with _disk_failing(journal), pytest.raises(JournalFailed):
            await runner.thaw_left()
        assert not node.hypervisor.server(SERVER).frozen
        await runner.thaw_left()
        assert journal.left_frozen() == []


class _Garbled:
    """A database on a disk that fails: a read of a job finds damaged data, nothing else works."""

    def execute(self, statement: str, _values: object = ()) -> "_Garbled":
        if not statement.startswith("SELECT task"):
            raise sqlite3.DatabaseError("disk I/O error")
        return self

    def fetchall(self) -> list[Any]:
        return [('{"garb', "thawing", "{", 0, None, 0)]


async def test_a_guest_is_thawed_although_its_job_in_the_journal_is_damaged(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n")
    node.limits = replace(LIMITS, journal_retry_seconds=0.01)
    job_id = await node.admit(JobKind.CREATE)
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        _, running, hangs = await _frozen_by(node, journal, job_id)
        works, journal._db = journal._db, cast("sqlite3.Connection", _Garbled())
        hangs.set()
        await until(lambda: not node.hypervisor.server(SERVER).frozen)
        journal._db = works
        await running
    await node.check(await node.job(job_id), power=Power.ON)


async def test_the_guest_of_a_job_that_broke_is_thawed_at_a_stop(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    node = await fresh(cell, tmp_path / "n")
    job_id = await node.admit(JobKind.CREATE)
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        runner, running, hangs = await _frozen_by(node, journal, job_id)
        monkeypatch.setattr(journal, "enter", bug)
        hangs.set()
        with pytest.raises(RuntimeError):
            await running
        assert node.hypervisor.server(SERVER).frozen
        await runner.drain(0.01)
        await runner.thaw_interrupted()
        assert not node.hypervisor.server(SERVER).frozen


async def test_a_stop_does_not_undo_another_tools_freeze(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the thaw of a job that has ended, whose outcome the store does not have yet."""

    async def never(*_: object, **_more: object) -> None:
        await asyncio.Event().wait()

    node = await fresh(cell, tmp_path / "n")
    node.limits = replace(LIMITS, thaw_seconds=0.05)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.THAW, times=10_000)
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        runner = node._runner(journal)
        monkeypatch.setattr(runner._publisher, "outcome", never)
        running = asyncio.create_task(runner.run(job_id))
        await until(lambda: bool(journal.left_frozen()))
        node.hypervisor.faults.heal()
        await runner.thaw_left()
        assert not node.hypervisor.server(SERVER).frozen
        node.hypervisor.server(SERVER).frozen = True
        await runner.thaw_interrupted()
        assert node.hypervisor.server(SERVER).frozen
        running.cancel()


async def _thaw_left(node: DyingNode) -> None:
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        await node._runner(journal).thaw_left()
