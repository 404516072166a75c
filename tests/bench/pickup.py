"""Time until a queued job starts, and the cost of an idle worker: our worker with a gateway, the same with Redis
itself, arq's own worker, and those of other job queues, in one run. `make bench-pickup`, less than four minutes (N=4
rounds of JOBS=100 jobs).

Each worker is a separate process with its own Redis with production's durability. The gateway is reached over TLS. Jobs
do nothing. As in production, the start of our jobs is on the disk before they run. Figures are medians of the rounds;
the contestants take turns.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from arq.connections import ArqRedis
from redis.asyncio import Redis

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests.bench.contestants import PEERS, Arq, Contestant, Ours, Peer, enter, peer_command, running
from tests.bench.figures import percentile
from tests.conftest import RedisServer
from tests.gateway import make_certificate
from tests.node_process import Kind
from tests.queueing import NODE, until_told
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.program.background import in_background
from worker.store.access.credentials import Credentials
from worker.store.redis_client import RedisSettings, connect

ROUNDS = int(os.environ.get("N") or 4)
PICKUPS, APART_SECONDS = int(os.environ.get("JOBS") or 100), 0.02  # per round
SLOT_ROUNDS, AFTER_SLOTS = 3, 10  # of contestants that do not poll every half second
BUSY_SECONDS = 0.02  # how long a job holds the only slot
IDLE_SECONDS = 30.0  # each chore of a gateway runs equally often in any such span
RESTARTS = 3


@dataclass(frozen=True)
class Rerun:
    """Seconds until a job whose worker was killed with SIGKILL runs again."""

    since_ready: float
    since_exec: float


async def pickups(one: Contestant) -> list[float]:
    """Milliseconds from queueing to start."""
    many = 20 if one.name == "arq" else PICKUPS
    async with one.worker() as process:
        queued = await one.queue(many, apart_seconds=APART_SECONDS)
        said = await process.heard("ended", queued)
    return [(line.at - queued[line.job_id]) * 1000 for line in said if line.word == "began"]


async def after_slots(one: Contestant) -> list[float]:
    """Milliseconds from the end of the job in the only slot to the start of the next one."""
    many = 1 + (2 if one.name == "arq" else AFTER_SLOTS)
    async with one.worker(job_seconds=BUSY_SECONDS, slots=1) as process:
        said = await process.heard("ended", await one.queue(many))
    return [(began.at - ended.at) * 1000 for ended, began in zip(said[1::2], said[2::2], strict=False)]


async def idle(one: Contestant) -> float:
    """Commands per second that Redis receives from a worker without jobs."""
    async with one.worker():
        await asyncio.sleep(1)  # its start is over
        return await commands(one)


async def commands(one: Contestant) -> float:
    before = await one.commands()
    await asyncio.sleep(IDLE_SECONDS)
    return (await one.commands() - before - 1) / IDLE_SECONDS  # without the command that counts them


async def rerun(one: Contestant) -> Rerun:
    async with one.cold_worker(job_seconds=3600) as process:
        queued = await one.queue(1)
        await process.heard("began", queued)
    executed = time.monotonic()
    async with one.cold_worker() as process:
        ready = await process.line()
        began = (await process.heard("ended", queued))[0]
        await one.settled()
    return Rerun(began.at - ready.at, began.at - executed)


Rounds = dict[str, list[list[float]]]  # by contestant


async def rounds(of: Callable[[Any], Awaitable[list[float]]], contestants: list[Contestant], many: int) -> Rounds:
    """The contestants take turns, so that load on the machine affects all of them."""
    found: Rounds = {}
    for _ in range(many):
        for one in contestants:
            found.setdefault(one.name, []).append(await of(one))
    return found


def median(found: list[list[float]]) -> float:
    """The median of the rounds' medians."""
    return statistics.median(percentile(one, 0.5) for one in found)


def p99(found: list[list[float]]) -> float:
    """Of all rounds together: that of one round would be its slowest job or the one before."""
    return percentile([each for one in found for each in one], 0.99)


async def writes(redis: Redis) -> list[float]:
    """Milliseconds of one durable write from this process: the disk's share of the results."""
    seen = []
    for _ in range(200):
        before = time.monotonic()
        await redis.set("written", b"1")
        seen.append((time.monotonic() - before) * 1000)
    return seen


