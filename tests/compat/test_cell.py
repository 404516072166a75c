"""The current code serves and finishes what commit 0a79ed0 left in Redis, in its journals and on simulated disks."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from aiohttp import ClientSession, web

from api.webhooks.sender import signed
from drivers.base import Power
from drivers.fake_state import FakeServer
from tests.compat.recorded import Recorded
from tests.queueing import until, until_told

REWORDED = {"message", "title"}
COUNTED_ANEW = {"percent", "attempts", "next_attempt_at"}  # jobs have more steps now; deliveries continue
FAILED = {"create-cleaning", "restore-undoing", "restore-cleaning"}  # jobs that had failed before the worker was killed
PAGES = ("nodes", "jobs", "servers", "findings", "audit", "tokens", "runbook")
AGE_SECONDS = 420  # leases have expired, deliveries and schedules are due, and no job has waited too long


def differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """Fields and values of the older answer that are missing in the new one. New fields do not count."""
    match before, now:
        case dict(), dict():
            for name in before:
                if name not in now:
                    yield f"{path}.{name} is missing"
                elif name not in REWORDED | COUNTED_ANEW:
                    yield from differences(before[name], now[name], f"{path}.{name}")
        case list(), list() if len(before) == len(now):
            for n, (one, other) in enumerate(zip(before, now, strict=True)):
                yield from differences(one, other, f"{path}[{n}]")
        case _ if before != now:
            yield f"{path}: {before!r} became {now!r}"


def totals(overview: dict[str, Any]) -> dict[str, Any]:
    """An overview without values that depend on the time: the points of charts are added up."""
    sums = {
        chart["kind"]: [sum(point[state] for point in chart["points"]) for state in ("completed", "failed")]
        for chart in overview["charts"]
    }
    return {**overview, "charts": sums, "at": None}


async def test_the_front_end_shows_every_record_as_before() -> None:
    async with Recorded.running() as cell:
        found: list[str] = []
        for caller, answers in cell.found["answers"].items():
            for path, before in answers.items():
                now = await cell.get(path if caller == "customer" else f"ops/{path}", by=caller)
                read = totals if path == "overview/" else dict
                found += differences(read(before), read(now), f"{caller} {path}")
        assert found == []


async def test_tokens_and_the_session_are_valid_and_the_dashboard_shows_each_record() -> None:
    async with Recorded.running() as cell:
        assert (await cell.call("GET", "snapshots/", by="revoked")).status == 401
        assert (await cell.call("POST", "snapshots/", {}, by="visitor")).status == 403
        assert (await cell.get("snapshots/", by="visitor"))["count"]
        assert (await cell.call("GET", "snapshots/", by="service", X_Account_Id="77")).status == 200
        paths = ["", "nodes/n1/", "nodes/n2/", *(f"{page}/" for page in PAGES)]
        paths += [f"servers/{server_id}/" for server_id in cell.found["servers"].values()]
        paths += [f"jobs/{job['id']}/" for job in cell.found["answers"]["customer"]["jobs/?page_size=500"]["results"]]
        async with ClientSession(headers={"Cookie": cell.found["session"]}) as browser:
            for path in paths:
                async with browser.get(f"{cell.stage.url}/ops/{path}", allow_redirects=False) as page:
                    assert page.status == 200, (path, await page.text())


async def test_what_the_store_holds_decides_admission() -> None:
    async with Recorded.running() as cell:
        snapshots = cell.found["snapshots"]

        async def code(method: str, path: str, body: Any = None, **headers: str) -> str:
            answer = await cell.call(method, path, body, **headers)
            assert answer.status >= 400, answer.body
            return str(answer.body["code"])

        def create(name: str, snapshot: str) -> tuple[str, str, dict[str, Any]]:
            return "POST", "snapshots/", {"server_id": cell.id_of(name), "name": snapshot}

        assert await code(*create("full", "one-more")) == "snapshot_limit_reached"
        assert await code(*create("kept", "base")) == "name_taken"
        assert await code(*create("create-starting", "another")) == "server_busy"
        assert await code("DELETE", f"snapshots/{snapshots['kept']}/") == "snapshot_protected"
        assert await code("POST", f"snapshots/{snapshots['failed']}/restore/") == "snapshot_not_ready"
        assert await code("GET", f"snapshots/{snapshots['delete-deleting']}/") == "snapshot_not_found"
        (replay,) = cell.found["replays"]
        again = await cell.call("POST", replay["path"], replay["body"], Idempotency_Key=replay["key"])
        assert again.body == replay["answer"]
        assert await code(*create("kept", "other"), Idempotency_Key=replay["key"]) == "idempotency_key_reused"
        # names of failed snapshots and of cancelled jobs are free, too
        for name in ("failed", "cancelled-queued"):
            assert (await cell.call(*create(name, "base"))).status == 201


@dataclass
class Receiver:
    """Receives webhook deliveries."""

    url: str = ""
    got: dict[str, dict[str, web.Request]] = field(default_factory=dict)  # by webhook and delivery
    bodies: dict[str, bytes] = field(default_factory=dict)  # by delivery

    async def take(self, request: web.Request) -> web.Response:
        delivery = request.headers["webhook-id"]
        self.bodies[delivery] = await request.read()
        self.got.setdefault(request.match_info["name"], {})[delivery] = request
        return web.Response()

    def has_all(self, name: str, deliveries: Iterable[str]) -> bool:
        return self.got.get(name, {}).keys() >= set(deliveries)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver, app = Receiver(), web.Application()
    app.router.add_post("/hook/{name}", receiver.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        yield receiver
    finally:
        await runner.cleanup()


async def test_deliveries_that_waited_are_made_with_their_secrets() -> None:
    async with receiving() as receiver, Recorded.running(age_seconds=AGE_SECONDS, hook=receiver.url) as cell:
        everything, before, _, rotated = cell.found["webhooks"]
        assert before["id"] == rotated["id"]
        for hook, secrets in ((everything, [everything["secret"]]), (rotated, [rotated["secret"], before["secret"]])):
            listed = cell.found["answers"]["customer"][f"webhooks/{hook['id']}/deliveries/"]["results"]
            waiting = {one["id"]: one for one in listed if one["next_attempt_at"]}
            name = hook["description"]
            await until(partial(receiver.has_all, name, waiting))
            for delivery in waiting:
                sent, body = receiver.got[name][delivery].headers, receiver.bodies[delivery]
                expected = signed(secrets, delivery, body, moment=int(sent["webhook-timestamp"]))
                assert set(sent["webhook-signature"].split()) == set(expected["webhook-signature"].split())
        assert "disabled" not in receiver.got


@pytest.fixture
async def cell() -> AsyncIterator[Recorded]:
    """Both nodes have a current worker."""
    async with Recorded.running(age_seconds=AGE_SECONDS) as cell:
        for node in ("n1", "n2"):
            await cell.start_worker(node)
        yield cell


async def ended(cell: Recorded, job_id: str) -> Any:
    async def over() -> bool:
        return (await cell.get(f"ops/jobs/{job_id}/", by="operator"))["state"] in {"completed", "failed"}

    await until_told(over)
    return await cell.get(f"ops/jobs/{job_id}/", by="operator")


async def test_each_running_or_queued_job_ends(cell: Recorded) -> None:
    resumed = await cell.call("POST", "ops/nodes/n2/resume/", {"reason": "It is back."}, by="operator")
    assert resumed.status == 200
    for name, job_id in cell.found["jobs"].items():
        job = await ended(cell, job_id)
        failed = {"code": "disk_failed", "stranded": False}
        assert job["error"] is None if name not in FAILED else failed.items() <= job["error"].items(), (name, job)
        server = cell.server(name)
        assert server.power is Power.ON, name
        assert not any(disk.dirty for disk in server.disks.values()), name
        went_back = name.startswith("restore-") and name not in FAILED
        if job["snapshot"]:
            has_it = not (name.startswith("delete-") or name == "create-cleaning")
            check_snapshot(server, job["snapshot"]["id"], is_there=has_it)
        assert texts(server) == {"A" if went_back else "B" if name in cell.found["snapshots"] else "A"}, name


def check_snapshot(server: FakeServer, snapshot_id: int, *, is_there: bool) -> None:
    """Check that the snapshot is on all of the server's disks and in the hypervisor's list, or nowhere."""
    tag = f"vps-{snapshot_id}"
    holders = [tag in disk.tags for disk in server.disks.values()]
    assert holders == [is_there] * 2, (server, is_there)
    assert (tag in server.nvram_copies, tag in server.listed) == (is_there, is_there), (server, is_there)


async def test_what_was_due_is_done(cell: Recorded) -> None:
    """A schedule runs, a snapshot expires, a failed delete is retried, and an expired safety snapshot is gone;
    everything else stays."""
    before = cell.found["answers"]["customer"][f"schedules/{cell.found['hourly']}/"]["last_run"]["job_id"]
    hourly = f"schedules/{cell.found['hourly']}/"

    async def has_run() -> bool:
        last = (await cell.get(hourly))["last_run"]
        assert last["job_id"], last
        return bool(last["job_id"] != before)

    await until_told(has_run)
    job = await ended(cell, (await cell.get(hourly))["last_run"]["job_id"])
    assert job["state"] == "completed"
    assert (await cell.get(f"snapshots/{job['snapshot']['id']}/"))["schedule_id"] == cell.found["hourly"]
    for name in ("expiring", "undeleted"):
        tag = f"vps-{cell.found['snapshots'][name]}"
        await until(partial(is_gone, cell, name, tag))
    await until(lambda: len(safety_tags(cell.server("twice-restored"))) == 1)
    for name in ("restored", "stranded-restore"):
        assert len(safety_tags(cell.server(name))) == 1
    findings = (await cell.get("ops/findings/", by="operator"))["results"]
    assert {one["server"]["id"] for one in findings} >= {cell.id_of("torn"), cell.id_of("lost")}
    stranded = (await cell.get("ops/servers/?stranded=true", by="operator"))["results"]
    assert {one["id"] for one in stranded} == {cell.id_of("stranded"), cell.id_of("stranded-restore")}


def is_gone(cell: Recorded, name: str, tag: str) -> bool:
    return not any(tag in disk.tags for disk in cell.server(name).disks.values())


def safety_tags(server: FakeServer) -> set[str]:
    return {tag for disk in server.disks.values() for tag in disk.tags if tag.startswith("vps-safety-")}


async def test_new_jobs_build_on_what_older_ones_made(cell: Recorded) -> None:
    """Undoing an older restore, restoring and deleting older snapshots, and retrying an older failed job."""
    snapshots, jobs = cell.found["snapshots"], cell.found["answers"]["customer"]["jobs/?page_size=500"]["results"]

    async def done(method: str, path: str, body: Any = None, *, by: str = "customer") -> None:
        answer = await cell.call(method, path, body, by=by)
        assert answer.status < 300, answer.body
        assert (await ended(cell, answer.job))["error"] is None

    (restore,) = [one["id"] for one in jobs if one["server"]["name"] == "restored" and one["kind"] == "restore"]
    assert texts(cell.server("restored")) == {"A"}
    await done("POST", f"restores/{restore}/undo/")
    assert texts(cell.server("restored")) == {"B"}
    await done("POST", f"snapshots/{snapshots['full']}/restore/")
    assert texts(cell.server("full")) == {"A"}
    await done("DELETE", f"snapshots/{snapshots['full']}/")
    check_snapshot(cell.server("full"), snapshots["full"], is_there=False)
    await done("POST", "snapshots/", {"server_id": cell.id_of("full"), "name": "new"})
    (failed,) = [one["id"] for one in jobs if one["server"]["name"] == "failed"]
    await done("POST", f"ops/jobs/{failed}/retry/", by="operator")


def texts(server: FakeServer) -> set[str | None]:
    return {server.nvram, *(disk.content for disk in server.disks.values())}
