"""How soon a queued job starts: our worker behind a gateway, the same on Redis itself, and plain arq's, in one run.
`make bench-pickup`, two minutes.

Each worker is a process of its own and has a private Redis of its own, with the durability of production. The gateway
is reached over TLS. Jobs do nothing. Plain arq is as it comes: a look every 0.5 s, pickle. Figures are medians of the
rounds, and the rounds of the kinds take turns.
"""

import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests.conftest import RedisServer
from tests.gateway import make_certificate
from tests.node_process import Kind, command
from tests.queueing import CELL, NODE, QUEUE, client, put, until_told
from worker.gateway_client import GatewayAddress, GatewayClient
from worker.program.background import in_background
from worker.store import arq_queue as queue
from worker.store.access.credentials import Credentials
from worker.store.redis_client import RedisSettings, connect

ROUNDS = 5
PICKUPS = {Kind.GATEWAY: 120, Kind.DIRECT: 120, Kind.PLAIN: 25}  # a round, at random moments
APART_SECONDS = {Kind.GATEWAY: 0.02, Kind.DIRECT: 0.02, Kind.PLAIN: 0.1}  # far enough not to wait for each other
AFTER_SLOTS = {Kind.GATEWAY: 10, Kind.DIRECT: 10, Kind.PLAIN: 2}  # a round
BUSY_SECONDS = 0.02  # how long a job holds the only slot
IDLE_SECONDS = 10.0
RESTARTS = 5


@dataclass
class Bench:
    """A Redis, and what is asked of one kind of worker on it."""

    kind: Kind
    server: RedisServer
    redis: ArqRedis
    place: str  # for the worker
    jobs: int = 0

    async def put(self, number: int = 1) -> list[str]:
        """Queue jobs as this kind of worker expects them."""
        job_ids = [f"{self.jobs + n:032x}" for n in range(number)]
        self.jobs += number
        if self.kind is Kind.GATEWAY:
            await self._admit(job_ids)
        elif self.kind is Kind.DIRECT:
            await put(self.redis, *job_ids)
        else:
            for job_id in job_ids:
                await self.redis.enqueue_job(queue.FUNCTION, job_id, _job_id=job_id, _queue_name=QUEUE)
        return job_ids

    async def _admit(self, job_ids: list[str]) -> None:
        """What `take` reads of an admitted job."""
        async with self.redis.pipeline(transaction=True) as pipe:
            for job_id in job_ids:
                pipe.hset(f"job:{job_id}", mapping={"node": NODE, "state": "queued"})
                pipe.zadd(QUEUE, {job_id: int(time.time() * 1000)})
            pipe.lpush(queue.wake_key(QUEUE), "1")
            pipe.ltrim(queue.wake_key(QUEUE), 0, 0)
            await pipe.execute()

    @asynccontextmanager
    async def worker(self, *, job_seconds: float = 0, slots: int = 10) -> AsyncIterator["Process"]:
        program = command(self.kind, self.place, seconds=job_seconds, slots=slots)
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
            return not await self.redis.zcard(CELL if self.kind is Kind.DIRECT else QUEUE)

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


@asynccontextmanager
async def connected(place: str) -> AsyncIterator[None]:
    """Another connection of the node, without a call."""
    address = json.loads(place)
    del address["redis"]
    node = GatewayClient(GatewayAddress.model_validate(address), node=NODE, machine="m1", who="a benchmark")
    async with in_background(node.keep_connected()):
        await node.republish()
        yield


async def idle(bench: Bench) -> float:
    """Commands a second that Redis gets for a worker without jobs, without those that a gateway needs for itself."""

    async def commands() -> float:
        before = await bench.commands()
        await asyncio.sleep(IDLE_SECONDS)
        return (await bench.commands() - before - 1) / IDLE_SECONDS  # without our own

    async with AsyncExitStack() as stack:
        if bench.kind is Kind.GATEWAY:  # it looks for credentials that have ended, of all connected nodes at once
            await stack.enter_async_context(connected(bench.place))
        alone = await commands()
        await stack.enter_async_context(bench.worker())
        await asyncio.sleep(1)  # its start is over
        return await commands() - alone


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


async def rounds(of: Callable[[Bench], Awaitable[list[float]]], *benches: Bench) -> list[list[list[float]]]:
    """Of each bench; they take turns, so that a busy moment of the machine is one of all."""
    found = [[await of(bench) for bench in benches] for _ in range(ROUNDS)]
    return [list(of_one) for of_one in zip(*found, strict=True)]


