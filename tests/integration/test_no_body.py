"""Calls without a body refuse a request that has one, and do nothing."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from api.http.calls import OPS, Call
from api.resources import CALLS
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import DONE, SNAPSHOTS, FrontEnd, serving
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import OPERATORS, Permission

AnyCall = Call[Any]
WITHOUT = [call for call in CALLS if call.changes and call.body is None]
each_call = pytest.mark.parametrize("call", WITHOUT, ids=[call.id for call in WITHOUT])


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, calls_per_minute=100_000, body_seconds=0.2) as front_end:
        yield front_end


@pytest.fixture
async def ids(api: FrontEnd) -> dict[str, str]:
    """IDs of objects that each of the calls could change."""
    snapshot = await api.have_snapshot()
    restored = await api.call("POST", f"{SNAPSHOTS}{snapshot}/restore/")
    await api.work(restored, replace(DONE, undoable_seconds=3600))
    schedule = await api.call("POST", "/api/v1/schedules/", body={"server_id": SERVER, "name": "n", "when": "daily"})
    webhook = await api.call("POST", "/api/v1/webhooks/", body={"url": "https://hooks.example.com/"})
    return {
        "snapshot_id": str(snapshot),
        "job_id": restored.headers["X-Job-Id"],
        "schedule_id": schedule.body["id"],
        "webhook_id": webhook.body["id"],
        "delivery_id": await api.have_failed_delivery(webhook.body["id"]),
        "node": await with_credential(api, "n1"),
        "server_id": str(SERVER),
        "token_id": (await api.tokens.all())[-1].id,
    }


async def with_credential(api: FrontEnd, node: str) -> str:
    await Credentials(api.cell.redis).create(node)
    return node


async def token_for(api: FrontEnd, call: AnyCall) -> str:
    if call.permission in OPERATORS:
        return await api.new_token(account=None, permissions={Permission.OPERATOR})
    return api.token


async def kept(api: FrontEnd) -> dict[bytes, bytes]:
    """All data in the store, except what it records about the calls themselves, and rate limits, which expire."""
    redis = api.cell.redis
    aside = (b"calls:", b"probe:", b"audit", b"clock")
    keys = [key async for key in redis.scan_iter("*") if not key.startswith(aside) and not key.endswith(b":told")]
    return {key: await redis.dump(key) for key in sorted(keys)}


def test_these_are_the_calls_that_overwrite_or_end_something() -> None:
    assert {"restore_snapshot", "undo_restore", "cancel_job", "delete_snapshot"} <= {call.id for call in WITHOUT}
    assert {"ops_retry_job", "ops_cancel_job", "ops_reconcile_node", "ops_revoke_token"} <= {c.id for c in WITHOUT}
    assert "ops_revoke_credentials" in {call.id for call in WITHOUT}


@each_call
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ('{"dry_run": true}', ["dry_run"]),
        ('{"disks": "present", "reason": null}', ["disks", "reason"]),
        ('{"": 1}', ["body"]),
        ("[]", ["body"]),
        ("null", ["body"]),
        ('"{}"', ["body"]),
        ("dry_run=true", ["body"]),
        ("{", ["body"]),
    ],
)
async def test_any_other_body_is_refused_by_its_field_and_nothing_is_done(
    api: FrontEnd, ids: dict[str, str], call: AnyCall, body: str, fields: list[str]
) -> None:
    token = await token_for(api, call)
    before = await kept(api)

    answer = await api.call(call.method, call.path.format(**ids), data=body, token=token)

    assert answer.refused_fields() == fields
    assert await kept(api) == before


@each_call
@pytest.mark.parametrize("body", [None, "", "{}", " {}\r\n", "\n"])
async def test_no_body_and_an_empty_body_are_accepted(
    api: FrontEnd, ids: dict[str, str], call: AnyCall, body: str | None
) -> None:
    token = await token_for(api, call)
    answer = await api.call(call.method, call.path.format(**ids), data=body, token=token)
    assert answer.status != 400, answer.raw


async def test_a_parameter_in_the_body_is_refused_with_its_right_place(api: FrontEnd, ids: dict[str, str]) -> None:
    path = f"{SNAPSHOTS}{ids['snapshot_id']}/restore/"
    (error,) = (await api.call("POST", path, body={"dry_run": True})).body["errors"]
    assert error["detail"] == "This call takes no fields in its body. Send it as the query parameter dry_run."
    (error,) = (await api.call("POST", path, body={"snapshot_id": 7})).body["errors"]
    assert error["detail"] == "This call takes no fields in its body."


async def test_a_body_that_comes_in_pieces_is_read_to_its_end(api: FrontEnd, ids: dict[str, str]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b'{"dry', b'_run": ', b"true}"):
            yield piece

    answer = await api.call("POST", f"{SNAPSHOTS}{ids['snapshot_id']}/restore/", data=pieces())
    assert answer.refused_fields() == ["dry_run"]


async def test_an_unauthenticated_caller_learns_only_that(api: FrontEnd, ids: dict[str, str]) -> None:
    path = f"{SNAPSHOTS}{ids['snapshot_id']}/restore/"
    (await api.call("POST", path, body={"dry_run": True}, token="vps_" + "A" * 43)).refused(401, "token_invalid")


@pytest.mark.parametrize(
    "path",
    [
        *(f"{SNAPSHOTS}{{snapshot_id}}/restore/?{query}" for query in ("dryrun=true", "dry-run=true", "DRY_RUN=true")),
        f"{SNAPSHOTS}?dryrun=true",
        "/api/v1/restores/{job_id}/undo/?dry_run=true",
        "/api/v1/jobs/{job_id}/cancel/?dry_run=true",
        f"{OPS}jobs/{{job_id}}/retry/?dry_run=true",
    ],
)
async def test_a_misspelled_parameter_does_not_do_the_real_thing(api: FrontEnd, ids: dict[str, str], path: str) -> None:
    token = await api.new_token(account=None, permissions={Permission.OPERATOR}) if path.startswith(OPS) else api.token
    before = await kept(api)
    body = {"server_id": SERVER, "name": "new"} if path.startswith(f"{SNAPSHOTS}?") else None

    answer = await api.call("POST", path.format(**ids), body=body, token=token)

    assert answer.refused_fields() == [path.partition("?")[2].partition("=")[0]]
    assert await kept(api) == before


async def test_a_delete_with_a_parameter_deletes_nothing(api: FrontEnd, ids: dict[str, str]) -> None:
    before = await kept(api)
    answer = await api.call("DELETE", f"{SNAPSHOTS}{ids['snapshot_id']}/?dry_run=true")
    assert answer.refused_fields() == ["dry_run"]
    assert await kept(api) == before
