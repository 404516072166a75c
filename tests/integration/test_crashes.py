"""The worker dies at each moment of each effect, and the jobs still end correctly."""

import itertools
import json
import random
import sqlite3
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from drivers.base import DiskBusy, DiskFailed, DriverError, HypervisorUnavailable, InvalidState, Power, ServerInUse
from drivers.fake_faults import Effect, Happening, Killed, Moment
from drivers.fake_state import FakeDisk
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.dying import BEFORE, LIMITS, NOW, DyingNode
from tests.integration.pasts import Found, Past
from worker.journal import Journal, NewerJournal
from worker.runner import Limits
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.model import JobId, JobKind, JobState, NoteCode
from worker.store.operators.operator_store import OperatorStore

KINDS = (JobKind.CREATE, JobKind.RESTORE, JobKind.DELETE, JobKind.UNDO)
POWERS = (Power.ON, Power.OFF)


async def fresh(
    cell: Cell, folder: Path, power: Power, kind: JobKind, *, limits: Limits = LIMITS, past: Past = Past.QUIET
) -> DyingNode:
    """A node with a queued job of this kind."""
    await cell.redis.flushdb()
    await cell.node.take_lease(seconds=600)
    folder.mkdir()
    return await DyingNode.make(cell, folder, power=power, limits=limits, past=past)


@pytest.mark.parametrize(
    ("power", "past"),
    [(Power.ON, Past.QUIET), (Power.OFF, Past.QUIET), (Power.ON, Past.WORN), (Power.ON, Past.REBUILT)],
)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_whose_worker_dies_once_anywhere_is_completed(
    cell: Cell, tmp_path: Path, kind: JobKind, power: Power, past: Past
) -> None:
    node = await fresh(cell, tmp_path / "whole", power, kind, past=past)
    job_id = await node.admit(kind)
    node.start_over()
    job = await node.settle(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=power)
    moments = len(node.happened)
    assert moments > 3, "nothing happened: the hook is not in the way"

    for moment in range(1, moments + 1):
        node = await fresh(cell, tmp_path / f"{moment}", power, kind, past=past)
        job_id = await node.admit(kind)
        node.start_over(die_at=[moment])
        job = await node.settle(job_id)
        assert job.state is JobState.COMPLETED, node.happened[moment - 1]
        await node.check(job, power=power)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_worker_that_dies_again_and_again_ends_well_all_the_same(
    cell: Cell, tmp_path: Path, kind: JobKind, power: Power
) -> None:
    chance = random.Random(f"{kind} {power}")  # noqa: S311 - a campaign that can be repeated, not a secret
    for campaign in range(40):
        past = chance.choice(list(Past))
        node = await fresh(cell, tmp_path / f"{campaign}", power, kind, past=past)
        job_id = await node.admit(kind)
        deaths = sorted(chance.sample(range(1, 90), chance.randint(2, 6)))
        node.start_over(die_at=deaths)
        job = await node.settle(job_id)
        if kind is JobKind.DELETE and job.state is JobState.FAILED:
            continue  # housekeeping queues it again until its space is free
        await node.reconcile()
        await node.check(job, power=power)


