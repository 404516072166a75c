"""A worker of one node on a real Redis, its jobs, and a queue like the one that admissions use."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.node_worker import NodeWorker, Take
from worker.store import arq_queue as queue
from worker.store.calls import redis_answers
from worker.store.errors import StoreUnavailable
from worker.store.model import Job, JobId
from worker.store.nodes.protocol import TAKE_SECONDS
from worker.store.redis_client import RedisSettings, connect

NODE = "n1"
QUEUE = queue.queue_name(NODE)
CELL = "cell"  # stands for the cell's queue
WAKE = "cell:wake"
PATIENCE_SECONDS = 60.0  # an upper bound: normally it takes milliseconds


async def until(what: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return what()

    await until_told(ask)


async def until_told(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await what():  # noqa: ASYNC110 - it waits for what Redis or another process does
            await asyncio.sleep(0.005)


async def put(redis: Redis, *job_ids: str) -> None:
    """Queue jobs in the cell and wake the node in one step."""
    now_ms = int(time.time() * 1000)
    async with redis.pipeline(transaction=True) as pipe:
        for job_id in job_ids:
            pipe.zadd(CELL, {job_id: now_ms})
        await wake(pipe)
        await pipe.execute()


async def wake(redis: Redis) -> None:
    await redis.execute_command("LPUSH", WAKE, "1")  # type: ignore[no-untyped-call] # redis-py's gap
    await redis.execute_command("LTRIM", WAKE, 0, 0)  # type: ignore[no-untyped-call]


class Jobs:
    """The worker's jobs: each waits until the test lets it end. `failed`: how many calls of Redis have failed."""

    def __init__(self) -> None:
        self.starts: defaultdict[str, int] = defaultdict(int)
        self.started: dict[str, float] = {}
        self.ended: set[str] = set()
        self.failed = 0
        self._ends: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self, job_id: str, _begun: Job | None = None) -> None:
        self.starts[job_id] += 1
        self.started[job_id] = time.time()
        await self._ends[job_id].wait()
        self.ended.add(job_id)

    def end(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self._ends[job_id].set()

    async def have_started(self, *job_ids: str) -> None:
        await until(lambda: all(self.starts[job_id] for job_id in job_ids))

    async def have_ended(self, *job_ids: str) -> None:
        await until(lambda: self.ended >= set(job_ids))


def taker(redis: Redis) -> Take:
    """A replacement for the store's `take`."""

    async def take(*, running: Sequence[JobId], free: int, seconds: float) -> Sequence[JobId]:
        wait: Any = max(seconds, 0.01)
        with redis_answers():
            while True:
                queued = [JobId(raw.decode()) for raw in await redis.zrange(CELL, 0, -1)]
                due = [job_id for job_id in queued if job_id not in running][:free]
                if due or not await redis.blpop([WAKE], timeout=wait):  # type: ignore[misc]
                    return due

    return take


def runner(redis: Redis, jobs: Jobs) -> Callable[[str, Job | None], Awaitable[None]]:
    """Runs jobs, and reports their end to the cell, however long that takes."""

    async def run(job_id: str, _begun: Job | None) -> None:
        await jobs.run(job_id)
        while True:
            try:
                await redis.zrem(CELL, job_id)
            except (RedisError, OSError):
                jobs.failed += 1
            else:
                return
            await asyncio.sleep(0.05)

    return run


@asynccontextmanager
async def client(socket: Path) -> AsyncIterator[Redis]:
    redis = connect(RedisSettings(url=f"unix://{socket}"))
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


@asynccontextmanager
async def at_work(socket: Path, jobs: Jobs, *, max_jobs: int = 2, resumed: bool = True) -> AsyncIterator[NodeWorker]:
    """A worker that has its lease and polls for jobs; stopped at the end, regardless of Redis's state."""
    redis = connect(RedisSettings(url=f"unix://{socket}"), command_seconds=2 * TAKE_SECONDS)
    take = taker(redis)

    async def counted_take(*, running: Sequence[JobId], free: int, seconds: float) -> Sequence[JobId | Job]:
        try:
            return await take(running=running, free=free, seconds=seconds)
        except StoreUnavailable:
            jobs.failed += 1
            raise

    worker = NodeWorker(take=counted_take, run=runner(redis, jobs), max_jobs=max_jobs)
    if resumed:
        worker.resume()
    working = asyncio.create_task(worker.work())
    try:
        yield worker
    finally:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await worker.stop(0.1)
            await working
        await redis.aclose(close_connection_pool=True)
