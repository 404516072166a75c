"""Redis refuses writes: reads are answered, writes are refused with their own code, and everything recovers."""

import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from api.dashboard.routes import PAGES
from api.http.calls import Call
from api.resources import CALLS
from deploy.demo.service import free_port
from tests.conftest import RedisServer, needs_root
from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE, READ_WRITE, SNAPSHOTS, FrontEnd, serving
from tests.integration.scraping import samples, value
from tests.integration.test_streams import listening
from tests.queueing import Jobs, at_work, client, put, until, until_told
from tests.trouble import TROUBLES
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import OPERATORS, Tokens
from worker.store.access.writes import Writes
from worker.store.errors import StoreReadOnly
from worker.store.model import Job, JobState

AnyCall = Call[Any]
READS = [call for call in CALLS if not call.changes and not call.is_stream]
WRITES = [call for call in CALLS if call.changes]
each_trouble = pytest.mark.parametrize("cause", TROUBLES)
BODIES: dict[str, Any] = {
    "CreateBody": {"server_id": SERVER, "name": "another"},
    "EditBody": {"description": "other"},
    "ServerEdit": {"consistency": "stop"},
    "ScheduleBody": {"server_id": SERVER, "name": "other", "when": "daily"},
    "ScheduleEditBody": {"name": "other"},
    "WebhookBody": {"url": "https://hooks.example.com/other"},
    "WebhookEditBody": {"description": "other"},
    "ReasonBody": {"reason": "a test"},
    "PauseBody": {"reason": "a test"},
    "TokenBody": {"name": "other", "permissions": ["operator"]},
    "BulkBody": {"action": "retry", "ids": ["0" * 32]},
    "PlacementBody": {"node": "n1", "account_id": 78},
    "NodeBody": {"node": "n1"},
    "AccountBody": {"account_id": 78},
    "LimitsBody": {"snapshots_max": 6},
    "CredentialBody": {},
    "RotationBody": {},
}


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell, heartbeat_seconds=0.2) as dashboard:
        yield dashboard


@pytest.fixture
def api(dashboard: Dashboard) -> FrontEnd:
    return dashboard.api


@pytest.fixture
async def ids(api: FrontEnd) -> dict[str, str]:
    snapshot = await api.have_snapshot()
    restored = await api.call("POST", f"{SNAPSHOTS}{snapshot}/restore/")
    await api.work(restored, replace(DONE, undoable_seconds=3600))
    schedule = await api.call("POST", "/api/v1/schedules/", body={"server_id": SERVER, "name": "n", "when": "daily"})
    webhook = await api.call("POST", "/api/v1/webhooks/", body={"url": "https://hooks.example.com/"})
    await Credentials(api.cell.redis).create("n1")
    return {
        "snapshot_id": str(snapshot),
        "server_id": str(SERVER),
        "account_id": str(ACCOUNT),
        "job_id": restored.headers["X-Job-Id"],
        "schedule_id": schedule.body["id"],
        "webhook_id": webhook.body["id"],
        "delivery_id": await api.have_failed_delivery(webhook.body["id"]),
        "node": "n1",
        "token_id": (await api.tokens.all())[-1].id,
    }


async def asked(dashboard: Dashboard, call: AnyCall, ids: dict[str, str], body: object = None, **headers: str) -> Any:
    operator = call.permission in OPERATORS
    body = body or (BODIES[call.body.__name__] if call.body else None)
    path = call.path.format(**ids) + ("?q=web" if call.id == "ops_search" else "")
    token = dashboard.token if operator else dashboard.api.token
    return await dashboard.api.call(call.method, path, body=body, token=token, headers=headers)


@each_trouble
async def test_every_read_answers(
    dashboard: Dashboard, redis_server: RedisServer, ids: dict[str, str], cause: str
) -> None:
    # an unreadable record, which cannot be reported to operators meanwhile
    await dashboard.cell.raw("ZADD", f"account:{ACCOUNT}:snapshots", 1, "1")
    await dashboard.cell.raw("ZADD", "servers", 1, "1")
    await dashboard.cell.raw("HSET", "server:1", "name", "without an account")
    async with TROUBLES[cause](dashboard.cell.redis, redis_server):
        for call in READS:
            answer = await asked(dashboard, call, ids)
            assert answer.status == 200, (call.id, answer.raw)
            assert "RateLimit" in answer.headers
        for path in PAGES.keys() - {"/ops/jobs/bulk/"}:  # which needs a selection
            filled = re.sub(r"\{action:(\w+)[^}]*\}", r"\1", path).format(**ids)
            page = await dashboard.browser.get(filled)
            assert page.status == 200, (path, page.text)