@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.parametrize("kind", KINDS)
async def test_an_effect_that_fails_once_or_for_ever_leaves_nothing_half_done(
    cell: Cell, tmp_path: Path, kind: JobKind, effect: Effect
) -> None:
    for past, at in itertools.product((Past.QUIET, Past.WORN), Moment):
        for times in (1, 2):
            node = await fresh(cell, tmp_path / f"{past}{at}{times}", Power.ON, kind, past=past)
            job_id = await node.admit(kind)
            node.hypervisor.faults.fail(effect, times=times, at=at)
            job = await node.settle(job_id)
            if job.failure and job.failure.stranded:
                assert effect in {Effect.REVERT_DISK, Effect.RESTORE_NVRAM, Effect.REPAIR_DISK}, job.failure
                assert node.hypervisor.server(SERVER).power is Power.OFF or node.data() <= {BEFORE, NOW}
                assert node.hypervisor.misuse == []
                continue
            node.hypervisor.faults.heal()
            if job.kind is JobKind.DELETE and job.state is JobState.FAILED:
                continue  # housekeeping queues it again until its space is free
            await node.reconcile()
            await node.check(job, power=Power.ON)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_returning_node_leaves_a_server_alone_that_was_placed_elsewhere(
    cell: Cell, tmp_path: Path, kind: JobKind
) -> None:
    """Its host dies at any moment of the job, and an operator places the server on another node."""
    moment, is_over = 0, False
    while not is_over:
        moment += 1
        node = await fresh(cell, tmp_path / f"{moment}", Power.ON, kind)
        job_id = await node.admit(kind)
        node.start_over(die_at=[moment])
        if await node.live(job_id):
            break
        await cell.raw("SADD", "nodes", "n2")
        await OperatorStore(cell.redis, cell.store, node_silent_seconds=0.001).place(SERVER, node="n2")
        is_over = (await node.job(job_id)).state is JobState.COMPLETED  # its end was reported before the host died
        before, node.hypervisor.server(SERVER).power = deepcopy(node.hypervisor.server(SERVER)), Power.OFF
        before.power = Power.OFF  # on the other node, it may be starting
        node.start_over()
        job = await node.settle(job_id)
        assert is_over or (job.failure and job.failure.code) == "node_unavailable"
        assert node.hypervisor.server(SERVER) == before
    assert moment > 3, "nothing happened: the hook is not in the way"


@pytest.mark.parametrize(("kind", "stop"), [(JobKind.CREATE, Effect.PRESS), (JobKind.RESTORE, Effect.CUT)])
async def test_a_worker_cut_off_for_long_leaves_a_server_alone_that_was_placed_elsewhere(
    cell: Cell, tmp_path: Path, kind: JobKind, stop: Effect
) -> None:
    """Its host hung or was cut off. It stops the guest, and does not start it again."""
    node = await fresh(cell, tmp_path / "n", Power.ON, kind)
    job_id = await node.admit(kind)
    begun = await cell.node.begin(job_id)
    await cell.raw("SADD", "nodes", "n2")
    await OperatorStore(cell.redis, cell.store, node_silent_seconds=0.001).place(SERVER, node="n2")
    node.start_over()
    node.away_at = stop
    before = node.data()
    await node.live(job_id, begun)
    server = node.hypervisor.server(SERVER)
    assert server.power is Power.OFF
    assert {tag for disk in server.disks.values() for tag in disk.tags} == {f"vps-{node.first}"}
    assert node.data() == before
    failure = (await node.job(job_id)).failure
    assert (failure and failure.code) == "node_unavailable"


