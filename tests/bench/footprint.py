"""The programs' resource use when idle, and whether their memory grows with the number of jobs: `make bench-footprint`.

A cell with a node of simulated servers and, as root, a node with its own libvirtd; each program is one process with the
shipped settings. Figures are medians of RUNS starts. Idle CPU time is the mean of one window of IDLE seconds, in which
all programs are idle at once. The window is as long as a worker's periods of 5 s (reports), 30 s (housekeeping) and
60 s (facts); it may lack the round over all servers, once in 300 s. The baseline is a Python process that only imports
aiohttp, redis, arq and pydantic. For `--help`, it imports typer.

RUNS=5, IDLE=60 seconds, GROWTH=1000 jobs: three minutes. GROWTH=0 omits the jobs.
"""

import asyncio
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import libvirt
import uvloop
from redis.asyncio import Redis

from deploy.demo.client import Answer, Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port
from deploy.lab import domains
from deploy.lab.domain import disk
from deploy.lab.lab import make_disk
from drivers.base import MARK_NAMESPACE
from tests.bench.http import cpu_seconds
from tests.conftest import RedisServer
from tests.gateway import GatewayProgram
from tests.libvirtd import Daemon, DaemonLab
from tests.queueing import client, until_told
from worker.store.access.tokens import Permission, Tokens
from worker.store.model import AccountId

RUNS = int(os.environ.get("RUNS") or 5)
IDLE_SECONDS = float(os.environ.get("IDLE") or 60)
GROWTH = int(os.environ.get("GROWTH") or 1000)
SETTLED_SECONDS, SETTLED_SHARE = 1.0, 0.02  # a start has ended when a program uses at most this share of a CPU
NODE, LIBVIRT_NODE = "n1", "n2"
FIRST_SERVER, SERVERS = 12345, 50  # of a node
ACCOUNT = AccountId(77)  # of the simulated servers
BIN = Path(sys.executable).parent
WORKER, LIBVIRT_WORKER = "worker, simulated", "worker, libvirt"
FRONT_END, GATEWAY, KEEPER, HELP = "front end", "gateway", "audit keeper", "vps-snapshots --help"
LIBRARIES, TYPER = "aiohttp, redis, arq, pydantic", "typer"  # the baselines
SAMPLES = 10  # of memory while jobs run
WARM = SAMPLES // 5  # samples until all code is loaded and all caches are full

