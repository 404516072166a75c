"""How soon a queued job starts: our worker beside plain arq's, in one run. `make bench-pickup`, under a minute.

Each worker is a process of its own and has a private Redis of its own, with the durability of production. Jobs do
nothing. Plain arq is as it comes: a look every 0.5 s, pickle. Figures are medians of the rounds.
"""

import asyncio
import math
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix

from tests.conftest import RedisServer
from tests.node_process import Kind, command
from tests.queueing import QUEUE, client, put, until_told
from worker.store import arq_queue as queue

ROUNDS = 5
PICKUPS = {Kind.OURS: 120, Kind.PLAIN: 25}  # a round, at random moments
APART_SECONDS = {Kind.OURS: 0.02, Kind.PLAIN: 0.1}  # far enough not to wait for each other
AFTER_SLOTS = {Kind.OURS: 10, Kind.PLAIN: 2}  # a round
BUSY_SECONDS = 0.02  # how long a job holds the only slot
IDLE_SECONDS = 10.0
RESTARTS = 5


@dataclass
class Bench:
    """A Redis, and what is asked of one kind of worker on it."""

    kind: Kind
    server: RedisServer
    redis: ArqRedis
    jobs: int = 0

    async def put(self, number: int = 1) -> list[str]:
        """Queue jobs as this kind of worker expects them."""
        job_ids = [f"{self.jobs + n:06}" for n in range(number)]
        self.jobs += number
        if self.kind is Kind.OURS:
            await put(self.redis, *job_ids)
        else:
            for job_id in job_ids:
                await self.redis.enqueue_job(queue.FUNCTION, job_id, _job_id=job_id, _queue_name=QUEUE)
        return job_ids

    @asynccontextmanager
    async def worker(self, *, job_seconds: float = 0, slots: int = 10) -> AsyncIterator["Process"]:
        program = command(self.kind, self.server.socket, seconds=job_seconds, slots=slots)
        child = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
        process = Process(child)
        try:
            process.ready = (await process.heard(1))[0].at
            yield process
        finally:
            child.kill()
            await child.wait()

    async def all_told(self) -> None:
        """Return when Redis knows the end of every job: the worker may be killed then."""

        async def empty() -> bool:
            return not await self.redis.zcard(QUEUE)

        await until_told(empty)

    async def commands(self) -> int:
        stats = await self.redis.info("stats")
        return int(stats["total_commands_processed"])


@dataclass(frozen=True)
class Said:
    word: str
    job_id: str
    at: float