async def test_a_restore_that_one_disk_refuses_brings_all_disks_back(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    job_id = await node.admit(JobKind.RESTORE)
    node.hypervisor.faults.fail(Effect.REVERT_DISK, "vdb")
    job = await node.settle(job_id)
    assert job.failure is not None
    assert (job.state, job.failure.code) == (JobState.FAILED, "disk_failed")
    await node.check(job, power=Power.ON)


async def test_a_revert_that_every_disk_refuses_leaves_the_guest_on(cell: Cell, tmp_path: Path) -> None:
    """The cause of the refusal would also refuse the rollback. If nothing changed, none is needed."""
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    job_id = await node.admit(JobKind.RESTORE)
    node.hypervisor.faults.fail(Effect.REVERT_DISK, times=100)
    job = await node.settle(job_id)
    assert job.failure is not None
    assert (job.failure.code, job.failure.stranded) == ("disk_failed", False)
    await node.check(job, power=Power.ON)


async def test_a_disk_damaged_before_is_named_and_the_guest_started_again(cell: Cell, tmp_path: Path) -> None:
    for kind in (JobKind.CREATE, JobKind.RESTORE):
        node = await fresh(cell, tmp_path / kind, Power.ON, kind)
        job_id = await node.admit(kind)
        node.hypervisor.server(SERVER).disks["vdb"].rotten = True
        job = await node.settle(job_id)
        assert job.failure is not None
        assert (job.failure.code, job.failure.stranded) == ("disk_corrupt", False)
        assert "vdb" in job.failure.detail
        await node.reconcile()
        await node.check(job, power=Power.ON)


@pytest.mark.parametrize("tool", ["resize", "backup", "detach"])
async def test_changes_between_the_check_and_the_stop_are_noticed(cell: Cell, tmp_path: Path, tool: str) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    job_id = await node.admit(JobKind.RESTORE)
    server = node.hypervisor.server(SERVER)

    def act(happening: Happening) -> None:
        if (happening.effect, happening.moment) != (Effect.CUT, Moment.BEFORE) or server.power is Power.OFF:
            return
        if tool == "resize":
            server.disks["vdb"].virtual_bytes *= 2
        elif tool == "backup":
            server.disks["vda"].bitmaps, server.checkpoints = ["b0"], ["c0"]
        else:
            server.detached["vdb"] = server.disks.pop("vdb")
        assert node.found is not None
        node.found = Found.now(server, goes_back_to=node.found.goes_back_to)

    node.hypervisor.faults.hook = act
    job = await node.settle(job_id)
    assert (job.failure and job.failure.code) == ("disks_differ" if tool == "detach" else None)
    await node.check(job, power=Power.ON)


async def test_a_start_after_which_every_worker_died_is_no_stranded_server(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.START, at=Moment.AFTER, times=4, error=Killed("right behind the start"))
    job = await node.settle(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)


async def test_a_restore_that_can_neither_finish_nor_roll_back_is_stranded_and_off(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    job_id = await node.admit(JobKind.RESTORE)
    node.hypervisor.faults.fail(Effect.REVERT_DISK, "vdb", times=100, at=Moment.DURING)
    job = await node.settle(job_id)
    assert job.failure is not None
    assert job.failure.stranded
    assert node.hypervisor.server(SERVER).power is Power.OFF
    assert node.hypervisor.server(SERVER).disks["vda"].tags[f"vps-safety-{job_id}"] == NOW


async def test_a_guest_that_does_not_start_again_is_stranded_and_its_snapshot_kept(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.START, times=100)
    job = await node.settle(job_id)
    assert job.failure is not None
    assert (job.failure.code, job.failure.stranded) == ("start_failed", True)
    await node.check_snapshots()


@pytest.mark.parametrize("why", [ServerInUse("it is being migrated"), HypervisorUnavailable("no answer")], ids=type)
async def test_a_server_that_leaves_in_a_job_is_stranded_unless_the_job_was_refused_because_it_moves(
    cell: Cell, tmp_path: Path, why: DriverError
) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)

    def leave(happening: Happening) -> None:
        if (happening.effect, happening.moment) == (Effect.PRESS, Moment.AFTER):
            node.hypervisor.faults.hook = None
            node.hypervisor.remove(SERVER)
            raise why

    node.hypervisor.faults.hook = leave
    job = await node.settle(job_id)
    assert job.failure is not None
    assert job.failure.stranded is not isinstance(why, ServerInUse)


async def test_a_start_that_fails_at_first_is_tried_again(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.START, times=2)
    job = await node.settle(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)


async def test_a_step_that_kills_every_worker_is_given_up(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.SNAPSHOT_DISK, "vdb", at=Moment.DURING, times=100, error=Killed("again"))
    job = await node.settle(job_id)
    assert job.failure is not None
    assert job.failure.code == "interrupted"
    await node.check(job, power=Power.ON)


async def test_a_step_that_takes_too_long_is_given_up_and_its_disk_repaired(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    node.limits = replace(node.limits, step_seconds=2.0)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.hang(Effect.SNAPSHOT_DISK)
    job = await node.settle(job_id)
    assert job.failure is not None
    assert job.failure.code == "step_timeout"
    await node.check(job, power=Power.ON)


async def test_a_job_that_is_delivered_again_or_twice_at_once_is_done_once(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.start_over()
    await node.live(job_id)
    once = len(node.happened)
    await node.live(job_id)
    assert len(node.happened) == once
    job = await node.job(job_id)
    assert job.attempts == 1
    await node.check(job, power=Power.ON)
    assert (
        await cell.store.snapshots(account_id=ACCOUNT, wanted=SnapshotFilter(server_id=SERVER), offset=0, limit=9)
    ).count == 2


async def test_a_snapshot_whose_size_is_unknown_is_kept(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.MEASURE, times=100, error=DiskFailed("vdb"))
    job = await node.settle(job_id)
    assert job.state is JobState.FAILED
    await node.check_snapshots()
    assert len(await node.completed()) == 2
    assert node.hypervisor.server(SERVER).power is Power.ON


async def test_unchecked_disks_are_not_booted(cell: Cell, tmp_path: Path) -> None:
    limits = Limits(first_retry_seconds=0.001, step_seconds=30)
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE, limits=limits)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.SNAPSHOT_DISK, "vdb", at=Moment.DURING)
    node.hypervisor.faults.fail(Effect.REPAIR_DISK, times=9, error=HypervisorUnavailable("away"))
    job = await node.settle(job_id)
    assert job.failure is not None
    assert (job.failure.code, job.failure.stranded) == ("disk_failed", False)
    assert node.hypervisor.misuse == []
    await node.check(job, power=Power.ON)


@pytest.mark.parametrize("effect", [Effect.START, Effect.CUT, Effect.SNAPSHOT_DISK, Effect.MEASURE])
async def test_a_hypervisor_that_is_away_for_long_is_waited_for(cell: Cell, tmp_path: Path, effect: Effect) -> None:
    limits = Limits(first_retry_seconds=0.001, step_seconds=30)
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE, limits=limits)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(effect, times=9, error=HypervisorUnavailable("away"))
    job = await node.settle(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)