async def measure(contestants: list[Contestant], gateway_alone: Contestant) -> None:
    found = await rounds(pickups, contestants, ROUNDS)
    after = await rounds(after_slots, contestants, SLOT_ROUNDS)
    *idling, alone = await asyncio.gather(*map(idle, contestants), commands(gateway_alone))
    idle_of = {one.name: rate for one, rate in zip(contestants, idling, strict=True)}
    gateway, direct = contestants[:2]
    idle_of[gateway.name] -= alone  # the gateway's own commands, regardless of the number of nodes
    figures = {
        name: {
            "p50_ms": median(of_one),
            "p99_ms": p99(of_one),
            "after_slot_p50_ms": median(after[name]),
            "idle_commands_per_second": idle_of[name],
        }
        for name, of_one in found.items()
    }
    tell(figures, ours=gateway.name)
    pairs = zip(found[gateway.name], found[direct.name], strict=True)
    less_p50 = statistics.median(percentile(a, 0.5) - percentile(b, 0.5) for a, b in pairs)
    less_p99 = p99(found[gateway.name]) - p99(found[direct.name])
    print(f"Gateway less direct: p50 {less_p50:.2f} ms (median of the pairs), p99 {less_p99:.2f} ms.")
    again = {one.name: [await rerun(one) for _ in range(RESTARTS)] for one in (gateway, direct)}
    reruns = {
        name: (
            statistics.median(one.since_ready for one in of_one),
            statistics.median(one.since_exec for one in of_one),
        )
        for name, of_one in again.items()
    }
    for name, (since_ready, since_exec) in reruns.items():
        print(f"{name}: after kill -9, the job runs again {since_ready:.2f} s after the new worker's start, ", end="")
        print(f"{since_exec:.2f} s with Python's own start and imports.")
    disk = await writes(gateway.redis)
    written = {"p50_ms": percentile(disk, 0.5), "p99_ms": percentile(disk, 0.99)}
    print(f"One durable write of Redis here: p50 {written['p50_ms']:.2f} ms, p99 {written['p99_ms']:.2f} ms.")
    print(
        json.dumps(
            {"rounds": ROUNDS, "medians": figures, "gateway_less_direct_ms": [less_p50, less_p99], "write": written}
        )
    )


def tell(figures: dict[str, dict[str, float]], *, ours: str) -> None:
    print(f"{ROUNDS} rounds, medians, p99 of all rounds together; the ratios are those of a contestant to {ours}")
    print(f"{'':<18}{'p50 ms':>10}{'ratio':>8}{'p99 ms':>10}{'ratio':>8}{'next job ms':>14}{'idle commands/s':>18}")
    for name, of_one in figures.items():
        fifty, ninety_nine = (of_one[column] / figures[ours][column] for column in ("p50_ms", "p99_ms"))
        print(
            f"{name:<18}{of_one['p50_ms']:>10.2f}{fifty:>8.2f}{of_one['p99_ms']:>10.2f}{ninety_nine:>8.2f}"
            f"{of_one['after_slot_p50_ms']:>14.2f}{of_one['idle_commands_per_second']:>18.2f}"
        )


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("localhost", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def gateway_at(socket: Path, folder: Path) -> AsyncIterator[GatewayAddress]:
    """A gateway with TLS. Yields its address for the node."""
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
    try:
        await until_told(lambda: listens(port))
        yield GatewayAddress(urls=(f"wss://localhost:{port}",), credential_file=credential, tls_ca_file=certificate)
    finally:
        await child.stop()


async def a_redis(stack: AsyncExitStack) -> tuple[RedisServer, Path]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-bench-")))
    server = RedisServer(folder)
    stack.callback(server.kill)
    server.start()
    return server, folder


async def behind_gateway(stack: AsyncExitStack) -> tuple[Contestant, GatewayAddress]:
    server, folder = await a_redis(stack)
    redis = await enter(stack, server)
    address = await stack.enter_async_context(gateway_at(server.socket, folder))
    return Ours(Kind.GATEWAY, server, redis, place=address.model_dump_json()), address


async def contestant(stack: AsyncExitStack, kind: str) -> Contestant:
    """`kind`: one of Kind or of PEERS."""
    server, _ = await a_redis(stack)
    redis = await enter(stack, server)
    if kind == Kind.DIRECT:
        return Ours(Kind.DIRECT, server, redis)
    if kind not in PEERS:
        arq = ArqRedis(unix_socket_path=str(server.socket))  # with pickle, as arq does
        stack.push_async_callback(arq.aclose, close_connection_pool=True)
        return Arq(Kind(kind), server, redis, arq)
    queueing = running(peer_command(kind, str(server.socket)))
    return Peer(kind, server, redis, await stack.enter_async_context(queueing))


async def main() -> None:
    async with AsyncExitStack() as stack:
        gateway, _ = await behind_gateway(stack)
        others = [await contestant(stack, kind) for kind in (Kind.DIRECT, Kind.PLAIN, Kind.POLLING, *PEERS)]
        alone, address = await behind_gateway(stack)
        node = GatewayClient(address, node=NODE, machine="m1", who="a benchmark")
        async with in_background(node.keep_connected()):  # it checks the credentials of connected nodes
            await node.republish()
            await measure([gateway, *others], alone)


if __name__ == "__main__":
    uvloop.run(main())