LIMITS = {
    (WORKER, "rss_mb"): 60.0,
    (WORKER, "cpu_percent"): 0.2,
    (WORKER, "ready_ms"): 1000.0,
    (LIBVIRT_WORKER, "rss_mb"): 60.0,
    (LIBVIRT_WORKER, "cpu_percent"): 0.2,
    (LIBVIRT_WORKER, "ready_ms"): 1000.0,
    (FRONT_END, "rss_mb"): 80.0,
    (FRONT_END, "ready_ms"): 1000.0,
    (GATEWAY, "ready_ms"): 1000.0,
    (HELP, "ready_ms"): 150.0,
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """A long-running program. `is_ready`: None if nobody waits for it."""

    command: Sequence[str | Path]
    settings: Mapping[str, str]
    is_ready: Callable[[], Awaitable[bool]] | None = None


@dataclass(frozen=True, kw_only=True)
class Started:
    """One start. `cpu_ms`: CPU time of the whole start, until the program has settled."""

    rss_mb: float
    cpu_ms: float
    ready_ms: float | None


class Cell:
    """A Redis and the programs, each of which can be restarted. `libvirt_uri`: None if this machine can run none."""

    def __init__(self, folder: Path, redis_server: RedisServer, redis: Redis, libvirt_uri: str | None) -> None:
        self.redis = redis
        self._libvirt_uri = libvirt_uri
        self.url = f"http://127.0.0.1:{free_port()}"
        self._folder = folder
        self._at_redis = {"VPS_SNAPSHOTS_REDIS__URL": f"unix://{redis_server.socket}"}
        self._gateway = GatewayProgram(redis_server.socket)
        self._children: dict[str, Child] = {}

    async def programs(self) -> dict[str, Program]:
        at_gateway = {"VPS_SNAPSHOTS_UNIX_SOCKET": str(self._gateway.socket)}
        front_end = {
            "VPS_SNAPSHOTS_PORT": self.url.rpartition(":")[2],
            "VPS_SNAPSHOTS_CALLS_PER_MINUTE": "1000000",
            "VPS_SNAPSHOTS_AUDIT_KEEPER": "false",
        }
        simulated = {"VPS_SNAPSHOTS_DRIVER": "fake", "VPS_SNAPSHOTS_FAKE_SERVERS": str(SERVERS)}
        workers = {WORKER: await self._worker(NODE, simulated)}
        if self._libvirt_uri:
            real = {"VPS_SNAPSHOTS_LIBVIRT_URI": self._libvirt_uri}
            workers[LIBVIRT_WORKER] = await self._worker(LIBVIRT_NODE, real)
        imported = self._folder / "imported"
        wait = f"import {LIBRARIES}, pathlib, signal; pathlib.Path({str(imported)!r}).touch(); signal.pause()"

        async def has_imported() -> bool:
            return imported.exists()

        return {
            LIBRARIES: Program(command=(sys.executable, "-c", wait), settings={}, is_ready=has_imported),
            GATEWAY: Program(
                command=(BIN / "vps-snapshots-gateway", "serve"),
                settings=self._at_redis | at_gateway,
                is_ready=self._gateway_listens,
            ),
            FRONT_END: Program(
                command=(BIN / "vps-snapshots-api", "serve"),
                settings=self._at_redis | front_end,
                is_ready=Client(self.url, "").is_up,
            ),
            KEEPER: Program(command=(BIN / "vps-snapshots-api", "audit", "keep"), settings=self._at_redis),
            **workers,
        }

    async def _worker(self, node: str, settings: Mapping[str, str]) -> Program:
        await self._gateway.let_in(node)
        own = {"VPS_SNAPSHOTS_NODE": node, "VPS_SNAPSHOTS_STATE_DIR": str(self._folder / node)}

        async def takes_jobs() -> bool:
            """Whether the node has its lease and has reported its servers."""
            return bool(await self.redis.hexists(f"node:{node}", "about"))  # type: ignore[misc]  # redis-py's types

        return Program(
            command=(BIN / "vps-snapshots-worker", "run"),
            settings={**own, **settings, **self._gateway.settings_of(node)},
            is_ready=takes_jobs,
        )

    async def _gateway_listens(self) -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_unix_connection(str(self._gateway.socket))
            writer.close()
            return True
        return False

    async def start(self, name: str, program: Program) -> Started:
        if name in self._children:
            await self._children.pop(name).stop()
        (self._folder / "imported").unlink(missing_ok=True)
        for node in (NODE, LIBVIRT_NODE):
            await self.redis.hdel(f"node:{node}", "about")  # type: ignore[misc]  # redis-py's types
        begun = time.monotonic()
        log = self._folder / f"{name}.log"
        child = await Child.start(name, program.command, settings=program.settings, log=log)
        self._children[name] = child
        ready_ms = None
        if program.is_ready is not None:
            await until_told(program.is_ready)
            ready_ms = (time.monotonic() - begun) * 1000
        await settled(child.pid)
        return Started(rss_mb=rss_mb(child.pid), cpu_ms=cpu_seconds(child.pid) * 1000, ready_ms=ready_ms)

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each program so far."""
        return {name: cpu_seconds(child.pid) for name, child in self._children.items()}

    def rss(self) -> dict[str, float]:
        """Memory of each program that has a part in the jobs."""
        idle = {LIBRARIES, LIBVIRT_WORKER}
        return {name: rss_mb(child.pid) for name, child in self._children.items() if name not in idle}

    async def stop(self) -> None:
        for child in reversed(self._children.values()):
            await child.stop()
        await self._gateway.stop()


def rss_mb(pid: int) -> float:
    """Resident memory including pages of shared libraries, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def settled(pid: int) -> None:
    """Return when the program is idle."""
    before = -math.inf
    while (now := cpu_seconds(pid)) - before > SETTLED_SHARE * SETTLED_SECONDS:
        before = now
        await asyncio.sleep(SETTLED_SECONDS)


@asynccontextmanager
async def cell() -> AsyncIterator[Cell]:
    with tempfile.TemporaryDirectory(prefix="vps-bench-") as path:
        folder = Path(path)
        (folder / "redis").mkdir()
        server = RedisServer(folder / "redis")
        server.start()
        try:
            async with client(server.socket) as redis, libvirt_node(folder / "libvirt") as uri:
                made = Cell(folder, server, redis, uri)
                try:
                    yield made
                finally:
                    await made.stop()
        finally:
            server.kill()


@asynccontextmanager
async def libvirt_node(folder: Path) -> AsyncIterator[str | None]:
    """The URI of a libvirtd with as many servers as the simulated node, which are off; None without root."""
    if os.geteuid():
        print(f"{LIBVIRT_WORKER}: not measured, because a libvirtd needs root")
        yield None
        return
    daemon = Daemon(folder)
    await daemon.start()
    try:
        await asyncio.to_thread(define_servers, DaemonLab(daemon))
        yield daemon.uri
    finally:
        daemon.stop_for_good()


def define_servers(lab: DaemonLab) -> None:
    first = FIRST_SERVER + SERVERS  # after those of the simulated node
    with closing(libvirt.open(lab.uri)) as connection:
        for server in range(first, first + SERVERS):
            mark = f"<vps:server xmlns:vps='{MARK_NAMESPACE}' id='{server}' account='{ACCOUNT}'/>"
            devices = [disk(make_disk(lab.disk_path(f"{server}.qcow2")))]
            domains.define(connection, lab.domain_xml(f"server-{server}", devices, guest=False, metadata=mark))


async def idle_percent(cell: Cell) -> dict[str, float]:
    """Mean CPU time of each idle program, in percent of one CPU."""
    before = cell.cpu()
    await asyncio.sleep(IDLE_SECONDS)
    return {name: (seconds - before[name]) / IDLE_SECONDS * 100 for name, seconds in cell.cpu().items()}


async def command(*words: str | Path) -> dict[str, float]:
    """Milliseconds until the command ends, and its CPU time: medians of RUNS."""
    found = []
    for _ in range(RUNS):
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.DEVNULL)
        assert await process.wait() == 0, words
        ended, after = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((cpu_seconds * 1000, (ended - begun) * 1000))
    cpu_ms, ready_ms = (statistics.median(column) for column in zip(*found, strict=True))
    return {"cpu_ms": cpu_ms, "ready_ms": ready_ms}


