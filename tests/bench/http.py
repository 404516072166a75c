"""Calls per second of the front end, compared with two peers: `make bench-http`, less than four minutes (DURATION=2
seconds of each call and round).

The baseline is an aiohttp handler with one Lua call that writes the essentials of the same change without a token,
limit, Idempotency-Key, audit entry or log. The other peer is a typical FastAPI application: pydantic, a token lookup
and the same Lua call. Ours does everything that it does in production. Each is one process with a Redis with
production's durability. wrk loads them in turn with 64 connections. PROCESSES=2 also measures ours with two processes,
which needs more CPUs than wrk and Redis use.
"""

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import uvloop
from aiohttp import ClientError, ClientSession
from redis.asyncio import Redis

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests.bench import seeding
from tests.conftest import RedisServer
from tests.queueing import client, until_told
from worker.store.access.tokens import Permission, Tokens
from worker.store.model import AccountId, JobState

ACCOUNT = AccountId(77)
CONNECTIONS = 64
ROUNDS = 3
SECONDS = int(os.environ.get("DURATION") or 2)
LISTS_TIMES = 2  # as long: wrk does not count the last 64 calls, whose CPU time is counted
SETTLED_SECONDS, SETTLED_COMMANDS = 0.3, 30  # Redis is idle if it runs at most that many commands in that time
NODES = 50
MANY = 8_000 * SECONDS  # servers with one snapshot each; doubled if a round would change more
FEW = 500  # servers with five snapshots and jobs each, for the rounds that only read
CHANGES = ("create", "restore", "delete")
LISTS = ("list_of_server", "list_of_100", "list_of_jobs")
READS = ("show", "job", *LISTS)
OURS, SEVERAL, BARE, FASTAPI = "ours", "processes", "bare aiohttp", "FastAPI"
PROCESSES = int(os.environ.get("PROCESSES") or 1)
ROOT = Path(__file__).parents[2]
PEERS_PYTHON = Path(f"{sys.prefix}-peers") / "bin" / "python"


@dataclass(frozen=True, kw_only=True)
class Round:
    """One run. Both times are CPU time per call."""

    calls_per_second: float
    p50_ms: float
    p99_ms: float
    server_us: float
    redis_us: float


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A program under load."""

    name: str
    port: int
    child: Child


@asynccontextmanager
async def serving(folder: Path, redis: RedisServer) -> AsyncIterator[list[Loaded]]:
    """All three programs, idle."""
    socket = str(redis.socket)
    ports = {name: str(free_port()) for name in (OURS, SEVERAL, BARE, FASTAPI)}
    ours = {
        "VPS_SNAPSHOTS_REDIS__URL": f"unix://{socket}",
        "VPS_SNAPSHOTS_PORT": ports[OURS],
        "VPS_SNAPSHOTS_CALLS_PER_MINUTE": "100000000",  # counted but never reached
        "VPS_SNAPSHOTS_AUDIT_KEEPER": "false",  # as shipped: the keeper is a separate program
    }
    program = Path(sys.executable).parent / "vps-snapshots-api"
    peers = "tests.bench.peers"
    commands: dict[str, tuple[list[str | Path], Mapping[str, str]]] = {
        OURS: ([program, "serve"], ours),
        BARE: ([sys.executable, "-m", f"{peers}.bare", socket, ports[BARE], str(ACCOUNT)], {}),
        FASTAPI: ([PEERS_PYTHON, "-m", f"{peers}.with_fastapi", socket, ports[FASTAPI]], {}),
    }
    if PROCESSES > 1:
        several = {"VPS_SNAPSHOTS_PORT": ports[SEVERAL], "VPS_SNAPSHOTS_PROCESSES": str(PROCESSES)}
        commands[SEVERAL] = [program, "serve"], ours | several
    async with AsyncExitStack() as stack:
        keeper = await Child.start("keeper", (program, "audit", "keep"), settings=ours, log=folder / "keeper.log")
        stack.push_async_callback(keeper.stop)
        loaded = []
        for name, (command, settings) in commands.items():
            log = folder / f"{name.split()[0]}.log"
            child = await Child.start(name, command, settings={"PYTHONPATH": str(ROOT), **settings}, log=log)
            stack.push_async_callback(child.stop)
            await until_told(lambda port=ports[name]: is_up(port))  # type: ignore[misc]  # bound at once
            loaded.append(Loaded(name=name, port=int(ports[name]), child=child))
        yield loaded


async def is_up(port: str) -> bool:
    async with ClientSession() as session:
        try:
            async with session.get(f"http://127.0.0.1:{port}/") as response:
                return response.status > 0
        except ClientError:
            return False


def servers(many: int) -> Iterator[dict[str, str]]:
    for n in range(1, many + 1):
        yield {"id": str(n), "account": str(ACCOUNT), "node": f"node-{n % NODES}", "name": f"web-{n}"}


def snapshots(many: int, of_each: int) -> Iterator[dict[str, Any]]:
    for n in range(1, many * of_each + 1):
        server = str((n - 1) // of_each + 1)
        about = {"name": f"weekly-{n}", "description": "Weekly snapshot", "size_mb": "4856", "status": "completed"}
        where = {"server": server, "account": str(ACCOUNT), "node": f"node-{int(server) % NODES}"}
        yield {"id": str(n), "age_ms": 86_400_000 + many * of_each - n, **about, **where}


def jobs(many: int, of_each: int, random: Random) -> Iterator[dict[str, str]]:
    """All of them have completed."""
    for n in range(many * of_each):
        server = n // of_each + 1
        yield seeding.job(
            n,
            state=JobState.COMPLETED,
            age_ms=seeding.SPREAD_MS * (many * of_each - n) // (many * of_each),
            server=(server, f"web-{server}"),
            account=ACCOUNT,
            node=f"node-{server % NODES}",
            random=random,
        )


async def settled(redis: Redis) -> None:
    """Return when Redis is idle: wrk does not wait for its last calls, which would otherwise run in the next cell."""
    before = -math.inf
    while (now := (await redis.info("stats"))["total_commands_processed"]) - before > SETTLED_COMMANDS:
        before = now
        await asyncio.sleep(SETTLED_SECONDS)


async def seed(redis: Redis, what: str, many: int) -> str:
    """Write a new cell with that many servers. Returns a token's secret."""
    await settled(redis)
    await redis.flushdb()
    of_each = 1 if what in CHANGES else 5
    async with seeding.in_bulk(redis):
        await seeding.write_rows(redis, "nodes", seeding.nodes(NODES))
        await seeding.write_rows(redis, "servers", servers(many))
        if what != "create":
            await seeding.write_rows(redis, "snapshots", snapshots(many, of_each))
            await redis.set("snapshots:last_id", str(many * of_each))
        if what in {"job", "list_of_jobs"}:
            await seeding.write_jobs(redis, jobs(many, of_each, Random(7)))
    permissions = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
    token = await Tokens(redis).create(name="public tier", account_id=ACCOUNT, permissions=permissions)
    return token.secret


