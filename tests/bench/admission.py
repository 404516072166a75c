"""Jobs admitted per second: `CustomerStore.create` compared with plain arq's `enqueue_job`, in one run of less than a
minute.

Both run in this process on a private Redis with production's durability, one call at a time and 20 at once. Ours checks
the request and writes records, queue, wake-up and event; arq's only queues. Figures are medians of the rounds.
"""

import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from arq.connections import ArqRedis

from tests.conftest import RedisServer
from tests.integration.conftest import SERVER, Cell, node_store
from tests.queueing import QUEUE, client
from worker.store.customers.customer_store import CustomerStore
from worker.store.errors import ServerBusy
from worker.store.model import ServerId

ROUNDS = 5
JOBS = 1500  # per round
AT_ONCE = (1, 20)
RACE = 200


async def per_second(admit: Callable[[], Awaitable[object]], *, at_once: int) -> float:
    """Jobs per second over one round, with that many callers."""
    left = iter(range(JOBS))

    async def caller() -> None:
        for _ in left:
            await admit()

    before = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return JOBS / (time.perf_counter() - before)


async def ours(cell: Cell, at_once: int) -> float:
    """Creates, each for its own server, because a server has one job at a time."""
    servers = [ServerId(number) for number in range(1, JOBS + 1)]
    await fresh(cell, servers)
    left = iter(servers)
    return await per_second(lambda: cell.create(server=next(left)), at_once=at_once)


async def plain(redis: ArqRedis, at_once: int) -> float:
    await redis.flushdb()
    numbers = itertools.count()
    return await per_second(lambda: redis.enqueue_job("run", str(next(numbers)), _queue_name=QUEUE), at_once=at_once)


async def fresh(cell: Cell, servers: list[ServerId]) -> None:
    await cell.redis.flushdb()
    assert await cell.node.take_lease(seconds=600) is None
    await cell.have(servers)


async def race(cell: Cell) -> bool:
    """Whether exactly one of that many creates of one server at the same time becomes a job."""
    await fresh(cell, [SERVER])
    answers = await asyncio.gather(*(cell.create(f"race-{n}") for n in range(RACE)), return_exceptions=True)
    busy = sum(isinstance(answer, ServerBusy) for answer in answers)
    admitted = sum(not isinstance(answer, BaseException) for answer in answers)
    queued = await cell.redis.zcard(QUEUE)
    print(f"{RACE} creates of one server at once: {admitted} admitted, {busy} server_busy, {queued} job in the queue")
    return (admitted, busy, queued) == (1, RACE - 1, 1)


async def main() -> bool:
    async with AsyncExitStack() as stack:
        server = RedisServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-bench-"))))
        stack.callback(server.kill)
        server.start()
        redis = await stack.enter_async_context(client(server.socket))
        cell = Cell(redis=redis, store=CustomerStore(redis), node=node_store(redis))
        arq = ArqRedis(unix_socket_path=str(server.socket))
        stack.push_async_callback(arq.aclose, close_connection_pool=True)
        print(f"{f'{ROUNDS} rounds of {JOBS} jobs, medians, jobs/s':<48}{'ours':>10}{'plain arq':>12}{'ratio':>8}")
        medians = {}
        for at_once in AT_ONCE:
            pairs = [(await ours(cell, at_once), await plain(arq, at_once)) for _ in range(ROUNDS)]
            one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
            what = "one after the other" if at_once == 1 else f"{at_once} at once"
            print(f"{what:<48}{one:>10,.0f}{other:>12,.0f}{one / other:>7.2f}x")
            medians[at_once] = {"ours": one, "arq": other}
        is_one = await race(cell)
        print(json.dumps({"rounds": ROUNDS, "jobs": JOBS, "per_second_by_callers": medians}))
        return is_one


if __name__ == "__main__":
    sys.exit(0 if uvloop.run(main()) else 1)
