"""Our own clients work with the service, poll moderately, and repeat what can be repeated."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp import ClientSession
from requests.adapters import HTTPAdapter

from api.webhooks.sender import signed
from deploy.clients import generate
from deploy.clients.python import vps_snapshots as ours
from deploy.demo.service import SERVER_ID, Service
from deploy.demo.state import State
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import BROKE, DONE, FrontEnd, serving
from tests.integration.test_clients import PROGRAMS, RUN_SECONDS, TOOLS, did, run
from tests.integration.test_clients import tools as tools  # noqa: PLC0414 - a fixture
from tests.integration.whole_service import running
from worker.store.model import JobId
from worker.store.outcome import Outcome

TYPESCRIPT = generate.HERE / "typescript"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of a test


class Clock:
    """A clock that advances only when the client sleeps. `at_sleep`: actions at each sleep, by its number from 1."""

    def __init__(self, at_sleep: Callable[[int], None] = lambda _: None) -> None:
        self.slept: list[float] = []
        self._at_sleep = at_sleep

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)
        self._at_sleep(len(self.slept))


class Hasty(Clock):
    """Advances by ten seconds each time that it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 10.0
        return self._now


class Lossy(HTTPAdapter):
    """Loses the response to the first request."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[requests.PreparedRequest] = []

    def send(self, request: requests.PreparedRequest, *given: Any, **options: Any) -> requests.Response:
        response = super().send(request, *given, **options)
        self.sent.append(request)
        if len(self.sent) == 1:
            raise requests.ConnectionError("lost")
        return response


def client_of(api: FrontEnd, clock: Clock | None = None, **options: Any) -> ours.Client:
    return ours.Client(f"http://127.0.0.1:{api.port}/", api.token, clock=clock or time, **options)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as front_end:
        yield front_end


async def finish(api: FrontEnd, outcome: Outcome = DONE) -> None:
    job_id = JobId(await api.cell.holder())
    await api.cell.node.begin(job_id)
    await api.cell.node.finish(job_id, outcome)


def finishing(api: FrontEnd, *, at: int, outcome: Outcome = DONE) -> Clock:
    """End the job at this sleep."""
    loop = asyncio.get_running_loop()

    def at_sleep(number: int) -> None:
        if number == at:
            asyncio.run_coroutine_threadsafe(finish(api, outcome), loop).result()

    return Clock(at_sleep)


def work(url: str, token: str) -> dict[str, Any]:
    with ours.Client(url, token) as client:
        created = client.snapshots.create(server_id=SERVER_ID, name="from-python")
        create = client.wait_for_job(created.job_id)
        restore = client.wait_for_job(client.snapshots.restore(created.body["id"]).job_id, timeout_seconds=60)
        undo = client.wait_for_job(client.jobs.undo_restore(restore["id"]).job_id)
        checked = client.snapshots.check_restore(created.body["id"])
        schedule = client.schedules.create(server_id=SERVER_ID, name="nightly", when="daily", enabled=False)
        client.schedules.edit(schedule["id"], {"keep": 2})
        found = client.schedules.find(server_id=SERVER_ID, name="nightly")
        client.schedules.delete(schedule["id"])
        client.servers.set_labels(SERVER_ID, {"backup": "nightly"})
        by_label = client.schedules.create(
            server_labels={"backup": "nightly"}, name="all", when="daily", time_zone="Europe/Berlin", window_minutes=120
        )
        covered = [one["server"]["id"] for one in client.schedules.servers(by_label["id"])]
        client.schedules.delete(by_label["id"])
        edited = client.snapshots.edit(created.body["id"], {"labels": {"env": "test"}})
        by_name = client.snapshots.find(server_id=SERVER_ID, name="from-python")
        client.wait_for_job(client.snapshots.delete(created.body["id"]).job)
        return {
            "jobs": [f"{job['kind']} {job['state']}" for job in (create, restore, undo)],
            "checked": client.wait_for_job(checked["id"])["state"],
            "keep": found and found["keep"],
            "covered": covered,
            "labels": edited["labels"],
            "by_name": by_name and by_name["id"] == created.body["id"],
            "left": [snapshot["name"] for snapshot in client.snapshots.list(server_id=SERVER_ID)],
            "server": client.servers.get(SERVER_ID)["status"],
        }


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with AsyncExitStack() as stack:
        state = stack.enter_context(closing(State.open(tmp_path / "state")))
        yield await stack.enter_async_context(running(state))


async def test_the_clients_for_python_and_typescript_do_the_work(tools: Path, service: Service, tmp_path: Path) -> None:
    assert await asyncio.to_thread(work, service.url, service.client.token) == {
        "jobs": ["create completed", "restore completed", "undo completed"],
        "checked": "completed",
        "keep": 2,
        "covered": [SERVER_ID],
        "labels": {"env": "test"},
        "by_name": True,
        "left": [],
        "server": "active",
    }

    modules = tmp_path / "node_modules"
    modules.symlink_to(tools / "node_modules")
    tsc = modules / ".bin" / "tsc"
    await run(tmp_path, tsc, "--project", TYPESCRIPT / "tsconfig.json", "--outDir", tmp_path / "client")
    for program in ("ours.ts", "polls.ts"):
        (tmp_path / program).write_text((PROGRAMS / program).read_text())
    (tmp_path / "package.json").write_text('{"type": "module"}')
    strict = ("--strict", "--noEmit", "--target", "es2024", "--module", "nodenext", "--skipLibCheck")
    await run(tmp_path, tsc, *strict, "--types", "node", "ours.ts", "polls.ts")
    assert await did(tmp_path, service, "node", "ours.ts") == {
        "jobs": ["create completed", "restore completed", "undo completed"],
        "refused": True,
        "found": True,
        "missing": "snapshot_not_found",
        "listed": [],
        "genuine": "webhook.test",
        "forged": True,
    }
    told = await did(tmp_path, service, "node", "polls.ts")
    # the first read, and the one after the stream was refused, come before the first wait
    assert (told["ended"], told["polled"]) == ("completed", [min(1.5**n, 15.0) for n in range(7)])
    assert (told["still"], told["rare"]) == ("still in_progress", [15, 15, 10])
    assert (told["silent"]["end"], told["silent"]["waited"]) == ("completed", [])
    assert told["silent"]["looks"] <= 5  # one after each half minute of its clock, and a final one


async def test_an_event_that_is_lost_is_not_waited_for_without_end(cell: Cell) -> None:
    async with serving(cell, heartbeat_seconds=0.05) as api:
        clock = Hasty()
        with client_of(api, clock) as client:
            created = await asyncio.to_thread(client.snapshots.create, server_id=SERVER, name="n")
            waiting = asyncio.create_task(asyncio.to_thread(client.wait_for_job, created.job_id))
            async with asyncio.timeout(60):
                while b"event_streams_open 1.0" not in (await api.call("GET", "/metrics")).raw:  # noqa: ASYNC110 - it tells no event
                    await asyncio.sleep(0.01)
            ended = {"state": "completed", "finished_ms": str(round(time.time() * 1000))}
            await cell.redis.hset(f"job:{created.job_id}", mapping=ended)  # type: ignore[misc]  # redis-py's types
            async with asyncio.timeout(60):
                job = await waiting

    assert (job["state"], clock.slept) == ("completed", [])


async def test_a_job_is_followed_by_the_stream_without_a_poll(api: FrontEnd) -> None:
    clock = Clock()
    with client_of(api, clock) as client:
        created = await asyncio.to_thread(client.snapshots.create, server_id=SERVER, name="n")
        waiting = asyncio.create_task(asyncio.to_thread(client.wait_for_job, created.job_id))
        async with asyncio.timeout(60):
            while b"event_streams_open 1.0" not in (await api.call("GET", "/metrics")).raw:  # noqa: ASYNC110 - it tells no event
                await asyncio.sleep(0.01)
        await finish(api)
        job = await waiting

    assert (job["state"], clock.slept) == ("completed", [])


async def test_without_a_stream_it_is_polled_less_and_less_often(cell: Cell) -> None:
    async with serving(cell, streams_per_account=1) as api, ClientSession() as other:
        clock = finishing(api, at=9)
        headers = {"Authorization": f"Bearer {api.token}"}
        async with other.get(f"http://127.0.0.1:{api.port}/api/v1/events/", headers=headers):
            with client_of(api, clock) as client:
                created = await asyncio.to_thread(client.snapshots.create, server_id=SERVER, name="n")
                job = await asyncio.to_thread(client.wait_for_job, created.job_id)

    assert job["state"] == "completed"
    assert clock.slept == [min(1.5**n, 15.0) for n in range(9)]


async def test_with_few_calls_left_it_is_polled_rarely_and_not_beyond_the_time(cell: Cell) -> None:
    async with serving(cell, streams_per_account=1, calls_per_minute=50) as api, ClientSession() as other:
        clock = Clock()
        headers = {"Authorization": f"Bearer {api.token}"}
        async with other.get(f"http://127.0.0.1:{api.port}/api/v1/events/", headers=headers):
            with client_of(api, clock) as client:
                created = await asyncio.to_thread(client.snapshots.create, server_id=SERVER, name="n")
                with pytest.raises(ours.StillRunning):
                    await asyncio.to_thread(client.wait_for_job, created.job_id, timeout_seconds=40)

    assert clock.slept == [15.0, 15.0, 10.0]


async def test_a_failed_job_is_an_error_that_tells_why(cell: Cell) -> None:
    async with serving(cell, streams=1, streams_per_account=1) as api:
        with client_of(api) as client:
            created = await asyncio.to_thread(client.snapshots.create, server_id=SERVER, name="n")
            await finish(api, BROKE)
            with pytest.raises(ours.JobFailed, match="disk_failed: vda") as caught:
                await asyncio.to_thread(client.wait_for_job, created.job_id)
            assert (await asyncio.to_thread(client.wait_for_job, created.job_id, check=False))["state"] == "failed"

    assert (caught.value.code, caught.value.is_stranded) == ("disk_failed", False)


async def test_refusals_are_errors_with_types(api: FrontEnd) -> None:
    snapshot_id = await api.have_snapshot("taken")

    def refused(call: Callable[..., object], *given: Any, **named: Any) -> ours.ApiError:
        with pytest.raises(ours.ApiError) as caught:
            call(*given, **named)
        return caught.value

    def all_of_them() -> Iterator[ours.ApiError]:
        with client_of(api, retry_seconds=0) as client:
            yield refused(client.snapshots.create, server_id=SERVER, name="two words")
            yield refused(client.snapshots.create, server_id=SERVER, name="taken")
            yield refused(client.snapshots.get, snapshot_id + 1)
            client.snapshots.create(server_id=SERVER, name="n")
            yield refused(client.snapshots.restore, snapshot_id)
        with ours.Client(f"http://127.0.0.1:{api.port}", "wrong") as stranger:
            yield refused(stranger.jobs.get, "x")

    invalid, taken, missing, busy, denied = await asyncio.to_thread(lambda: list(all_of_them()))
    kinds = (ours.InvalidRequest, ours.NameTaken, ours.NotFound, ours.ServerBusy, ours.AccessDenied)
    assert tuple(map(type, (invalid, taken, missing, busy, denied))) == kinds
    assert [error["field"] for error in invalid.errors] == ["name"]
    assert taken.conflicts_with
    assert taken.conflicts_with["snapshot_id"] == snapshot_id
    assert busy.conflicts_with
    assert busy.conflicts_with["job_kind"] == "create"
    assert denied.request_id


async def test_a_call_whose_response_is_lost_takes_effect_once(api: FrontEnd) -> None:
    for_create, for_delete = Lossy(), Lossy()
    with client_of(api, Clock()) as client:
        client._wire._session.mount("http://", for_create)
        created = await asyncio.to_thread(client.snapshots.create, server_id=SERVER, name="n")
        await finish(api)
        client._wire._session.mount("http://", for_delete)
        deleted = await asyncio.to_thread(client.snapshots.delete, created.body["id"])

    keys = {request.headers["Idempotency-Key"] for request in for_create.sent}
    assert (len(for_create.sent), len(keys), created.body["status"]) == (2, 1, "in_progress")
    assert (len(for_delete.sent), deleted.body) == (2, None)


async def test_a_limit_is_waited_for_as_long_as_the_service_says(cell: Cell) -> None:
    async with serving(cell, calls_per_minute=1) as api:
        clock = Clock()
        with client_of(api, clock) as client:
            await asyncio.to_thread(client.servers.get, SERVER)
            with pytest.raises(ours.RateLimited):
                await asyncio.to_thread(client.servers.get, SERVER)

    assert min(clock.slept, default=60) > 1
    assert sum(clock.slept) <= 60


def test_a_message_is_verified() -> None:
    body = json.dumps({"type": "webhook.test"}).encode()
    headers = signed([SECRET], "m1", body, moment=round(time.time()))

    assert ours.verify_message(SECRET, {name.title(): text for name, text in headers.items()}, body) == json.loads(body)
    for wrong in (headers | {"webhook-id": "m2"}, headers | {"webhook-timestamp": "1"}, {}):
        with pytest.raises(ours.InvalidSignature):
            ours.verify_message(SECRET, wrong, body)


def test_the_models_are_those_of_the_document(tools: Path, tmp_path: Path) -> None:
    for path in (generate.PYTHON, generate.TYPESCRIPT):
        (tmp_path / path).parent.mkdir(parents=True)
    generate.generate(tmp_path)

    for path in (generate.PYTHON, generate.TYPESCRIPT):
        assert (tmp_path / path).read_text() == (generate.HERE / path).read_text(), "make clients writes them anew"


UNDO = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - {vps.snapshots.snapshot: {server_id: 12345, name: checked}, check_mode: true}
    - vps.snapshots.snapshot: {server_id: 12345, name: before-update, state: absent}
      register: kept
      ignore_errors: true
    - {ansible.builtin.assert: {that: kept.code == "snapshot_protected"}}
    - {vps.snapshots.snapshot: {server_id: 12345, name: before-update, protected: false}}
    - {vps.snapshots.snapshot: {server_id: 12345, name: before-update, state: absent}}
    - {vps.snapshots.schedule: {server_id: 12345, name: nightly, state: absent}}
    - vps.snapshots.schedule: &by_label
        server_labels: {backup: nightly}
        name: all
        when: "0 3 * * *"
        time_zone: Europe/Berlin
        window_minutes: 120
      register: made
    - {vps.snapshots.schedule: *by_label, register: again}
    - {ansible.builtin.assert: {that: [made is changed, again is not changed]}}
    - {vps.snapshots.schedule: {server_labels: {backup: nightly}, name: all, state: absent}}
"""


