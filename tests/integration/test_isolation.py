"""No account learns of another's: every call, with every kind of token, on another's ids and on ids of no one."""

import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from api.operations import EVENTS, OPERATIONS, Operation
from tests.integration.conftest import Cell
from tests.integration.front_end import DONE, SNAPSHOTS, Answer, FrontEnd, serving
from worker.jobs.model import AccountId, ServerId
from worker.jobs.tokens import Permission

OTHERS, THEIR_SERVER = AccountId(78), ServerId(2)
NO_ONES = {
    "snapshot_id": "999999",
    "job_id": "0" * 32,
    "schedule_id": "0" * 32,
    "server_id": "999999",
    "webhook_id": "0" * 32,
}
CALLS = [operation for operation in OPERATIONS if operation.path != EVENTS]
each_call = pytest.mark.parametrize("operation", CALLS, ids=[f"{call.method} {call.path}" for call in CALLS])
with_id = pytest.mark.parametrize(
    "operation", [call for call in CALLS if "{" in call.path], ids=[call.id for call in CALLS if "{" in call.path]
)


@dataclass(frozen=True, kw_only=True)
class World:
    api: FrontEnd
    theirs: dict[str, str]  # ids of the other account's things
    stranger: str  # a token of the other account

    async def call(self, operation: Operation, ids: dict[str, str], **given: Any) -> Answer:
        path = operation.path
        for name, value in ids.items():
            path = path.replace(f"{{{name}}}", value)
        body = None
        if operation.body is not None:
            example = next(iter(operation.body_examples.values()))
            body = example.model_dump(mode="json", exclude_unset=True)
            if "server_id" in body:
                body["server_id"] = int(ids["server_id"])
        return await self.api.call(operation.method, path, body=body, **given)


@pytest.fixture
async def world(cell: Cell) -> AsyncIterator[World]:
    async with serving(cell, calls_per_minute=100_000, failed_logins_per_minute=100_000) as api:
        stranger = await api.new_token(account=OTHERS, permissions=set(Permission))
        await cell.have([THEIR_SERVER], account=OTHERS)
        created = await api.call("POST", body={"server_id": THEIR_SERVER, "name": "theirs"}, token=stranger)
        await api.work(created)
        restored = await api.call("POST", f"{created.headers['Location']}restore/", token=stranger)
        await api.work(restored, replace(DONE, undoable_seconds=3600))
        schedule = await api.call(
            "POST", "/api/v1/schedules/", body={"server_id": THEIR_SERVER, "name": "n", "when": "daily"}, token=stranger
        )
        webhook = await api.call("POST", "/api/v1/webhooks/", body={"url": "https://theirs.example/"}, token=stranger)
        theirs = {
            "webhook_id": webhook.body["id"],
            "snapshot_id": str(created.body["id"]),
            "job_id": restored.headers["X-Job-Id"],
            "schedule_id": schedule.body["id"],
            "server_id": str(THEIR_SERVER),
        }
        yield World(api=api, theirs=theirs, stranger=stranger)


async def kept(world: World) -> dict[str, bytes]:
    """All that the store has of the other account."""
    redis, not_its_own = world.api.cell.redis, (b"calls:", b"audit", b"node")
    keys = [key async for key in redis.scan_iter("*") if not key.startswith(not_its_own)]
    return {key.decode(): await redis.dump(key) for key in sorted(keys)}


def said(answer: Answer, ids: dict[str, str]) -> tuple[int, str, set[str]]:
    """What a caller can tell two answers apart by: all but the request's own id, and the ids that it named itself."""
    text = answer.raw.decode()
    if answer.raw and "request_id" in (body := json.loads(answer.raw)):
        text = text.replace(body["request_id"], "")
    for value in sorted(ids.values(), key=len, reverse=True):
        text = text.replace(value, "ID")
    return answer.status, text, set(answer.headers) - {"Date"}


@with_id
async def test_anothers_and_no_ones_are_the_same(world: World, operation: Operation) -> None:
    before = await kept(world)
    theirs = await world.call(operation, world.theirs)
    no_ones = await world.call(operation, NO_ONES)

    assert theirs.status == 404
    assert said(theirs, world.theirs) == said(no_ones, NO_ONES)
    assert await kept(world) == before


@each_call
async def test_a_call_without_an_id_shows_and_changes_nothing_of_anothers(world: World, operation: Operation) -> None:
    before = {key: value for key, value in (await kept(world)).items() if ":78" in key or key.endswith(":2")}
    answer = await world.call(operation, world.theirs)

    assert "theirs" not in answer.raw.decode()
    after = await kept(world)
    assert {key: after.get(key) for key in before} == before


@each_call
async def test_every_kind_of_token_gets_what_it_may_and_no_more(world: World, operation: Operation) -> None:
    api = world.api
    others = set(Permission) - {operation.permission}
    bad = {
        "no_such_token": ("vps_" + "B" * 43, 401),
        "without the permission": (await api.new_token(account=OTHERS, permissions=others), 403),
        "a service's that names none": (await api.new_token(account=None, permissions=set(Permission)), 400),
    }
    before = await kept(world)
    for token, status in bad.values():
        assert (await world.call(operation, world.theirs, token=token)).status == status
    mismatch = await world.call(operation, world.theirs, token=world.stranger, headers={"X-Account-Id": "77"})
    mismatch.refused(403, "account_mismatch")
    assert await kept(world) == before

    service = await api.new_token(account=None, permissions={operation.permission})
    as_others = await world.call(operation, world.theirs, token=service, headers={"X-Account-Id": str(OTHERS)})
    assert as_others.status not in {401, 403, 404, 500}


async def test_anothers_takes_as_long_as_no_ones(world: World) -> None:
    """Not a limit on the time, which is the machine's: medians of pairs, in turn, less than half apart."""
    theirs, no_ones = f"{SNAPSHOTS}{world.theirs['snapshot_id']}/", f"{SNAPSHOTS}{NO_ONES['snapshot_id']}/"
    times: dict[str, list[float]] = {theirs: [], no_ones: []}
    for _ in range(300):
        for path, taken in times.items():
            began = time.perf_counter()
            await world.api.call("GET", path)
            taken.append(time.perf_counter() - began)
    one, other = (statistics.median(taken) for taken in times.values())
    assert 2 / 3 < one / other < 3 / 2
