"""The content of /metrics, who can read it, and what it must not contain."""

import asyncio
import re
import socket
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from structlog.testing import capture_logs

from api.measures.cell_view import CellView
from drivers.base import Power
from tests.bench.seeding import Size, seed
from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, Cell
from tests.integration.dying import DyingNode
from tests.integration.front_end import Answer, FrontEnd, serving
from tests.integration.scraping import SICK, STRANDED, WELL, Samples, samples, scraped, value
from tests.queueing import until_told
from worker.journal import Journal
from worker.metrics import Metrics
from worker.program.exposition import exposed
from worker.program.metrics import registry
from worker.program.redis_metrics import REDIS_ERRORS, RedisMetrics
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.model import JobKind
from worker.store.operators.cell import GONE_SECONDS, PAGE
from worker.store.operators.cell import Cell as CellLooks
from worker.store.redis_client import RedisSettings, connect

BOUNDED = {
    *("kind", "outcome", "code", "step", "finding", "pool", "event", "level", "error"),
    *("method", "route", "status", "result", "node", "state", "le", "version", "python", "clock"),
}


async def test_a_run_of_jobs_can_be_read_from_both_programs(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with scraped(redis_server, tmp_path) as run:
        await run.round(1)

        async def settled() -> bool:
            found = await run.both()
            seen = value(found, "cell_stranded_servers") and not value(found, "jobs_owed")
            return bool(seen) and value(found, "jobs_total", kind="delete", outcome="completed") == 1

        await until_told(settled)
        found = await run.both()

    for outcome, kind in [
        ("completed", "create"),
        ("completed", "restore"),
        ("failed", "create"),
        ("stranded", "create"),
    ]:
        assert value(found, "jobs_total", kind=kind, outcome=outcome) == 1
    assert value(found, "job_failures_total", code="disk_failed") == 1
    assert value(found, "job_failures_total", code="start_failed") == 1
    assert value(found, "job_duration_seconds_count", kind="create") == 3
    assert value(found, "job_step_duration_seconds_count", kind="create", step="snapshotting") == 3
    assert value(found, "job_step_retries_total", kind="create", step="starting") == 3
    assert value(found, "guest_downtime_seconds_count", kind="create") == 2  # the third server is off
    assert value(found, "job_pickup_seconds_count", kind="create") == 3
    assert value(found, "storage_free_bytes", pool="/simulated") < value(found, "storage_size_bytes", pool="/simulated")
    assert value(found, "lease_held") == value(found, "redis_up") == 1
    assert value(found, "jobs_running") == 0
    assert value(found, "journal_bytes") > 0
    assert value(found, "log_events_total", event="job.stranded", level="error") == 1
    assert value(found, "node_heartbeat_age_seconds", node="node-1") < 60
    assert value(found, "node_queued_jobs", node="node-1") == 0
    assert value(found, "cell_jobs", state="queued") == value(found, "cell_jobs", state="in_progress") == 0
    assert value(found, "cell_servers") == 3
    assert value(found, "cell_store_memory_bytes") > value(found, "cell_store_memory_limit_bytes") == 0
    assert value(found, "http_problems_total", code="token_invalid") == 1
    asked = {"method": "POST", "route": "/api/v1/snapshots/{snapshot_id}/restore/", "status": "2xx"}
    assert value(found, "http_request_duration_seconds_count", **asked) == 1
    _says_nothing_of_customers(found)


def _says_nothing_of_customers(found: Samples) -> None:
    ours = [labels for name, labels in found if name.startswith("vps_snapshots_")]
    assert {label for labels in ours for label, _ in labels} <= BOUNDED
    texts = {text for labels in ours for label, text in labels if label != "le"}
    told = re.compile(rf"{WELL}|{SICK}|{STRANDED}|\b{ACCOUNT}\b|[0-9a-f]{{32}}|round|once|vps_")
    assert not [text for text in texts if told.search(text)]


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, metrics_look_seconds=0.05) as front_end:
        yield front_end


async def scrape(api: FrontEnd) -> Samples:
    return samples((await api.call("GET", "/metrics")).raw.decode())