# A full Redis runs what frees memory. In this order, because the next call cannot use a deleted token or snapshot.
FREES = (
    *("edit_snapshot", "delete_snapshot", "delete_schedule", "delete_webhook", "ops_resume_node"),
    *("ops_revoke_credentials", "ops_revoke_token"),
)


async def test_what_frees_memory_is_done_while_redis_is_full(
    dashboard: Dashboard, redis_server: RedisServer, ids: dict[str, str]
) -> None:
    calls = {call.id: call for call in WRITES}
    async with TROUBLES["OOM"](dashboard.cell.redis, redis_server):
        for call in FREES:
            body = {"protected": False} if call == "edit_snapshot" else None
            answer = await asked(dashboard, calls[call], ids, body)
            assert answer.status < 300, (call, answer.raw)


@each_trouble
async def test_every_write_is_refused_by_its_own_code_and_changes_nothing(
    dashboard: Dashboard, redis_server: RedisServer, ids: dict[str, str], cause: str
) -> None:
    async with TROUBLES[cause](dashboard.cell.redis, redis_server):
        for call in WRITES:
            if cause == "OOM" and (call.id in FREES or call.method == "PUT"):
                continue
            answer = await asked(dashboard, call, ids, **{"Idempotency-Key": call.id})
            if answer.status == 409:  # it is refused for its own reason before anything is written
                continue
            answer.refused(503, "store_read_only")
            assert int(answer.headers["Retry-After"]) > 0
    assert (await dashboard.api.call("GET")).body["count"] == 1
    assert (await dashboard.api.create("afterward")).status == 201


@each_trouble
async def test_a_refused_write_is_not_taken_for_a_record_that_cannot_be_read(
    cell: Cell, redis_server: RedisServer, cause: str
) -> None:
    """While one of many records is started, and an unreadable one is skipped."""
    job = (await cell.create()).job
    async with TROUBLES[cause](cell.redis, redis_server):
        if cause == "OOM":
            (taken,) = await cell.node.take(running=[], free=1, seconds=0, begin=True)
            assert isinstance(taken, Job)
            assert taken.id == job.id
        else:
            with pytest.raises(StoreReadOnly):
                await cell.node.take(running=[], free=1, seconds=0, begin=True)
    assert not await cell.redis.exists("unreadable")


@each_trouble
async def test_a_probe_tells_reading_from_writing_and_metrics_and_log_tell_why(
    dashboard: Dashboard, redis_server: RedisServer, cause: str
) -> None:
    api = dashboard.api
    assert (await api.call("GET", "/readyz")).body == {"status": "ok", "reads": True, "writes": True}
    with capture_logs() as lines:
        async with TROUBLES[cause](dashboard.cell.redis, redis_server):
            ready = await api.call("GET", "/readyz")
            assert (ready.status, ready.body) == (200, {"status": "ok", "reads": True, "writes": False})
            assert await is_read_only(api)
            assert (await api.call("GET", "/readyz")).status == 200
        assert (await api.call("GET", "/readyz")).body["writes"]
        assert not await is_read_only(api)
    told = [(line["event"], line.get("cause")) for line in lines if line["event"].startswith("store.")]
    assert told == [("store.read_only", cause), ("store.accepts_writes", None)]


async def is_read_only(api: FrontEnd) -> bool:
    return value(samples((await api.call("GET", "/metrics")).raw.decode()), "redis_read_only") == 1


@pytest.mark.parametrize("cause", ["OOM", "READONLY"])
async def test_calls_are_still_limited(cell: Cell, redis_server: RedisServer, cause: str) -> None:
    async with dashboard_of(cell, calls_per_minute=5, failed_logins_per_minute=2) as dashboard:
        api = dashboard.api
        other = await api.new_token()
        async with TROUBLES[cause](cell.redis, redis_server):
            answers = [await api.call("GET") for _ in range(7)]
            assert [answer.status for answer in answers] == [200] * 5 + [429] * 2
            assert [answer.headers["RateLimit"].split(";")[1] for answer in answers[:5]] == [
                "r=4",
                "r=3",
                "r=2",
                "r=1",
                "r=0",
            ]
            assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
            assert (await api.call("GET", token=other)).status == 200
            strangers = [await api.call("GET", token="vps_" + "x" * 43) for _ in range(4)]
            assert [answer.status for answer in strangers] == [401, 401, 429, 429]


