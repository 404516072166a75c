"""Operators set the snapshot limit of an account's servers."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import Answer, FrontEnd, serving
from tests.integration.test_schedules import NIGHTLY, SCHEDULES, listed, made, run
from worker.store.access.tokens import OPERATORS
from worker.store.model import SNAPSHOTS_PER_SERVER_MOST, SnapshotId, SnapshotStatus
from worker.store.nodes.claims import PublishedSnapshot

LIMIT = f"/api/v1/ops/accounts/{ACCOUNT}/"


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as front_end:
        yield front_end


@pytest.fixture
async def operator(api: FrontEnd) -> str:
    return await api.new_token(account=None, permissions=OPERATORS)


async def limit(api: FrontEnd, operator: str, snapshots_max: int | None) -> Answer:
    return await api.call("PUT", LIMIT, body={"snapshots_max": snapshots_max}, token=operator)


async def test_an_account_has_the_limit_of_the_contract_until_an_operator_sets_one(
    api: FrontEnd, operator: str
) -> None:
    default = {"account_id": ACCOUNT, "snapshots_max": 5, "is_default": True, "servers": 1}
    assert (await api.call("GET", LIMIT, token=operator)).body == default
    assert (await limit(api, operator, 2)).body == default | {"snapshots_max": 2, "is_default": False}
    assert (await limit(api, operator, None)).body == default


async def test_the_limit_holds_from_the_next_request_on(api: FrontEnd, operator: str) -> None:
    await limit(api, operator, 6)
    for number in range(6):
        await api.have_snapshot(f"s{number}")
    answer = await api.create("seventh")
    refused = answer.refused(400, "snapshot_limit_reached")
    assert answer.headers["X-Limit"] == "6"
    assert refused["detail"] == "The server has reached the limit of 6 snapshots. Delete one first."
    shown = (await api.call("GET", f"/api/v1/servers/{SERVER}/")).body
    assert (shown["snapshots"], shown["snapshots_max"]) == (6, 6)
    listed = (await api.call("GET", "/api/v1/ops/servers/", token=operator)).body["results"]
    assert [server["snapshots_max"] for server in listed] == [6]

    await limit(api, operator, None)  # deletes nothing
    refused = (await api.create("seventh")).refused(400, "snapshot_limit_reached")
    assert refused["detail"] == "The server has reached the limit of 5 snapshots. Delete one first."
    assert (await api.call("GET")).body["count"] == 6


async def test_a_schedule_keeps_at_most_that_many_snapshots(api: FrontEnd, operator: str) -> None:
    await limit(api, operator, 6)
    refused = await api.call("POST", SCHEDULES, body=NIGHTLY | {"keep": 7})
    text = "keep: Must be at most 6, the account's limit of snapshots of a server."
    assert refused.refused(400, "keep_above_limit")["detail"] == text
    schedule = await made(api, NIGHTLY | {"keep": 5})
    path = f"{SCHEDULES}{schedule['id']}/"
    (await api.call("PATCH", path, body={"keep": 7})).refused(400, "keep_above_limit")
    assert (await api.call("PATCH", path, body={"keep": 6})).body["keep"] == 6
    for minutes_ago in range(8, 0, -1):
        await run(api, schedule["id"], minutes_ago=minutes_ago)
    assert len(await listed(api)) == 6

    await limit(api, operator, None)
    assert (await api.call("PATCH", path, body={"name": "other"})).body["keep"] == 6
    await run(api, schedule["id"])
    assert len(await listed(api)) == 5


@pytest.mark.parametrize("wrong", [0, 101, "6", 5.5, True])
async def test_other_limits_are_refused(api: FrontEnd, operator: str, wrong: object) -> None:
    answer = await api.call("PUT", LIMIT, body={"snapshots_max": wrong}, token=operator)
    assert answer.refused_fields() == ["snapshots_max"]


async def test_only_operators_set_it(api: FrontEnd, operator: str) -> None:
    (await limit(api, api.token, 100)).refused(403, "permission_denied")
    wrong = await api.call("PUT", "/api/v1/ops/accounts/0/", body={"snapshots_max": 6}, token=operator)
    wrong.refused(404, "account_not_found")


async def test_a_limit_that_cannot_be_read_is_that_of_the_contract(cell: Cell, api: FrontEnd, operator: str) -> None:
    for damaged in (("SET", f"account:{ACCOUNT}", "x"), ("HSET", f"account:{ACCOUNT}", "snapshots_max", "many")):
        await cell.raw("DEL", f"account:{ACCOUNT}")
        await cell.raw(*damaged)
        assert (await api.call("GET", LIMIT, token=operator)).body["snapshots_max"] == 5
        assert (await api.call("GET", f"/api/v1/servers/{SERVER}/")).body["snapshots_max"] == 5


async def test_all_snapshots_of_a_server_with_a_higher_limit_come_back_after_a_loss(cell: Cell) -> None:
    """The limit is lost as well."""
    on_disk = [
        PublishedSnapshot(
            id=SnapshotId(number),
            name=f"s{number}",
            description="",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            size_mb=1,
            status=SnapshotStatus.COMPLETED,
        )
        for number in range(1, SNAPSHOTS_PER_SERVER_MOST + 1)
    ]
    assert len(await cell.node.publish(SERVER, on_disk, [])) == SNAPSHOTS_PER_SERVER_MOST
