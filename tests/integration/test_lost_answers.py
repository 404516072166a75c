"""A connection to Redis is cut after the command was delivered: the caller's answer, and what happens next."""

import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from redis.asyncio import Redis

from api.cli.exits import Exit
from tests.conftest import RedisServer
from tests.integration.browsing import dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import DONE, SNAPSHOTS, FrontEnd, serving
from tests.integration.test_streams import listening
from tests.lossy import LossyWay, lossy_way
from tests.trouble import TROUBLES
from worker.store.model import JobId
from worker.store.redis_client import RedisSettings, connect

KEY = {"Idempotency-Key": "k"}
BODY = {"server_id": SERVER, "name": "mine"}
CREATE = '"name": "mine"'  # in the arguments of the script


@dataclass(frozen=True, kw_only=True)
class Lossy:
    """A front end whose connection to Redis can lose an answer."""

    api: FrontEnd
    way: LossyWay


@pytest.fixture
async def lossy(cell: Cell, redis_server: RedisServer) -> AsyncIterator[Lossy]:
    async with lossy_way(redis_server.socket) as way:
        redis = connect(RedisSettings(url=f"unix://{way.socket}"))
        try:
            async with serving(replace(cell, redis=redis), calls_per_minute=100_000) as api:
                snapshot = await api.have_snapshot("first")  # Redis has the scripts
                assert (await api.call("GET", f"{SNAPSHOTS}{snapshot}/")).status == 200
                yield Lossy(api=api, way=way)
        finally:
            await redis.aclose(close_connection_pool=True)


async def test_a_create_whose_answer_was_lost_is_not_reported_as_failed(lossy: Lossy) -> None:
    lossy.way.lose(CREATE)
    answer = await lossy.api.call("POST", body=BODY)
    problem = answer.refused(503, "outcome_unknown")
    assert "Idempotency-Key" in problem["detail"]
    assert int(answer.headers["Retry-After"]) > 0
    assert [one["name"] for one in (await lossy.api.call("GET")).body["results"]] == ["mine", "first"]


async def test_repeated_with_its_key_it_gets_the_first_answer_marked_as_replayed(lossy: Lossy) -> None:
    lossy.way.lose(CREATE)
    (await lossy.api.call("POST", body=BODY, headers=KEY)).refused(503, "outcome_unknown")
    again = await lossy.api.call("POST", body=BODY, headers=KEY)
    assert (again.status, again.headers["Idempotent-Replayed"]) == (201, "true")
    assert (await lossy.api.call("GET")).body["count"] == 2


async def test_a_first_answer_has_no_replay_header(lossy: Lossy) -> None:
    first = await lossy.api.call("POST", body=BODY, headers=KEY)
    assert first.status == 201
    assert "Idempotent-Replayed" not in first.headers
    assert "Idempotent-Replayed" not in (await lossy.api.call("POST", body=BODY)).headers


async def test_repeated_without_a_key_it_is_shown_its_own_job_and_then_its_own_snapshot(lossy: Lossy) -> None:
    api = lossy.api
    lossy.way.lose(CREATE)
    (await api.call("POST", body=BODY)).refused(503, "outcome_unknown")
    made = (await api.call("GET")).body["results"][0]

    busy = (await api.call("POST", body=BODY)).refused(400, "server_busy")
    job = (await api.call("GET", f"/api/v1/jobs/{busy['conflicts_with']['job_id']}/")).body
    assert busy["conflicts_with"] == {
        "job_id": job["id"],
        "job_kind": "create",
        "snapshot_id": made["id"],
        "requested_at": made["created_at"],
    }
    assert all(text in busy["detail"] for text in (job["id"], "create", made["created_at"]))

    await api.cell.node.begin(JobId(job["id"]))
    await api.cell.node.finish(JobId(job["id"]), DONE)
    taken = (await api.call("POST", body=BODY)).refused(400, "name_taken")
    assert taken["conflicts_with"] == {
        "job_id": None,
        "job_kind": None,
        "snapshot_id": made["id"],
        "requested_at": made["created_at"],
    }
    assert all(text in taken["detail"] for text in (str(made["id"]), made["created_at"]))


async def test_a_former_owners_job_is_named_but_not_described(cell: Cell) -> None:
    async with serving(cell) as api:
        await api.create("theirs")
        job_id = await cell.holder()
        await cell.raw("HSET", f"job:{job_id}", "account", "78")
        busy = (await api.create("mine")).refused(400, "server_busy")
        assert job_id in busy["detail"]
        assert "conflicts_with" not in busy


