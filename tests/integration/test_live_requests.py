"""Requests for live snapshots: who may make them, what the node gets, and what answers show."""

import json
from dataclasses import replace
from typing import Any

import pytest

from api.snapshots.bodies import CreateBody
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE, FrontEnd, serving
from tests.integration.test_notes import CREATED, HELD, job, job_of, snapshot
from tests.integration.test_schedules import run
from worker.store.access.tokens import Permission
from worker.store.model import AccountId, Consistency, Failure, Job, JobState, ServerId, SnapshotStatus
from worker.store.outcome import Outcome

LIVE: dict[str, Any] = {"server_id": SERVER, "name": "a", "consistency": "live"}
SCHEDULES = "/api/v1/schedules/"
NIGHTLY: dict[str, Any] = {"server_id": SERVER, "name": "nightly", "when": "daily"}


async def begun(api: FrontEnd) -> Job:
    return await api.cell.node.begin(await api.cell.holder())


async def test_a_provider_that_does_not_allow_it_says_so_and_names_the_field(cell: Cell) -> None:
    async with serving(cell) as api:
        for path, body in (
            ("/api/v1/snapshots/", LIVE),
            ("/api/v1/snapshots/?dry_run=true", LIVE),
            (SCHEDULES, NIGHTLY | {"consistency": "live"}),
        ):
            refused = await api.call("POST", path, body=body)
            assert (refused.status, refused.body["code"]) == (400, "invalid_request")
            assert [error["field"] for error in refused.body["errors"]] == ["consistency"]
        made = await api.call("POST", body=LIVE | {"consistency": "stop"})
        assert made.status == 201
        assert not (await begun(api)).live


@pytest.mark.parametrize(
    ("setting", "asked", "live"),
    [
        ("allowed", {"consistency": "live"}, True),
        ("allowed", {}, False),
        ("default", {}, True),
        ("default", {"consistency": "stop"}, False),
        ("refused", {}, False),
    ],
)
async def test_the_node_is_told(cell: Cell, setting: str, asked: dict[str, str], live: bool) -> None:
    async with serving(cell, live=setting) as api:
        created = await api.call("POST", body={"server_id": SERVER, "name": "a", **asked})
        assert created.status == 201, created.raw
        assert (await begun(api)).live is live
        await api.cell.node.finish(job_of(created), DONE)
        check = await api.cell.store.check_create(
            account_id=ACCOUNT, server_id=SERVER, name="b", live=live, request_id="r"
        )
        assert (await api.cell.node.begin(check.id)).live is live


@pytest.mark.parametrize(
    ("setting", "of_server", "asked", "live"),
    [
        ("allowed", "live", {}, True),
        ("allowed", "live", {"consistency": "stop"}, False),
        ("default", "stop", {}, False),
        ("default", None, {}, True),
    ],
)
async def test_a_server_has_its_own_default(
    cell: Cell, setting: str, of_server: str | None, asked: dict[str, str], live: bool
) -> None:
    async with serving(cell, live=setting) as api:
        path = f"/api/v1/servers/{SERVER}/"
        await api.call("PATCH", path, body={"consistency": "live"})
        edited = await api.call("PATCH", path, body={"consistency": of_server})
        assert (edited.status, edited.body["consistency"]) == (200, of_server)
        assert (await api.call("GET", path)).body["consistency"] == of_server
        check = await api.call(
            "POST", "/api/v1/snapshots/?dry_run=true", body={"server_id": SERVER, "name": "a", **asked}
        )
        assert check.status in {200, 202}
        assert (await api.call("POST", body={"server_id": SERVER, "name": "a", **asked})).status == 201
        assert (await begun(api)).live is live