async def growth(cell: Cell) -> dict[str, list[float]]:
    """Memory of each program before the first job and after each tenth of GROWTH jobs, which create and delete
    snapshots of all servers."""
    permissions = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
    token = await Tokens(cell.redis).create(name="a customer", account_id=ACCOUNT, permissions=permissions)
    customer = Client(cell.url, token.secret)
    samples = [cell.rss()]
    for done in range(2 * SERVERS, GROWTH + 1, 2 * SERVERS):
        await _one_round(cell, customer, done)
        if done * SAMPLES // GROWTH >= len(samples):
            samples.append(cell.rss())
    return {name: [sample[name] for sample in samples] for name in samples[0]}


async def _one_round(cell: Cell, customer: Client, number: int) -> None:
    created = []
    for server in range(FIRST_SERVER, FIRST_SERVER + SERVERS):
        body = {"server_id": server, "name": f"snapshot-{number}"}
        created.append((await _accepted(customer, "POST", "/api/v1/snapshots/", body)).body["id"])
    await until_told(lambda: _are_done(cell.redis))
    for snapshot in created:
        await _accepted(customer, "DELETE", f"/api/v1/snapshots/{snapshot}/")
    await until_told(lambda: _are_done(cell.redis))


async def _accepted(customer: Client, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
    """Return the answer once the call is accepted: on a busy machine, a node's heartbeat may be late."""
    while (answer := await customer.call(method, path, body)).status == HTTPStatus.SERVICE_UNAVAILABLE:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    assert answer.status < HTTPStatus.BAD_REQUEST, answer
    return answer


async def _are_done(redis: Redis) -> bool:
    open_jobs = [await redis.zcard(f"jobs:node:{NODE}:{state}") for state in ("queued", "in_progress")]
    return not any(open_jobs)


def medians(starts: Sequence[Started]) -> dict[str, float]:
    columns = [asdict(start) for start in starts]
    return {
        key: statistics.median(column[key] for column in columns) for key in columns[0] if columns[0][key] is not None
    }


async def measure(cell: Cell) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
    """The figures of each program, and its memory while it works."""
    starts: dict[str, list[Started]] = {}
    programs = await cell.programs()
    for _ in range(RUNS):  # in turn, so that load on the machine affects all of them
        for name, program in programs.items():
            starts.setdefault(name, []).append(await cell.start(name, program))
    figures = {name: medians(of_one) for name, of_one in starts.items()}
    for name, percent in (await idle_percent(cell)).items():
        figures[name]["cpu_percent"] = percent
    figures[TYPER] = await command(sys.executable, "-c", f"import {TYPER}")
    figures[HELP] = await command(BIN / "vps-snapshots", "--help")
    return figures, await growth(cell) if GROWTH else {}


def tell(figures: Mapping[str, Mapping[str, float]], samples: Mapping[str, Sequence[float]]) -> None:
    print(f"Medians of {RUNS} starts; the ratio is to a Python that imports {LIBRARIES}, for --help {TYPER}")
    columns = {
        "rss_mb": "RSS MiB",
        "cpu_percent": "idle CPU %",
        "ready_ms": "ready or ended, ms",
        "cpu_ms": "start, CPU ms",
    }
    print(f"{'':<30}{'':<18}{'measured':>10}{'at most':>10}{'ratio':>8}")
    for name, figure in figures.items():
        baseline = figures[TYPER if name in {HELP, TYPER} else LIBRARIES]
        for column, title in columns.items():
            if column in figure:
                limit = LIMITS.get((name, column))
                ratio = f"{figure[column] / baseline[column]:.2f}" if baseline.get(column) else ""
                over = " over" if limit is not None and figure[column] > limit else ""
                at_most = "" if limit is None else f"{limit:g}"
                print(f"{name:<30}{title:<18}{figure[column]:>10.2f}{at_most:>10}{ratio:>8}{over}")
    for name, sizes in samples.items():
        shown, grown = " ".join(f"{size:.1f}" for size in sizes), sizes[-1] - sizes[min(WARM, len(sizes) - 1)]
        print(f"{name}, RSS MiB over {GROWTH} jobs: {shown}; grown since the first fifth: {grown:.2f}")
    limits = {f"{name}, {column}": limit for (name, column), limit in LIMITS.items()}
    how = {"runs": RUNS, "idle_seconds": IDLE_SECONDS, "jobs": GROWTH}
    print(json.dumps({**how, "limits": limits, "medians": figures, "growth": samples}))


async def main() -> None:
    async with cell() as made:
        tell(*await measure(made))


if __name__ == "__main__":
    uvloop.run(main())