async def test_a_delete_whose_answer_was_lost_has_been_done(lossy: Lossy) -> None:
    made = (await lossy.api.call("GET")).body["results"][0]
    lossy.way.lose('"kind": "delete"')
    path = f"{SNAPSHOTS}{made['id']}/"
    (await lossy.api.call("DELETE", path)).refused(503, "outcome_unknown")
    (await lossy.api.call("DELETE", path)).refused(404, "snapshot_not_found")


async def test_a_read_is_asked_once_more(lossy: Lossy) -> None:
    made = (await lossy.api.call("GET")).body["results"][0]
    lossy.way.lose('"failed_logins"')  # the script that checks the caller and reads the snapshot
    assert (await lossy.api.call("GET", f"{SNAPSHOTS}{made['id']}/")).status == 200
    assert lossy.way.lost == 1


async def test_a_write_is_not_asked_again_and_its_count_is_no_write(lossy: Lossy) -> None:
    lossy.way.lose('"failed_logins"')  # the caller's token is looked up, and the call is counted
    hook = {"url": "https://hooks.example.com/"}
    assert (await lossy.api.call("POST", "/api/v1/webhooks/", body=hook)).status == 201
    lossy.way.lose('"fields": {"description"')
    made = (await lossy.api.call("GET")).body["results"][0]
    answer = await lossy.api.call("PATCH", f"{SNAPSHOTS}{made['id']}/", body={"description": "new"})
    answer.refused(503, "outcome_unknown")
    assert lossy.way.lost == 2


async def test_the_first_read_of_a_stream_is_repeated(lossy: Lossy) -> None:
    lossy.way.lose("XREVRANGE")
    async with listening(lossy.api):
        assert lossy.way.lost == 1


async def test_a_call_that_took_too_long_is_unknown_only_if_it_changes_something(
    cell: Cell, redis_server: RedisServer
) -> None:
    assert redis_server.process is not None
    async with serving(cell, request_seconds=0.2) as api:
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            (await api.call("POST", body=BODY)).refused(503, "outcome_unknown")
            (await api.call("GET")).refused(503, "store_unavailable")
        finally:
            redis_server.process.send_signal(signal.SIGCONT)


async def test_the_command_line_repeats_a_create_with_its_key(lossy: Lossy) -> None:
    cli = Cli(url=f"http://127.0.0.1:{lossy.api.port}", token=lossy.api.token)
    lossy.way.lose(CREATE)
    done = await cli.run("snapshot", "create", SERVER, "mine", "--yes", "--json")
    assert done.body["name"] == "mine"
    assert lossy.way.lost == 1
    assert (await lossy.api.call("GET")).body["count"] == 2


async def test_the_command_line_says_that_a_delete_is_not_confirmed(lossy: Lossy) -> None:
    cli = Cli(url=f"http://127.0.0.1:{lossy.api.port}", token=lossy.api.token)
    made = (await lossy.api.call("GET")).body["results"][0]
    lossy.way.lose('"kind": "delete"')
    done = await cli.run("snapshot", "delete", made["id"], "--yes")
    assert (done.code, "outcome_unknown" in done.err) == (Exit.UNREACHABLE, True)


async def test_the_command_line_does_not_wait_for_a_store_that_accepts_no_changes(
    cell: Cell, redis: Redis, redis_server: RedisServer
) -> None:
    async with serving(cell) as api:
        cli = Cli(url=f"http://127.0.0.1:{api.port}", token=api.token)
        async with TROUBLES["NOREPLICAS"](redis, redis_server):
            done = await cli.run("snapshot", "create", SERVER, "mine", "--yes")
            assert (done.code, "store_read_only" in done.err) == (Exit.UNREACHABLE, True)
            assert (await cli.run("snapshots")).code == 0
        requests = [entry[1].get(b"code") for entry in await redis.xrange("audit")]
        assert requests == []


async def test_a_form_of_the_dashboard_says_that_its_action_is_not_confirmed(
    cell: Cell, redis_server: RedisServer
) -> None:
    async with lossy_way(redis_server.socket) as way:
        redis = connect(RedisSettings(url=f"unix://{way.socket}"))
        try:
            async with dashboard_of(replace(cell, redis=redis)) as dashboard:
                form = {"reason": "a test"}
                assert (await dashboard.browser.post("/ops/nodes/n1/resume/", form)).status == 200
                way.lose('"reason": "a test"')
                page = await dashboard.browser.post("/ops/nodes/n1/pause/", form)
                assert page.status == 503
                assert "outcome_unknown" in page.text
                assert "Redis is not responding" not in page.text
                assert await cell.raw("HEXISTS", "node:n1", "paused_ms")
        finally:
            await redis.aclose(close_connection_pool=True)
