"""A cell with many nodes, servers and jobs, written in bulk in the formats and lists of the scripts."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from redis.asyncio import Redis

from worker.store import scripts
from worker.store.model import JobKind, JobState

BATCH = 500
SPREAD_MS = 29 * 86_400_000  # of the jobs, back from now
KINDS = (*[JobKind.CREATE] * 6, *[JobKind.RESTORE] * 2, JobKind.DELETE, JobKind.UNDO)
STATES = (*[JobState.COMPLETED] * 96, *[JobState.FAILED] * 4)
USUAL_SECONDS = {JobKind.CREATE: 2.7, JobKind.RESTORE: 3.2, JobKind.DELETE: 1.0, JobKind.UNDO: 3.2}  # logarithms
ERRORS = ("not_enough_space", "disk_failed", "start_failed", "hypervisor_unavailable")


@dataclass(frozen=True, kw_only=True)
class Size:
    nodes: int
    servers_per_node: int
    jobs: int
    open_jobs: int  # queued or in progress


@asynccontextmanager
async def in_bulk(redis: Redis) -> AsyncIterator[None]:
    """Write without waiting for the disk. Afterwards, each write waits for it as in production, but the append-only
    file is not rewritten."""
    await redis.config_set("appendfsync", "no")
    await redis.config_set("auto-aof-rewrite-percentage", "0")
    yield
    await redis.config_set("appendfsync", "always")


async def seed(redis: Redis, size: Size, *, chance: int = 7) -> None:
    """Fill an empty Redis. The same random generator writes the same cell."""
    await _write(redis, "nodes", nodes(size.nodes))
    await _write(redis, "servers", _servers(size))
    await write_jobs(redis, _jobs(size, Random(chance)))


async def write_jobs(redis: Redis, jobs: Iterator[dict[str, str]]) -> None:
    """Write jobs as `job` makes them, oldest first."""
    await _write(redis, "jobs", jobs)


async def write_rows(redis: Redis, what: str, rows: Iterator[dict[str, Any]]) -> None:
    """`what`: nodes, servers or snapshots."""
    await _write(redis, what, rows)


async def _write(redis: Redis, what: str, rows: Iterator[dict[str, Any]]) -> None:
    write = redis.register_script(scripts.linked(Path(__file__).with_name("seed.lua").read_text()))
    while batch := list(islice(rows, BATCH)):
        await write(args=[what, json.dumps(batch)])


def nodes(many: int) -> Iterator[dict[str, Any]]:
    for n in range(many):
        about = {"worker": "0.1.0", "hypervisor": "libvirt 9.0.0", "emulator": "QEMU 7.2.0", "pools": []}
        yield {"name": f"node-{n}", "about": json.dumps(about), "free_bytes": n << 30}


def _servers(size: Size) -> Iterator[dict[str, str]]:
    for n in range(size.nodes * size.servers_per_node):
        yield {"id": str(n + 1), "account": str(n // 10 + 1), "node": f"node-{n % size.nodes}", "name": f"web-{n + 1}"}


def _jobs(size: Size, random: Random) -> Iterator[dict[str, str]]:
    servers = size.nodes * size.servers_per_node
    for n in range(size.jobs):
        server = random.randrange(servers)
        is_open = n >= size.jobs - size.open_jobs
        state = random.choice((JobState.QUEUED, JobState.IN_PROGRESS)) if is_open else random.choice(STATES)
        yield job(
            n,
            state=state,
            age_ms=SPREAD_MS * (size.jobs - n) // size.jobs,
            server=(server + 1, f"web-{server + 1}"),
            account=server // 10 + 1,
            node=f"node-{server % size.nodes}",
            random=random,
        )


def job(
    n: int,
    *,
    state: JobState,
    age_ms: int,
    server: tuple[int, str],
    account: int,
    node: str,
    random: Random,
    kinds: Sequence[JobKind] = KINDS,
) -> dict[str, str]:
    """The n-th job, of a random kind. It took seconds rather than minutes, and its guest was off most of that time."""
    kind = random.choice(kinds)
    seconds = random.lognormvariate(USUAL_SECONDS[kind], 0.3)
    return {
        "id": f"{n:032x}",
        "kind": kind,
        "state": state,
        "age_ms": str(age_ms),
        "seconds": f"{seconds:.3f}",
        "downtime_seconds": f"{0.8 * seconds:.3f}" if kind is not JobKind.DELETE else "",
        "server": str(server[0]),
        "server_name": server[1],
        "account": str(account),
        "node": node,
        "snapshot": str(n + 1),
        "snapshot_name": f"snapshot-{n}",
        "request_id": f"{n:08x}",
        "failure_code": random.choice(ERRORS) if state is JobState.FAILED else "",
    }
