"""What one account can store in Redis: the oldest history is deleted first, and everything else is refused."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from redis.asyncio import Redis

from api.dashboard.overview import Alarm, alarms
from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from worker.store import errors
from worker.store.bounds import Bounds
from worker.store.calls import Idempotency
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import SnapshotFilter
from worker.store.model import (
    AccountId,
    Failure,
    Job,
    JobId,
    JobState,
    ServerId,
    SnapshotId,
    SnapshotStatus,
)
from worker.store.operators.operator_store import OperatorStore
from worker.store.outcome import Outcome
from worker.store.reports import JobReport
from worker.store.webhooks.deliveries import Deliveries, Result
from worker.store.webhooks.webhooks import JobEvent, Webhook, WebhookChange, Webhooks

DONE = Outcome(state=JobState.COMPLETED, size_mb=12, snapshot_status=SnapshotStatus.COMPLETED)
BROKEN = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="disk_failed", detail="disk vdb refused"),
    snapshot_status=SnapshotStatus.FAILED,
)
STRANDED = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="start_failed", detail="no memory", stranded=True),
    snapshot_status=SnapshotStatus.FAILED,
)
OTHER_SERVER = ServerId(12346)
OTHER_ACCOUNT = AccountId(78)
TINY = Bounds(
    jobs_per_server=3,
    jobs_per_account=5,
    dry_runs_per_account=4,
    open_dry_runs_per_account=2,
    failed_snapshots_per_server=2,
    failed_snapshots_per_account=3,
    deliveries_per_account=4,
    answers_per_account=2,
    tokens_per_account=2,
)


@pytest.fixture
async def small(cell: Cell) -> Cell:
    """A cell with low limits, and two servers of the account."""
    await Chores(cell.redis).keep_bounds(TINY)
    await cell.have([SERVER, OTHER_SERVER])
    return cell


async def next_millisecond(cell: Cell) -> None:
    """Wait, because events within one millisecond have no order."""
    now = began = await milliseconds(cell)
    while now == began:
        now = await milliseconds(cell)


async def milliseconds(cell: Cell) -> int:
    seconds, microseconds = await cell.raw("TIME")
    return int(seconds) * 1000 + int(microseconds) // 1000


async def end(cell: Cell, job_id: JobId, outcome: Outcome = BROKEN) -> JobId:
    """Start and end the job, each in a separate millisecond. Returns its ID."""
    await next_millisecond(cell)
    await cell.node.begin(job_id)
    await next_millisecond(cell)
    assert await cell.node.finish(job_id, outcome, JobReport(log=("a line",))) == "published"
    return job_id


async def fail(cell: Cell, name: str, server: ServerId = SERVER, outcome: Outcome = BROKEN) -> JobId:
    return await end(cell, (await cell.create(name, server=server)).job.id, outcome)


async def dry_run(cell: Cell, name: str = "dry") -> Job:
    return await cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name=name, request_id="r")


async def listed(cell: Cell, server: ServerId | None = None) -> list[JobId]:
    page = await cell.store.jobs(account_id=ACCOUNT, server_id=server, state=None, offset=0, limit=100)
    assert page.count == len(page.results)
    return [job.id for job in page.results]


async def mentions(cell: Cell, job_id: JobId) -> set[str]:
    """The keys that belong to the job or contain it, except arq's, which the node's worker deletes."""
    found = set()
    async for raw in cell.redis.scan_iter():
        key, kind = raw.decode(), (await cell.redis.type(raw)).decode()
        if key.startswith("arq:"):
            continue
        member = kind == "zset" and await cell.redis.zscore(raw, job_id) is not None
        if job_id in key or member or (kind == "set" and await cell.raw("SISMEMBER", raw, job_id)):
            found.add(key)
    return found


async def test_the_oldest_ended_jobs_of_a_server_are_deleted_completely(small: Cell) -> None:
    jobs = [await fail(small, f"one-{n}") for n in range(5)]
    assert await listed(small, SERVER) == jobs[:1:-1]
    for gone in jobs[:2]:
        assert await mentions(small, gone) == set()
        with pytest.raises(errors.JobNotFound):
            await small.store.job(account_id=ACCOUNT, job_id=gone)


async def test_the_oldest_ended_jobs_of_an_account_go(small: Cell) -> None:
    first = [await fail(small, f"one-{n}") for n in range(3)]
    second = [await fail(small, f"two-{n}", OTHER_SERVER) for n in range(3)]
    assert await listed(small) == [*reversed(second), *reversed(first[1:])]
    assert await mentions(small, first[0]) == set()


async def test_a_job_that_is_still_needed_stays(small: Cell) -> None:
    """A queued or running job, one that stranded its server, and one that can be undone."""
    stranded = await fail(small, "stranded", outcome=STRANDED)
    kept = await end(small, (await small.create("kept", server=OTHER_SERVER)).job.id, DONE)
    snapshot = await small.store.snapshots(account_id=ACCOUNT, wanted=SnapshotFilter(name="kept"), offset=0, limit=1)
    restore = await small.store.restore(account_id=ACCOUNT, snapshot_id=snapshot.results[0].id, request_id="r")
    undoable = Outcome(state=JobState.COMPLETED, undoable_seconds=3600)
    await end(small, restore.job.id, undoable)
    for n in range(8):
        await fail(small, f"more-{n}", (SERVER, OTHER_SERVER)[n % 2])
    waiting = (await small.create("waits")).job.id
    await fail(small, "last", OTHER_SERVER)
    left = await listed(small)
    assert {stranded, restore.job.id, waiting} <= set(left)
    assert kept not in left
    await small.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")


async def test_a_snapshot_stays_when_its_job_is_deleted(small: Cell) -> None:
    made = await small.create("made")
    await end(small, made.job.id, DONE)
    for n in range(6):
        await fail(small, f"more-{n}")
    assert await mentions(small, made.job.id) == set()
    found = await small.store.snapshot(account_id=ACCOUNT, snapshot_id=made.snapshot.id)
    assert found.status is SnapshotStatus.COMPLETED


async def test_dry_runs_displace_only_dry_runs(small: Cell) -> None:
    jobs = [await fail(small, f"one-{n}") for n in range(3)]
    dry = [await end(small, (await dry_run(small)).id, DONE) for _ in range(7)]
    assert await listed(small) == [*reversed(dry[3:]), *reversed(jobs)]
    for gone in dry[:3]:
        assert await mentions(small, gone) == set()


async def test_a_dry_run_is_deleted_after_an_hour(small: Cell) -> None:
    old, new = [await end(small, (await dry_run(small)).id, DONE) for _ in range(2)]
    hour_ago = 3_601_000
    await small.raw("ZINCRBY", "dry_runs", -hour_ago, old)
    await Chores(small.redis).keep_bounds(TINY)
    assert await mentions(small, old) == set()
    assert await listed(small) == [new]


async def test_too_many_dry_runs_at_a_time_are_refused(small: Cell) -> None:
    first = await dry_run(small)
    await dry_run(small)
    with pytest.raises(errors.TooManyDryRuns):
        await dry_run(small)
    await small.create("a-real-one", server=OTHER_SERVER)
    await end(small, first.id, DONE)
    await dry_run(small)


async def test_only_the_oldest_failed_snapshots_are_deleted(small: Cell) -> None:
    made = (await small.create("made")).job.id
    await end(small, made, DONE)
    for n in range(4):
        await fail(small, f"one-{n}")
    for n in range(2):
        await fail(small, f"two-{n}", OTHER_SERVER)
    page = await small.store.snapshots(account_id=ACCOUNT, offset=0, limit=100)
    assert [snapshot.name for snapshot in page.results] == ["two-1", "two-0", "one-3", "made"]
    assert await small.raw("ZCARD", "snapshots:failed") == 3


async def test_a_lost_snapshot_is_not_displaced(small: Cell) -> None:
    made = await small.create("made")
    await end(small, made.job.id, DONE)
    assert await small.node.lose(SERVER, SnapshotId(made.snapshot.id))
    for n in range(5):
        await fail(small, f"one-{n}")
    found = await small.store.snapshot(account_id=ACCOUNT, snapshot_id=made.snapshot.id)
    assert found.status is SnapshotStatus.FAILED


async def webhook(cell: Cell) -> Webhook:
    change = WebhookChange(url="https://example.com/", description="", events=[*JobEvent], enabled=True)
    return (await Webhooks(cell.redis).create(account_id=ACCOUNT, change=change)).webhook


async def test_the_oldest_waiting_deliveries_of_an_account_are_given_up(small: Cell) -> None:
    hooks = [await webhook(small) for _ in range(2)]
    await fail(small, "one")
    pages = [
        await Webhooks(small.redis).deliveries(account_id=ACCOUNT, webhook_id=hook.id, offset=0, limit=100)
        for hook in hooks
    ]
    gone = [one for page in pages for one in page.results if one.error == "too_many_waiting"]
    assert [page.count for page in pages] == [3, 3]
    assert len(gone) == 2
    assert all(one.event == "job.queued" and one.next_attempt_at is None for one in gone)
    messages = [await small.raw("HEXISTS", f"delivery:{one.id}", "job") for page in pages for one in page.results]
    assert sum(messages) == 4


async def test_a_delivery_that_was_given_up_while_it_was_sent_does_not_wait_again(small: Cell) -> None:
    hook = await webhook(small)
    await fail(small, "one")
    deliveries = Deliveries(small.redis)
    claim = await deliveries.claim(lease_seconds=60, most=1)
    assert claim is not None
    await fail(small, "two")
    in_flight = claim.deliveries[0].id
    result = Result(status=500, error="bad_status", retry_in=timedelta(seconds=1))
    await deliveries.settle(claim, {in_flight: result}, patience_seconds=1000)
    assert await small.raw("ZSCORE", f"webhook:{hook.id}:due", in_flight) is None
    assert await small.raw("ZCARD", f"account:{ACCOUNT}:deliveries") == 4


async def test_the_oldest_failed_deliveries_lose_their_message(small: Cell) -> None:
    hook, deliveries, webhooks = await webhook(small), Deliveries(small.redis), Webhooks(small.redis)
    refused = Result(status=500, error="bad_status")  # after the last attempt
    for name in ("one", "two"):
        await fail(small, name)
        claim = await deliveries.claim(lease_seconds=60, most=8)
        assert claim is not None
        await deliveries.settle(claim, {one.id: refused for one in claim.deliveries}, patience_seconds=1000)
    listed = (await webhooks.deliveries(account_id=ACCOUNT, webhook_id=hook.id, offset=0, limit=100)).results
    assert [one.error for one in listed] == ["bad_status"] * 6
    assert [await small.raw("HEXISTS", f"delivery:{one.id}", "job") for one in listed] == [1, 1, 1, 1, 0, 0]
    found = await webhooks.redeliver_all(account_id=ACCOUNT, webhook_id=hook.id)
    assert (found.redelivered, found.not_kept) == (4, 2)
    assert await small.raw("ZCARD", f"account:{ACCOUNT}:deliveries") == 4


async def test_the_oldest_answers_go(small: Cell) -> None:
    keys = [Idempotency(key=f"{n:064x}", fingerprint="f") for n in range(3)]
    jobs = []
    for key in keys:
        job = await small.store.check_create(
            account_id=ACCOUNT, server_id=SERVER, name="dry", request_id="r", idempotency=key
        )
        jobs.append(await end(small, job.id, DONE))
    stored = [await small.raw("EXISTS", f"idempotency:{ACCOUNT}:{key.key}") for key in keys]
    assert stored == [0, 1, 1]
    hour = 3_600_000
    assert await small.raw("PTTL", f"idempotency:{ACCOUNT}:{keys[2].key}") <= hour


async def _delete(cell: Cell) -> object:
    page = await cell.store.snapshots(account_id=ACCOUNT, wanted=SnapshotFilter(name="made"), offset=0, limit=1)
    return await cell.store.delete(account_id=ACCOUNT, snapshot_id=page.results[0].id, request_id="r")


async def test_near_the_limit_of_memory_what_can_wait_is_refused_first(small: Cell) -> None:
    await end(small, (await small.create("made")).job.id, DONE)
    hook = await webhook(small)
    webhooks = Webhooks(small.redis)
    try:
        await small.fill(0.85)
        with pytest.raises(errors.StoreNearlyFull):
            await dry_run(small)
        with pytest.raises(errors.StoreNearlyFull):
            await webhooks.test(account_id=ACCOUNT, webhook_id=hook.id)
        admitted = await small.create("one", server=OTHER_SERVER)
        await small.fill(0.95)
        await end(small, admitted.job.id, DONE)
        with pytest.raises(errors.StoreNearlyFull):
            await small.create("two", server=OTHER_SERVER)
        with pytest.raises(errors.StoreNearlyFull):
            await webhook(small)
        assert await _delete(small)
        assert any("Redis is 9" in alarm.text and alarm.is_grave for alarm in await _alarms(small))
    finally:
        await small.empty()


async def _alarms(cell: Cell) -> list[Alarm]:
    operators = OperatorStore(cell.redis, cell.store)
    return await alarms(operators, await operators.overview())


async def _have_listed(cell: Cell, many: int) -> None:
    """Write records of failed snapshots, as an earlier version left them."""
    for first in range(0, many, 1000):
        async with cell.redis.pipeline(transaction=False) as pipe:
            for n in range(first, first + 1000):
                record = {
                    "v": "1",
                    "server": SERVER,
                    "account": ACCOUNT,
                    "node": "n1",
                    "name": f"old-{n % 100:02}",
                    "description": "",
                    "status": "failed",
                    "size_mb": "",
                    "created_ms": n,
                }
                pipe.hset(f"snapshot:{n}", mapping=record)
                pipe.zadd(f"account:{ACCOUNT}:snapshots", {str(n): n})
                pipe.zadd(f"server:{SERVER}:snapshots", {str(n): n})
            await pipe.execute()


@asynccontextmanager
async def counting(cell: Cell, socket: Path) -> AsyncIterator[Counter[int]]:
    """Count the commands of each script call, as Redis reports them to a second client."""
    commands: Counter[int] = Counter()
    scripts = 0
    end = "the end of what is counted"
    async with Redis(unix_socket_path=str(socket)) as client, client.monitor() as monitor:
        yield commands
        await cell.raw("ECHO", end)
        async for one in monitor.listen():
            if end in one["command"]:
                return
            if one["client_type"] == "lua":
                commands[scripts] += 1
            else:
                scripts += 1


async def test_no_list_of_a_customer_costs_more_than_a_bounded_number_of_commands(
    cell: Cell, redis_server: RedisServer
) -> None:
    many = 5000
    await _have_listed(cell, many)
    store = cell.store
    wanted = SnapshotFilter(status=SnapshotStatus.FAILED, name="old-07", sort="name")
    async with counting(cell, redis_server.socket) as commands:
        page = await store.snapshots(account_id=ACCOUNT, wanted=wanted, offset=0, limit=100)
        assert page.count == many // 100
        assert [snapshot.id for snapshot in page.results] == list(range(7, many, 100))
        wanted = SnapshotFilter(name="old-07", sort="-created_at", created_from=at(1000), created_before=at(4000))
        page = await store.snapshots(account_id=ACCOUNT, wanted=wanted, offset=2, limit=3)
        assert (page.count, [snapshot.id for snapshot in page.results]) == (30, [3707, 3607, 3507])
        between = SnapshotFilter(created_from=at(1000), created_before=at(4000), server_id=SERVER)
        page = await store.snapshots(account_id=ACCOUNT, wanted=between, offset=2990, limit=100)
        assert (page.count, [snapshot.id for snapshot in page.results]) == (3000, list(range(1009, 999, -1)))
        between = SnapshotFilter(created_from=at(1000), created_before=at(4000), sort="created_at")
        page = await store.snapshots(account_id=ACCOUNT, wanted=between, offset=1, limit=2)
        assert (page.count, [snapshot.id for snapshot in page.results]) == (3000, [1001, 1002])
    assert max(commands.values()) <= 2010
    assert len(commands) >= 7


async def test_excess_of_an_earlier_version_is_deleted_in_small_steps(cell: Cell, redis_server: RedisServer) -> None:
    await _have_listed(cell, 2000)
    job_id = (await cell.create()).job.id
    async with counting(cell, redis_server.socket) as commands:
        await end(cell, job_id)
    assert max(commands.values()) <= 3000
    assert await cell.raw("ZCARD", f"account:{ACCOUNT}:snapshots") == 1901


def at(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
