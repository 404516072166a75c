"""A worker of one node on a real Redis, its jobs, and the way in which the admission queues them."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from arq.connections import ArqRedis
from arq.constants import job_key_prefix
from redis.asyncio import Redis

from worker.node_worker import FALLBACK_SECONDS, NodeWorker
from worker.store import arq_queue as queue
from worker.store.redis_client import RedisSettings, connect

NODE = "n1"
QUEUE = queue.queue_name(NODE)
PATIENCE_SECONDS = 60.0  # a bound: what is waited for comes within milliseconds, or never


async def until(what: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return what()

    await until_told(ask)


async def until_told(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await what():  # noqa: ASYNC110 - it waits for what Redis or another process does
            await asyncio.sleep(0.005)


async def put(redis: ArqRedis, *job_ids: str, at_ms: int | None = None, record: bytes | None = None) -> None:
    """Queue jobs and wake the node, as one."""
    now_ms = int(time.time() * 1000)
    async with redis.pipeline(transaction=True) as pipe:
        for job_id in job_ids:
            pipe.set(job_key_prefix + job_id, queue.payload(job_id, now_ms) if record is None else record)
            pipe.zadd(QUEUE, {job_id: at_ms or now_ms})
        await wake(pipe)
        await pipe.execute()


async def wake(redis: Redis) -> None:
    await redis.execute_command("LPUSH", queue.wake_key(QUEUE), "1")  # type: ignore[no-untyped-call] # redis-py's gap
    await redis.execute_command("LTRIM", queue.wake_key(QUEUE), 0, 0)  # type: ignore[no-untyped-call]


class Jobs:
    """What the worker runs: each job waits until the test lets it end."""

    def __init__(self) -> None:
        self.starts: defaultdict[str, int] = defaultdict(int)
        self.started: dict[str, float] = {}
        self.ended: set[str] = set()
        self._ends: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def run(self, job_id: str) -> None:
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


@asynccontextmanager
async def client(socket: Path) -> AsyncIterator[ArqRedis]:
    redis = connect(RedisSettings(url=f"unix://{socket}"))
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


@asynccontextmanager
async def at_work(socket: Path, jobs: Jobs, *, max_jobs: int = 2, resumed: bool = True) -> AsyncIterator[NodeWorker]:
    """A worker that has its lease and looks for jobs; stopped at the end, wherever Redis is then."""
    settings = RedisSettings(url=f"unix://{socket}")
    redis, waiting = connect(settings), connect(settings, command_seconds=2 * FALLBACK_SECONDS)
    worker = NodeWorker(redis, waiting, node=NODE, run=jobs.run, max_jobs=max_jobs)
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
        await waiting.aclose(close_connection_pool=True)