async def test_callers_input_adds_no_series(api: FrontEnd) -> None:
    async def requests(words: str) -> None:
        for method in ("GET", "DELETE", f"MADE{words}UP"):
            await api.call(method, f"/{words}")
            await api.call(method, f"/api/v1/snapshots/{len(words)}/", headers={"X-Account-Id": str(len(words))})

    async def shows_the_cell() -> bool:
        return any(name == "vps_snapshots_cell_servers" for name, _ in await scrape(api))

    await until_told(shows_the_cell)
    await requests("a")
    before = (await scrape(api)).keys()
    for n in range(2, 12):
        await requests("b" * n)

    assert (await scrape(api)).keys() == before


def without_ids(answer: Answer) -> tuple[int, object, set[str]]:
    return answer.status, {**answer.body, "request_id": ""}, set(answer.headers)


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    ("settings", "headers"),
    [
        ({"metrics_networks": ["192.0.2.0/24"]}, {}),
        ({"metrics_networks": []}, {}),
        ({}, {"X-Forwarded-For": "127.0.0.1"}),
        ({"trusted_proxies": ["127.0.0.0/8"]}, {"X-Forwarded-For": "127.0.0.1"}),
        ({}, {"Forwarded": "for=127.0.0.1"}),
        ({}, {"Via": "1.1 a-proxy"}),
    ],
)
async def test_all_other_callers_get_404(
    cell: Cell, method: str, settings: dict[str, Any], headers: dict[str, str]
) -> None:
    async with serving(cell, **settings) as api:
        answer = await api.call(method, "/metrics", headers=headers)
        nowhere = await api.call(method, "/nowhere", headers=headers)

    answer.refused(404, "not_found")
    assert without_ids(answer) == without_ids(nowhere)


