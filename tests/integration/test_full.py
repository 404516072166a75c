"""Redis has reached `maxmemory`: customers delete, nodes finish jobs, operators revoke, and this frees memory."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.conftest import RedisServer
from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import BROKE, DONE, SNAPSHOTS, FrontEnd
from tests.integration.test_bounds import milliseconds, webhook
from tests.trouble import TROUBLES
from worker.store.access.audit import AuditKeeper
from worker.store.access.credentials import Credentials
from worker.store.chores.chores import Chores, DueSchedule, RunRefused
from worker.store.errors import StoreNearlyFull
from worker.store.model import Job, JobId, Step
from worker.store.reports import JobReport, StepBegun
from worker.store.webhooks.deliveries import Deliveries, Result

full = TROUBLES["OOM"]
SENT = Result(status=200, error=None)


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


@pytest.fixture
def api(dashboard: Dashboard) -> FrontEnd:
    return dashboard.api


@pytest.fixture
async def filling(cell: Cell) -> AsyncIterator[Cell]:
    yield cell
    await cell.empty()


async def run(cell: Cell, job_id: str) -> None:
    """Act as a worker: send a heartbeat, take the job from the queue, and report its outcome."""
    assert await cell.node.take_lease(seconds=60) is None
    (taken,) = await cell.node.take(running=[], free=8, seconds=0, begin=True)
    assert isinstance(taken, Job)
    assert taken.id == job_id
    step = StepBegun(step=Step.DELETING, at=await milliseconds(cell) / 1000, attempt=1)
    await cell.node.progress(taken.id, Step.DELETING, JobReport(steps=(step,), log=("a line",)))
    assert await cell.node.finish(taken.id, DONE) == "published"


async def test_a_customer_frees_space_and_the_node_ends_its_jobs(
    dashboard: Dashboard, api: FrontEnd, redis_server: RedisServer
) -> None:
    cell = api.cell
    one, protected = [await api.have_snapshot(name) for name in ("one", "protected")]
    await api.call("PATCH", f"{SNAPSHOTS}{protected}/", body={"protected": True})
    running = JobId((await api.create("running")).headers["X-Job-Id"])
    await cell.node.begin(running)
    async with full(cell.redis, redis_server):
        assert await cell.node.finish(running, DONE) == "published"
        for snapshot in (one, protected):
            assert (await api.call("PATCH", f"{SNAPSHOTS}{snapshot}/", body={"protected": False})).status == 200
            deleted = await api.call("DELETE", f"{SNAPSHOTS}{snapshot}/")
            assert deleted.status in (202, 204), deleted.raw
            await run(cell, deleted.headers["X-Job-Id"])
            (await api.call("GET", f"{SNAPSHOTS}{snapshot}/")).refused(404, "snapshot_not_found")
            assert not await cell.redis.exists(f"snapshot:{snapshot}")
        (await api.create("another")).refused(503, "store_read_only")
    deletes = [entry for entry in await audited(cell) if entry.get("method") == "DELETE"]
    assert len(deletes) == 2
    assert all("job" in entry for entry in deletes)


async def audited(cell: Cell) -> list[dict[str, str]]:
    await AuditKeeper(cell.redis, kept=None).keep()
    return [
        {field.decode(): text.decode() for field, text in fields.items()}
        for _, fields in await cell.redis.xrange("audit")
    ]


async def test_operators_revoke_and_log_out_and_the_audit_log_has_it(
    dashboard: Dashboard, api: FrontEnd, redis_server: RedisServer
) -> None:
    await Credentials(api.cell.redis).create("n1")
    stolen = await api.new_token()
    (token_id,) = [
        token.id for token in await api.tokens.all() if token.account_id == ACCOUNT and token.name == "a test"
    ]
    async with full(api.cell.redis, redis_server):
        for path in (f"tokens/{token_id}/", "nodes/n1/credentials/"):
            answer = await api.call("DELETE", f"/api/v1/ops/{path}", token=dashboard.token)
            assert answer.status == 204, answer.raw
        assert (await api.call("GET", token=stolen)).status == 401
        assert await Credentials(api.cell.redis).all() == []
        before = replace(dashboard.browser)
        assert (await dashboard.browser.post("/ops/logout/", {})).status == 303
        assert (await before.get("/ops/jobs/")).status == 303
    told = [(entry["method"], entry["path"], entry["status"]) for entry in await audited(api.cell)]
    assert ("DELETE", f"/api/v1/ops/tokens/{token_id}/", "204") in told
    assert ("DELETE", "/api/v1/ops/nodes/n1/credentials/", "204") in told
    assert ("POST", "/ops/logout/", "303") in told


async def test_background_work_that_frees_memory_continues(cell: Cell, redis_server: RedisServer) -> None:
    chores, deliveries = Chores(cell.redis), Deliveries(cell.redis)
    await webhook(cell)
    expiring, failed = await cell.create("expiring"), None
    await cell.node.begin(expiring.job.id)
    await cell.node.finish(expiring.job.id, DONE)
    await cell.raw("HSET", f"snapshot:{expiring.snapshot.id}", "expires_ms", "1")
    await cell.raw("ZADD", "snapshots:expiring", 1, str(expiring.snapshot.id))
    failed = await cell.create("failed")
    await cell.node.begin(failed.job.id)
    await cell.node.finish(failed.job.id, BROKE)
    await cell.raw("ZADD", "snapshots:failed", 1, str(failed.snapshot.id))
    async with full(cell.redis, redis_server):
        assert await chores.forget_failed() == 1
        assert await chores.expire() == 1
        claim = await deliveries.claim(lease_seconds=60, most=8)
        assert claim is not None
        await deliveries.settle(claim, {one.id: SENT for one in claim.deliveries}, patience_seconds=1000)
    assert not await cell.redis.exists(f"snapshot:{failed.snapshot.id}")
    assert not await cell.redis.hexists(f"delivery:{claim.deliveries[0].id}", "job")  # type: ignore[misc]  # redis-py's types


async def test_a_restore_waits_where_only_deletes_have_room(api: FrontEnd, filling: Cell) -> None:
    made = await api.have_snapshot()
    undoable = await api.call("POST", f"{SNAPSHOTS}{made}/restore/")
    await api.work(undoable, replace(DONE, undoable_seconds=3600))
    hook = (await api.call("POST", "/api/v1/webhooks/", body={"url": "https://hooks.example.com/"})).body["id"]
    refused = [
        f"{SNAPSHOTS}{made}/restore/",
        f"/api/v1/restores/{undoable.headers['X-Job-Id']}/undo/",
        f"/api/v1/webhooks/{hook}/rotate-secret/",
        f"/api/v1/webhooks/{hook}/redeliver/",
    ]
    for share, code in ((0.96, "store_nearly_full"), (1.01, "store_read_only")):
        await filling.fill(share)
        for path in refused:
            (await api.call("POST", path)).refused(503, code)
    await filling.fill(0.93)
    for path in refused[1:]:
        assert (await api.call("POST", path)).status < 300, path


@pytest.mark.parametrize("noted", [-200, 60_000], ids=["old", "from before a step of the clock"])
async def test_only_a_recent_note_that_redis_has_room_counts(filling: Cell, noted: int) -> None:
    await filling.node.begin((await filling.create("one")).job.id)
    assert await filling.raw("HEXISTS", "clock", "room_ms")
    await filling.node.finish(await filling.holder(), DONE)
    await filling.fill(0.93)
    await filling.raw("HSET", "clock", "room_ms", await milliseconds(filling) + noted)
    with pytest.raises(StoreNearlyFull):
        await filling.create("another")


async def test_no_room_is_noted_near_the_limits(filling: Cell) -> None:
    await filling.fill(0.75)
    await filling.create("one")
    assert not await filling.raw("HEXISTS", "clock", "room_ms")


async def test_a_scheduled_snapshot_that_is_refused_costs_no_older_one(filling: Cell) -> None:
    await filling.raw("HSET", f"account:{ACCOUNT}", "v", "1", "snapshots_max", "1")
    made = await filling.create("old")
    await filling.node.begin(made.job.id)
    await filling.node.finish(made.job.id, DONE)
    schedule = {"v": "1", "account": str(ACCOUNT), "server": str(SERVER), "name": "nightly", "when": "daily"}
    schedule |= {"keep": "1", "expire_after_ms": "", "enabled": "1"}
    await filling.redis.hset("schedule:" + "a" * 32, mapping=schedule)  # type: ignore[misc]  # redis-py's types
    await filling.raw("HSET", f"snapshot:{made.snapshot.id}", "schedule", "a" * 32)
    for share, code in ((0.93, "store_nearly_full"), (1.01, "store_read_only")):
        await filling.empty()
        await filling.raw("ZADD", "schedules:due", 1, "a" * 32)
        await filling.fill(share)
        (due,) = await Chores(filling.redis).due_schedules()
        assert isinstance(due, DueSchedule)
        with pytest.raises(RunRefused, match=code):
            await Chores(filling.redis).run_schedule(due)
        assert await filling.raw("HGET", f"snapshot:{made.snapshot.id}", "status") == b"completed"


async def test_the_history_of_jobs_makes_room_while_nothing_new_is_admitted(filling: Cell) -> None:
    ended = [(await filling.create(f"one-{n}")).job.id for n in range(1)]
    for n in range(15):
        await filling.node.begin(ended[-1])
        await filling.node.finish(ended[-1], BROKE)
        ended.append((await filling.create(f"more-{n}")).job.id)
    await filling.node.begin(ended[-1])
    await filling.fill(0.93)
    await filling.node.finish(ended[-1], BROKE)
    assert await filling.raw("ZCARD", f"jobs:server:{SERVER}") == 10
    assert not await filling.redis.exists(f"job:{ended[0]}")
