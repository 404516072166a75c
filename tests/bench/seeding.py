"""A cell with many nodes, servers and jobs, written in bulk in the formats and by the lists of the scripts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from arq.connections import ArqRedis

from worker.jobs import scripts
from worker.jobs.model import JobKind, JobState

BATCH = 500
SPREAD_MS = 29 * 86_400_000  # of the jobs, backwards from now
KINDS = (*[JobKind.CREATE] * 6, *[JobKind.RESTORE] * 2, JobKind.DELETE, JobKind.UNDO)
STATES = (*[JobState.COMPLETED] * 96, *[JobState.FAILED] * 4)
ERRORS = ("not_enough_space", "disk_failed", "start_failed", "hypervisor_unavailable")


@dataclass(frozen=True, kw_only=True)
class Size:
    nodes: int
    servers_per_node: int
    jobs: int
    open_jobs: int  # of them queued or in progress


async def seed(redis: ArqRedis, size: Size, *, chance: int = 7) -> None:
    """Fill an empty Redis. The same chance makes the same cell."""
    write = redis.register_script(scripts.text("prelude") + Path(__file__).with_name("seed.lua").read_text())
    nodes, servers, jobs = _nodes(size), _servers(size), _jobs(size, Random(chance))
    for what, rows in (("nodes", nodes), ("servers", servers), ("jobs", jobs)):
        while batch := list(islice(rows, BATCH)):
            await write(args=[what, json.dumps(batch)])


def _nodes(size: Size) -> Iterator[dict[str, Any]]:
    for n in range(size.nodes):
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
        error = random.choice(ERRORS) if state is JobState.FAILED else ""
        yield {
            "id": f"{n:032x}",
            "kind": random.choice(KINDS),
            "state": state,
            "age_ms": str(SPREAD_MS * (size.jobs - n) // size.jobs),
            "server": str(server + 1),
            "server_name": f"web-{server + 1}",
            "account": str(server // 10 + 1),
            "node": f"node-{server % size.nodes}",
            "snapshot": str(n + 1),
            "snapshot_name": f"snapshot-{n}",
            "request_id": f"{n:08x}",
            "failure_code": error,
        }
