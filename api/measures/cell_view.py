"""Metrics of the whole cell: read in the background, served from memory."""

import time
from collections.abc import AsyncIterator, Iterator

from aiohttp import web
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.program.background import in_background
from worker.program.loop import every
from worker.program.metrics import NAMESPACE
from worker.store.errors import StoreUnavailable
from worker.store.model import NODE_SILENT_SECONDS
from worker.store.operators.cell import Cell, CellNumbers, NodeNumbers

STALE_SECONDS = 120.0  # older numbers are not served: other front ends have newer ones


class CellView(Collector):
    """`read_seconds`: how often the cell is read. Numbers older than `stale_seconds` are not served.

    The scrape runs in another thread, so the numbers are replaced as a whole.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        read_seconds: float,
        node_silent_seconds: float = NODE_SILENT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self._cell = cell
        self._read_seconds = read_seconds
        self._silent_seconds = node_silent_seconds
        self._stale_seconds = stale_seconds
        # with the time of the reading, on the monotonic clock
        self._seen: tuple[CellNumbers | None, float] = (None, 0.0)
        self._seen_at = 0.0  # in Unix seconds

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Read the cell while the application runs."""
        expected: dict[type[Exception], str] = {StoreUnavailable: "cell_view.store_unavailable"}
        reading = every(self._read_seconds, self._read, name="cell_view", expected=expected)
        async with in_background(reading):
            yield

    async def _read(self) -> None:
        self._seen, self._seen_at = (await self._cell.numbers(), time.monotonic()), time.time()

    def collect(self) -> Iterator[Metric]:
        seen, at = self._seen
        text = "When this process last read the numbers of the cell; 0: never."
        yield _gauge("cell_view_timestamp_seconds", text, self._seen_at)
        if seen is None or time.monotonic() - at > self._stale_seconds:
            return
        yield from _of_cell(seen)
        yield self._count_nodes(seen)
        yield from _of_nodes(seen.nodes)

    def _count_nodes(self, seen: CellNumbers) -> Metric:
        nodes = _gauge("cell_nodes", "Nodes that are silent, paused (and not silent), or working.", label="state")
        silent = sum(node.heartbeat_age > self._silent_seconds for node in seen.nodes)
        paused = sum(node.paused and node.heartbeat_age <= self._silent_seconds for node in seen.nodes)
        nodes.add_metric(["silent"], silent)
        nodes.add_metric(["paused"], paused)
        nodes.add_metric(["working"], len(seen.nodes) - silent - paused)
        return nodes


def _of_cell(seen: CellNumbers) -> Iterator[Metric]:
    jobs = _gauge("cell_jobs", "Jobs that are waiting, and jobs that have started.", label="state")
    jobs.add_metric(["queued"], seen.queued)
    jobs.add_metric(["in_progress"], seen.running)
    yield jobs
    yield _gauge("cell_queue_age_seconds", "Age of the oldest waiting job; 0: no job is waiting.", seen.queue_age)
    yield _gauge("cell_servers", "Servers of all nodes.", seen.servers)
    yield _gauge(
        "cell_stranded_servers", "Stranded servers: a job could not put them back as they were.", seen.stranded
    )
    yield _gauge("cell_servers_with_findings", "Servers on which reconciliation found differences.", seen.with_findings)
    yield _gauge("cell_unreadable_records", "Records that could not be read in the last 24 hours.", seen.unreadable)
    yield _gauge("cell_audit_entries_waiting", "Entries that wait for the audit log's keeper.", seen.audit_waiting)
    yield _gauge("cell_backup_timestamp_seconds", "When the last backup was made; 0: never.", seen.backup_made)
    yield _gauge("cell_webhooks_due", "Webhooks with deliveries due now.", seen.webhooks_due)
    yield _gauge("cell_store_memory_bytes", "Memory that Redis uses.", seen.memory.used)
    yield _gauge("cell_store_memory_limit_bytes", "Memory that Redis may use; 0: no limit.", seen.memory.most)


def _of_nodes(nodes: tuple[NodeNumbers, ...]) -> Iterator[Metric]:
    heartbeat = _gauge("node_heartbeat_age_seconds", "Time since the worker's last heartbeat.", label="node")
    paused = _gauge("node_paused", "1: an operator has paused the node.", label="node")
    queued = _gauge("node_queued_jobs", "Jobs that are waiting for the node.", label="node")
    age = _gauge("node_queue_age_seconds", "Age of the node's oldest waiting job; 0: no job is waiting.", label="node")
    for node in nodes:
        heartbeat.add_metric([node.name], node.heartbeat_age)
        paused.add_metric([node.name], node.paused)
        queued.add_metric([node.name], node.queued)
        age.add_metric([node.name], node.queue_age)
    yield from (heartbeat, paused, queued, age)


def _gauge(name: str, text: str, value: float | None = None, *, label: str | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", text, value=value, labels=[label] if label else None)
