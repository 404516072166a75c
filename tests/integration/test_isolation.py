"""No account learns anything of another: every call, every kind of token, with another account's and unknown IDs."""

import json
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from api.http.calls import Call
from api.resources import CALLS, CUSTOMERS_CALLS
from tests.integration.conftest import Cell
from tests.integration.front_end import DONE, Answer, FrontEnd, serving
from worker.store.access.tokens import OPERATORS, Permission, granting
from worker.store.model import AccountId, ServerId

OTHERS, THEIR_SERVER = AccountId(78), ServerId(2)
NO_ONES = {
    "snapshot_id": "999999",
    "job_id": "0" * 32,
    "schedule_id": "0" * 32,
    "server_id": "999999",
    "webhook_id": "0" * 32,
    "delivery_id": "0" * 32,
    "account_id": "999999",
    "node": "n9",
    "token_id": "0" * 12,
}
AnyCall = Call[Any]
ENDING = [operation for operation in CUSTOMERS_CALLS if not operation.is_stream]
PAIRS, ROUNDS = 30, 10
each_call = pytest.mark.parametrize("operation", ENDING, ids=[f"{call.method} {call.path}" for call in ENDING])
WITH_ID = [call for call in ENDING if "{" in call.path]


@dataclass(frozen=True, kw_only=True)
class World:
    api: FrontEnd
    theirs: dict[str, str]  # IDs of the other account's objects
    stranger: str  # a token of the other account

    async def call(self, operation: AnyCall, ids: dict[str, str], **given: Any) -> Answer:
        path = operation.path
        for name, value in ids.items():
            path = path.replace(f"{{{name}}}", value)
        body = None
        if operation.body is not None:
            example = next(iter(operation.examples.values()))
            body = example.model_dump(mode="json", exclude_unset=True)
            if "server_id" in body:
                body["server_id"] = int(ids["server_id"])
        return await self.api.call(operation.method, path, body=body, **given)


@pytest.fixture
async def world(cell: Cell) -> AsyncIterator[World]:
    async with serving(cell, calls_per_minute=100_000, failed_logins_per_minute=100_000, live="allowed") as api:
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
            "delivery_id": await api.have_failed_delivery(webhook.body["id"]),
            "snapshot_id": str(created.body["id"]),
            "job_id": restored.headers["X-Job-Id"],
            "schedule_id": schedule.body["id"],
            "server_id": str(THEIR_SERVER),
            "account_id": str(OTHERS),
            "node": "n1",
            "token_id": (await api.tokens.all())[-1].id,
        }
        yield World(api=api, theirs=theirs, stranger=stranger)


async def kept(world: World) -> dict[str, bytes]:
    """All data of the other account in the store."""
    redis, not_its_own = world.api.cell.redis, (b"calls:", b"probe:", b"audit", b"node", b"clock")
    keys = [key async for key in redis.scan_iter("*") if not key.startswith(not_its_own)]
    return {key.decode(): await redis.dump(key) for key in sorted(keys)}


def said(answer: Answer, ids: dict[str, str]) -> tuple[int, str, set[str]]:
    """What distinguishes two answers for a caller: everything but the request's ID and the IDs in the request."""
    text = answer.raw.decode()
    if answer.raw and "request_id" in (body := json.loads(answer.raw)):
        text = text.replace(body["request_id"], "")
    for value in sorted(ids.values(), key=len, reverse=True):
        text = text.replace(value, "ID")
    return answer.status, text, set(answer.headers) - {"Date"}


async def test_ids_of_others_and_unknown_ids_are_answered_alike(world: World) -> None:
    before = await kept(world)
    for operation in WITH_ID:
        theirs = await world.call(operation, world.theirs)
        no_ones = await world.call(operation, NO_ONES)

        assert theirs.status == 404, operation.id
        assert said(theirs, world.theirs) == said(no_ones, NO_ONES), operation.id
    assert await kept(world) == before


async def test_for_ids_of_others_and_unknown_ids_redis_runs_the_same(world: World) -> None:
    """Timing reveals nothing if Redis runs the same commands, equally often, for both."""

    async def commands() -> dict[str, int]:
        stats = await world.api.cell.redis.info("commandstats")
        return {name: each["calls"] for name, each in stats.items() if name not in {"cmdstat_info", "cmdstat_evalsha"}}

    async def done_for(operation: AnyCall, ids: dict[str, str]) -> dict[str, int]:
        before = await commands()
        await world.call(operation, ids)
        return {name: calls - before.get(name, 0) for name, calls in (await commands()).items()}

    for operation in WITH_ID:
        await done_for(operation, world.theirs)  # without what only the first call does, such as loading its script
        for _ in range(ROUNDS):  # the front end's own checks for due webhooks may come in between
            theirs, no_ones = await done_for(operation, world.theirs), await done_for(operation, NO_ONES)
            if theirs == no_ones:
                break
        assert theirs == no_ones, operation.id


