"""Reconciliation: store, disks and journal agree again, and other tools' data is not touched."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from drivers.base import Power, ServerInUse, SnapshotSpec, UnsupportedServer
from drivers.fake import FakeHypervisor
from drivers.fake_faults import Effect
from drivers.fake_state import FakeDisk, FakeServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store, nothing_more
from tests.integration.counted import counted
from tests.queueing import until, until_told
from worker.inventory import Inventory
from worker.journal import KEPT_FOR_A_PERSON, Journal
from worker.procedures.disks import CLEANING_TRIES
from worker.procedures.work import Policy, Task
from worker.program.background import in_background
from worker.publisher import Publisher
from worker.reconcile import Reconciler
from worker.runner import Limits, Runner
from worker.store import errors
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.model import Job, JobId, JobKind, ServerId, SnapshotId, SnapshotStatus, Step

OTHER = ServerId(77)
WHEN = datetime(2025, 1, 15, 18, 30, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Node:
    cell: Cell
    hypervisor: FakeHypervisor
    journal: Journal
    runner: Runner
    reconciler: Reconciler
    inventory: Inventory

    async def have_snapshot(self, tag: str, name: str = "kept") -> None:
        await self.hypervisor.take_snapshot(
            SERVER, SnapshotSpec(tag=tag, name=name, description="two\nlines", created_at=WHEN)
        )

    async def reconcile(self) -> None:
        await self.reconciler.server(SERVER)

    async def tags(self) -> set[str]:
        return {found.tag for found in await self.hypervisor.snapshots(SERVER)}

    async def listed(self) -> dict[int, SnapshotStatus]:
        page = await self.cell.store.snapshots(
            account_id=ACCOUNT, wanted=SnapshotFilter(server_id=SERVER), offset=0, limit=100
        )
        return {snapshot.id: snapshot.status for snapshot in page.results}

    async def create(self, name: str) -> SnapshotId:
        admitted = await self.cell.create(name)
        await self.runner.run(admitted.job.id)
        return admitted.snapshot.id

    async def restore(self, snapshot_id: SnapshotId) -> JobId:
        admitted = await self.cell.store.restore(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
        await self.runner.run(admitted.job.id)
        return admitted.job.id


@pytest.fixture
async def node(cell: Cell, tmp_path: Path) -> AsyncIterator[Node]:
    disks = {target: FakeDisk() for target in ("vda", "vdb")}
    server = FakeServer(name="web-server-01", server_id=SERVER, account_id=ACCOUNT, disks=disks, power=Power.OFF)
    hypervisor = FakeHypervisor([server])
    journal = Journal(tmp_path / "journal.sqlite")
    runner = Runner(
        journal=journal,
        hypervisor=hypervisor,
        store=cell.node,
        publisher=Publisher(cell.node, publish_again=nothing_more),
        policy=Policy(grace_seconds=0.1),
        limits=Limits(start_seconds=0.1),
    )
    reconciler = Reconciler(
        hypervisor=hypervisor,
        store=cell.node,
        journal=journal,
        runner=runner,
        safety_kept_seconds=3600,
        look_seconds=60,
    )
    inventory = Inventory(hypervisor, cell.node, publish=reconciler.server)
    yield Node(
        cell=cell, hypervisor=hypervisor, journal=journal, runner=runner, reconciler=reconciler, inventory=inventory
    )
    journal.close()


async def report(node: Node) -> None:
    await node.inventory.report()
    await node.inventory.publish_fresh()


async def lose_redis_data(node: Node) -> None:
    await node.cell.redis.flushall()
    await node.cell.node.take_lease(seconds=60)


async def test_a_store_that_lost_its_data_is_built_up_again_by_the_next_report(node: Node) -> None:
    kept = await node.create("kept")
    await lose_redis_data(node)
    with pytest.raises(errors.ServerNotFound):
        await node.cell.create("next")

    await report(node)

    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)
    assert (snapshot.status, snapshot.name) == (SnapshotStatus.COMPLETED, "kept")
    assert snapshot.size_mb is not None
    with pytest.raises(errors.NameTaken):
        await node.cell.create("kept")
    for n in range(4):
        await node.create(f"s{n}")
    with pytest.raises(errors.SnapshotLimitReached):
        await node.cell.create("sixth")


async def test_a_rebuild_publishes_what_an_old_copy_of_the_data_lacks(node: Node) -> None:
    kept = await node.create("kept")
    await node.cell.raw("DEL", f"snapshot:{kept}", f"server:{SERVER}:snapshots", f"server:{SERVER}:counted")
    await report(node)
    assert await node.listed() == {}

    assert await node.cell.node.republish() == 1
    await report(node)

    assert await node.listed() == {kept: SnapshotStatus.COMPLETED}


async def test_new_ids_are_above_every_id_on_a_disk(node: Node) -> None:
    ahead = (await node.cell.create("given")).snapshot.id + 50_000  # a cell that issued many IDs within a day
    await node.have_snapshot(f"vps-{ahead}")
    await lose_redis_data(node)
    await report(node)
    assert (await node.cell.create("next")).snapshot.id == ahead + 1


async def test_an_older_copy_of_the_data_gives_no_id_a_second_time(node: Node) -> None:
    given = await node.create("given")
    await node.cell.raw("SET", "snapshots:last_id", given - 1000)
    await node.cell.raw("DEL", f"snapshot:{given}")
    seconds, _ = await node.cell.redis.time()

    async def later() -> bool:
        now, _ = await node.cell.redis.time()
        return bool(now > seconds)

    await until_told(later)  # an older copy would not appear within the same second

    assert (await node.cell.create("next")).snapshot.id > given


async def test_no_snapshot_is_added_before_the_node_has_published(node: Node) -> None:
    await node.cell.raw("HSET", f"server:{SERVER}", "unpublished", "1")
    with pytest.raises(errors.NodeUnavailable):
        await node.cell.create("too-early")
    await report(node)
    await node.cell.create("now")


async def test_a_job_that_runs_while_the_data_is_lost_ends_as_its_own_record(node: Node) -> None:
    admitted = await node.cell.create("underway")
    job = await node.cell.node.begin(admitted.job.id)
    node.journal.begin(Task.of(job), Step.PREFLIGHT)
    await lose_redis_data(node)

    await report(node)

    assert (await node.cell.store.job(account_id=ACCOUNT, job_id=job.id)).state == "in_progress"
    with pytest.raises(errors.ServerBusy):
        await node.cell.create("meanwhile")
    await node.runner.run(job.id)
    assert await node.listed() == {admitted.snapshot.id: SnapshotStatus.COMPLETED}


async def test_what_agrees_is_left_alone(node: Node) -> None:
    kept = await node.create("kept")
    await node.reconcile()
    assert await node.listed() == {kept: SnapshotStatus.COMPLETED}
    assert await node.tags() == {f"vps-{kept}"}
    assert not await node.cell.redis.exists("node:n1:findings")


async def test_a_tag_left_by_a_failed_create_is_deleted_and_reported(node: Node) -> None:
    node.hypervisor.server(SERVER).disks["vdb"].unsupported = "is raw"
    failed = await node.create("failed")
    node.hypervisor.server(SERVER).disks["vdb"].unsupported = ""
    node.hypervisor.server(SERVER).disks["vda"].tags[f"vps-{failed}"] = "half"
    await node.reconcile()
    assert await node.tags() == set()
    assert b"orphaned_tag" in await node.cell.raw("HGET", "node:n1:findings", SERVER)
    await node.reconcile()
    assert not await node.cell.redis.exists("node:n1:findings")


async def test_a_tag_that_nobody_knows_may_be_all_that_is_left_and_is_never_touched(node: Node) -> None:
    for disk in node.hypervisor.server(SERVER).disks.values():
        disk.tags["vps-7"] = "whole"
    node.hypervisor.server(SERVER).disks["vda"].tags["vps-8"] = "of before there was a second disk"
    for _ in range(2):
        await node.reconcile()
        assert await node.tags() == {"vps-7", "vps-8"}
        assert (await node.cell.raw("HGET", "node:n1:findings", SERVER)).count(b"stray_tag") == 2
    assert await node.listed() == {}


async def test_records_lost_by_the_hypervisor_are_restored_and_survive_a_loss_of_redis(node: Node) -> None:
    """As when the domain was moved here, or after `virsh snapshot-delete --metadata`."""
    kept = await node.create("kept")
    node.hypervisor.server(SERVER).listed.clear()
    await node.reconcile()
    assert b"unlisted_snapshot" in await node.cell.raw("HGET", "node:n1:findings", SERVER)
    await node.reconcile()
    assert not await node.cell.redis.exists("node:n1:findings")

    await lose_redis_data(node)
    await report(node)
    await node.reconcile()

    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)
    assert (snapshot.status, snapshot.name) == (SnapshotStatus.COMPLETED, "kept")


async def test_findings_stay_while_a_job_holds_the_server(node: Node) -> None:
    for disk in node.hypervisor.server(SERVER).disks.values():
        disk.tags["vps-7"] = "whole"
    await node.reconcile()
    await node.cell.create("waits")
    await node.reconcile()
    assert b"stray_tag" in await node.cell.raw("HGET", "node:n1:findings", SERVER)


async def test_a_job_ends_even_if_reading_the_power_fails(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admitted = await node.cell.create("kept")
    look = node.hypervisor.power

    async def power(server_id: int) -> Power:
        entry = node.journal.find(admitted.job.id)
        if entry is not None and entry.outcome is not None:
            raise RuntimeError("a bug of the driver")
        return await look(server_id)

    monkeypatch.setattr(node.hypervisor, "power", power)
    await node.runner.run(admitted.job.id)
    assert await node.listed() == {admitted.snapshot.id: SnapshotStatus.COMPLETED}
    assert "power.broke" in capsys.readouterr().out


@pytest.mark.parametrize("safety", [True, False])
async def test_a_revert_outside_the_service_is_reported_until_unlisted(node: Node, safety: bool) -> None:
    """As after `virsh snapshot-revert`."""
    kept = await node.create("kept")
    first = await node.restore(kept)
    server = node.hypervisor.server(SERVER)
    server.current = f"vps-safety-{first}" if safety else f"vps-{kept}"
    for _ in range(2):
        await node.reconcile()
        assert b"reverted_snapshot" in await node.cell.raw("HGET", "node:n1:findings", SERVER)
    server.current = ""
    await node.reconcile()
    assert not await node.cell.redis.exists("node:n1:findings")
    assert await node.listed() == {kept: SnapshotStatus.COMPLETED}


@pytest.mark.parametrize("listed", [True, False])
async def test_a_lost_snapshot_that_turns_up_again_is_what_it_was(node: Node, listed: bool) -> None:
    """As when a live backup had temporarily put an overlay over each disk."""
    kept = await node.create("kept")
    size_mb = (await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)).size_mb
    server = node.hypervisor.server(SERVER)
    disks, server.disks = server.disks, {target: FakeDisk() for target in ("vda", "vdb")}
    if not listed:
        server.listed.clear()
    await node.reconcile()
    assert await node.listed() == {kept: SnapshotStatus.FAILED}

    server.disks = disks
    await node.reconcile()

    assert b"found_snapshot" in await node.cell.raw("HGET", "node:n1:findings", SERVER)
    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)
    assert (snapshot.status, snapshot.size_mb) == (SnapshotStatus.COMPLETED, size_mb)
    assert f"vps-{kept}" in server.listed
    assert await node.cell.raw("SCARD", f"server:{SERVER}:counted") == 1
    with pytest.raises(errors.NameTaken):
        await node.cell.create("kept")
    await node.reconcile()
    assert not await node.cell.redis.exists("node:n1:findings")


async def test_a_part_of_a_lost_snapshot_is_reported_and_never_touched(node: Node) -> None:
    kept = await node.create("kept")
    server = node.hypervisor.server(SERVER)
    disks, server.disks = server.disks, {target: FakeDisk() for target in ("vda", "vdb")}
    server.listed.clear()
    await node.reconcile()
    server.disks["vda"] = disks["vda"]
    await node.reconcile()
    assert await node.tags() == {f"vps-{kept}"}
    assert await node.listed() == {kept: SnapshotStatus.FAILED}
    assert b"stray_tag" in await node.cell.raw("HGET", "node:n1:findings", SERVER)


async def test_what_is_not_ours_is_never_touched(node: Node) -> None:
    node.hypervisor.server(SERVER).disks["vda"].tags["before-upgrade"] = "theirs"
    await node.reconcile()
    assert await node.tags() == {"before-upgrade"}
    assert await node.listed() == {}


async def test_a_snapshot_deleted_by_others_is_failed_and_frees_its_slot(node: Node) -> None:
    gone = await node.create("gone")
    await node.hypervisor.delete_snapshot(SERVER, f"vps-{gone}")
    await node.reconcile()
    assert await node.listed() == {gone: SnapshotStatus.FAILED}
    await node.cell.create("gone")


async def test_a_snapshot_missing_on_a_new_disk_is_reported_and_kept(node: Node) -> None:
    kept = await node.create("kept")
    node.hypervisor.server(SERVER).disks["vdc"] = FakeDisk()
    await node.reconcile()
    assert await node.listed() == {kept: SnapshotStatus.COMPLETED}
    assert await node.tags() == {f"vps-{kept}"}
    assert b"torn_snapshot" in await node.cell.raw("HGET", "node:n1:findings", SERVER)


async def test_a_missing_server_is_reported_while_it_has_snapshots(node: Node) -> None:
    async def findings() -> bytes:
        return await node.cell.raw("HGET", "node:n1:findings", SERVER) or b""

    domain = node.hypervisor.server(SERVER)
    kept = await node.create("kept")
    await report(node)
    node.hypervisor.remove(SERVER)
    with capture_logs() as lines:
        for _ in range(2):
            await report(node)
    assert [line["server_id"] for line in lines if line["event"] == "inventory.server_gone"] == [SERVER]
    assert b"missing_server" in await findings()

    node.hypervisor.add(domain)
    await report(node)
    await node.reconcile()
    assert await findings() == b""

    node.hypervisor.remove(SERVER)
    await report(node)
    await node.cell.store.delete(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    assert await findings() == b""
    assert await node.cell.raw("ZCARD", "findings") == 0


async def test_a_server_that_was_renamed_keeps_its_snapshots_under_its_new_name(node: Node) -> None:
    kept = await node.create("kept")
    node.hypervisor.server(SERVER).name = "renamed"
    await report(node)
    snapshot = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)
    assert (snapshot.server_name, snapshot.status) == ("renamed", SnapshotStatus.COMPLETED)


async def test_an_odd_server_does_not_end_the_worker(node: Node) -> None:
    node.hypervisor.faults.fail(Effect.LOOK, server_id=SERVER, error=ValueError("nobody has thought of this"))
    with capture_logs() as lines:
        await node.reconcile()
    assert [line["event"] for line in lines] == ["reconcile.broke"]


async def test_a_server_that_a_job_holds_is_not_judged(node: Node) -> None:
    await node.cell.create("queued")
    node.hypervisor.server(SERVER).disks["vda"].tags["vps-7"] = "half"
    await node.reconcile()
    assert await node.tags() == {"vps-7"}


async def test_a_server_that_a_job_held_is_judged_soon_after(node: Node) -> None:
    gone = await node.create("gone")
    await node.hypervisor.delete_snapshot(SERVER, f"vps-{gone}")
    job = (await node.cell.create("queued")).job
    reconciling = asyncio.create_task(node.reconciler.keep_reconciling())
    await until(lambda: SERVER in node.reconciler._pending)  # it was found busy
    assert (await node.listed())[gone] is SnapshotStatus.COMPLETED
    await node.cell.store.cancel(account_id=ACCOUNT, job_id=job.id)

    async def is_judged() -> bool:
        return (await node.listed())[gone] is SnapshotStatus.FAILED

    await until_told(is_judged)
    reconciling.cancel()
    with suppress(asyncio.CancelledError):
        await reconciling


async def test_a_server_that_cannot_be_read_is_still_released(node: Node) -> None:
    # left by a worker that died at the end of a job, before a disk's storage became unavailable
    await node.hypervisor.hold(SERVER)
    node.hypervisor.faults.fail(Effect.LOOK, error=UnsupportedServer("disk vda has no file"))
    await node.reconcile()
    assert not node.hypervisor.server(SERVER).held


async def test_a_failed_release_after_a_job_is_retried_within_seconds(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.reconcile.RECHECK_SECONDS", 0.01)
    node.hypervisor.faults.fail(Effect.LET_GO, times=3)  # libvirt is down: at the job's end, and for two rechecks
    async with in_background(node.reconciler.keep_reconciling()):
        await node.create("a")

        async def is_let_go() -> bool:
            return not node.hypervisor.server(SERVER).held

        await until_told(is_let_go)
    assert not node.runner.still_held


async def test_a_safety_snapshot_that_the_journal_lost_gets_its_usual_time(node: Node) -> None:
    await node.have_snapshot("vps-safety-abc", name="safety")
    await node.reconcile()
    assert node.journal.safety_tags(SERVER) == {"vps-safety-abc"}
    assert node.journal.due_safety_tags() == []
    assert await node.listed() == {}


async def test_a_safety_snapshot_that_its_moved_server_lacks_is_forgotten(node: Node) -> None:
    await node.have_snapshot("vps-safety-abc", name="safety")
    for disk in node.hypervisor.server(SERVER).disks.values():
        disk.tags.clear()
    await node.reconcile()
    node.journal.age_safety_tags(3601)
    await node.runner.safety.drop_due()
    assert node.journal.safety_tags(SERVER) == frozenset()
    assert await node.tags() == set()


async def test_of_a_moved_servers_safety_snapshots_only_the_undoable_one_is_kept(node: Node) -> None:
    """Each of its earlier nodes had recorded only its own."""
    older, newer = await node.create("older"), await node.create("newer")
    for tag in ("vps-safety-tracked", "vps-safety-stranded"):
        await node.have_snapshot(tag, name="safety")
    node.journal.track_safety_tag(SERVER, "vps-safety-tracked", kept_seconds=3600)
    node.journal.track_safety_tag(SERVER, "vps-safety-stranded", kept_seconds=KEPT_FOR_A_PERSON)
    for snapshot in (newer, older):
        newest = f"vps-safety-{await node.restore(snapshot)}"
        node.journal.dropped(newest)
    assert len(await node.tags()) == 6
    await node.reconcile()
    await node.runner.safety.drop_due()
    assert await node.tags() == {f"vps-{older}", f"vps-{newer}", newest, "vps-safety-stranded"}
    assert node.journal.safety_tags(SERVER) == {newest, "vps-safety-stranded"}


async def test_records_of_a_server_that_moved_away_are_dropped(node: Node) -> None:
    await node.have_snapshot("vps-safety-abc", name="safety")
    node.journal.track_safety_tag(SERVER, "vps-safety-abc", kept_seconds=0)
    node.journal.change(SERVER)
    node.hypervisor.remove(SERVER)
    with capture_logs() as logs:
        await node.runner.safety.make_room()
        await node.runner.safety.drop_due()
    assert node.journal.safety_tags(SERVER) == frozenset()
    assert node.journal.changing() == frozenset()
    assert [line["event"] for line in logs] == ["spare_tag.gone_with_server"]


async def test_a_refused_report_is_logged_once(node: Node) -> None:
    other = node_store(node.cell.redis, node="n2", machine="m2")
    inventory = Inventory(node.hypervisor, other, publish=node.reconciler.server)
    with capture_logs() as logs:
        assert [await inventory.report() for _ in range(3)] == [False] * 3
        await other.take_lease(seconds=60)
        assert await inventory.report()
        await other.take_lease(seconds=0)
        await node_store(node.cell.redis, node="n2", machine="m3").take_lease(seconds=60)
        assert not await inventory.report()
    assert [line["event"] for line in logs].count("inventory.not_reported") == 2


async def test_a_server_on_two_nodes_is_reported_once_that_lasts(node: Node) -> None:
    other = node_store(node.cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    inventory = Inventory(node.hypervisor, other, publish=node.reconciler.server, conflict_seconds=0.05)
    with capture_logs() as logs:
        await inventory.report()
        assert logs == []
        await asyncio.sleep(0.06)
        for _ in range(2):
            await inventory.report()
    assert [line["event"] for line in logs] == ["inventory.server_on_two_nodes"]


async def test_a_dry_run_makes_the_nodes_checks_and_changes_nothing(node: Node) -> None:
    kept = await node.create("kept")
    asks: tuple[Callable[[], Awaitable[Job]], ...] = (
        lambda: node.cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="next", request_id="r"),
        lambda: node.cell.store.check_restore(account_id=ACCOUNT, snapshot_id=kept, request_id="r"),
    )
    for ask in asks:
        check = await ask()
        await node.runner.run(check.id)
        assert (await node.cell.store.job(account_id=ACCOUNT, job_id=check.id)).state == "completed"

    node.hypervisor.server(SERVER).disks["vdb"].unsupported = "disk vdb is raw"
    for ask in asks:
        check = await ask()
        await node.runner.run(check.id)
        failed = await node.cell.store.job(account_id=ACCOUNT, job_id=check.id)
        assert failed.failure is not None
        assert failed.failure.code == "unsupported_server"
    assert await node.listed() == {kept: SnapshotStatus.COMPLETED}
    assert await node.tags() == {f"vps-{kept}"}
    with pytest.raises(errors.NameTaken):
        await node.cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="kept", request_id="r")


async def test_a_restore_is_undone_with_every_disk_as_it_was(node: Node) -> None:
    kept = await node.create("kept")
    node.hypervisor.write(SERVER, "later")
    restore = await node.cell.store.restore(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    await node.runner.run(restore.job.id)
    assert set(node.hypervisor.read(SERVER).values()) == {"installed"}

    undo = await node.cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    await node.runner.run(undo.id)

    assert set(node.hypervisor.read(SERVER).values()) == {"later"}
    assert (await node.cell.store.job(account_id=ACCOUNT, job_id=undo.id)).state == "completed"


async def test_a_delete_that_is_under_way_does_not_bring_its_snapshot_back(node: Node) -> None:
    kept = await node.create("kept")
    await node.cell.store.delete(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    job = await node.cell.node.begin(JobId(await node.cell.holder()))
    assert job.kind is JobKind.DELETE
    node.journal.begin(Task.of(job), Step.DELETING)
    await lose_redis_data(node)
    await report(node)
    assert await node.listed() == {}
    await node.runner.run(job.id)
    assert await node.tags() == set()


async def test_after_a_loss_the_snapshot_being_restored_is_published_at_once(node: Node) -> None:
    kept = await node.create("kept")
    restore = await node.cell.store.restore(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    job = await node.cell.node.begin(restore.job.id)
    node.journal.begin(Task.of(job), Step.PREFLIGHT)
    await lose_redis_data(node)

    await report(node)

    assert await node.listed() == {kept: SnapshotStatus.COMPLETED}


async def test_an_empty_store_accepts_an_outcome_once_the_job_is_published(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = await node.cell.create("kept")
    job = await node.cell.node.begin(admitted.job.id)
    node.journal.begin(Task.of(job), Step.PREFLIGHT)
    await lose_redis_data(node)
    store, calls = counted(node.cell.node)
    monkeypatch.setattr(node.runner._publisher, "_store", store)
    ending = asyncio.create_task(node.runner.run(job.id))
    await until(lambda: ending.done() or calls.ended["finish"] >= 2)
    assert not ending.done()

    await report(node)

    await ending
    assert (await node.cell.store.job(account_id=ACCOUNT, job_id=job.id)).state == "completed"
    assert await node.listed() == {admitted.snapshot.id: SnapshotStatus.COMPLETED}


async def test_safety_snapshots_are_dropped_before_guests_run_out_of_space(node: Node) -> None:
    kept = await node.create("kept")
    restore = await node.cell.store.restore(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    await node.runner.run(restore.job.id)
    safety = f"vps-safety-{restore.job.id}"
    await node.runner.safety.make_room()
    assert safety in await node.tags()

    node.hypervisor.free_bytes = Policy.free_floor_bytes - 1
    await node.runner.safety.make_room()

    assert await node.tags() == {f"vps-{kept}"}
    assert node.journal.safety_tags(SERVER) == set()


async def test_each_job_that_runs_has_its_own_reserve(node: Node) -> None:
    """Space that one job has reserved is not free for the next."""
    node.hypervisor.free_bytes = 2 * Policy.free_floor_bytes - 1
    node.hypervisor.add(FakeServer(name="other", server_id=OTHER, account_id=ACCOUNT, deaf=True, power=Power.ON))
    await node.cell.have([SERVER, OTHER])
    slow, quick = await node.cell.create("slow", server=OTHER), await node.cell.create("quick")
    pressed = asyncio.Event()
    node.hypervisor.faults.hook = lambda happening: pressed.set() if happening.effect is Effect.PRESS else None
    running = asyncio.create_task(node.runner.run(slow.job.id))
    await pressed.wait()  # it has finished its checks
    await node.runner.run(quick.job.id)
    await running

    ends = [await node.cell.store.job(account_id=ACCOUNT, job_id=one.job.id) for one in (slow, quick)]
    assert [end.failure and end.failure.code for end in ends] == [None, "not_enough_space"]


async def test_an_undos_target_is_never_dropped_for_space_or_by_a_dry_run(node: Node) -> None:
    kept = await node.create("kept")
    restore = await node.cell.store.restore(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    await node.runner.run(restore.job.id)
    safety = f"vps-safety-{restore.job.id}"
    node.hypervisor.free_bytes = 0

    check = await node.cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="next", request_id="r")
    await node.runner.run(check.id)
    assert safety in await node.tags()
    undo = await node.cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    await node.runner.run(undo.id)
    failed = await node.cell.store.job(account_id=ACCOUNT, job_id=undo.id)
    assert failed.failure is not None
    assert failed.failure.code == "not_enough_space"
    assert safety in await node.tags()

    create = await node.cell.create("next")
    await node.runner.run(create.job.id)
    assert safety not in await node.tags()


class TestContents:
    async def test_a_store_that_lost_its_data_learns_again_what_a_snapshot_holds(self, node: Node) -> None:
        kept = await node.create("kept")
        before = (await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)).contents
        assert before is not None
        assert [disk.target for disk in before.disks] == ["vda", "vdb"]
        await lose_redis_data(node)
        await report(node)
        assert (await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)).contents == before

    async def test_a_record_of_an_earlier_version_gets_them_from_the_node(self, node: Node) -> None:
        kept = await node.create("kept")
        before = await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept)
        await node.cell.raw("HDEL", f"snapshot:{kept}", "contents")
        await node.reconcile()
        assert await node.cell.store.snapshot(account_id=ACCOUNT, snapshot_id=kept) == before

    async def test_a_node_that_lost_its_record_gets_them_from_the_store(self, node: Node) -> None:
        kept = await node.create("kept")
        server = node.hypervisor.server(SERVER)
        tag = f"vps-{kept}"
        before = server.contents[tag]
        del server.contents[tag], server.listed[tag]
        server.disks["vda"].virtual_bytes *= 2  # since then, so the disks' current state is not what the snapshot holds
        await node.reconcile()
        assert server.contents[tag] == before


async def test_a_delete_that_keeps_failing_is_found_until_it_has_freed_the_space(node: Node) -> None:
    async def findings() -> bytes:
        await node.reconcile()
        return await node.cell.raw("HGET", "node:n1:findings", SERVER) or b""

    kept = await node.create("kept")
    await node.cell.store.delete(account_id=ACCOUNT, snapshot_id=kept, request_id="r")
    # temporary states are not counted
    for busy, is_found in ((False, False), (True, False), (False, False), (True, False), (False, True)):
        if busy:
            error = ServerInUse("The server is being backed up.")
            node.hypervisor.faults.fail(Effect.DELETE_TAG, target="vda", error=error)
        else:
            node.hypervisor.faults.fail(Effect.DELETE_TAG, target="vda", times=1 + CLEANING_TRIES)
        await node.runner.run(await node.cell.holder())
        assert (b"undeleted_snapshot" in await findings()) is is_found
        await node.cell.raw("ZADD", "node:n1:deleting", 0, kept)
        await node.cell.node.retry_deletes()
    assert await node.listed() == {}

    await node.runner.run(await node.cell.holder())
    assert await findings() == b""


async def test_a_snapshot_that_the_store_cannot_read_is_left_as_it_is_and_the_others_are_compared(node: Node) -> None:
    odd, gone = await node.create("odd"), await node.create("gone")
    await node.cell.redis.hset(f"snapshot:{odd}", "status", "a new word")  # type: ignore[misc] # redis-py's types
    await node.hypervisor.delete_snapshot(SERVER, f"vps-{gone}")
    with capture_logs() as logs:
        await node.reconcile()
    assert [line["event"] for line in logs if line["event"].endswith((".broke", "put_off"))] == []
    assert await node.tags() == {f"vps-{odd}"}
    assert await node.listed() == {gone: SnapshotStatus.FAILED}
    assert await node.cell.raw("HGET", f"snapshot:{odd}", "status") == b"a new word"