async def ansible(folder: Path, service: Service, program: str, *arguments: str | Path) -> str:
    """The output of one of Ansible's programs, with the collection below the folder."""
    process = await asyncio.create_subprocess_exec(
        *(TOOLS / "bin" / program, *arguments),
        cwd=folder,
        env={
            "PATH": f"{TOOLS / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(generate.HERE / "python"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ANSIBLE_COLLECTIONS_PATH": str(folder),
            "ANSIBLE_PIPELINING": "true",
            "VPS_SNAPSHOTS_URL": service.url,
            "VPS_SNAPSHOTS_TOKEN": service.client.token,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(RUN_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def play(folder: Path, service: Service, playbook: str) -> dict[str, int]:
    """The counts of the recap."""
    variables = f"server_id={SERVER_ID} ansible_python_interpreter={TOOLS / 'bin' / 'python'}"
    told = await ansible(folder, service, "ansible-playbook", "-i", "localhost,", playbook, "-e", variables)
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", told.partition("PLAY RECAP")[2])}


async def test_the_ansible_modules_change_nothing_when_they_run_again(
    tools: Path, service: Service, tmp_path: Path
) -> None:
    place = tmp_path / "ansible_collections" / "vps"
    place.mkdir(parents=True)
    (place / "snapshots").symlink_to(generate.HERE / "ansible")
    (tmp_path / "undo.yml").write_text(UNDO)
    modules = [f"vps.snapshots.{name}" for name in ("snapshot", "restore", "schedule")]
    documented = json.loads(await ansible(tmp_path, service, "ansible-doc", "--json", *modules))
    assert {name for name in modules if {"api_url", "server_id"} <= set(documented[name]["doc"]["options"])} == {
        *modules
    }

    first = await play(tmp_path, service, "vps.snapshots.example")
    second = await play(tmp_path, service, "vps.snapshots.example")
    undone = await play(tmp_path, service, "undo.yml")

    assert (first["ok"], first["changed"]) == (3, 3)
    assert (second["ok"], second["changed"]) == (3, 0)
    assert (undone["changed"], undone["ignored"]) == (6, 1)
    with ours.Client(service.url, service.client.token) as client:
        left = await asyncio.to_thread(lambda: [*client.snapshots.list(), *client.schedules.list()])
    assert left == []
