"""The node's reports to the store: outcomes until the store has them, steps while they are current."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.conftest import RedisServer, needs
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store, nothing_more
from tests.integration.counted import counted
from tests.queueing import PATIENCE_SECONDS, client, until, until_told
from worker import publisher as publishing
from worker.publisher import Publisher
from worker.store.customers.customer_store import CustomerStore
from worker.store.errors import StoreUnavailable
from worker.store.model import Failure, Job, JobId, JobState, ServerId, SnapshotStatus, Step
from worker.store.operators.operator_store import OperatorStore
from worker.store.outcome import Outcome

DONE = Outcome(state=JobState.COMPLETED, size_mb=12, snapshot_status=SnapshotStatus.COMPLETED, downtime_seconds=1.5)


async def begun(cell: Cell) -> JobId:
    """A create that the node has started."""
    job_id = (await cell.create()).job.id
    await cell.node.begin(job_id)
    return job_id


async def seen(cell: Cell, job_id: JobId) -> Job:
    return await cell.store.job(account_id=ACCOUNT, job_id=job_id)


async def comes_to(cell: Cell, job_id: JobId, step: Step) -> None:
    async def there() -> bool:
        return (await seen(cell, job_id)).step is step

    await until_told(there)


@asynccontextmanager
async def telling(publisher: Publisher) -> AsyncIterator[None]:
    task = asyncio.create_task(publisher.publish_steps())
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_step_is_reported_soon(cell: Cell) -> None:
    job_id = await begun(cell)
    publisher = Publisher(cell.node, publish_again=nothing_more)
    async with telling(publisher):
        publisher.step(job_id, Step.STOPPING)
        await comes_to(cell, job_id, Step.STOPPING)
        publisher.step(job_id, Step.STARTING)
        await comes_to(cell, job_id, Step.STARTING)


async def test_a_late_report_of_a_step_changes_nothing(cell: Cell) -> None:
    job_id = await begun(cell)
    publisher = Publisher(cell.node, publish_again=nothing_more)
    await publisher.outcome(job_id, SERVER, DONE)
    over = await seen(cell, job_id)
    assert over.state is JobState.COMPLETED
    publisher.step(job_id, Step.STOPPING)
    second = (await cell.create("second")).job.id
    await cell.node.begin(second)
    async with telling(publisher):
        publisher.step(second, Step.STOPPING)  # reported first or last
        await comes_to(cell, second, Step.STOPPING)
        publisher.step(second, Step.STARTING)
        await comes_to(cell, second, Step.STARTING)  # so the late one was reported as well
    assert (await seen(cell, job_id)).step == over.step


async def test_a_step_that_the_store_refuses_is_no_bug(cell: Cell) -> None:
    job_id = await begun(cell)
    await cell.raw("HSET", f"job:{job_id}", "node", "n2")
    publisher = Publisher(cell.node, publish_again=nothing_more)

    async def is_told() -> bool:
        return bool(logs)

    with capture_logs() as logs:
        async with telling(publisher):
            publisher.step(job_id, Step.STOPPING)
            await until_told(is_told)
    assert [(line["event"], line["reason"]) for line in logs] == [("step.refused", "other_node")]


async def test_a_step_that_waited_is_forgotten_when_the_job_is_over(cell: Cell) -> None:
    job_id = await begun(cell)
    store, calls = counted(cell.node)
    publisher = Publisher(store, publish_again=nothing_more)
    publisher.step(job_id, Step.STOPPING)
    await publisher.outcome(job_id, SERVER, DONE)
    over = await seen(cell, job_id)
    second = (await cell.create("second")).job.id
    await cell.node.begin(second)
    async with telling(publisher):
        for step in (Step.STOPPING, Step.STARTING):  # whatever else waits is reported before the last
            publisher.step(second, step)
            await comes_to(cell, second, step)
    assert calls.begun["progress"] == 2
    assert (await seen(cell, job_id)).step == over.step


async def test_an_outcome_reported_twice_changes_nothing(cell: Cell) -> None:
    job_id = await begun(cell)
    publisher = Publisher(cell.node, publish_again=nothing_more)
    await publisher.outcome(job_id, SERVER, DONE)
    over = await seen(cell, job_id)
    failed = Outcome(state=JobState.FAILED, failure=Failure(code="interrupted", detail="late"))
    await publisher.outcome(job_id, SERVER, failed)
    assert await seen(cell, job_id) == over


async def test_a_job_resumed_before_the_lease_is_taken_shows_it(cell: Cell) -> None:
    job_id = await begun(cell)
    next_process, calls = counted(node_store(cell.redis))
    publisher = Publisher(next_process, publish_again=nothing_more, log_of=lambda _: ("{}",))
    async with telling(publisher):
        publisher.resumed(job_id)
        publisher.step(job_id, Step.STOPPING, attempt=2)
        await until(lambda: calls.ended["progress"] == 1)
        assert (await seen(cell, job_id)).attempts == 1
        assert await next_process.take_lease(seconds=60) is None
        publisher.step(job_id, Step.STARTING)
        await comes_to(cell, job_id, Step.STARTING)
    shown = await OperatorStore(cell.redis, cell.store).job(job_id)
    assert [(taken.step, taken.attempt) for taken in shown.steps] == [("stopping", 2), ("starting", 1)]
    assert len(shown.log) == 2
    assert shown.job.attempts == 2


async def test_an_outcome_waits_for_the_lease(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.0, 0.0))
    job_id = await begun(cell)
    other = node_store(cell.redis, machine="m2")
    await cell.node.take_lease(seconds=0)
    assert await other.take_lease(seconds=60) is None
    store, calls = counted(cell.node)
    telling_it = asyncio.create_task(Publisher(store, publish_again=nothing_more).outcome(job_id, SERVER, DONE))
    await until(lambda: telling_it.done() or calls.ended["finish"] >= 3)
    assert not telling_it.done()
    assert (await seen(cell, job_id)).state is JobState.IN_PROGRESS
    await other.take_lease(seconds=0)
    assert await cell.node.take_lease(seconds=60) is None
    async with asyncio.timeout(PATIENCE_SECONDS):
        await telling_it
    assert (await seen(cell, job_id)).state is JobState.COMPLETED


@pytest.fixture
async def own() -> AsyncIterator[tuple[Cell, RedisServer]]:
    """A cell on a Redis that the test may kill."""
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        async with client(server.socket) as redis:
            cell = Cell(redis=redis, store=CustomerStore(redis), node=node_store(redis))
            assert await cell.node.take_lease(seconds=60) is None
            await cell.have()
            yield cell, server
        server.kill()


async def test_outcomes_and_steps_are_reported_when_redis_is_back(
    own: tuple[Cell, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.0, 0.0))
    cell, server = own
    job_id = await begun(cell)
    store, calls = counted(cell.node)
    publisher = Publisher(store, publish_again=nothing_more)
    async with telling(publisher):
        server.kill()
        publisher.step(job_id, Step.STARTING)
        await until(lambda: calls.ended["progress"] == 1)
        ending = asyncio.create_task(publisher.outcome(job_id, SERVER, DONE))
        await until(lambda: ending.done() or calls.ended["finish"] >= 3)  # these reports fail
        assert not ending.done()
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ending
        assert (await seen(cell, job_id)).state is JobState.COMPLETED
        second = (await cell.create("second")).job.id
        await cell.node.begin(second)
        publisher.step(second, Step.STOPPING)
        await comes_to(cell, second, Step.STOPPING)


async def test_an_outage_is_logged_once_however_often_the_outcome_is_tried(
    own: tuple[Cell, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.0, 0.0))
    cell, server = own
    job_id = await begun(cell)
    server.kill()
    ending = asyncio.create_task(Publisher(cell.node, publish_again=nothing_more).outcome(job_id, SERVER, DONE))
    with capture_logs() as logs:
        for _ in range(20):  # each of these fails, and attempts to publish do meanwhile
            with pytest.raises(StoreUnavailable):
                await cell.node.take_lease(seconds=60)
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ending
    assert [line["event"] for line in logs].count("outcome.not_published") == 1


async def test_an_outcome_of_a_job_that_redis_has_lost_holds_nothing_up(own: tuple[Cell, RedisServer]) -> None:
    cell, server = own
    job_id = await begun(cell)
    server.kill()
    server.lose_data()
    ending = asyncio.create_task(Publisher(cell.node, publish_again=nothing_more).outcome(job_id, SERVER, DONE))
    await asyncio.to_thread(server.start)
    assert await cell.node.take_lease(seconds=60) is None
    await cell.have()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await ending


async def test_an_outcome_waits_until_the_server_is_published_again(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(publishing, "SERVER_UNKNOWN_AGAIN_SECONDS", 0.0)
    job_id = await begun(cell)
    lost = {key: await cell.redis.dump(key) for key in (f"job:{job_id}", f"server:{SERVER}")}
    await cell.redis.delete(*lost)
    tries = 0

    async def publish_again(_: ServerId) -> None:
        nonlocal tries
        tries += 1
        if tries == 5 * publishing.UNKNOWN_TRIES:  # the node has thousands of servers
            for key, record in lost.items():
                await cell.redis.restore(key, 0, record)

    await Publisher(cell.node, publish_again=publish_again).outcome(job_id, SERVER, DONE)
    assert (await seen(cell, job_id)).state is JobState.COMPLETED


async def test_an_outcome_of_a_server_that_stays_unknown_holds_nothing_up(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(publishing, "SERVER_UNKNOWN_SECONDS", 0.0)
    job_id = await begun(cell)
    await cell.redis.delete(f"job:{job_id}", f"server:{SERVER}")
    await Publisher(cell.node, publish_again=nothing_more).outcome(job_id, SERVER, DONE)
