"""Simulated nodes of `tests.bench.fleet`: `python -m tests.bench.fleet_nodes GATEWAYS FIRST COUNT NODES SERVERS SLOTS`.

GATEWAYS: the sockets of the gateways, as JSON. Runs the nodes FIRST to FIRST + COUNT - 1 of all NODES, each with
SERVERS servers. A node makes the same calls as a worker: it holds its lease, reports its servers, takes jobs, and
reports each step and the end. Its jobs take no time. Prints `ready` when all nodes hold their lease, and for each job
`began ID MOMENT`, `finishing ID MOMENT` and `ended ID MOMENT`, in seconds of the machine's monotonic clock.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import uvloop

from tests.gateway import secret_of
from tests.logs import log_plainly
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.inventory import REPORT_SECONDS
from worker.lease import HEARTBEAT_SECONDS, LEASE_SECONDS
from worker.store.errors import StoreUnavailable
from worker.store.model import AccountId, Job, JobId, JobState, ServerId, SnapshotStatus, Step
from worker.store.nodes.claims import ReportedServer
from worker.store.nodes.protocol import TAKE_SECONDS
from worker.store.outcome import Outcome

ACCOUNT = AccountId(77)
STEPS = (Step.STOPPING, Step.CHECKING, Step.SNAPSHOTTING, Step.STARTING, Step.MEASURING)
DONE = Outcome(state=JobState.COMPLETED, size_mb=4856, downtime_seconds=1.0, snapshot_status=SnapshotStatus.COMPLETED)


def node_name(n: int) -> str:
    return f"node-{n}"


def servers_of(n: int, nodes: int, servers: int) -> list[ReportedServer]:
    """The servers that `tests.bench.seeding` assigns to the node."""
    ids = range(n + 1, nodes * servers + 1, nodes)
    return [ReportedServer(id=ServerId(one), account_id=ACCOUNT, name=f"web-{one}", power="on") for one in ids]


def say(word: str, job_id: str = "-") -> None:
    sys.stdout.write(f"{word} {job_id} {time.monotonic():.6f}\n")
    sys.stdout.flush()


class Node:
    def __init__(self, address: GatewayAddress, name: str, servers: list[ReportedServer], *, slots: int) -> None:
        self._client = GatewayClient(address, node=name, machine=name, who=f"simulated {name}")
        self._servers = servers
        self._slots = slots
        self._running: dict[JobId, asyncio.Task[None]] = {}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for loop in (self._client.keep_connected(), self._beating(), self._reporting(), self._taking()):
                tasks.create_task(loop)

    async def _beating(self) -> None:
        await self._again(HEARTBEAT_SECONDS, self._beat)

    async def _beat(self) -> None:
        assert await self._client.take_lease(seconds=LEASE_SECONDS) is None
        self.ready.set()

    async def _reporting(self) -> None:
        await self.ready.wait()
        await self._again(REPORT_SECONDS, self._report)

    async def _report(self) -> None:
        await self._client.report(self._servers)

    async def _again(self, seconds: float, do: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(seconds * random.random())
        while True:
            try:
                await do()
            except StoreUnavailable:
                await asyncio.sleep(0.5)
            else:
                await asyncio.sleep(seconds)

    async def _taking(self) -> None:
        await self.ready.wait()
        while True:
            free = self._slots - len(self._running)
            if free <= 0:
                await asyncio.wait(self._running.values(), return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                given = await self._client.take(running=[*self._running], free=free, seconds=TAKE_SECONDS)
            except StoreUnavailable:
                await asyncio.sleep(0.5)
                continue
            for one in given:
                job_id = one.id if isinstance(one, Job) else one
                if job_id not in self._running:
                    self._running[job_id] = asyncio.create_task(self._do(job_id, begun=isinstance(one, Job)))

    async def _do(self, job_id: JobId, *, begun: bool) -> None:
        try:
            if not begun:
                await self._client.begin(job_id)
            say("began", job_id)
            for step in STEPS:
                await self._client.progress(job_id, step)
            say("finishing", job_id)
            await self._client.finish(job_id, DONE, power="on")
            say("ended", job_id)
        finally:
            del self._running[job_id]


async def main() -> None:
    gateways = json.loads(sys.argv[1])
    first, count, nodes, servers, slots = map(int, sys.argv[2:])
    with tempfile.TemporaryDirectory(prefix="vps-fleet-") as folder:
        running = []
        for n in range(first, first + count):
            file = Path(folder) / f"{n}"
            file.touch(mode=0o600)
            file.write_text(secret_of(node_name(n)))
            url = f"unix://{gateways[n % len(gateways)]}"
            address = GatewayAddress(urls=(url,), credential_file=file)
            running.append(Node(address, node_name(n), servers_of(n, nodes, servers), slots=slots))
        async with asyncio.TaskGroup() as tasks:
            for node in running:
                tasks.create_task(node.run())
            for node in running:
                await node.ready.wait()
            say("ready")


if __name__ == "__main__":
    log_plainly(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    uvloop.run(main())
