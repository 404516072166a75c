"""One trace from a customer's request to the steps on the node; failed or missing exporters have no effect on jobs."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from redis.asyncio import Redis

from deploy.demo.client import Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port
from drivers.base import Power
from drivers.fake import FIRST_SERVER_ID, SIMULATED_ACCOUNT_ID
from drivers.fake_state import FakeDisk, FakeServer, StateFile
from tests.conftest import RedisServer, needs
from tests.gateway import gateway
from tests.integration.collector import SeenSpan, collecting, hanging
from tests.queueing import until_told
from worker.store.access.tokens import Permission, Tokens
from worker.store.model import AccountId

TRACE, CALLERS_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
NAME, DESCRIPTION = "before-upgrade", "the customer's own words"
ROUTE = "/api/v1/snapshots/"
READY_SECONDS, STOPS_WITHIN_SECONDS = 60.0, 60.0  # far more than it needs; a hang would be forever
WITHOUT_THE_EXTRA = """
import sys
for name in ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto", "google", "requests"):
    sys.modules[name] = None
from {program}.main import main
main()
"""


@dataclass(kw_only=True)
class Cell:
    """A front end and a worker, as processes, with a Redis; each can be killed and restarted."""

    folder: Path
    settings: dict[str, str]
    client: Client
    children: dict[str, Child] = field(default_factory=dict)

    async def start(self, program: str, **more: str) -> None:
        command = [sys.executable, "-m", "worker.main", "run"]
        if program == "api":
            command = [sys.executable, "-c", "from api.main import main; main()"]
        settings = self.settings | {f"VPS_SNAPSHOTS_{name.upper()}": value for name, value in more.items()}
        self.children[program] = await Child.start(program, command, settings=settings, log=self.log(program))

    async def kill(self, program: str) -> None:
        self.children[program].kill()
        await self.children[program].ended()

    async def stop(self, program: str) -> int:
        """Stop it with SIGTERM. Returns its exit status."""
        async with asyncio.timeout(STOPS_WITHIN_SECONDS):
            return await self.children[program].stop()

    def log(self, program: str) -> Path:
        return self.folder / f"{program}.log"

    def lines(self, program: str, event: str) -> list[dict[str, Any]]:
        lines = map(json.loads, self.log(program).read_text().splitlines())
        return [line for line in lines if line["event"] == event]

    async def call(self, method: str, path: str, **headers: str) -> int:
        """The status of the answer."""
        sent = {"Authorization": f"Bearer {self.client.token}", **headers}
        async with (
            ClientSession() as session,
            session.request(method, f"{self.client.url}{path}", headers=sent) as response,
        ):
            return response.status

    async def create(self, *, traceparent: str = "") -> str:
        """Create a snapshot as soon as the node has reported its server. Returns the path of the job."""
        headers = {"Authorization": f"Bearer {self.client.token}"}
        if traceparent:
            headers["traceparent"] = traceparent
        body = {"server_id": FIRST_SERVER_ID, "name": NAME, "description": DESCRIPTION}
        async with asyncio.timeout(READY_SECONDS), ClientSession(headers=headers) as session:
            while True:
                async with session.post(f"{self.client.url}{ROUTE}", json=body) as response:
                    if response.status == 201:
                        return response.headers["Operation-Location"]
                await asyncio.sleep(0.05)

    async def completed(self, job: str) -> dict[str, Any]:
        ended = await self.client.follow(job, timeout_seconds=30)
        assert ended["state"] == "completed", ended
        return ended


async def _is_published(redis: Redis) -> bool:
    fields: dict[bytes, bytes] = await redis.hgetall(f"server:{FIRST_SERVER_ID}")  # type: ignore[misc]
    return bool(fields) and b"unpublished" not in fields


@asynccontextmanager
async def cell(redis_server: RedisServer, redis: Redis, folder: Path, endpoint: str) -> AsyncIterator[Cell]:
    port = free_port()
    permissions = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
    new = await Tokens(redis).create(name="t", account_id=AccountId(SIMULATED_ACCOUNT_ID), permissions=permissions)
    settings = {
        "VPS_SNAPSHOTS_REDIS__URL": f"unix://{redis_server.socket}",
        "VPS_SNAPSHOTS_PORT": str(port),
        "VPS_SNAPSHOTS_DRIVER": "fake",
        "VPS_SNAPSHOTS_FAKE_SERVERS": "1",
        "VPS_SNAPSHOTS_STATE_DIR": str(folder / "node"),
        "VPS_SNAPSHOTS_NODE": "n1",
        "VPS_SNAPSHOTS_TRACING__ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "20",  # ms
    }
    cell = Cell(folder=folder, settings=settings, client=Client(f"http://127.0.0.1:{port}", new.secret))
    stack = AsyncExitStack()
    reached = await stack.enter_async_context(gateway(redis_server.socket))
    settings |= {f"VPS_SNAPSHOTS_{name}": value for name, value in reached.environment.items()}
    try:
        await cell.start("api")
        await cell.start("worker")
        async with asyncio.timeout(READY_SECONDS):
            while not await cell.client.is_up():  # noqa: ASYNC110 - another process tells nobody that it is up
                await asyncio.sleep(0.05)
        await until_told(lambda: _is_published(redis))
        yield cell
    finally:
        for child in cell.children.values():
            child.kill()
            await child.ended()
        await stack.aclose()


@pytest.fixture
def start(redis_server: RedisServer, redis: Redis, tmp_path: Path) -> Callable[[str], Any]:
    needs("setpriv")
    return lambda endpoint: cell(redis_server, redis, tmp_path, endpoint)


def named(name: str, **attributes: object) -> Callable[[SeenSpan], bool]:
    wanted = {f"vps_snapshots.{key}": value for key, value in attributes.items()}
    return lambda span: span.name == name and wanted.items() <= span.attributes.items()


async def test_one_trace_leads_from_the_callers_request_to_each_step(start: Callable[[str], Any]) -> None:
    async with collecting() as collector, start(collector.url) as cell:
        job = await cell.completed(await cell.create(traceparent=f"00-{TRACE}-{CALLERS_SPAN}-01"))
        job_span = await collector.seen(named("job create"))

        request = await collector.seen(lambda span: span.attributes.get("http.response.status_code") == 201)
        assert (request.name, request.parent, request.service) == (f"POST {ROUTE}", CALLERS_SPAN, "vps-snapshots-api")
        assert request.attributes["http.route"] == ROUTE
        assert request.attributes["vps_snapshots.request.id"] == job_span.attributes["vps_snapshots.request.id"]
        (admission,) = collector.children(request)
        assert (admission.name, admission.attributes["vps_snapshots.job.id"]) == ("admit create", job["id"])
        assert collector.children(admission) == [job_span]
        assert job_span.service == "vps-snapshots-worker"
        about = {name.removeprefix("vps_snapshots."): value for name, value in job_span.attributes.items()}
        assert about == {
            "job.id": job["id"],
            "job.kind": "create",
            "server.id": FIRST_SERVER_ID,
            "node": "n1",
            "request.id": request.attributes["vps_snapshots.request.id"],
            "resumed": False,
            "outcome": "completed",
        }
        *steps, let_go, at_the_end = collector.children(job_span)
        assert (let_go.name, at_the_end.name) == ("hypervisor let_go", "hypervisor power")
        assert [step.name for step in steps] == [
            f"step {name}" for name in ("preflight", "stopping", "checking", "snapshotting", "starting", "measuring")
        ]
        assert {step.attributes["vps_snapshots.outcome"] for step in steps} == {"completed"}
        assert {step.attributes["vps_snapshots.attempts"] for step in steps} == {1}
        taking = collector.children(steps[3])
        assert [call.name for call in taking] == ["hypervisor take_snapshot"]
        assert not [span for span in collector.of_trace(TRACE) if span.failed]

        assert {line["trace_id"] for line in cell.lines("worker", "job.completed")} == {TRACE}
        assert TRACE in {line["trace_id"] for line in cell.lines("api", "request.done")}
        for secret in (NAME, DESCRIPTION, cell.client.token):
            assert secret.encode() not in collector.raw


async def test_a_request_is_named_by_its_route_and_never_by_a_strangers_text(start: Callable[[str], Any]) -> None:
    async with collecting() as collector, start(collector.url) as cell:
        assert await cell.call("GET", "/readyz") == 200
        assert await cell.call("GET", f"{ROUTE}?name=private", traceparent="00-no-trace-01") == 200
        assert await cell.call("GET", f"{ROUTE}999/") == 404
        assert await cell.call("PROPFIND", "/some/private/tea") == 404

        tea = await collector.seen(lambda span: span.name == "HTTP")
        assert tea.attributes.keys() & {"http.route", "url.path", "url.query"} == set()
        listed = await collector.seen(named(f"GET {ROUTE}"))
        assert (listed.parent, len(listed.trace_id)) == ("", 32)
        missed = await collector.seen(named(f"GET {ROUTE}{{snapshot_id}}/"))
        assert (missed.attributes["http.response.status_code"], missed.failed) == (404, False)
        assert missed.attributes["url.path"] == f"{ROUTE}999/"
        assert b"private" not in collector.raw
        assert not [span for span in collector.spans if "readyz" in span.name]
        assert not [span for span in collector.spans if span.service == "vps-snapshots-worker"]


async def test_a_job_whose_worker_was_killed_continues_in_the_same_trace(
    start: Callable[[str], Any], tmp_path: Path
) -> None:
    deaf = FakeServer(
        name="web-server-01",
        server_id=FIRST_SERVER_ID,
        account_id=SIMULATED_ACCOUNT_ID,
        power=Power.ON,
        deaf=True,
        disks={"vda": FakeDisk()},
    )
    StateFile(tmp_path / "node" / "fake.json").write(deaf)
    async with collecting() as collector, start(collector.url) as cell:
        job = await cell.create(traceparent=f"00-{TRACE}-{CALLERS_SPAN}-01")
        await collector.seen(named("hypervisor press_power_button"))
        await cell.kill("worker")
        await cell.start("worker", grace_seconds="0.1")
        await cell.completed(job)

        resumed = await collector.seen(named("job create"))
        assert (resumed.trace_id, resumed.attributes["vps_snapshots.resumed"]) == (TRACE, True)
        (admission,) = [span for span in collector.of_trace(TRACE) if span.id == resumed.parent]
        assert admission.name == "admit create"
        stopping = collector.children(resumed)[0]
        assert stopping.name == "step stopping"
        assert stopping.attributes["vps_snapshots.resumed"] is True
        assert stopping.attributes["vps_snapshots.attempts"] == 2
        before = [span.name for span in collector.of_trace(TRACE) if span.parent not in {"", resumed.id}]
        assert "step preflight" in before  # of the killed run


async def test_a_job_that_fails_shows_the_step_and_the_code_and_no_text(
    start: Callable[[str], Any], tmp_path: Path
) -> None:
    raw = FakeServer(
        name="web-server-01",
        server_id=FIRST_SERVER_ID,
        account_id=SIMULATED_ACCOUNT_ID,
        power=Power.ON,
        disks={"vda": FakeDisk(unsupported="lies in /srv/private.raw")},
    )
    StateFile(tmp_path / "node" / "fake.json").write(raw)
    async with collecting() as collector, start(collector.url) as cell:
        ended = await cell.client.follow(await cell.create(), timeout_seconds=30)
        assert ended["state"] == "failed"
        job = await collector.seen(named("job create", outcome="failed", stranded=False))
        step, *_at_the_end = collector.children(job)
        assert step.name == "step preflight"
        assert step.attributes["vps_snapshots.outcome"] == "failed"
        for span in (job, step, *collector.children(step)):
            assert (span.failed, span.attributes["error.type"]) == (True, "unsupported_server")
        assert b"private" not in collector.raw


@pytest.mark.parametrize("how", ["nobody listens", "hangs"])
async def test_a_collector_that_is_not_there_holds_up_nothing(start: Callable[[str], Any], how: str) -> None:
    async with hanging() as address:
        endpoint = address if how == "hangs" else f"http://127.0.0.1:{free_port()}"
        async with start(endpoint) as cell:
            await cell.completed(await cell.create())
            assert set(await asyncio.gather(cell.stop("worker"), cell.stop("api"))) == {0}
            for program in ("api", "worker"):
                assert len(cell.lines(program, "tracing.trouble")) <= 1
                assert not cell.lines(program, "request.failed")


@pytest.mark.parametrize(("program", "ready"), [("api", "api.listening"), ("worker", "worker.started")])
async def test_the_programs_run_without_the_extra(
    redis_server: RedisServer, redis: Redis, tmp_path: Path, program: str, ready: str
) -> None:
    process = await _without_the_extra(redis_server, tmp_path, program)
    assert process.stderr
    async with asyncio.timeout(READY_SECONDS):
        async for line in process.stderr:
            if json.loads(line)["event"] == ready:
                break
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(STOPS_WITHIN_SECONDS):
        _, rest = await process.communicate()
    assert process.returncode == 0, rest.decode()


@pytest.mark.parametrize("program", ["api", "worker"])
async def test_to_ask_for_traces_without_the_extra_is_refused(
    redis_server: RedisServer, redis: Redis, tmp_path: Path, program: str
) -> None:
    endpoint = {"VPS_SNAPSHOTS_TRACING__ENDPOINT": "http://127.0.0.1:4318"}
    process = await _without_the_extra(redis_server, tmp_path, program, **endpoint)
    async with asyncio.timeout(READY_SECONDS):
        _, said = await process.communicate()
    assert process.returncode == 2, said.decode()
    assert b"tracing.endpoint is set, but the extra `tracing` is not installed" in said
    assert b"Traceback" not in said


async def _without_the_extra(
    redis_server: RedisServer, folder: Path, program: str, **more: str
) -> asyncio.subprocess.Process:
    settings = {
        "VPS_SNAPSHOTS_REDIS__URL": f"unix://{redis_server.socket}",
        "VPS_SNAPSHOTS_PORT": "0",
        "VPS_SNAPSHOTS_DRIVER": "fake",
        "VPS_SNAPSHOTS_STATE_DIR": str(folder),
    }
    command = {"api": "serve", "worker": "run"}[program]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_THE_EXTRA.format(program=program), command),
        env=settings | more,
        stderr=asyncio.subprocess.PIPE,
    )
