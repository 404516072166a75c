"""The worker's program: only one per node, whatever happens to Redis, and stopped without harm."""

import asyncio
import json
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from drivers.base import Power
from drivers.fake_faults import Effect, Rule, write_rules
from drivers.fake_state import FakeDisk, FakeServer, StateFile
from tests.conftest import RedisServer, needs
from tests.integration.conftest import ACCOUNT
from tests.queueing import client, until_told
from tests.worker_process import FIRST, SECOND, WorkerProcess, server_of, worker_process
from worker.store.customers.customer_store import CustomerStore
from worker.store.errors import Refused
from worker.store.model import Job, JobId, JobState, ServerId


@pytest.fixture
async def redis_of_ours() -> AsyncIterator[RedisServer]:
    """A Redis that the test may kill."""
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A node whose first server shuts down only after `shut_down`."""
    folder = tmp_path / "node"
    folder.mkdir()
    first = FakeServer(
        name="web-server-01",
        server_id=FIRST,
        account_id=ACCOUNT,
        power=Power.ON,
        disks={"vda": FakeDisk(), "vdb": FakeDisk()},
    )
    StateFile(folder / "fake.json").write(first)
    write_rules(folder / "faults.json", [Rule(effect=Effect.PRESS, server_id=FIRST, waits=True)])
    return folder


def shut_down(state: Path) -> None:
    (state / "faults.json").unlink()


class Customer:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.store = CustomerStore(redis)

    async def create(self, server_id: int, name: str = "n") -> JobId:
        """Create a snapshot as soon as the node has reported its server."""
        admitted: list[JobId] = []

        async def is_admitted() -> bool:
            try:
                ask = {"account_id": ACCOUNT, "server_id": ServerId(server_id), "name": name, "description": ""}
                admitted.append((await self.store.create(**ask, request_id="r")).job.id)  # type: ignore[arg-type]
            except Refused:
                return False
            return True

        await until_told(is_admitted)
        return admitted[0]

    async def job(self, job_id: JobId) -> Job:
        return await self.store.job(account_id=ACCOUNT, job_id=job_id)

    async def sees_step(self, job_id: JobId, step: str) -> None:
        async def is_there() -> bool:
            return (await self.job(job_id)).step == step

        await until_told(is_there)

    async def sees_end(self, job_id: JobId) -> Job:
        async def is_over() -> bool:
            return (await self.job(job_id)).state.is_final

        await until_told(is_over)
        return await self.job(job_id)


@asynccontextmanager
async def customer(server: RedisServer) -> AsyncIterator[Customer]:
    async with client(server.socket) as redis:
        yield Customer(redis)


async def _refused(worker: WorkerProcess, *words: str) -> None:
    async with asyncio.timeout(60):
        assert await worker.process.wait() == 2
    await asyncio.sleep(0)
    said = "".join(worker.lines)
    assert all(word in said for word in words), said


async def test_a_second_worker_is_refused_and_names_the_holder_even_a_stopped_one(
    redis_of_ours: RedisServer, state: Path, tmp_path: Path
) -> None:
    async with worker_process(redis_of_ours.socket, state) as first:
        await first.says("worker.started")
        async with customer(redis_of_ours) as ours:
            await ours.sees_end(await ours.create(SECOND))
        first.signal(signal.SIGSTOP)
        async with customer(redis_of_ours) as ours:  # it renews it no more
            far_ms = int((time.time() + 3600) * 1000)
            await ours.redis.hset("node:n1", "lease_until_ms", str(far_ms))  # type: ignore[misc] # redis-py: sync or async
        holder = f"pid {first.process.pid} on "
        async with worker_process(redis_of_ours.socket, state) as second:
            await _refused(second, "worker.lock is held by", holder)
        async with worker_process(redis_of_ours.socket, tmp_path / "elsewhere") as third:
            await _refused(third, "node n1 already has a worker", holder)


async def test_a_worker_that_slept_through_its_lease_takes_no_work_any_more(
    redis_of_ours: RedisServer, state: Path, tmp_path: Path
) -> None:
    async with worker_process(redis_of_ours.socket, state) as sleeper, customer(redis_of_ours) as ours:
        await ours.sees_end(await ours.create(SECOND, "before"))
        sleeper.signal(signal.SIGSTOP)
        await ours.redis.hset("node:n1", "lease_until_ms", "1")  # type: ignore[misc] # redis-py: sync or async
        async with worker_process(redis_of_ours.socket, tmp_path / "elsewhere") as heir:
            await heir.says("worker.started")

            async def is_taken() -> bool:
                who: Any = await ours.redis.hget("node:n1", "who")  # type: ignore[misc]
                return f"pid {heir.process.pid} ".encode() in who

            await until_told(is_taken)
            sleeper.signal(signal.SIGCONT)
            for number in range(3):
                job_id = await ours.create(SECOND, f"after-{number}")
                assert (await ours.sees_end(job_id)).state is JobState.COMPLETED
                assert heir.has_said("job.completed", job_id=job_id)
                assert not sleeper.has_said("job.completed", job_id=job_id)
                await ours.redis.delete(f"server:{SECOND}:counted")
            await sleeper.says("lease.lost")
            sleeper.signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await sleeper.process.wait() == 0


async def test_a_stopping_worker_finishes_its_job_and_starts_no_other(redis_of_ours: RedisServer, state: Path) -> None:
    settings = {"MAX_JOBS": "1"}
    async with worker_process(redis_of_ours.socket, state, **settings) as worker, customer(redis_of_ours) as ours:
        running, waiting = await ours.create(FIRST), await ours.create(SECOND)
        await ours.sees_step(running, "stopping")
        worker.signal(signal.SIGTERM)
        await worker.says("worker.stopping")
        shut_down(state)
        async with asyncio.timeout(60):
            assert await worker.process.wait() == 0
        assert (await ours.job(running)).state is JobState.COMPLETED
        assert server_of(state, FIRST).power is Power.ON
        left = await ours.job(waiting)
        assert (left.state, left.attempts) == (JobState.QUEUED, 0)
        async with worker_process(redis_of_ours.socket, state, **settings):
            assert (await ours.sees_end(waiting)).state is JobState.COMPLETED


async def test_one_whose_time_to_stop_is_over_leaves_the_rest_to_the_next(
    redis_of_ours: RedisServer, state: Path
) -> None:
    async with (
        worker_process(redis_of_ours.socket, state, DRAIN_SECONDS="0") as worker,
        customer(redis_of_ours) as ours,
    ):
        running = await ours.create(FIRST)
        await ours.sees_step(running, "stopping")
        worker.signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await worker.process.wait() == 0
        assert (await ours.job(running)).state is JobState.IN_PROGRESS
    shut_down(state)
    async with worker_process(redis_of_ours.socket, state), customer(redis_of_ours) as ours:
        assert (await ours.sees_end(running)).state is JobState.COMPLETED
    assert server_of(state, FIRST).power is Power.ON


# --- Redis in trouble during a job ---


async def _away(server: RedisServer, _: Redis) -> Callable[[], Awaitable[object]]:
    server.kill()
    return lambda: asyncio.to_thread(server.start)


async def _read_only(_: RedisServer, redis: Redis) -> Callable[[], Awaitable[object]]:
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    return lambda: redis.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]


async def _unable_to_save(server: RedisServer, redis: Redis) -> Callable[[], Awaitable[object]]:
    """MISCONF, as when its disk is full."""
    (server.folder / "dump.rdb").mkdir()
    await redis.config_set("save", "3600 1")
    await redis.bgsave()

    async def has_failed() -> bool:
        return bool((await redis.info("persistence"))["rdb_last_bgsave_status"] == "err")

    await until_told(has_failed)
    return lambda: redis.config_set("save", "")


@pytest.mark.parametrize("trouble", [_away, _read_only, _unable_to_save])
async def test_a_started_job_finishes_while_redis_fails_and_is_reported_later(
    redis_of_ours: RedisServer,
    state: Path,
    trouble: Callable[[RedisServer, Redis], Awaitable[Callable[[], Awaitable[object]]]],
) -> None:
    async with worker_process(redis_of_ours.socket, state) as worker, customer(redis_of_ours) as ours:
        job_id = await ours.create(FIRST)
        await ours.sees_step(job_id, "stopping")
        heal = await trouble(redis_of_ours, ours.redis)
        shut_down(state)
        await worker.says("outcome.not_published")

        assert worker.has_said("job.completed", job_id=job_id)
        assert server_of(state, FIRST).power is Power.ON
        await heal()

        assert (await ours.sees_end(job_id)).state is JobState.COMPLETED
        assert (await ours.sees_end(await ours.create(SECOND))).state is JobState.COMPLETED  # it works again
        assert [json.loads(line)["event"] for line in worker.lines if '"error"' in line] == []


async def test_a_started_job_ends_and_is_reported_while_redis_is_full(redis_of_ours: RedisServer, state: Path) -> None:
    async with worker_process(redis_of_ours.socket, state), customer(redis_of_ours) as ours:
        job_id = await ours.create(FIRST)
        await ours.sees_step(job_id, "stopping")
        await ours.redis.config_set("maxmemory", "1")
        shut_down(state)
        assert (await ours.sees_end(job_id)).state is JobState.COMPLETED
        assert server_of(state, FIRST).power is Power.ON
