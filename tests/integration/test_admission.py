"""The promises of the admission script, with a real Redis."""

import asyncio
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from worker.store import errors
from worker.store.calls import Idempotency, redis_answers
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import Admitted, BriefSnapshot, CustomerStore, SnapshotFilter
from worker.store.model import (
    AccountId,
    Failure,
    JobKind,
    JobState,
    ServerId,
    ServerState,
    Snapshot,
    SnapshotId,
    SnapshotStatus,
    Step,
)
from worker.store.nodes.claims import BeginRefused, LeaseLost, ReportedServer
from worker.store.operators.operator_store import OperatorStore
from worker.store.outcome import Outcome

DONE = Outcome(state=JobState.COMPLETED, size_mb=12, snapshot_status=SnapshotStatus.COMPLETED, downtime_seconds=1.5)
BROKEN = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="disk_failed", detail="disk vdb refused"),
    snapshot_status=SnapshotStatus.FAILED,
)


async def do(cell: Cell, admitted: Admitted, outcome: Outcome = DONE) -> None:
    await cell.node.begin(admitted.job.id)
    assert await cell.node.finish(admitted.job.id, outcome) == "published"


def brief(snapshot: Snapshot) -> BriefSnapshot:
    return BriefSnapshot(**{field: getattr(snapshot, field) for field in BriefSnapshot._fields})


async def snapshots(cell: Cell) -> list[int]:
    page = await cell.store.snapshots(account_id=ACCOUNT, offset=0, limit=100)
    assert page.count == len(page.results)
    return [snapshot.id for snapshot in page.results]


async def test_a_create_is_accepted_whole(cell: Cell) -> None:
    admitted = await cell.create(description='"quoted"\nünï')

    assert admitted.snapshot.status is SnapshotStatus.IN_PROGRESS
    assert admitted.snapshot.description == '"quoted"\nünï'
    job = await cell.job(admitted)
    assert job.server_state is ServerState.SNAPSHOTTING
    assert (job.kind, job.state) == (JobKind.CREATE, JobState.QUEUED)
    shown = await cell.store.snapshot(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id)
    assert brief(shown) == admitted.snapshot
    queued = await cell.redis.zrange("arq:queue:n1", 0, -1)
    assert queued == [admitted.job.id.encode()]
    assert await cell.raw("LLEN", "arq:queue:n1:wake") == 1


async def test_of_200_creates_at_once_exactly_one_is_accepted(cell: Cell) -> None:
    answers = await asyncio.gather(*[cell.create(f"s{n}") for n in range(200)], return_exceptions=True)

    accepted = [answer for answer in answers if isinstance(answer, Admitted)]
    busy = [answer for answer in answers if isinstance(answer, errors.ServerBusy)]
    assert (len(accepted), len(busy)) == (1, 199)
    assert {refusal.in_the_way.job_id for refusal in busy if refusal.in_the_way} == {accepted[0].job.id}
    assert await cell.redis.zcard("arq:queue:n1") == 1
    assert await snapshots(cell) == [accepted[0].snapshot.id]


async def test_a_server_keeps_exactly_five_snapshots(cell: Cell) -> None:
    for n in range(5):
        await do(cell, await cell.create(f"s{n}"))

    with pytest.raises(errors.SnapshotLimitReached):
        await cell.create("sixth")

    newest = (await snapshots(cell))[0]
    await cell.store.delete(account_id=ACCOUNT, snapshot_id=SnapshotId(newest), request_id="r")
    delete_job = await cell.holder()
    await cell.node.begin(delete_job)
    await cell.node.finish(delete_job, DONE)
    await cell.create("sixth")


async def test_a_failed_create_counts_no_more_and_frees_its_name(cell: Cell) -> None:
    for n in range(5):
        await do(cell, await cell.create(f"s{n}"), DONE if n else BROKEN)

    again = await cell.create("s0")

    assert len(await snapshots(cell)) == 6
    await do(cell, again)
    with pytest.raises(errors.SnapshotLimitReached):
        await cell.create("seventh")


