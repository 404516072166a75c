"""Resource use of a cell by number of nodes: `make bench-fleet` (NODES="100 300 1000").

Each size is a separate cell on this machine: one Redis with production's durability, one front end, two gateways, and
simulated nodes with 100 servers each. Like a worker, a node holds its lease, reports its servers, takes jobs and
reports each step; its jobs take no time (`tests.bench.fleet_nodes`). REDIS_SERVER=valkey-server replaces Redis; the
output names the program and its version.

First the cell is idle, which shows the cost of heartbeats and reports. Then some creates run while operators follow the
events of all accounts, and then ten creates per node, 64 requests at a time. Admission is the rate of 201 responses;
pick-up is the time from the response to the start of the job on its node. The limit of a burst is the program that uses
a whole CPU (Redis, the front end, a gateway, this client); or, if all together use what the machine has, the machine;
or, if they use less, the disk that Redis waits for.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop
from aiohttp import ClientSession, TCPConnector
from redis.asyncio import Redis

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests import redis_program
from tests.bench import seeding
from tests.bench.figures import percentile
from tests.bench.fleet_nodes import ACCOUNT, node_name
from tests.bench.http import cpu_seconds
from tests.conftest import RedisServer
from tests.gateway import GatewayProgram, secret_of
from tests.queueing import client, until_told
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Permission, Tokens

SIZES = [int(size) for size in (os.environ.get("NODES") or "100 300 1000").split()]
SERVERS = 100  # per node
CREATES = 10  # per node
AT_ONCE = 64  # requests
SLOTS = 2  # jobs of a node at a time
GATEWAYS = 2
NODE_PROCESSES = 2
IDLE_SECONDS = float(os.environ.get("IDLE") or 10)
OPERATORS = int(os.environ.get("OPERATORS") or 200)
DONE_SECONDS = 600.0  # until all jobs have ended
FOLLOWED = 200  # creates while operators follow: each operator gets each event


@dataclass(kw_only=True)
class Jobs:
    """When jobs were admitted and started, when their end was about to be reported, and when it was stored, in seconds
    of the monotonic clock."""

    admitted: dict[str, float] = field(default_factory=dict)
    began: dict[str, float] = field(default_factory=dict)
    finishing: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Programs:
    """The PIDs of a cell."""

    redis: int
    front_end: int
    gateways: list[int]
    nodes: list[int]

    def cpu(self) -> dict[str, float]:
        """CPU seconds until now. `client`: this process."""
        return {
            "redis": cpu_seconds(self.redis),
            "gateways": sum(map(cpu_seconds, self.gateways)),
            "front_end": cpu_seconds(self.front_end),
            "nodes": sum(map(cpu_seconds, self.nodes)),
            "client": time.process_time(),
        }


@dataclass(frozen=True, kw_only=True)
class Grown:
    """The figures of one size of the cell. CPU in percent of one CPU."""

    nodes: int
    idle_commands: float  # per second, of all nodes and the cell itself
    idle_commands_per_node: float
    idle_redis: float
    idle_gateways: float
    admitted: float  # per second
    pick_up_p50_ms: float
    pick_up_p99_ms: float
    done_seconds: float  # from the first request to the last end
    redis_ms: float  # Redis's CPU time per job, from the request to the end
    gateways_ms: float
    front_end_ms: float
    burst_redis: float  # from the first request of the burst to its last end
    burst_gateways: float
    burst_front_end: float
    burst_nodes: float
    burst_client: float
    burst_all: float
    redis_mib: float
    event_p99_ms: float  # from the end of a job to the event at an operator


@dataclass(kw_only=True)
class Cell:
    redis: Redis
    url: str
    token: str
    operator: str
    programs: Programs
    jobs: Jobs


@asynccontextmanager
async def cell_of(folder: Path, nodes: int) -> AsyncIterator[Cell]:
    async with AsyncExitStack() as stack:
        server = RedisServer(folder)
        stack.callback(server.kill)
        server.start()
        assert server.process is not None
        redis = await stack.enter_async_context(client(server.socket))
        await seed(redis, nodes)
        port = str(free_port())
        settings = {
            "VPS_SNAPSHOTS_REDIS__URL": f"unix://{server.socket}",
            "VPS_SNAPSHOTS_PORT": port,
            "VPS_SNAPSHOTS_CALLS_PER_MINUTE": "100000000",
            "VPS_SNAPSHOTS_AUDIT_KEEPER": "false",
            "VPS_SNAPSHOTS_OPERATORS_STREAMS": str(OPERATORS),
        }
        command = (Path(sys.executable).parent / "vps-snapshots-api", "serve")
        front_end = await Child.start("api", command, settings=settings, log=folder / "api.log")
        stack.push_async_callback(front_end.stop)
        gateways = [GatewayProgram(server.socket) for _ in range(GATEWAYS)]
        for n, gateway in enumerate(gateways):
            await gateway.start(folder / f"gateway-{n}.log")
            stack.push_async_callback(gateway.stop)
        await until_told(lambda: _are_there([gateway.socket for gateway in gateways]))
        jobs = Jobs()
        started = await stack.enter_async_context(_nodes(folder, [str(one.socket) for one in gateways], nodes, jobs))
        tokens = Tokens(redis)
        may_change = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
        token = await tokens.create(name="public tier", account_id=ACCOUNT, permissions=may_change)
        operator = await tokens.create(name="night", account_id=None, permissions=frozenset({Permission.OPERATOR}))
        yield Cell(
            redis=redis,
            url=f"http://127.0.0.1:{port}",
            token=token.secret,
            operator=operator.secret,
            programs=Programs(
                redis=server.process.pid,
                front_end=front_end.pid,
                gateways=[one.process.pid for one in gateways if one.process],
                nodes=started,
            ),
            jobs=jobs,
        )


async def seed(redis: Redis, nodes: int) -> None:
    servers = (
        {"id": str(n + 1), "account": str(ACCOUNT), "node": node_name(n % nodes), "name": f"web-{n + 1}"}
        for n in range(nodes * SERVERS)
    )
    async with seeding.in_bulk(redis):
        await seeding.write_rows(redis, "servers", servers)
        credentials = Credentials(redis)
        for n in range(nodes):
            await credentials.restore(node_name(n), secret_of(node_name(n)))


async def _are_there(sockets: list[Path]) -> bool:
    return all(socket.is_socket() for socket in sockets)


@asynccontextmanager
async def _nodes(folder: Path, gateways: list[str], nodes: int, jobs: Jobs) -> AsyncIterator[list[int]]:
    """The processes of the simulated nodes, when all of them hold their lease."""
    share = -(-nodes // NODE_PROCESSES)
    processes, reading = [], []
    for first in range(0, nodes, share):
        numbers = (first, min(share, nodes - first), nodes, SERVERS, SLOTS)
        command = (sys.executable, "-m", "tests.bench.fleet_nodes", json.dumps(gateways), *map(str, numbers))
        with (folder / f"nodes-{first}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "TMPDIR": str(folder)},  # killed processes leave their credentials there
            )
        ready = asyncio.Event()
        processes.append(process)
        reading.append((asyncio.create_task(_read(process, jobs, ready)), ready))
    try:
        for task, ready in reading:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            assert ready.is_set(), f"a process of nodes has ended: {folder}"
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _read(process: asyncio.subprocess.Process, jobs: Jobs, ready: asyncio.Event) -> None:
    assert process.stdout
    async for line in process.stdout:
        word, job_id, moment = line.decode().split()
        if word == "ready":
            ready.set()
        else:
            moments = {"began": jobs.began, "finishing": jobs.finishing, "ended": jobs.ended}[word]
            moments[job_id] = float(moment)


async def create(cell: Cell, servers: list[int], name: str) -> None:
    """Create a snapshot of each server, AT_ONCE requests at a time; return when all of their jobs have ended."""
    waiting = iter(servers)
    made: list[str] = []
    headers = {"Authorization": f"Bearer {cell.token}"}
    async with ClientSession(cell.url, headers=headers, connector=TCPConnector(limit=0)) as session:

        async def caller() -> None:
            for server in waiting:
                body = {"server_id": server, "name": name}
                async with session.post("/api/v1/snapshots/", json=body) as response:
                    moment = time.monotonic()
                    assert response.status == 201, await response.text()
                job_id = response.headers["Operation-Location"].rstrip("/").rpartition("/")[2]
                cell.jobs.admitted[job_id] = moment
                made.append(job_id)

        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    async with asyncio.timeout(DONE_SECONDS):
        while not all(job_id in cell.jobs.ended for job_id in made):  # noqa: ASYNC110 - other tasks read the lines
            await asyncio.sleep(0.05)


async def followed(cell: Cell, servers: list[int]) -> float:
    """p99 of the milliseconds from just before the report of a job's end to its event, over all operators' streams."""
    arrived: list[tuple[str, float]] = []  # job, moment
    opened = [asyncio.Event() for _ in range(OPERATORS)]

    async def follow(session: ClientSession, is_open: asyncio.Event) -> None:
        async with session.get("/api/v1/ops/events/") as response:
            assert response.status == 200, await response.text()
            async for line in response.content:
                is_open.set()
                if line.startswith(b"data: {") and b'"completed"' in line:
                    arrived.append((json.loads(line[6:])["job_id"], time.monotonic()))

    headers = {"Authorization": f"Bearer {cell.operator}"}
    async with (
        ClientSession(cell.url, headers=headers, connector=TCPConnector(limit=0), read_bufsize=2**20) as session,
        asyncio.timeout(DONE_SECONDS),
        asyncio.TaskGroup() as group,
    ):
        streams = [group.create_task(follow(session, is_open)) for is_open in opened]
        for is_open in opened:
            await is_open.wait()
        await create(cell, servers, "followed")
        while len(arrived) < OPERATORS * len(servers):  # noqa: ASYNC110 - other tasks read the streams
            await asyncio.sleep(0.05)
        for stream in streams:
            stream.cancel()
    return percentile([(moment - cell.jobs.finishing[job_id]) * 1000 for job_id, moment in arrived], 0.99)


async def measure(folder: Path, nodes: int) -> Grown:
    async with cell_of(folder, nodes) as cell:
        await asyncio.sleep(2)  # the first reports
        idle = cell.programs.cpu(), (await cell.redis.info("stats"))["total_commands_processed"]
        await asyncio.sleep(IDLE_SECONDS)
        after = cell.programs.cpu(), (await cell.redis.info("stats"))["total_commands_processed"]
        used = {name: (after[0][name] - idle[0][name]) / IDLE_SECONDS * 100 for name in idle[0]}

        followed_p99 = await followed(cell, list(range(1, FOLLOWED + 1))) if OPERATORS else 0.0

        cell.jobs.admitted.clear()
        before, began = cell.programs.cpu(), time.monotonic()
        many = CREATES * nodes
        await create(cell, [FOLLOWED + 1 + n for n in range(many)], "burst")
        seconds = time.monotonic() - began
        burst = {name: value - before[name] for name, value in cell.programs.cpu().items()}
        jobs = cell.jobs
        pick_up = [(jobs.began[one] - at) * 1000 for one, at in jobs.admitted.items()]
        memory = (await cell.redis.info("memory"))["used_memory"]
        return Grown(
            nodes=nodes,
            idle_commands=(after[1] - idle[1]) / IDLE_SECONDS,
            idle_commands_per_node=(after[1] - idle[1]) / IDLE_SECONDS / nodes,
            idle_redis=used["redis"],
            idle_gateways=used["gateways"],
            admitted=many / (max(jobs.admitted.values()) - began),
            pick_up_p50_ms=statistics.median(pick_up),
            pick_up_p99_ms=percentile(pick_up, 0.99),
            done_seconds=max(jobs.ended[one] for one in jobs.admitted) - began,
            redis_ms=burst["redis"] / many * 1000,
            gateways_ms=burst["gateways"] / many * 1000,
            front_end_ms=burst["front_end"] / many * 1000,
            burst_redis=burst["redis"] / seconds * 100,
            burst_gateways=burst["gateways"] / seconds * 100,
            burst_front_end=burst["front_end"] / seconds * 100,
            burst_nodes=burst["nodes"] / seconds * 100,
            burst_client=burst["client"] / seconds * 100,
            burst_all=sum(burst.values()) / seconds * 100,
            redis_mib=memory / 2**20,
            event_p99_ms=followed_p99,
        )


ROWS = {
    "idle_commands": "idle: commands a second at Redis",
    "idle_commands_per_node": "idle: commands a second at Redis, per node",
    "idle_redis": "idle: CPU of Redis, %",
    "idle_gateways": "idle: CPU of both gateways, %",
    "admitted": "creates admitted a second",
    "pick_up_p50_ms": "pick-up p50, ms",
    "pick_up_p99_ms": "pick-up p99, ms",
    "done_seconds": "all jobs done, seconds",
    "redis_ms": "CPU of Redis for a job, ms",
    "gateways_ms": "CPU of gateways for a job, ms",
    "front_end_ms": "CPU of the front end for a job, ms",
    "burst_redis": "burst: CPU of Redis, % of one CPU",
    "burst_gateways": "burst: CPU of both gateways, %",
    "burst_front_end": "burst: CPU of the front end, %",
    "burst_nodes": "burst: CPU of the simulated nodes, %",
    "burst_client": "burst: CPU of this client, %",
    "burst_all": "burst: CPU of all of them, %",
    "redis_mib": "memory of Redis, MiB",
    "event_p99_ms": "event at an operator p99, ms",
}


def show(grown: list[Grown]) -> None:
    program = redis_program.version()
    print(f"{program}; {SERVERS} servers and {CREATES} creates a node; the ratio is to {grown[0].nodes} nodes")
    print(f"{os.cpu_count()} CPUs, so at most {100 * (os.cpu_count() or 1)} % for all of them")
    print(f"{'nodes':<44}" + "".join(f"{one.nodes:>10,}{'':>8}" for one in grown))
    base = asdict(grown[0])
    for name, text in ROWS.items():
        figures = ((asdict(one)[name], base[name]) for one in grown)
        print(f"{text:<44}" + "".join(f"{value:>10,.1f}{value / (first or 1):>7.1f}x" for value, first in figures))
    told = {"redis": program, "servers": SERVERS, "creates": CREATES, "sizes": [asdict(one) for one in grown]}
    print(json.dumps(told))


async def main() -> None:
    grown = []
    for nodes in SIZES:
        with tempfile.TemporaryDirectory(prefix="vps-bench-") as folder:
            grown.append(await measure(Path(folder), nodes))
    show(grown)


if __name__ == "__main__":
    uvloop.run(main())
