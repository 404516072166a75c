"""A cell whose programs are scraped: a worker with simulated servers, wired as in production, and a front end."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client.parser import text_string_to_metric_families
from structlog.typing import Processor

from api.measures.metrics import Metrics as ApiMetrics
from drivers.base import Power
from drivers.fake import FakeHypervisor
from drivers.fake_faults import Effect
from drivers.fake_state import FakeDisk, FakeServer
from tests.conftest import RedisServer
from tests.gateway import gateway
from tests.integration.conftest import ACCOUNT, Cell, node_store
from tests.integration.front_end import Answer, FrontEnd, serving
from tests.queueing import until_told
from worker.job_log import JobLog
from worker.journal import Journal
from worker.main import _live, _Means, _wired
from worker.metrics import Metrics as WorkerMetrics
from worker.program.exposition import exposed
from worker.program.log_fields import with_fields
from worker.settings import WorkerSettings
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import ServerId
from worker.store.redis_client import RedisSettings, connect

WELL, SICK, STRANDED = ServerId(50_001), ServerId(50_002), ServerId(50_003)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, kw_only=True)
class Scraped:
    front_end: FrontEnd
    worker_port: int
    gateway_port: int
    hypervisor: FakeHypervisor

    async def scrape(self, port: int) -> Samples:
        async with self.front_end.client.get(f"http://127.0.0.1:{port}/metrics") as answer:
            assert answer.status == 200
            return samples(await answer.text())

    async def both(self) -> Samples:
        return await self.scrape(self.front_end.port) | await self.scrape(self.worker_port)

    async def round(self, number: int) -> None:
        """Run jobs that complete, one that fails, one that strands its server (the first time), and refused calls."""
        self.hypervisor.faults.fail(Effect.SNAPSHOT_DISK, server_id=SICK)
        self.hypervisor.faults.fail(Effect.START, server_id=STRANDED, times=100)
        made = await self.create(WELL, f"round-{number}")
        failed = await self.create(SICK, f"round-{number}")
        stranded = [await self.create(STRANDED, "once")] if number == 1 else []
        await self.ended(made)
        path = made.headers["Location"]
        await self.ended(await self.front_end.call("POST", f"{path}restore/"))
        deleted = await self.front_end.call("DELETE", path)
        assert deleted.status == 204
        for answer in (deleted, failed, *stranded):
            await self.ended(answer)
        for token in ("vps_wrong", self.front_end.token):
            await self.front_end.call("GET", "/api/v1/snapshots/999/", token=token)

    async def create(self, server: ServerId, name: str) -> Answer:
        answer = await self.front_end.call("POST", body={"server_id": server, "name": name})
        assert answer.status == 201, answer.raw
        return answer

    async def ended(self, answer: Answer) -> None:
        async def over() -> bool:
            job = await self.front_end.call("GET", answer.headers["Operation-Location"])
            return job.body["state"] in {"completed", "failed"}

        await until_told(over)


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"vps_snapshots_{name}", frozenset(labels.items())]


@contextmanager
def counted(*processors: Processor) -> Iterator[None]:
    """Count log lines."""
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[with_fields, structlog.stdlib.add_log_level, *processors, *before])
    try:
        yield
    finally:
        structlog.configure(processors=before)


@asynccontextmanager
async def scraped(server: RedisServer, folder: Path) -> AsyncIterator[Scraped]:
    """Starts with an empty Redis. Jobs of the servers SICK and STRANDED fail when the test requests it."""
    api_metrics, worker_metrics, job_log = ApiMetrics(), WorkerMetrics(), JobLog()
    redis = RedisSettings(url=f"unix://{server.socket}")
    hypervisor = FakeHypervisor(map(_server, (WELL, SICK, STRANDED)))
    settings = WorkerSettings(node="node-1", state_dir=folder, start_seconds=1)
    async with AsyncExitStack() as stack:
        stack.enter_context(counted(job_log, api_metrics.log_events, worker_metrics.log_events))
        client = connect(redis, observer=api_metrics.redis)
        stack.push_async_callback(client.aclose, close_connection_pool=True)
        cell = Cell(redis=client, store=CustomerStore(client), node=node_store(client))
        options: dict[str, Any] = {"metrics_look_seconds": 0.1, "webhooks_to_private": True, "webhook_seconds": 1}
        options |= {"calls_per_minute": 100_000}  # the rounds come as fast as the machine permits
        front_end = await stack.enter_async_context(serving(cell, metrics=api_metrics, **options))
        port = await stack.enter_async_context(exposed(worker_metrics.registry, host="127.0.0.1", port=0))
        assert port is not None
        journal = Journal(folder / "journal.sqlite")
        stack.callback(journal.close)
        reached = await stack.enter_async_context(gateway(server.socket, node="node-1"))
        gateway_port = await stack.enter_async_context(exposed(reached.metrics.registry, host="127.0.0.1", port=0))
        assert gateway_port is not None
        store = await stack.enter_async_context(reached.client(observer=worker_metrics.gateway))
        means = _Means(
            settings=settings,
            hypervisor=hypervisor,
            journal=journal,
            job_log=job_log,
            metrics=worker_metrics,
            store=store,
        )
        stop = asyncio.Event()
        living = asyncio.create_task(_live(_wired(means), settings, stop))
        try:
            await _known(front_end)
            yield Scraped(front_end=front_end, worker_port=port, gateway_port=gateway_port, hypervisor=hypervisor)
        finally:
            stop.set()
            await living


def _server(server_id: ServerId) -> FakeServer:
    return FakeServer(
        name=f"web-{server_id}", server_id=server_id, account_id=ACCOUNT, power=Power.ON, disks={"vda": FakeDisk()}
    )


async def _known(front_end: FrontEnd) -> None:
    async def reachable() -> bool:
        answers = [await front_end.call("GET", f"/api/v1/servers/{server}/") for server in (WELL, SICK, STRANDED)]
        published = [await front_end.cell.raw("HEXISTS", f"server:{s}", "unpublished") for s in (WELL, SICK, STRANDED)]
        return all(answer.status == 200 for answer in answers) and not any(published)

    await until_told(reachable)