async def test_prometheus_needs_no_token_and_leaves_no_trace(api: FrontEnd) -> None:
    with capture_logs() as lines:
        async with api.client.get(f"http://127.0.0.1:{api.port}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
        async with api.client.post(f"http://127.0.0.1:{api.port}/metrics") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")

    done = [line["log_level"] for line in lines if line["event"] == "request.done"]
    assert done == ["debug", "debug"]
    assert not await api.cell.redis.keys("calls:failed:*")
    assert not await api.cell.redis.xlen("audit")


async def test_the_numbers_of_the_cell_are_those_of_the_moment_that_it_tells(api: FrontEnd) -> None:
    await api.create()
    await api.cell.raw("HSET", "node:n1", "paused_ms", 1)

    async def seen() -> bool:
        found = await scrape(api)
        is_paused = bool(found.get(("vps_snapshots_node_paused", frozenset({("node", "n1")}))))
        return is_paused and value(found, "cell_jobs", state="queued") == 1

    await until_told(seen)
    found = await scrape(api)
    assert value(found, "node_queued_jobs", node="n1") == value(found, "cell_jobs", state="queued") == 1
    assert value(found, "node_queue_age_seconds", node="n1") >= 0
    assert [value(found, "cell_nodes", state=state) for state in ("silent", "paused", "working")] == [0, 1, 0]
    assert value(found, "cell_view_timestamp_seconds") > 0


async def test_entries_that_no_keeper_takes_are_counted(redis: Redis) -> None:
    looks = CellLooks(redis)
    assert (await looks.numbers()).audit_waiting == 0
    await Audit(redis).write({"token": "a"}, {"token": "b"})
    assert (await looks.numbers()).audit_waiting == 2
    await AuditKeeper(redis, kept=None).keep()
    assert (await looks.numbers()).audit_waiting == 0
    await redis.set("audit:new", "no list")
    assert (await looks.numbers()).audit_waiting == 0


async def test_outdated_values_are_not_reported(cell: Cell) -> None:
    view = CellView(CellLooks(cell.redis), read_seconds=3600, stale_seconds=0)
    running = view.running(None)  # type: ignore[arg-type] # it asks nothing of the application
    await anext(running)

    async def seen() -> bool:
        return any(sample.value > 0 for metric in view.collect() for sample in metric.samples)

    await until_told(seen)
    assert [metric.name for metric in view.collect()] == ["vps_snapshots_cell_view_timestamp_seconds"]
    with pytest.raises(StopAsyncIteration):
        await anext(running)


async def test_nodes_are_read_in_parts_and_removed_ones_are_omitted(redis: Redis) -> None:
    many = 2 * PAGE + 1
    await seed(redis, Size(nodes=many, servers_per_node=1, jobs=0, open_jobs=0))
    looks = CellLooks(redis)
    assert len((await looks.numbers()).nodes) == many

    long_ago = {"heartbeat_ms": 1}
    assert (await looks.numbers()).nodes[0].heartbeat_age < GONE_SECONDS
    for node in ("node-1", "node-2"):
        await redis.hset(f"node:{node}", mapping=long_ago)  # type: ignore[misc] # redis-py types it as both kinds
    await redis.delete("servers:node:node-2")

    names = {node.name for node in (await looks.numbers()).nodes}
    assert "node-1" in names  # its servers still exist
    assert "node-2" not in names


async def test_metrics_of_redis_are_reported() -> None:
    found = registry()
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        redis = connect(RedisSettings(url=f"unix://{server.socket}"), observer=RedisMetrics(found))
        await redis.register_script("return 1")()  # Redis does not have it yet, which is not an error
        await redis.blpop(["a list"], timeout=1)  # type: ignore[misc] # redis-py types it as both kinds
        well = read(found)
        with pytest.raises(ResponseError):
            await redis.incr("a", amount="much")  # type: ignore[arg-type]
        server.kill()
        with pytest.raises(RedisError):
            await redis.ping()
        await redis.aclose(close_connection_pool=True)

    assert value(well, "redis_up") == 1
    assert value(well, "redis_command_duration_seconds_count") == 2  # the script is loaded and run
    assert [value(well, "redis_command_errors_total", error=error) for error in REDIS_ERRORS] == [0, 0, 0]
    ill = read(found)
    assert value(ill, "redis_up") == 0
    assert [value(ill, "redis_command_errors_total", error=error) for error in REDIS_ERRORS] == [1, 0, 1]


def read(found: CollectorRegistry) -> Samples:
    return samples(generate_latest(found).decode())


@pytest.mark.parametrize("kind", [JobKind.CREATE, JobKind.RESTORE, JobKind.DELETE])
async def test_a_job_counts_once_however_often_the_worker_dies(cell: Cell, tmp_path: Path, kind: JobKind) -> None:
    node = await DyingNode.make(cell, tmp_path, power=Power.ON)
    node.metrics = Metrics()
    node.start_over(die_at={3})
    job_id = await node.admit(kind)
    assert not await node.live(job_id)
    with closing(Journal(node.folder / "journal.sqlite")) as journal:
        (entry,) = journal.owed()
        begun_at = entry.facts.begun_at - 3600
        journal.enter(job_id, entry.step, replace(entry.facts, begun_at=begun_at))
    await node.settle(job_id)
    await node.live(job_id)  # delivered again

    found = read(node.metrics.registry)
    assert value(found, "jobs_total", kind=kind, outcome="completed") == 1
    assert value(found, "job_resumptions_total", kind=kind) == 1
    assert value(found, "job_duration_seconds_count", kind=kind) == 1
    assert value(found, "job_duration_seconds_sum", kind=kind) > 1800, "from its begin, in a life before"


async def test_a_port_in_use_does_not_block_the_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, capture_logs() as lines:
        port = taken.getsockname()[1]
        async with exposed(registry(), host="127.0.0.1", port=port) as served:
            assert served is None

    (line,) = lines
    assert (line["event"], line["port"], line["log_level"]) == ("metrics.not_served", port, "error")


async def test_without_a_port_nothing_is_served() -> None:
    with capture_logs() as lines:
        async with exposed(registry(), host="127.0.0.1", port=None) as served:
            assert served is None
    assert lines == []


async def test_a_silent_client_does_not_block_others() -> None:
    async with exposed(registry(), host="127.0.0.1", port=0) as port:
        _, silent = await asyncio.open_connection("127.0.0.1", port)
        answer, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"200 OK" in await answer.readline()
    for stream in (silent, asking):
        stream.close()
        await stream.wait_closed()


async def test_a_scraper_that_hangs_up_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async with exposed(registry(), host="127.0.0.1", port=0) as port:
        for sent in (b"", b"GET /metrics HTTP/1.1\r\n\r\n"):
            hung_up = socket.create_connection(("127.0.0.1", port or 0))
            hung_up.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed with a reset
            hung_up.sendall(sent)
            hung_up.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"200 OK" in await reader.read()
        writer.close()
        await writer.wait_closed()
    assert "Traceback" not in capfd.readouterr().err