async def test_a_guest_that_can_not_be_asked_to_shut_down_is_cut_off(cell: Cell, tmp_path: Path) -> None:
    """Its QEMU may just have died without libvirt having noticed."""
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.PRESS, times=100, error=InvalidState("the power button can't be pressed"))
    job = await node.settle(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)


async def test_an_end_is_reported_again_to_an_older_copy_of_the_store(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE)
    job_id = await node.admit(JobKind.CREATE)
    before = {key: await cell.redis.dump(key) for key in await cell.redis.keys("*")}
    await node.live(job_id)
    await cell.redis.flushall()
    for key, value in before.items():
        await cell.redis.restore(key, 0, value)

    await node.live(job_id)

    job = await node.job(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)


async def test_the_safety_snapshot_of_a_stranded_restore_outlives_every_round(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    job_id = await node.admit(JobKind.RESTORE)
    node.hypervisor.faults.fail(Effect.REVERT_DISK, "vdb", times=100, at=Moment.DURING)
    await node.settle(job_id)
    for _ in range(2):
        await node.reconcile()
    journal = Journal(tmp_path / "n" / "journal.sqlite")
    assert journal.droppable_tags(SERVER) == frozenset()
    assert journal.safety_tags(SERVER) == {f"vps-safety-{job_id}"}
    journal.close()
    assert node.hypervisor.server(SERVER).disks["vda"].tags[f"vps-safety-{job_id}"] == NOW


async def test_a_disk_that_something_holds_is_not_booted_and_waited_for(cell: Cell, tmp_path: Path) -> None:
    limits = Limits(first_retry_seconds=0.001, step_seconds=30)
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE, limits=limits)
    job_id = await node.admit(JobKind.CREATE)
    node.hypervisor.faults.fail(Effect.SNAPSHOT_DISK, "vdb", at=Moment.DURING)
    node.hypervisor.faults.fail(Effect.REPAIR_DISK, "vdb", times=9, error=DiskBusy("held"))
    job = await node.settle(job_id)
    assert job.failure is not None
    assert (job.failure.code, job.failure.stranded) == ("disk_failed", False)
    await node.check(job, power=Power.ON)


async def test_a_worker_that_dies_while_it_drops_a_safety_snapshot_mends_the_disks_before_the_next_job(
    cell: Cell, tmp_path: Path
) -> None:
    limits = Limits(first_retry_seconds=0.001, safety_kept_seconds=0.001)
    node = await fresh(cell, tmp_path / "n", Power.OFF, JobKind.RESTORE, limits=limits)
    await node.settle(await node.admit(JobKind.RESTORE))
    node.hypervisor.faults.fail(Effect.DELETE_TAG, "vdb", at=Moment.DURING, error=Killed("housekeeping"))
    with pytest.raises(Killed):
        await node.reconcile()
    assert node.hypervisor.server(SERVER).disks["vdb"].dirty

    job = await node.settle(await node.admit(JobKind.RESTORE))

    assert job.state is JobState.COMPLETED
    assert not node.hypervisor.server(SERVER).disks["vdb"].dirty
    await node.reconcile()
    await node.check_snapshots()