async def test_a_name_is_taken_once_on_a_server_and_free_on_another(cell: Cell) -> None:
    other = ServerId(99)
    await cell.have([SERVER, other])
    await do(cell, await cell.create("same"))

    with pytest.raises(errors.NameTaken):
        await cell.create("same")
    await cell.create("same", server=other)


async def test_another_accounts_servers_snapshots_and_jobs_do_not_exist(cell: Cell) -> None:
    admitted = await cell.create()
    stranger = AccountId(78)

    with pytest.raises(errors.ServerNotFound):
        await cell.store.create(account_id=stranger, server_id=SERVER, name="x", description="", request_id="r")
    for ask in (cell.store.restore, cell.store.delete):
        with pytest.raises(errors.SnapshotNotFound):
            await ask(account_id=stranger, snapshot_id=admitted.snapshot.id, request_id="r")
    with pytest.raises(errors.SnapshotNotFound):
        await cell.store.snapshot(account_id=stranger, snapshot_id=admitted.snapshot.id)
    with pytest.raises(errors.JobNotFound):
        await cell.store.job(account_id=stranger, job_id=admitted.job.id)
    for server in (None, SERVER):
        assert (
            await cell.store.snapshots(account_id=stranger, wanted=SnapshotFilter(server_id=server), offset=0, limit=9)
        ).count == 0


async def test_only_a_completed_snapshot_is_restored(cell: Cell) -> None:
    admitted = await cell.create()
    with pytest.raises(errors.SnapshotNotReady):
        await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await do(cell, admitted)

    restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")

    assert (await cell.job(restore)).server_state is ServerState.RESTORING
    with pytest.raises(errors.ServerBusy):
        await cell.create("next")
    await do(cell, restore)
    assert (await cell.job(await cell.create("next"))).server_state is ServerState.SNAPSHOTTING


UNDOABLE = Outcome(state=JobState.COMPLETED, undoable_seconds=60)


