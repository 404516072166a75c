"""How long the operators' lists take on many jobs: `make bench-ops N=100000`. Beside each time is that of the same list
on 1,000 jobs, the baseline: a list that does not look at all of them takes about as long. Medians of the rounds.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
from arq.connections import ArqRedis

from tests.bench.seeding import Size, seed
from tests.conftest import RedisServer
from tests.queueing import client
from worker.jobs.model import AccountId, JobKind, JobState, ServerId
from worker.jobs.ops import Cut, JobFilter, Operators
from worker.jobs.store import Store

ROUNDS = 20
BASELINE, DEFAULT = 1_000, 100_000  # jobs
NODES, SERVERS_PER_NODE = 1_000, 20
OPEN_JOBS = 200
PAGE = Cut(limit=100)


def looks(operators: Operators) -> Mapping[str, Callable[[], Awaitable[object]]]:
    def jobs(**wanted: object) -> Callable[[], Awaitable[object]]:
        return lambda: operators.jobs(JobFilter(**wanted), PAGE)  # type: ignore[arg-type] # named where they are given

    return {
        "overview": operators.overview,
        "jobs": jobs(),
        "jobs, failed": jobs(state=JobState.FAILED),
        "jobs, of a node": jobs(node="node-7"),
        "jobs, failed, of a node": jobs(node="node-7", state=JobState.FAILED),
        "jobs, queued, of a node": jobs(node="node-7", state=JobState.QUEUED),
        "jobs, undone, failed": jobs(kind=JobKind.UNDO, state=JobState.FAILED),
        "jobs, of an account": jobs(account_id=AccountId(7)),
        "jobs, of a server": jobs(server_id=ServerId(7)),
        "jobs, of an error": jobs(error_code="disk_failed"),
        "jobs, with a text that none has": jobs(text="nowhere"),
        "nodes": lambda: operators.nodes(state=None, sort="-queued", cut=PAGE),
        "nodes, silent": lambda: operators.nodes(state="silent", sort="name", cut=PAGE),
        "servers": lambda: operators.servers(node=None, account_id=None, stranded=False, cut=PAGE),
        "servers, of a node": lambda: operators.servers(node="node-7", account_id=None, stranded=False, cut=PAGE),
    }


async def milliseconds(redis: ArqRedis, jobs: int) -> dict[str, float]:
    await redis.flushdb()
    began = time.perf_counter()
    await seed(redis, Size(nodes=NODES, servers_per_node=SERVERS_PER_NODE, jobs=jobs, open_jobs=OPEN_JOBS))
    print(f"{jobs:,} jobs written in {time.perf_counter() - began:.0f} s")
    taken: dict[str, float] = {}
    for name, look in looks(Operators(redis, Store(redis))).items():
        times = []
        for _ in range(ROUNDS):
            before = time.perf_counter()
            await look()
            times.append((time.perf_counter() - before) * 1000)
        taken[name] = statistics.median(times)
    return taken


async def main(jobs: int) -> None:
    async with AsyncExitStack() as stack:
        server = RedisServer(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-bench-"))))
        stack.callback(server.kill)
        server.start()
        redis = await stack.enter_async_context(client(server.socket))
        few, many = await milliseconds(redis, BASELINE), await milliseconds(redis, jobs)
        print(f"{'ms, medians':<36}{f'{BASELINE:,} jobs':>14}{f'{jobs:,} jobs':>18}{'ratio':>8}")
        for name, baseline in few.items():
            print(f"{name:<36}{baseline:>14.1f}{many[name]:>18.1f}{many[name] / baseline:>7.1f}x")


if __name__ == "__main__":
    uvloop.run(main(int(os.environ.get("N") or DEFAULT)))