async def test_after_a_loss_a_snapshot_of_other_disks_is_published(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.CREATE, past=Past.REBUILT)
    await cell.redis.flushdb()
    await cell.node.take_lease(seconds=600)
    await cell.have()
    await node.reconcile()
    assert await node.completed() == {node.first}
    await node.check_snapshots()


async def test_the_undo_of_a_partial_restore_leaves_the_other_disks_alone(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    server = node.hypervisor.server(SERVER)
    server.disks["vdc"] = FakeDisk(content=NOW)
    restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=node.first, request_id="r", present_only=True)
    assert (await node.settle(restore.job.id)).state is JobState.COMPLETED
    assert node.hypervisor.read(SERVER) == {"vda": BEFORE, "vdb": BEFORE, "vdc": NOW}
    server.disks["vdc"].content = "written since"

    undo = await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")

    assert (await node.settle(undo.id)).state is JobState.COMPLETED
    assert node.hypervisor.read(SERVER) == {"vda": NOW, "vdb": NOW, "vdc": "written since"}


async def test_a_restore_that_an_earlier_version_began_keeps_the_sizes_too(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    node.hypervisor.server(SERVER).disks["vdb"].virtual_bytes *= 2
    size = node.hypervisor.server(SERVER).disks["vdb"].virtual_bytes
    job_id = await node.admit(JobKind.RESTORE)
    node.hypervisor.faults.fail(Effect.REVERT_DISK, "vda", error=Killed("the upgrade"))
    assert not await node.live(job_id)
    with sqlite3.connect(tmp_path / "n" / "journal.sqlite") as journal:
        (facts,) = journal.execute("SELECT facts FROM jobs WHERE id = ?", (job_id,)).fetchone()
        known_then = {"begun_at", "was_running", "off_since", "on_again", "taken", "size_mb", "spare_tag", "failure"}
        old = {name: value for name, value in json.loads(facts).items() if name in known_then}
        journal.execute("UPDATE jobs SET facts = ? WHERE id = ?", (json.dumps(old), job_id))
    journal.close()

    job = await node.settle(job_id)

    assert job.state is JobState.COMPLETED
    assert node.hypervisor.server(SERVER).disks["vdb"].virtual_bytes == size
    assert NoteCode.DISK_KEPT_SIZE in {note.code for note in job.notes}
    await node.check(job, power=Power.ON)


def with_step(folder: Path, job_id: JobId, step: str) -> str:
    """Change the step of a job in the journal, as if a newer version had written it. Returns the step before."""
    with closing(sqlite3.connect(folder / "journal.sqlite", isolation_level=None)) as db:
        (before,) = db.execute("SELECT step FROM jobs WHERE id = ?", (job_id,)).fetchone()
        db.execute("UPDATE jobs SET step = ? WHERE id = ?", (step, job_id))
    return str(before)


async def test_a_job_that_a_newer_version_started_waits_for_that_version(cell: Cell, tmp_path: Path) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.RESTORE)
    job_id = await node.admit(JobKind.RESTORE)
    node.start_over(die_at=[8])
    assert not await node.live(job_id)
    step, died = with_step(node.folder, job_id, "of a newer version"), len(node.happened)
    with pytest.raises(NewerJournal, match="of a newer version"):
        await node.live(job_id)
    assert len(node.happened) == died
    with_step(node.folder, job_id, step)
    job = await node.settle(job_id)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)


async def test_an_undo_of_a_restore_that_only_a_newer_version_can_read_waits_for_that_version(
    cell: Cell, tmp_path: Path
) -> None:
    node = await fresh(cell, tmp_path / "n", Power.ON, JobKind.UNDO)
    undo = await node.admit(JobKind.UNDO)
    restore = (await node.job(undo)).undoes
    assert restore is not None
    step = with_step(node.folder, restore, "of a newer version")
    node.start_over()
    with capture_logs() as logs:
        await node.live(undo)
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["job.unreadable"]
    assert node.happened == []
    with_step(node.folder, restore, step)
    job = await node.settle(undo)
    assert job.state is JobState.COMPLETED
    await node.check(job, power=Power.ON)