def median(found: list[list[float]], share: float) -> float:
    return statistics.median(percentile(one, share) for one in found)


def tell(what: str, unit: str, *figures: float) -> None:
    print(f"{what:<46}" + "".join(f"{figure:>12.2f}" for figure in figures) + f" {unit}")


async def writes(bench: Bench) -> list[float]:
    """Milliseconds that one durable write takes from here: of what is measured, the disk's share."""
    seen = []
    for _ in range(200):
        before = time.monotonic()
        await bench.redis.set("written", b"1")
        seen.append((time.monotonic() - before) * 1000)
    return seen


async def measure(gateway: Bench, direct: Bench, plain: Bench) -> None:
    benches = (gateway, direct, plain)
    print(f"{ROUNDS} rounds, medians{'':<29}{'gateway':>12}{'direct':>12}{'plain arq':>12}")
    found = await rounds(pickups, *benches)
    tell("queued to started, p50", "ms", *(median(one, 0.5) for one in found))
    tell("queued to started, p99", "ms", *(median(one, 0.99) for one in found))
    paired = [[percentile(a, 0.99) - percentile(b, 0.99)] for a, b in zip(found[0], found[1], strict=True)]
    tell("  gateway less direct, p99, median of the pairs", "ms", median(paired, 0.5))
    found = await rounds(after_slots, *benches)
    tell("next job after the only slot is free, p50", "ms", *(median(one, 0.5) for one in found))
    tell(f"idle, over {IDLE_SECONDS:.0f} s", "commands/s", *await asyncio.gather(*map(idle, benches)))
    again = [[await rerun(bench) for bench in (gateway, direct)] for _ in range(RESTARTS)]
    mark = (await rerun(plain)).mark
    since_ready = [statistics.median(pair[n].since_ready for pair in again) for n in range(2)]
    since_exec = [statistics.median(pair[n].since_exec for pair in again) for n in range(2)]
    tell("job runs again, from the new worker's start", "s", *since_ready, mark)
    tell("  with Python's own start and imports", "s", *since_exec, mark)
    (one,) = await rounds(writes, gateway)
    print(f"One durable write of Redis here: p50 {median(one, 0.5):.2f} ms, p99 {median(one, 0.99):.2f} ms.")
    print(f"After kill -9, plain arq waits until the dead worker's mark runs out: {mark:.0f} s here, its default")
    print("job_timeout of 300 s and 10; a longer job_timeout makes it longer.")


@asynccontextmanager
async def gateway_at(socket: Path, folder: Path) -> AsyncIterator[str]:
    """A gateway over TLS; the place for its node."""
    certificate, key, credential = folder / "gateway.crt", folder / "gateway.key", folder / "credential"
    make_certificate(certificate, key)
    redis = connect(RedisSettings(url=f"unix://{socket}"))
    credential.touch(mode=0o600)
    credential.write_text((await Credentials(redis).create(NODE)).secret)
    await redis.aclose(close_connection_pool=True)
    port = free_port()
    settings = {
        "VPS_SNAPSHOTS_REDIS__URL": f"unix://{socket}",
        "VPS_SNAPSHOTS_PORT": str(port),
        "VPS_SNAPSHOTS_TLS_CERT_FILE": str(certificate),
        "VPS_SNAPSHOTS_TLS_KEY_FILE": str(key),
    }
    program = Path(sys.executable).parent / "vps-snapshots-gateway"
    child = await Child.start("gateway", (program, "serve"), settings=settings, log=folder / "gateway.log")
    address = {
        "redis": str(socket),
        "urls": [f"wss://localhost:{port}"],
        "credential_file": str(credential),
        "tls_ca_file": str(certificate),
    }
    try:
        await asyncio.sleep(1)  # it listens
        yield json.dumps(address)
    finally:
        await child.stop()


async def main() -> None:
    async with AsyncExitStack() as stack:
        benches = []
        for kind in Kind:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-bench-")))
            server = RedisServer(folder)
            stack.callback(server.kill)
            server.start()
            place = str(server.socket)
            if kind is Kind.PLAIN:
                redis = ArqRedis(unix_socket_path=str(server.socket))  # pickles, as arq does
                stack.push_async_callback(redis.aclose, close_connection_pool=True)
            else:
                redis = await stack.enter_async_context(client(server.socket))
            if kind is Kind.GATEWAY:
                place = await stack.enter_async_context(gateway_at(server.socket, folder))
            benches.append(Bench(kind, server, redis, place))
        await measure(*benches)


if __name__ == "__main__":
    uvloop.run(main())
