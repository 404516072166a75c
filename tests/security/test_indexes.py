"""Each list and each pointer in Redis is damaged with entries of another account: nobody sees them, and background
work does not touch them."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from api.resources import CUSTOMERS_CALLS
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE, FrontEnd, serving
from tests.security.conftest import kept
from worker.store.access.tokens import Permission
from worker.store.chores.chores import Chores
from worker.store.model import AccountId, ServerId
from worker.store.nodes.claims import ReportedServer

THEIRS, THEIR_SERVER = AccountId(78), ServerId(2)
MARK = "theirs-alone"
LOOKS = [call for call in CUSTOMERS_CALLS if call.method == "GET" and not call.is_stream]
LISTS = (b"zset", b"set")
POINTERS = {"server": ("job", "undoable"), "schedule": ("last_job",), "job": ("retried_by", "undoes")}


class World:
    """Two accounts that have one of everything. `ids`: of each account's objects, by their names in paths."""

    def __init__(self, api: FrontEnd) -> None:
        self.api = api
        self.tokens: dict[AccountId, str] = {}
        self.ids: dict[AccountId, dict[str, str]] = {}

    async def fill(self, account: AccountId, server: ServerId, name: str) -> None:
        api, token = self.api, await self.api.new_token(account=account, permissions=set(Permission) - {"operator"})
        ids: dict[str, str] = {"server_id": str(server)}

        async def post(path: str, **body: object) -> Any:
            answer = await api.call("POST", f"/api/v1/{path}", body=body, token=token)
            assert answer.status < 300, answer.raw
            return answer

        hook = await post("webhooks/", url=f"https://{name}.example/", description=name, events=["job.completed"])
        ids["webhook_id"] = hook.body["id"]
        made = await post("snapshots/", server_id=server, name=name, description=name)
        await api.work(made)
        ids["snapshot_id"] = str(made.body["id"])
        restored = await post(f"snapshots/{ids['snapshot_id']}/restore/")
        await api.work(restored, replace(DONE, undoable_seconds=3600))
        ids["job_id"] = restored.headers["X-Job-Id"]
        ids["schedule_id"] = (await post("schedules/", server_id=server, name=name, when="daily")).body["id"]
        self.tokens[account], self.ids[account] = token, ids

    async def looks(self) -> str:
        """Everything that account 77 can read."""
        texts = []
        for call in LOOKS:
            path = call.path
            for name, value in self.ids[ACCOUNT].items():
                path = path.replace(f"{{{name}}}", value)
            queries = ["", f"?server_id={SERVER}", "?sort=name", "?state=completed"]
            for query in queries if "{" not in call.path else queries[:1]:
                answer = await self.api.call("GET", f"{path}{query}", token=self.tokens[ACCOUNT])
                assert answer.status < 500, (path, answer.raw)
                texts.append(answer.raw.decode())
        return "\n".join(texts)


@pytest.fixture
async def world(cell: Cell) -> AsyncIterator[World]:
    async with serving(cell, calls_per_minute=100_000) as api:
        server = {"account_id": ACCOUNT, "power": "on"}
        await cell.node.report(
            [
                ReportedServer(id=SERVER, name="mine", **server),  # type: ignore[arg-type]
                ReportedServer(id=THEIR_SERVER, account_id=THEIRS, name=MARK, power="on"),
            ]
        )
        await cell.node.publish(THEIR_SERVER, [], [])
        world = World(api)
        await world.fill(ACCOUNT, SERVER, "mine")
        await world.fill(THEIRS, THEIR_SERVER, MARK)
        yield world


async def theirs_of(world: World) -> dict[str, set[str]]:
    """Entries of the other account for each list, by kind."""
    redis, ids = world.api.cell.redis, world.ids[THEIRS]
    jobs = {job.decode() for job in await redis.zrange(f"account:{THEIRS}:jobs", 0, -1)}
    deliveries = {one.decode() for one in await redis.zrange(f"webhook:{ids['webhook_id']}:log", 0, -1)}
    assert jobs
    assert deliveries
    return {
        "snapshot": {ids["snapshot_id"]},
        "job": jobs,
        "schedule": {ids["schedule_id"]},
        "webhook": {ids["webhook_id"]},
        "delivery": deliveries,
        "server": {ids["server_id"]},
    }


async def break_list(world: World, key: bytes, kind: bytes, members: set[str]) -> None:
    redis = world.api.cell.redis
    if kind == b"set":
        await world.api.cell.raw("SADD", key, *members)
    else:
        for at in (1, 10**13):  # as the oldest and as the newest entry
            await redis.zadd(key, dict.fromkeys(members, at))
            assert MARK not in await world.looks(), key