async def test_a_completed_restore_is_undone_once_and_the_undo_too(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    with pytest.raises(errors.UndoUnavailable):
        await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    await do(cell, restore, UNDOABLE)

    undo = await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")

    assert (undo.kind, undo.undoes) == (JobKind.UNDO, restore.job.id)
    await cell.node.begin(undo.id)
    await cell.node.finish(undo.id, UNDOABLE)
    with pytest.raises(errors.UndoUnavailable):
        await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    assert (await cell.store.undo(account_id=ACCOUNT, job_id=undo.id, request_id="r")).undoes == undo.id


async def test_a_restore_is_undone_though_its_snapshot_is_deleted(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await do(cell, restore, UNDOABLE)
    delete = await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    assert delete is not None
    await cell.node.begin(delete.id)
    await cell.node.finish(delete.id, DONE)

    again = Idempotency(key="k", fingerprint="f")
    undo = await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r", idempotency=again)

    assert (undo.kind, undo.snapshot_name) == (JobKind.UNDO, restore.snapshot.name)
    assert await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r", idempotency=again) == undo


async def test_the_end_of_a_job_tells_what_its_server_does_now(cell: Cell) -> None:
    admitted = await cell.create()
    await cell.node.begin(admitted.job.id)
    await cell.have([SERVER], power="paused")  # as in a report during its start
    await cell.node.finish(admitted.job.id, DONE, power="on")
    assert (await cell.job(await cell.create("next"))).server_state is ServerState.SNAPSHOTTING


@pytest.mark.parametrize("script", ["return nil .. 'a'", "redis.call('HSET', 'k', 'f', false)", "redis.call('NO')"])
async def test_a_script_that_fails_is_reported(cell: Cell, capsys: pytest.CaptureFixture[str], script: str) -> None:
    broken = cell.redis.register_script(script)
    with pytest.raises(errors.StoreUnavailable), redis_answers():
        await broken()
    assert "store.script_broke" in capsys.readouterr().out


async def test_a_restore_is_undone_by_its_account_only_and_only_while_what_it_overwrote_is_kept(cell: Cell) -> None:
    admitted = await cell.create()
    with pytest.raises(errors.UndoUnavailable):
        await cell.store.undo(account_id=ACCOUNT, job_id=admitted.job.id, request_id="r")
    await do(cell, admitted)
    restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await do(cell, restore, Outcome(state=JobState.COMPLETED, undoable_seconds=0.01))
    await asyncio.sleep(0.05)

    with pytest.raises(errors.UndoUnavailable):
        await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    with pytest.raises(errors.JobNotFound):
        await cell.store.undo(account_id=AccountId(78), job_id=restore.job.id, request_id="r")


async def test_a_deleted_snapshot_is_gone_at_once_and_its_record_when_the_space_is_free(cell: Cell) -> None:
    admitted = await cell.create()
    with pytest.raises(errors.ServerBusy):
        await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await do(cell, admitted)

    await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")

    assert await snapshots(cell) == []
    with pytest.raises(errors.SnapshotNotFound):
        await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    job_id = await cell.holder()
    await cell.node.begin(job_id)
    await cell.node.finish(job_id, DONE)
    assert not await cell.redis.exists(f"snapshot:{admitted.snapshot.id}")


async def test_a_delete_that_failed_is_queued_again_until_it_has_freed_the_space(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    first = await cell.holder()
    await cell.node.begin(first)
    await cell.node.finish(first, BROKEN)

    assert await cell.node.retry_deletes() == 0, "not at once"
    await cell.redis.zadd("node:n1:deleting", {str(admitted.snapshot.id): 0})
    assert await cell.node.retry_deletes() == 1

    second = await cell.holder()
    assert second != first
    assert await cell.redis.zrange("arq:queue:n1", 0, -1) == [second.encode()]
    await cell.node.begin(second)
    await cell.node.finish(second, DONE)
    assert await cell.node.retry_deletes() == 0
    assert not await cell.redis.exists(f"snapshot:{admitted.snapshot.id}", "node:n1:deleting")


async def test_a_silent_node_gets_no_job_and_nothing_is_queued(cell: Cell) -> None:
    hasty = CustomerStore(cell.redis, node_silent_seconds=0.05)
    await asyncio.sleep(0.1)
    with pytest.raises(errors.NodeUnavailable):
        await hasty.create(account_id=ACCOUNT, server_id=SERVER, name="x", description="", request_id="r")
    assert await snapshots(cell) == []
    assert not await cell.redis.exists("arq:queue:n1")


async def test_a_suspended_server_is_neither_snapshotted_nor_restored(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    await cell.have(power="paused")

    with pytest.raises(errors.ServerNotReady):
        await cell.create("next")
    with pytest.raises(errors.ServerNotReady):
        await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")


async def test_old_entries_leave_the_job_lists_and_event_streams(cell: Cell) -> None:
    redis, lists = cell.redis, ("jobs", f"account:{ACCOUNT}:jobs", "jobs:kind:create", "jobs:node:n1")
    for key in lists:
        await redis.zadd(key, {"old": 1})
        await redis.pexpire(key, 30 * 86_400_000)  # as if it had not been trimmed for a day
    async with redis.pipeline(transaction=False) as pipe:
        for key, many in ((f"account:{ACCOUNT}:events", 1500), ("events", 11_000)):
            for _ in range(many):
                pipe.xadd(key, {"account": str(ACCOUNT)})
        await pipe.execute()

    await do(cell, await cell.create())

    assert [await redis.zcard(key) for key in lists] == [1] * len(lists)
    assert await redis.xlen(f"account:{ACCOUNT}:events") <= 1100  # Redis trims whole nodes of a stream
    assert await redis.xlen("events") <= 10_100


async def test_a_list_is_newest_first_by_pages_and_by_server(cell: Cell) -> None:
    servers = [ServerId(n) for n in range(1, 8)]
    await cell.have(servers)
    ids = [(await cell.create(server=server)).snapshot.id for server in servers]

    page = await cell.store.snapshots(account_id=ACCOUNT, offset=2, limit=3)
    assert (page.count, [snapshot.id for snapshot in page.results]) == (7, ids[::-1][2:5])
    one = await cell.store.snapshots(account_id=ACCOUNT, wanted=SnapshotFilter(server_id=servers[3]), offset=0, limit=3)
    assert [snapshot.id for snapshot in one.results] == [ids[3]]


async def test_a_job_that_ended_cannot_start_again_or_end_differently(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)

    with pytest.raises(BeginRefused):
        await cell.node.begin(admitted.job.id)
    assert await cell.node.finish(admitted.job.id, BROKEN) == "job_over"
    job = await cell.store.job(account_id=ACCOUNT, job_id=admitted.job.id)
    assert (job.state, job.failure, job.downtime_seconds) == (JobState.COMPLETED, None, 1.5)


async def test_a_worker_that_lost_its_lease_changes_nothing(cell: Cell) -> None:
    admitted = await cell.create()
    await cell.node.take_lease(seconds=0)
    newcomer = node_store(cell.redis, machine="m2", who="pid 2 on m2")
    assert await newcomer.take_lease(seconds=60) is None

    with pytest.raises(LeaseLost):
        await cell.node.begin(admitted.job.id)
    await newcomer.begin(admitted.job.id)
    with pytest.raises(LeaseLost):
        await cell.node.progress(admitted.job.id, Step.STOPPING)
    with pytest.raises(LeaseLost):
        await cell.node.finish(admitted.job.id, BROKEN)
    with pytest.raises(LeaseLost):
        await cell.node.report([])
    job = await cell.store.job(account_id=ACCOUNT, job_id=admitted.job.id)
    assert (job.state, job.step) == (JobState.IN_PROGRESS, None)


async def test_a_lease_that_runs_names_its_holder_and_the_same_machine_takes_over(cell: Cell) -> None:
    held = await node_store(cell.redis, machine="m2").take_lease(seconds=60)
    assert held is not None
    assert held.who == "pid 1 on m1"
    assert await node_store(cell.redis, machine="m1").take_lease(seconds=60) is None


async def test_a_failed_snapshot_is_forgotten_after_its_seven_days(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted, BROKEN)
    assert await Chores(cell.redis).forget_failed() == 0
    await cell.redis.zadd("snapshots:failed", {str(admitted.snapshot.id): 0})
    assert await Chores(cell.redis).forget_failed() == 1
    assert await snapshots(cell) == []


async def test_a_server_that_vanished_is_not_found_and_its_snapshots_can_be_deleted(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    await cell.node.report([])

    with pytest.raises(errors.ServerNotFound):
        await cell.create("next")
    with pytest.raises(errors.ServerNotReady):
        await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await cell.store.delete(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    assert not await cell.redis.exists(f"snapshot:{admitted.snapshot.id}")


async def test_a_server_given_to_another_account_takes_its_snapshots_along(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    await cell.give(AccountId(5))
    assert await snapshots(cell) == []
    page = await cell.store.snapshots(account_id=AccountId(5), offset=0, limit=9)
    assert [snapshot.id for snapshot in page.results] == [admitted.snapshot.id]


async def test_a_server_that_two_living_nodes_claim_stays_with_the_first(cell: Cell) -> None:
    other = node_store(cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    claim = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
    assert (await other.report([claim])).conflicts == {SERVER}
    assert (await cell.job(await cell.create())).node == "n1"


async def test_a_server_that_its_node_releases_belongs_to_the_other_node(cell: Cell) -> None:
    other = node_store(cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    snapshot = await cell.create()
    await do(cell, snapshot)
    claim = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
    assert (await other.report([claim])).conflicts == {SERVER}
    await cell.node.report([])
    assert (await other.report([claim])).conflicts == frozenset()
    await other.publish(SERVER, [], [])
    assert (await cell.job(await cell.create("second"))).node == "n2"
    assert (await cell.node.report([replace(claim, power="off")])).conflicts == {SERVER}


@pytest.mark.parametrize("why", ["off there", "no worker looks after it there", "its node is silent"])
async def test_no_other_reason_moves_a_server_by_itself(cell: Cell, why: str) -> None:
    other = node_store(cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    if why == "off there":
        await cell.have(power="off")
    elif why == "its node is silent":
        await cell.raw("HSET", "node:n1", "heartbeat_ms", "1")
    else:
        await cell.node.take_lease(seconds=0)
    claim = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
    assert (await other.report([claim])).conflicts == {SERVER}
    assert await cell.raw("HGET", f"server:{SERVER}", "node") == b"n1"


async def test_a_server_that_a_job_has_turned_off_stays_where_it_is(cell: Cell) -> None:
    await cell.create()
    await cell.have(power="off")
    other = node_store(cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    claim = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
    assert (await other.report([claim])).conflicts == {SERVER}


async def test_an_estimate_is_the_median_of_the_nodes_past_jobs(cell: Cell) -> None:
    assert (await cell.job(await cell.create("first"))).estimated_seconds is None
    await cell.raw("RPUSH", "node:n1:milliseconds:create", 4000, 90_000, 6000)
    job_id = await cell.holder()
    assert (await cell.store.job(account_id=ACCOUNT, job_id=job_id)).estimated_seconds == 6


async def test_a_full_or_absent_redis_is_one_error(cell: Cell, redis: Redis) -> None:
    await redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(errors.StoreUnavailable):
            await cell.create()
    finally:
        await redis.config_set("maxmemory", "0")
    assert await snapshots(cell) == []


async def test_a_former_owner_neither_undoes_a_restore_nor_sees_the_server_any_more(cell: Cell) -> None:
    admitted = await cell.create()
    await do(cell, admitted)
    restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await do(cell, restore, UNDOABLE)

    await cell.give(AccountId(88))

    with pytest.raises(errors.UndoUnavailable):
        await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    assert (await cell.store.job(account_id=ACCOUNT, job_id=restore.job.id)).server_state is None
    await cell.give(ACCOUNT)
    with pytest.raises(errors.UndoUnavailable):  # the overwritten data may belong to the other account
        await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")


async def test_a_server_that_left_a_dead_node_is_free_and_keeps_its_deletes(cell: Cell) -> None:
    old = await cell.create("old")
    await do(cell, old)
    await cell.store.delete(account_id=ACCOUNT, snapshot_id=old.snapshot.id, request_id="r")
    deleting = await cell.holder()
    await cell.node.begin(deleting)
    await cell.node.finish(deleting, Outcome(state=JobState.FAILED, failure=Failure(code="disk_failed", detail="vdb")))
    begun = await cell.create("begun")
    await cell.node.begin(begun.job.id)
    await cell.raw("HSET", "node:n1", "heartbeat_ms", "1")

    other = node_store(cell.redis, node="n2", machine="m2")
    assert await other.take_lease(seconds=60) is None
    await OperatorStore(cell.redis, cell.store).place(SERVER, node="n2")
    await other.report([ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")])
    await other.publish(SERVER, [], [])

    job = await cell.store.job(account_id=ACCOUNT, job_id=begun.job.id)
    assert job.failure is not None
    assert (job.state, job.failure.code) == (JobState.FAILED, "node_unavailable")
    assert await cell.redis.zrange("node:n2:deleting", 0, -1) == [str(old.snapshot.id).encode()]
    assert await cell.redis.zcard("node:n1:deleting") == 0
    await cell.create("on-the-new-node")