@each_call
async def test_a_call_without_an_id_shows_and_changes_nothing_of_others(world: World, operation: AnyCall) -> None:
    before = {key: value for key, value in (await kept(world)).items() if ":78" in key or key.endswith(":2")}
    answer = await world.call(operation, world.theirs)

    assert "theirs" not in answer.raw.decode()
    after = await kept(world)
    assert {key: after.get(key) for key in before} == before


async def useless(api: FrontEnd) -> dict[str, str]:
    """Tokens that are not valid; two of them had all permissions before they expired."""
    revoked, late = [
        await api.tokens.create(
            name="ended", account_id=OTHERS, permissions=frozenset(Permission), lifetime=timedelta(hours=1)
        )
        for _ in range(2)
    ]
    await api.tokens.revoke(revoked.token.id)
    await api.cell.raw("PEXPIREAT", await api.cell.raw("HGET", "tokens", late.token.id), 1)
    never_was = "vps_" + "B" * 43
    return {"unknown": never_was, "none of ours": "B", "revoked": revoked.secret, "late": late.secret}


async def lacking(api: FrontEnd, permission: Permission) -> dict[str, str]:
    """Tokens with every permission except that one."""
    others = set(Permission) - set(granting(permission))
    return {
        "an account's": await api.new_token(account=OTHERS, permissions=others),
        "a service's": await api.new_token(account=None, permissions=others),
    }


async def test_no_other_kind_of_token_gets_anything(world: World) -> None:
    api = world.api
    no_tokens = await useless(api)
    too_little = {permission: await lacking(api, permission) for permission in Permission}
    of_no_account = await api.new_token(account=None, permissions=set(Permission))
    before = await kept(world)

    async def all_get(operation: AnyCall, tokens: dict[str, str], status: int, code: str) -> None:
        for which, token in tokens.items():
            answers = [await world.call(operation, ids, token=token) for ids in (world.theirs, NO_ONES)]
            for answer in answers:
                assert (answer.status, answer.body["code"]) == (status, code), f"{operation.id}: {which}"
            assert said(answers[0], world.theirs) == said(answers[1], NO_ONES), f"{operation.id}: {which}"

    for operation in CALLS:
        await all_get(operation, no_tokens, 401, "token_invalid")
        await all_get(operation, too_little[operation.permission], 403, "permission_denied")
        for scheme in ("", "Basic dXNlcjpwYXNz"):
            nobody = await world.call(operation, world.theirs, headers={"Authorization": scheme})
            nobody.refused(401, "token_missing")
        if operation.permission in OPERATORS:
            await all_get(operation, {"an account's that may all": world.stranger}, 403, "permission_denied")
        else:
            await all_get(operation, {"a service's that names none": of_no_account}, 400, "invalid_request")
            as_other = await world.call(operation, world.theirs, token=world.stranger, headers={"X-Account-Id": "77"})
            as_other.refused(403, "account_mismatch")
    assert await kept(world) == before


@each_call
async def test_a_service_token_gets_what_its_account_may(world: World, operation: AnyCall) -> None:
    api = world.api
    service = await api.new_token(account=None, permissions={operation.permission})
    as_others = await world.call(operation, world.theirs, token=service, headers={"X-Account-Id": str(OTHERS)})
    assert as_others.status not in {401, 403, 404, 500}


async def test_ids_of_others_take_as_long_as_unknown_ids(world: World) -> None:
    """No absolute limit on the time: the medians of alternating pairs differ by less than half, with more attempts
    on a busy machine."""
    for operation in WITH_ID:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for _ in range(PAIRS):
                for ids, taken in zip((world.theirs, NO_ONES), times, strict=True):
                    began = time.perf_counter()
                    await world.call(operation, ids)
                    taken.append(time.perf_counter() - began)
            ratio = statistics.median(times[0]) / statistics.median(times[1])
            if 2 / 3 < ratio < 3 / 2:
                break
        assert 2 / 3 < ratio < 3 / 2, operation.id