@each_trouble
async def test_the_dashboard_says_why(dashboard: Dashboard, redis_server: RedisServer, cause: str) -> None:
    texts = {"OOM": "is full", "READONLY": "read-only replica", "MISCONF": "its disk", "NOREPLICAS": "fewer replicas"}
    async with TROUBLES[cause](dashboard.cell.redis, redis_server):
        await dashboard.api.call("GET", "/readyz")
        for headers in ({}, {"HX_Request": "true", "X_Live": "idle"}):  # a page and its refreshed fragment
            page = await dashboard.browser.get("/ops/jobs/", **headers)
            (banner,) = re.findall(r'id="read-only".*', page.text)
            assert texts[cause] in banner
        assert 'id="read-only"' not in (await dashboard.stranger().get("/ops/login/")).text
        dialog = await dashboard.browser.get("/ops/nodes/n1/pause/", HX_Request="true")
        assert 'id="read-only"' not in dialog.text
        refused = await dashboard.browser.post("/ops/nodes/n1/pause/", {"reason": "a test"}, HX_Request="true")
        assert (refused.status, "store_read_only" in refused.text) == (503, True)
    await dashboard.api.call("GET", "/readyz")
    assert 'id="read-only"' not in await dashboard.browser.seen("/ops/jobs/")
    assert (await dashboard.browser.post("/ops/nodes/n1/pause/", {"reason": "a test"})).status == 200


@each_trouble
async def test_an_operator_logs_in_to_read(dashboard: Dashboard, redis_server: RedisServer, cause: str) -> None:
    browser = dashboard.stranger()
    async with TROUBLES[cause](dashboard.cell.redis, redis_server):
        assert (await browser.login(dashboard.token)).status == 303
        assert "Queued" in await browser.seen("/ops/")
        assert dashboard.token not in browser.session
        refused = await browser.post("/ops/tokens/", {"name": "x", "permissions": "operator"})
        assert (refused.status, "store_read_only" in refused.text) == (503, True)
        for forged in (
            browser.session[:-1] + "0" * (browser.session[-1] != "0"),
            f"{browser.session}.",
            "reading.",
            f"reading.{'0' * 12}.{'9' * 40}.x",
        ):
            stranger = replace(dashboard.stranger(), session=forged)
            if forged != browser.session:
                assert (await stranger.get("/ops/")).status == 303
        later = re.sub(r"\.(\d{13})\.", lambda found: f".{int(found[1]) + 1}.", browser.session)
        assert (await replace(dashboard.stranger(), session=later).get("/ops/")).status == 303
    assert (await browser.get("/ops/")).status == 303  # the session ends with the trouble
    assert (await browser.login(dashboard.token)).status == 303
    assert not browser.session.startswith("reading.")


async def test_a_revoked_token_has_no_session_for_reading(dashboard: Dashboard, redis_server: RedisServer) -> None:
    browser = dashboard.stranger()
    async with TROUBLES["NOREPLICAS"](dashboard.cell.redis, redis_server):
        await browser.login(dashboard.token)
    (token,) = [token for token in await dashboard.api.tokens.all() if token.account_id is None]
    assert await dashboard.api.tokens.revoke(token.id)
    async with TROUBLES["NOREPLICAS"](dashboard.cell.redis, redis_server):
        assert (await browser.get("/ops/")).status == 303
        assert (await browser.login(dashboard.token)).status == 401


@each_trouble
async def test_an_event_stream_continues(dashboard: Dashboard, redis_server: RedisServer, cause: str) -> None:
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listening(dashboard.api))]
        async with TROUBLES[cause](dashboard.cell.redis, redis_server):
            streams.append(await stack.enter_async_context(listening(dashboard.api)))
            assert await streams[1].block()
        assert (await dashboard.api.create()).status == 201
        for stream in streams:
            _, job = await stream.job()
            assert job["state"] == JobState.QUEUED