async def test_the_default_of_a_server_is_its_owners_and_what_the_provider_allows(cell: Cell) -> None:
    path = f"/api/v1/servers/{SERVER}/"
    async with serving(cell, live="allowed") as api:
        stranger = await api.new_token(account=AccountId(78))
        refused = await api.call("PATCH", path, body={"consistency": "live"}, token=stranger)
        assert (refused.status, refused.body["code"]) == (404, "server_not_found")
        reader = await api.new_token(permissions={Permission.SNAPSHOTS_READ})
        assert (await api.call("PATCH", path, body={"consistency": "live"}, token=reader)).status == 403
        assert (await api.call("GET", path)).body["consistency"] is None
        for body in ({"consistency": "paused"}, {"consistency": 1}):
            assert (await api.call("PATCH", path, body=body)).status == 400
        assert (await api.call("PATCH", path, body={"consistency": "live"})).status == 200
    async with serving(cell) as api:  # the provider no longer allows it
        assert (await api.call("PATCH", path, body={"consistency": "live"})).status == 400
        assert (await api.create()).status == 201
        assert not (await begun(api)).live
        assert (await api.call("PATCH", path, body={"consistency": None})).body["consistency"] is None
    await cell.store.edit_server(account_id=ACCOUNT, server_id=SERVER, consistency="live")
    await cell.node.finish(await cell.holder(), DONE)
    await cell.give(AccountId(78))
    assert (await cell.store.server(account_id=AccountId(78), server_id=SERVER)).server.consistency is None


async def test_other_words_are_refused(cell: Cell) -> None:
    async with serving(cell, live="allowed") as api:
        for word in ("paused", "", None, 1):
            refused = await api.call("POST", body=LIVE | {"consistency": word})
            assert refused.status == 400
            assert [error["field"] for error in refused.body["errors"]] == ["consistency"]


async def test_a_schedule_has_it_until_it_is_changed(cell: Cell) -> None:
    async with serving(cell, live="allowed") as api:
        made = await api.call("POST", SCHEDULES, body=NIGHTLY | {"consistency": "live"})
        assert (made.status, made.body["consistency"]) == (201, "live")
        path = f"{SCHEDULES}{made.body['id']}/"
        await run(api, made.body["id"], outcome=None)
        ran = await begun(api)
        assert ran.live
        await api.cell.node.finish(ran.id, DONE)
        assert (await api.call("PATCH", path, body={"keep": 2})).body["consistency"] == "live"
        assert (await api.call("PATCH", path, body={"consistency": "stop"})).body["consistency"] == "stop"
        await run(api, made.body["id"], minutes_ago=1, outcome=None)
        assert not (await begun(api)).live


async def test_a_retry_asks_for_the_same(cell: Cell) -> None:
    async with serving(cell, live="allowed") as api:
        created = await api.call("POST", body=LIVE)
        failure = Failure(code="disk_failed", detail="Disk vdb refused.")
        await api.work(created, Outcome(state=JobState.FAILED, failure=failure, snapshot_status=SnapshotStatus.FAILED))
        failed = await api.cell.store.job(account_id=ACCOUNT, job_id=job_of(created))
        await api.cell.store.again(failed, request_id="r")
        assert (await begun(api)).live


async def test_a_snapshot_and_its_job_say_how_consistent_it_is(cell: Cell) -> None:
    async with serving(cell, live="allowed") as api:
        created = await api.call("POST", body=LIVE)
        assert (await snapshot(api, created))["consistency"] is None
        for word in (Consistency.AGENT_FROZEN, "a_word_of_later"):
            held = replace(HELD, consistency=word)
            if word is Consistency.AGENT_FROZEN:
                await api.work(created, replace(CREATED, contents=held))
            else:
                contents = json.dumps({**json.loads(await _contents(api, created.body["id"])), "consistency": word})
                await api.cell.raw("HSET", f"snapshot:{created.body['id']}", "contents", contents)
            assert (await snapshot(api, created))["consistency"] == word
        assert (await job(api, job_of(created)))["consistency"] == "agent_frozen"
        (listed,) = (await api.call("GET")).body["results"]
        assert "consistency" not in listed, "the contract's own keys"


async def test_records_of_earlier_versions_have_no_consistency(cell: Cell) -> None:
    async with serving(cell) as api:
        created = await api.create()
        await api.work(created, CREATED)
        contents = json.loads(await _contents(api, created.body["id"]))
        del contents["consistency"]
        await api.cell.raw("HSET", f"snapshot:{created.body['id']}", "contents", json.dumps(contents))
        assert (await snapshot(api, created))["consistency"] is None
        assert (await snapshot(api, created))["contents"] is not None


async def _contents(api: FrontEnd, snapshot_id: int) -> str:
    raw: bytes = await api.cell.raw("HGET", f"snapshot:{snapshot_id}", "contents")
    return raw.decode()


def test_a_request_without_it_has_the_fingerprint_of_earlier_versions() -> None:
    plain = CreateBody(server_id=ServerId(1), name="a")
    assert json.loads(plain.model_dump_json()) == {"server_id": 1, "name": "a", "description": ""}