def cpu_seconds(pid: int) -> float:
    """CPU seconds of all threads of a process and of its children."""
    tasks = tuple(Path(f"/proc/{pid}/task").iterdir())
    own = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    return own + sum(cpu_seconds(int(child)) for task in tasks for child in (task / "children").read_text().split())


async def load(loaded: Loaded, redis: Redis, redis_pid: int, what: str, *, ids: int) -> Round | None:
    """None: the program was too fast for that many servers, so some calls were for the same one."""
    secret = await seed(redis, what, ids)
    arguments = [what, secret, "1", str(ids)]
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{SECONDS * (LISTS_TIMES if what in LISTS else 1)}s",
        "--timeout=10s",
        "-s",
        str(Path(__file__).with_name("http.lua")),
    ]
    before = cpu_seconds(loaded.child.pid), cpu_seconds(redis_pid)
    process = await asyncio.create_subprocess_exec(
        *command, f"http://127.0.0.1:{loaded.port}", "--", *arguments, stdout=subprocess.PIPE
    )
    out, _ = await process.communicate()
    after = cpu_seconds(loaded.child.pid), cpu_seconds(redis_pid)
    found = json.loads(out.decode().split("RESULT ")[1])
    requests = found["requests"]
    if what in CHANGES and requests + CONNECTIONS > ids:
        return None
    assert not found["refused"], f"{loaded.name}, {what}: {found}"
    assert not found["broken"], f"{loaded.name}, {what}: {found}"
    server_us, redis_us = ((end - start) / requests * 1e6 for start, end in zip(before, after, strict=True))
    return Round(
        calls_per_second=requests / found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        server_us=server_us,
        redis_us=redis_us,
    )


def median_of(rounds: list[Round]) -> Round:
    columns = [asdict(each) for each in rounds]
    return Round(**{field: statistics.median(column[field] for column in columns) for field in columns[0]})


async def measure(folder: Path, wanted: tuple[str, ...]) -> dict[str, dict[str, Round]]:
    async with AsyncExitStack() as stack:
        server = RedisServer(folder)
        stack.callback(server.kill)
        server.start()
        assert server.process is not None
        redis = await stack.enter_async_context(client(server.socket))
        programs = await stack.enter_async_context(serving(folder, server))
        found: dict[str, dict[str, list[Round]]] = {}
        ids = {what: MANY if what in CHANGES else FEW for what in wanted}
        for _ in range(ROUNDS):
            for what in wanted:
                for program in programs:
                    if program.name != FASTAPI or what in CHANGES:
                        while (one := await load(program, redis, server.process.pid, what, ids=ids[what])) is None:
                            ids[what] *= 2
                        found.setdefault(what, {}).setdefault(program.name, []).append(one)
        return {what: {name: median_of(rounds) for name, rounds in by.items()} for what, by in found.items()}


def tell(found: dict[str, dict[str, Round]]) -> None:
    rounds = f"{ROUNDS} rounds of {SECONDS} s, of lists {SECONDS * LISTS_TIMES} s"
    print(f"{rounds}, {CONNECTIONS} connections, medians; the baseline is {BARE}")
    print(f"{'':<16}{'':<14}{'calls/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}{'Redis us':>10}{'ours is':>11}")
    for what, by in found.items():
        for name, one in by.items():
            ratio = by[OURS].calls_per_second / one.calls_per_second
            print(
                f"{what:<16}{name:<14}{one.calls_per_second:>9,.0f}{one.p50_ms:>9.1f}{one.p99_ms:>9.1f}"
                f"{one.server_us:>9.0f}{one.redis_us:>10.0f}{ratio:>10.2f}x"
            )
    shown = {what: {name: asdict(one) for name, one in by.items()} for what, by in found.items()}
    print(json.dumps({"connections": CONNECTIONS, "rounds": ROUNDS, "seconds": SECONDS, "medians": shown}))


async def main() -> None:
    wanted = tuple(filter(None, os.environ.get("CALLS", "").split())) or (*CHANGES, *READS)
    with tempfile.TemporaryDirectory(prefix="vps-bench-") as folder:
        tell(await measure(Path(folder), wanted))


if __name__ == "__main__":
    uvloop.run(main())