async def test_a_replica_is_left_for_whoever_has_its_address_by_now(redis: Redis, redis_server: RedisServer) -> None:
    async with client(redis_server.socket) as one:
        assert await Writes(one).refused() is None
        await one.ping()
        (idle,) = one.connection_pool._available_connections
        (of_scripts,) = one.connection_pool._in_use_connections
        async with TROUBLES["OOM"](redis, redis_server):
            assert await Writes(one).refused() == "OOM"
            assert idle.is_connected
            assert of_scripts.is_connected
        async with TROUBLES["READONLY"](redis, redis_server):
            assert await Writes(one).refused() == "READONLY"
            await until(lambda: not (idle.is_connected or of_scripts.is_connected))


async def test_an_ended_job_stays_in_its_list_until_it_can_be_removed(
    dashboard: Dashboard, redis_server: RedisServer, ids: dict[str, str]
) -> None:
    cell = dashboard.cell
    (oldest, *_) = await cell.redis.zrange("account:77:jobs", 0, 0)
    await cell.redis.delete(f"job:{oldest.decode()}")
    async with TROUBLES["READONLY"](cell.redis, redis_server):
        page = (await dashboard.api.call("GET", "/api/v1/jobs/")).body
        assert ids["job_id"] in [job["id"] for job in page["results"]]
    assert (await dashboard.api.call("GET", "/api/v1/jobs/")).body["count"] == page["count"] - 1


async def test_a_trouble_that_nobody_asks_about_is_noticed(cell: Cell, redis_server: RedisServer) -> None:
    async with dashboard_of(cell) as dashboard, TROUBLES["NOREPLICAS"](cell.redis, redis_server):

        async def is_noticed() -> bool:
            return await is_read_only(dashboard.api)

        await until_told(is_noticed)


async def test_a_real_replica_is_read_from(dashboard: Dashboard) -> None:
    """A front end whose address leads to the replica of a working primary."""
    port = free_port()
    await dashboard.cell.raw("CONFIG", "SET", "port", port)
    made = await dashboard.api.have_snapshot()
    with TemporaryDirectory(prefix="vps-replica-") as folder:
        second = RedisServer(Path(folder))
        second.start()
        copy = second.client()
        try:
            await copy.replicaof("127.0.0.1", port)

            async def is_synchronous() -> bool:
                return bool(await copy.exists(f"snapshot:{made}"))

            await until_told(is_synchronous)
            async with serving(replace(dashboard.cell, redis=copy), token=dashboard.api.token) as api:
                assert (await api.call("GET")).body["results"][0]["id"] == made
                (await api.create("another")).refused(503, "store_read_only")
                assert not (await api.call("GET", "/readyz")).body["writes"]
        finally:
            await copy.aclose(close_connection_pool=True)
            second.kill()
            await dashboard.cell.raw("CONFIG", "SET", "port", 0)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    needs_root()
    with TemporaryDirectory(prefix="vps-full-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
        yield Path(folder)
        subprocess.run(["umount", folder], check=True)


async def test_a_full_disk(cell: Cell, small_disk: Path) -> None:
    """With `appendfsync everysec`: with `always`, Redis exits."""
    server = RedisServer(small_disk)
    try:
        server.start()
        redis = server.client()
        await redis.config_set("appendfsync", "everysec")
        customer = await Tokens(redis).create(name="a customer", account_id=ACCOUNT, permissions=READ_WRITE)

        async def is_full() -> bool:
            try:
                await redis.set("job:filler", b"x" * (256 << 10))
            except ResponseError as error:
                return "MISCONF" in str(error)
            return False

        await until_told(is_full)
        async with serving(replace(cell, redis=redis), token=customer.secret) as api:
            assert (await api.call("GET")).status == 200
            hook = {"url": "https://hooks.example.com/"}
            (await api.call("POST", "/api/v1/webhooks/", body=hook)).refused(503, "store_read_only")
        await redis.aclose(close_connection_pool=True)
    finally:
        server.kill()


@each_trouble
async def test_a_worker_ends_its_job_meanwhile_and_takes_the_next_one_afterward(
    redis: Redis, redis_server: RedisServer, cause: str
) -> None:
    jobs = Jobs()
    async with at_work(redis_server.socket, jobs):
        await put(redis, "a")
        await jobs.have_started("a")
        async with TROUBLES[cause](redis, redis_server):
            jobs.end("a")
            await jobs.have_ended("a")
        await put(redis, "b")
        await jobs.have_started("b")
        jobs.end("b")
        await jobs.have_ended("b")
    assert jobs.starts["a"] == 1