class Process:
    """A running worker, heard through what it prints."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self.ready = 0.0

    async def heard(self, lines: int) -> list[Said]:
        assert self._child.stdout is not None
        said: list[Said] = []
        async with asyncio.timeout(30):
            while len(said) < lines:
                word, job_id, at = (await self._child.stdout.readline()).split()
                said.append(Said(word.decode(), job_id.decode(), float(at)))
        return said


async def pickups(bench: Bench) -> list[float]:
    """Milliseconds from queueing to start."""
    queued = {}
    async with bench.worker() as process:
        await bench.put()  # opens the connections
        await process.heard(2)
        for _ in range(PICKUPS[bench.kind]):
            await asyncio.sleep(APART_SECONDS[bench.kind] * random.uniform(0.5, 1.5))
            before = time.monotonic()
            (job_id,) = await bench.put()
            queued[job_id] = before
        said = await process.heard(2 * PICKUPS[bench.kind])
        await bench.all_told()
    return [(line.at - queued[line.job_id]) * 1000 for line in said if line.word == "began"]


async def after_slots(bench: Bench) -> list[float]:
    """Milliseconds from the end of the job in the only slot to the start of the next."""
    count = AFTER_SLOTS[bench.kind] + 1
    async with bench.worker(job_seconds=BUSY_SECONDS, slots=1) as process:
        await bench.put(count)
        said = await process.heard(2 * count)
        await bench.all_told()
    return [(began.at - ended.at) * 1000 for ended, began in zip(said[1::2], said[2::2], strict=False)]


async def idle(bench: Bench) -> float:
    """Commands a second that Redis gets from a worker without jobs."""
    async with bench.worker():
        await asyncio.sleep(1)  # its start is over
        before = await bench.commands()
        await asyncio.sleep(IDLE_SECONDS)
        return (await bench.commands() - before - 1) / IDLE_SECONDS  # without our own


@dataclass(frozen=True)
class Rerun:
    """Seconds until a job whose worker was killed with SIGKILL runs again; `mark` is how long its mark lives yet."""

    mark: float
    since_ready: float = math.nan
    since_exec: float = math.nan


async def rerun(bench: Bench) -> Rerun:
    async with bench.worker(job_seconds=3600) as process:
        (job_id,) = await bench.put()
        await process.heard(1)
    mark = await bench.redis.pttl(in_progress_key_prefix + job_id) / 1000
    if bench.kind is Kind.PLAIN:
        await bench.redis.zrem(QUEUE, job_id)  # nobody waits for it here
        return Rerun(mark)
    executed = time.monotonic()
    async with bench.worker() as process:
        began, _ = await process.heard(2)
        await bench.all_told()
    return Rerun(mark, began.at - process.ready, began.at - executed)


def percentile(numbers: list[float], share: float) -> float:
    return sorted(numbers)[math.ceil(share * len(numbers)) - 1]


async def rounds(of: Callable[[Bench], Awaitable[list[float]]], bench: Bench) -> list[list[float]]:
    return [await of(bench) for _ in range(ROUNDS)]


def median(found: list[list[float]], share: float) -> float:
    return statistics.median(percentile(one, share) for one in found)


def tell(what: str, unit: str, ours: float, plain: float) -> None:
    print(f"{what:<44}{ours:>10.2f}{plain:>12.2f} {unit:<12}{plain / ours:>10,.0f} x")


async def writes(bench: Bench) -> list[float]:
    """Milliseconds that one durable write takes from here: of what is measured, the disk's share."""
    seen = []
    for _ in range(200):
        before = time.monotonic()
        await bench.redis.set("written", b"1")
        seen.append((time.monotonic() - before) * 1000)
    return seen


async def measure(ours: Bench, plain: Bench) -> None:
    print(f"{ROUNDS} rounds, medians{'ours':>38}{'plain arq':>12}{'ratio':>25}")
    one, other = await rounds(pickups, ours), await rounds(pickups, plain)
    tell("queued to started, p50", "ms", median(one, 0.5), median(other, 0.5))
    tell("queued to started, p99", "ms", median(one, 0.99), median(other, 0.99))
    one, other = await rounds(after_slots, ours), await rounds(after_slots, plain)
    tell("next job after the only slot is free, p50", "ms", median(one, 0.5), median(other, 0.5))
    tell(f"idle, over {IDLE_SECONDS:.0f} s", "commands/s", *await asyncio.gather(idle(ours), idle(plain)))
    again = [await rerun(ours) for _ in range(RESTARTS)]
    mark = (await rerun(plain)).mark
    tell("job runs again, from the new worker's start", "s", statistics.median(r.since_ready for r in again), mark)
    tell("  with Python's own start and imports", "s", statistics.median(r.since_exec for r in again), mark)
    one = await rounds(writes, ours)
    print(f"One durable write of Redis here: p50 {median(one, 0.5):.2f} ms, p99 {median(one, 0.99):.2f} ms.")
    print(f"After kill -9, plain arq waits until the dead worker's mark runs out: {mark:.0f} s here, its default")
    print("job_timeout of 300 s and 10; a longer job_timeout makes it longer.")


async def main() -> None:
    async with AsyncExitStack() as stack:
        benches = []
        for kind in Kind:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-bench-")))
            server = RedisServer(folder)
            stack.callback(server.kill)
            server.start()
            if kind is Kind.OURS:
                redis = await stack.enter_async_context(client(server.socket))
            else:
                redis = ArqRedis(unix_socket_path=str(server.socket))  # pickles, as arq does
                stack.push_async_callback(redis.aclose, close_connection_pool=True)
            benches.append(Bench(kind, server, redis))
        await measure(*benches)


if __name__ == "__main__":
    uvloop.run(main())
