"""The node's end of the queue with a real Redis: no job is stuck or started twice, whatever Redis does."""

import asyncio
import gc
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.conftest import RedisServer, needs
from tests.lossy import lossy_way
from tests.node_process import Kind, command
from tests.queueing import (
    CELL,
    NODE,
    PATIENCE_SECONDS,
    WAKE,
    Jobs,
    at_work,
    client,
    put,
    taker,
    until,
    until_told,
    wake,
)
from worker.node_worker import BROKEN_AGAIN_SECONDS, NodeWorker
from worker.store.model import AccountId, Job, JobId, JobKind, JobState, ServerId, SnapshotId
from worker.store.nodes.protocol import TAKE_SECONDS


@pytest.fixture(autouse=True)
async def no_noise() -> AsyncIterator[None]:
    """Nothing reaches the loop's exception handler: no unhandled error, no task that was never awaited."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    assert heard == []


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


async def left(redis: Redis) -> dict[bytes, float]:
    return dict(await redis.zrange(CELL, 0, -1, withscores=True))


async def nothing_left(redis: Redis) -> None:
    async def done() -> bool:
        return not await left(redis)

    await until_told(done)


async def every_slot_works(redis: Redis, jobs: Jobs, *, slots: int = 2) -> None:
    """Check that as many jobs run in parallel as there are slots."""
    job_ids = [f"slot{n}" for n in range(slots)]
    await put(redis, *job_ids, "w-too-many")
    await jobs.have_started(*job_ids)
    assert not jobs.starts["w-too-many"]
    jobs.end(*job_ids, "w-too-many")
    await jobs.have_ended(*job_ids, "w-too-many")
    await nothing_left(redis)


# --- normal operation ---


async def test_a_queued_job_runs_once_and_leaves_nothing(redis: Redis, redis_server: RedisServer, jobs: Jobs) -> None:
    async with at_work(redis_server.socket, jobs):
        await put(redis, "a")
        await jobs.have_started("a")
        jobs.end("a")
        await jobs.have_ended("a")
        await nothing_left(redis)
    assert jobs.starts == {"a": 1}


async def test_as_many_run_as_there_are_slots_and_the_next_when_one_is_free(
    redis: Redis, redis_server: RedisServer, jobs: Jobs
) -> None:
    async with at_work(redis_server.socket, jobs, max_jobs=2):
        await put(redis, "a", "b", "c")
        await jobs.have_started("a", "b")
        await wake(redis)
        assert not jobs.starts["c"]
        jobs.end("a")
        await jobs.have_started("c")
        assert jobs.ended == {"a"}
        jobs.end("b", "c")
        await jobs.have_ended("b", "c")


async def test_a_slot_is_free_before_its_jobs_end_is_reported(
    redis: Redis, redis_server: RedisServer, jobs: Jobs
) -> None:
    async with at_work(redis_server.socket, jobs, max_jobs=1) as worker:
        await put(redis, "a", "b", "c")
        await jobs.have_started("a")
        worker.free_slot("a")  # its work has ended
        await jobs.have_started("b")
        await wake(redis)
        assert not jobs.starts["c"]
        jobs.end("a")  # its end is now reported, which frees no second slot
        await jobs.have_ended("a")
        await until(lambda: "a" not in worker.tasks)
        assert not jobs.starts["c"]
        jobs.end("b", "c")
        await jobs.have_ended("b", "c")
        await nothing_left(redis)
    assert jobs.starts == {"a": 1, "b": 1, "c": 1}


async def test_more_jobs_than_one_poll_reads_all_run(redis: Redis, redis_server: RedisServer, jobs: Jobs) -> None:
    job_ids = [f"j{n}" for n in range(250)]
    jobs.end(*job_ids)
    await put(redis, *job_ids)
    async with at_work(redis_server.socket, jobs):
        await jobs.have_ended(*job_ids)
        await nothing_left(redis)
    assert set(jobs.starts.values()) == {1}


async def test_a_paused_worker_takes_nothing_and_a_resumed_one_all(
    redis: Redis, redis_server: RedisServer, jobs: Jobs
) -> None:
    async with at_work(redis_server.socket, jobs) as worker:
        await put(redis, "before")
        await jobs.have_started("before")
        worker.pause()
        await put(redis, "while")
        jobs.end("before")
        await jobs.have_ended("before")  # running jobs continue
        await until(lambda: not worker.tasks)
        assert not jobs.starts["while"]
        worker.resume()
        await jobs.have_started("while")


async def test_a_worker_takes_nothing_before_the_lease_is_its_own(
    redis: Redis, redis_server: RedisServer, jobs: Jobs
) -> None:
    async def other_calls() -> None:
        """As many as a worker that takes jobs needs, and more."""
        for _ in range(20):
            await redis.ping()

    async with at_work(redis_server.socket, jobs, resumed=False) as worker:
        await wake(redis)
        await other_calls()
        assert await redis.exists(WAKE)  # it may be for the current lease holder
        await put(redis, "a")
        await other_calls()
        assert not jobs.starts
        worker.resume()
        await jobs.have_started("a")


# --- arq's record of a job ---


async def test_arq_reads_the_record_and_logs_the_job(
    redis: Redis, redis_server: RedisServer, jobs: Jobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="arq.worker")
    jobs.end("a")
    await put(redis, "a")
    async with at_work(redis_server.socket, jobs):
        await jobs.have_ended("a")
        await nothing_left(redis)
    started, ended = [record.getMessage() for record in caplog.records]
    assert "a:run()" in started
    assert "a:run" in ended


class Broken(Jobs):
    """Fails with an unexpected error the first time."""

    async def run(self, job_id: str, _begun: Job | None = None) -> None:
        self.starts[job_id] += 1
        if self.starts[job_id] == 1:
            raise RuntimeError("the journal's disk is full")
        self.ended.add(job_id)


async def test_the_wait_for_jobs_ends_when_a_job_that_broke_can_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0  # moved by the waits
    monkeypatch.setattr("worker.node_worker.time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    waits: list[float] = []
    given: list[float] = []
    jobs = Broken()

    async def take(*, running: Sequence[JobId], free: int, seconds: float) -> Sequence[JobId]:
        nonlocal now
        if not all(task.done() for task in worker.tasks.values()):  # its slot is free a moment earlier
            await asyncio.sleep(0)
            return []
        waits.append(seconds)
        if "a" not in running:
            given.append(now)
            return [JobId("a")]
        if jobs.ended:
            await asyncio.Event().wait()
        now += seconds
        return []

    worker = NodeWorker(take=take, run=jobs.run, max_jobs=1)
    worker.resume()
    working = asyncio.create_task(worker.work())
    await jobs.have_ended("a")
    await worker.stop(PATIENCE_SECONDS)
    await working
    assert waits[:3] == [TAKE_SECONDS, BROKEN_AGAIN_SECONDS, TAKE_SECONDS]
    assert given == [1000, 1000 + BROKEN_AGAIN_SECONDS]
    assert jobs.starts == {"a": 2}


async def test_a_job_that_the_cell_started_is_passed_on_complete() -> None:
    given = [(job("a"), JobId("b"))]
    handed: dict[str, Job | None] = {}

    async def take(*, running: Sequence[JobId], free: int, seconds: float) -> Sequence[JobId | Job]:
        if not given:
            await asyncio.sleep(seconds)
        return given.pop() if given else ()

    async def run(job_id: str, begun: Job | None) -> None:
        handed[job_id] = begun

    worker = NodeWorker(take=take, run=run, max_jobs=2)
    worker.resume()
    working = asyncio.create_task(worker.work())
    await until(lambda: len(handed) == 2)
    await worker.stop(PATIENCE_SECONDS)
    await working
    assert handed == {"a": job("a"), "b": None}


async def test_fewer_jobs_are_asked_for_while_fewer_are_allowed() -> None:
    asked: list[int] = []
    handed: list[str] = []
    end, allowed = asyncio.Event(), 1
    waiting = [JobId(name) for name in "abc"]

    async def take(*, running: Sequence[JobId], free: int, seconds: float) -> Sequence[JobId]:
        asked.append(free)
        given, waiting[:] = waiting[:free], waiting[free:]
        if not given:
            await asyncio.sleep(seconds)
        return given

    async def run(job_id: str, _begun: Job | None) -> None:
        handed.append(job_id)
        await end.wait()

    worker = NodeWorker(take=take, run=run, max_jobs=3, allowed=lambda: allowed)
    worker.resume()
    working = asyncio.create_task(worker.work())
    await until(lambda: handed == ["a"])
    allowed = 3
    await until(lambda: handed == ["a", "b", "c"])
    assert asked == [1, 2]
    end.set()
    await worker.stop(PATIENCE_SECONDS)
    await working


def job(job_id: str) -> Job:
    now = datetime(2026, 11, 27, tzinfo=UTC)
    return Job(
        id=JobId(job_id),
        kind=JobKind.CREATE,
        state=JobState.IN_PROGRESS,
        server_id=ServerId(1),
        server_name="web",
        account_id=AccountId(1),
        node=NODE,
        snapshot_id=SnapshotId(1),
        snapshot_name="n",
        snapshot_description="",
        snapshot_created_at=now,
        request_id="r",
        queued_at=now,
    )


# --- Redis in trouble ---


@pytest.mark.parametrize("word", ["ZRANGE", "BLPOP", "ZREM"])
async def test_any_answer_may_be_lost(redis: Redis, redis_server: RedisServer, jobs: Jobs, word: str) -> None:
    async with lossy_way(redis_server.socket) as way, at_work(way.socket, jobs):
        way.lose(word)
        jobs.end("a", "b")
        await put(redis, "a", "b")
        await jobs.have_ended("a", "b")
        await nothing_left(redis)
        await every_slot_works(redis, jobs)
        await until(lambda: way.lost == 1)
    assert (jobs.starts["a"], jobs.starts["b"]) == (1, 1)


async def test_jobs_continue_without_redis_and_are_reported_when_it_is_back(server: RedisServer, jobs: Jobs) -> None:
    async with client(server.socket) as redis, at_work(server.socket, jobs, max_jobs=3):
        await put(redis, "a", "b")
        await jobs.have_started("a", "b")
        server.kill()
        await until(lambda: jobs.failed >= 3)  # it asks for a third job
        jobs.end("a", "b", "c")
        await jobs.have_ended("a", "b")
        await asyncio.to_thread(server.start)
        await put(redis, "c")
        await jobs.have_ended("c")
        await nothing_left(redis)
        await every_slot_works(redis, jobs, slots=3)
    assert {jobs.starts[job_id] for job_id in "abc"} == {1}


async def test_a_worker_that_starts_before_redis_works_when_it_comes(server: RedisServer, jobs: Jobs) -> None:
    async with client(server.socket) as redis:
        await put(redis, "a")
    server.kill()
    async with at_work(server.socket, jobs):
        await until(lambda: jobs.failed >= 3)
        await asyncio.to_thread(server.start)
        await jobs.have_started("a")


@pytest.mark.parametrize("queued_again", [True, False])
async def test_a_job_that_runs_is_not_started_again_when_redis_lost_its_data(
    server: RedisServer, jobs: Jobs, queued_again: bool
) -> None:
    async with client(server.socket) as redis, at_work(server.socket, jobs):
        await put(redis, "a")
        await jobs.have_started("a")
        server.kill()
        server.lose_data()
        await asyncio.to_thread(server.start)
        if queued_again:
            await put(redis, "a")
        await put(redis, "b")
        await jobs.have_started("b")  # so it has polled
        jobs.end("a", "b")
        await jobs.have_ended("a", "b")
        await nothing_left(redis)
        await every_slot_works(redis, jobs)
    assert (jobs.starts["a"], jobs.starts["b"]) == (1, 1)


# --- the end of a worker ---


async def test_a_successor_takes_up_the_job_of_a_killed_worker(server: RedisServer, jobs: Jobs) -> None:
    program = command(Kind.LIST, server.socket, seconds=3600, slots=1)
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with client(server.socket) as redis:
        await put(redis, "a")
        assert (await process.stdout.readline()).startswith(b"ready")
        assert (await process.stdout.readline()).startswith(b"began a")
        process.kill()
        await process.wait()
        jobs.end("a")
        async with at_work(server.socket, jobs):
            await jobs.have_ended("a")
            await nothing_left(redis)


async def test_a_worker_that_stops_waits_for_what_runs(redis: Redis, redis_server: RedisServer, jobs: Jobs) -> None:
    async with at_work(redis_server.socket, jobs) as worker:
        await put(redis, "a")
        await jobs.have_started("a")
        stopping = asyncio.create_task(worker.stop(PATIENCE_SECONDS))
        await put(redis, "b")
        jobs.end("a")
        await stopping
        assert jobs.ended == {"a"}
        assert set(await left(redis)) == {b"b"}
    assert not jobs.starts["b"]


async def test_a_job_that_outlasts_the_stop_goes_back_to_the_queue(
    redis: Redis, redis_server: RedisServer, jobs: Jobs
) -> None:
    async with at_work(redis_server.socket, jobs) as worker:
        await put(redis, "a")
        await jobs.have_started("a")
        await worker.stop(0)
        assert set(await left(redis)) == {b"a"}
    async with at_work(redis_server.socket, jobs):
        await until(lambda: jobs.starts["a"] == 2)


async def test_an_idle_worker_stops(redis: Redis, redis_server: RedisServer, jobs: Jobs) -> None:
    async with at_work(redis_server.socket, jobs) as worker:
        await put(redis, "a")
        await jobs.have_started("a")
        jobs.end("a")
        await until(lambda: not worker.tasks)


async def test_a_worker_that_never_worked_stops(redis: Redis, jobs: Jobs) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await NodeWorker(take=taker(redis), run=jobs.run, max_jobs=1).stop(1)


@pytest.mark.parametrize("job_ended", [True, False])
async def test_a_worker_stops_while_redis_is_away(server: RedisServer, jobs: Jobs, job_ended: bool) -> None:
    async with client(server.socket) as redis:
        async with at_work(server.socket, jobs):
            await put(redis, "a")
            await jobs.have_started("a")
            server.kill()
            if job_ended:
                jobs.end("a")
                await jobs.have_ended("a")
        await asyncio.to_thread(server.start)
        jobs.end("a")
        async with at_work(server.socket, jobs):  # the next worker finds it ended in the journal, or continues it
            await until(lambda: jobs.starts["a"] == 2)
            await nothing_left(redis)


async def test_a_worker_stops_while_redis_hangs(server: RedisServer, jobs: Jobs) -> None:
    assert server.process is not None
    async with client(server.socket) as redis:
        await put(redis, "a")
    async with at_work(server.socket, jobs) as worker:
        await jobs.have_started("a")
        server.process.send_signal(signal.SIGSTOP)
        jobs.end("a")
        await jobs.have_ended("a")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.stop(0.1)