async def test_no_broken_list_shows_what_is_another_accounts(world: World) -> None:
    cell = world.api.cell
    members = set().union(*(await theirs_of(world)).values())
    broken = 0
    for key in sorted([key async for key in cell.redis.scan_iter(count=1000)]):
        kind = await cell.raw("TYPE", key)
        if kind not in LISTS or f":{THEIRS}:".encode() in key or key.startswith(b"tokens"):
            continue
        saved = await cell.raw("DUMP", key)
        await break_list(world, key, kind, members)
        assert MARK not in await world.looks(), key
        await cell.raw("RESTORE", key, 0, saved, "REPLACE")
        broken += 1
    assert broken > 30


async def test_no_broken_pointer_shows_what_is_another_accounts(world: World) -> None:
    cell, theirs, mine = world.api.cell, await theirs_of(world), world.ids[ACCOUNT]
    for kind, fields in POINTERS.items():
        key = f"{kind}:{mine[f'{kind}_id']}"
        for field in fields:
            before = await cell.raw("HGET", key, field)
            await cell.raw("HSET", key, field, min(theirs["job"]))
            assert MARK not in await world.looks(), (key, field)
            await (cell.raw("HDEL", key, field) if before is None else cell.raw("HSET", key, field, before))
    names = f"server:{SERVER}:names"
    await cell.raw("HSET", names, "new", world.ids[THEIRS]["snapshot_id"])
    body = {"server_id": SERVER, "name": "new"}
    created = await world.api.call("POST", body=body, token=world.tokens[ACCOUNT])
    assert created.status == 201, created.raw


async def test_no_broken_stream_of_events_shows_what_is_another_accounts(world: World) -> None:
    cell, token = world.api.cell, world.tokens[ACCOUNT]
    stream = f"account:{ACCOUNT}:events"
    first, fields = (await cell.redis.xrange(stream, count=1))[0]
    _, foreign = (await cell.redis.xrange(f"account:{THEIRS}:events", count=1))[0]
    await cell.redis.xadd(stream, foreign)
    await cell.redis.xadd(stream, fields | {b"state": b"failed"})  # the marker at which the read stops
    headers = {"Authorization": f"Bearer {token}", "Last-Event-ID": first.decode()}
    url = f"http://127.0.0.1:{world.api.port}/api/v1/events/"
    seen = []
    async with world.api.client.get(url, headers=headers) as response:
        async for line in response.content:
            if line.startswith(b"data: ") and len(line) > len(b"data: {}\n"):
                seen.append(json.loads(line[6:]))
                if seen[-1]["state"] == "failed":
                    break
    assert len(seen) > 3
    assert {event["server_id"] for event in seen} == {SERVER}


async def test_a_broken_list_of_webhooks_sends_no_job_to_another_account(world: World) -> None:
    cell, hook = world.api.cell, world.ids[THEIRS]["webhook_id"]
    log = f"webhook:{hook}:log"
    before = await kept(cell, log.encode())
    await cell.redis.zadd(f"account:{ACCOUNT}:webhooks", {hook: 1})
    body = {"server_id": SERVER, "name": "next"}
    await world.api.work(await world.api.call("POST", body=body, token=world.tokens[ACCOUNT]))
    assert await kept(cell, log.encode()) == before


BROKEN = [  # lists that drive background work, and the entry that they name as next
    ("snapshots:failed", "snapshot_id"),
    ("snapshots:expiring", "snapshot_id"),
    ("node:n1:deleting", "snapshot_id"),
    (f"server:{SERVER}:snapshots", "snapshot_id"),
    (f"server:{SERVER}:counted", "snapshot_id"),
    ("jobs:waiting", "job_id"),
    ("schedules:due", "schedule_id"),
]


@pytest.mark.parametrize(("key", "member"), BROKEN)
async def test_background_work_ignores_wrong_entries_of_a_broken_list(world: World, key: str, member: str) -> None:
    cell, ids = world.api.cell, world.ids[THEIRS]
    record = f"{member.removesuffix('_id')}:{ids[member]}".encode()
    before = await kept(cell, record)
    if key.endswith("counted"):
        await cell.raw("SADD", key, ids[member])
    else:
        await cell.redis.zadd(key, {ids[member]: 1})
    chores = Chores(cell.redis, waiting_seconds=-1)
    await chores.forget_failed()
    await chores.expire()
    await cell.node.retry_deletes()
    await chores.fail_stale_jobs()
    schedule = {"server_id": SERVER, "name": "daily", "when": "daily", "keep": 1}
    token = world.tokens[ACCOUNT]
    own = await world.api.call("POST", "/api/v1/schedules/", body=schedule, token=token)
    await cell.raw("HSET", f"snapshot:{world.ids[ACCOUNT]['snapshot_id']}", "schedule", own.body["id"])
    for due in await chores.due_schedules():
        if due.id == own.body["id"]:
            await chores.run_schedule(due)  # type: ignore[arg-type]
    assert await kept(cell, record) == before
    assert MARK not in await world.looks()
