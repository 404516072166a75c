"""One bad record takes nothing else down.

Each field of each record of `worker/store/KEYS.md` is damaged in turn, each key is replaced by one of another type, and
each list gets members that lead nowhere. Then every list, page, record, chore and loop is tried: only the damaged
record itself may be missing, and operators are told its key.
"""

import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import ClientSession
from structlog.testing import capture_logs

from api.app import build
from api.gateway.scheduler import Scheduler
from api.http.server import listening
from api.settings import ApiSettings
from tests.integration.browsing import Browser
from tests.integration.cli import Cli
from tests.integration.conftest import ACCOUNT, Cell, node_store
from tests.integration.front_end import NO_NAMES, READ_WRITE, Answer, FrontEnd
from tests.integration.test_keyspace import ROWS
from tests.integration.test_ops_api import failed
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.tokens import Permission, Tokens
from worker.store.chores.chores import Chores
from worker.store.customers.events import NOTHING_BEFORE, Events
from worker.store.errors import RecordUnreadable
from worker.store.model import AccountId, JobId, JobState, ServerId, SnapshotId, SnapshotStatus, Step
from worker.store.nodes.node_store import BeginRefused, ClaimRefused, NodeStore, ReportedServer
from worker.store.operators.cell import Cell as CellStore
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, NodeFacts, Pool, StepBegun
from worker.store.schedules.schedules import Schedules, ScheduleSpec
from worker.store.webhooks.deliveries import Deliveries
from worker.store.webhooks.webhooks import JobEvent, WebhookChange, Webhooks

SERVERS = 25  # all but the last have one field damaged at a time
DONE = Outcome(state=JobState.COMPLETED, snapshot_status=SnapshotStatus.COMPLETED, size_mb=5120, downtime_seconds=1.5)
STRANDED = failed("start_failed", stranded=True)
FACTS = NodeFacts(worker="1", hypervisor="h", emulator="e", pools=(Pool(path="/srv", free_bytes=1, total_bytes=9),))
DAMAGES: Mapping[str, bytes | None] = {
    "absent": None,
    "empty": b"",
    "text": b"some text",
    "json": b'[{"a": [1]}]',
    "huge": b"9" * 30,
    "negative": b"-5",
    "nan": b"nan",
    "bytes": b"\xff\xfe\x00",
}
ALL_WAYS = os.environ.get("BAD_RECORDS") == "all"  # else three for each field, by turns: a minute instead of ten
LISTS: Mapping[str, Sequence[str]] = {
    "snapshot": ("snapshots/?page_size=500", "snapshots/?page_size=500&sort=-size_mb"),
    "job": ("jobs/?page_size=500", "ops/jobs/?limit=500"),
    "schedule": ("schedules/?page_size=500",),
    "webhook": ("webhooks/",),
    "server": ("ops/servers/?limit=500",),
    "node": ("ops/nodes/?limit=500", "ops/nodes/?limit=500&sort=-heartbeat"),
    "": ("ops/overview/", "ops/findings/?limit=500", "ops/audit/", "ops/tokens/", "ops/servers/?stranded=true"),
}
PAGES = ("", "jobs/", "jobs/?state=failed", "nodes/", "servers/", "findings/", "audit/", "tokens/")
SINGLES: Mapping[str, Sequence[str]] = {
    "snapshot": ("api/v1/snapshots/{}/",),
    "job": ("api/v1/jobs/{}/", "api/v1/ops/jobs/{}/", "ops/jobs/{}/"),
    "schedule": ("api/v1/schedules/{}/",),
    "webhook": ("api/v1/webhooks/{}/", "api/v1/webhooks/{}/deliveries/"),
    "server": ("api/v1/servers/{}/", "api/v1/ops/servers/{}/", "ops/servers/{}/"),
    "node": ("api/v1/ops/nodes/{}/", "ops/nodes/{}/"),
}


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """A node, its one server, and the ids of what the service knows of it, by kind."""

    node: NodeStore
    server: ServerId
    ids: Mapping[str, Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class World:
    api: FrontEnd
    browser: Browser
    ops: str
    hosted: Sequence[Hosted]
    webhooks: Sequence[str]
    dumped: Sequence[tuple[bytes, int, bytes]]

    @property
    def redis(self) -> Any:
        return self.api.cell.redis

    async def restore(self) -> None:
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.flushdb()
            for key, ttl, value in self.dumped:
                pipe.restore(key, max(0, ttl), value)
            await pipe.execute()

    async def ask(self, path: str) -> Answer:
        """The path of a call or of a page."""
        if path.startswith("ops/"):
            page = await self.browser.get(f"/{path}")
            return Answer(status=page.status, headers=page.headers, raw=page.text.encode())
        token = self.ops if path.startswith("api/v1/ops/") else self.api.token
        return await self.api.call("GET", f"/{path}", token=token)

    async def answered(self, path: str) -> Answer:
        answer = await self.ask(path)
        assert answer.status == 200, (path, answer.raw[:2000])
        return answer

    async def damage(self, key: str, field: str, damage: bytes | None) -> None:
        await (self.redis.hdel(key, field) if damage is None else self.redis.hset(key, field, damage))

    def ids(self, kind: str) -> set[str]:
        return set(self.webhooks) if kind == "webhook" else {one for h in self.hosted for one in h.ids[kind]}

    async def lists(self, missing: Mapping[str, set[str]]) -> None:
        """Every list and page answers, and lacks none but these records."""
        for kind, paths in LISTS.items():
            for path in paths:
                rows = (await self.answered(f"api/v1/{path}")).body.get("results", [])
                listed = {str(row["name"] if kind == "node" else row["id"]) for row in rows} if kind else set()
                lacking = self.ids(kind) - missing.get(kind, set()) - listed if kind else set()
                assert not lacking, (path, lacking)
        for page in PAGES:
            await self.answered(f"ops/{page}")

    async def singles(self, kind: str, record: str) -> None:
        """A record, asked for by its id, is shown or refused in clear words."""
        for path in SINGLES[kind]:
            answer = await self.ask(path.format(record))
            assert answer.status in {200, 404, 409}, (path, answer.raw[:2000])
            if answer.status == 409 and not path.startswith("ops/"):
                answer.refused(409, "record_unreadable")

    async def told(self) -> set[str]:
        """The keys that operators are told."""
        findings = (await self.answered("api/v1/ops/findings/")).body
        return {one["key"] for one in findings["unreadable_records"]}


async def _ended(node: NodeStore, job_id: JobId, outcome: Outcome) -> None:
    await node.begin(job_id)
    steps = (StepBegun(step=Step.PREFLIGHT, at=1.0, attempt=1),)
    await node.progress(job_id, Step.PREFLIGHT, JobReport(steps=steps, log=('{"event": "e"}',)))
    await node.finish(job_id, outcome)


async def _hosted(cell: Cell, number: int) -> Hosted:
    """With a completed job, one that stranded the server, a waiting dry run, a schedule that is due and a finding."""
    server, store = ServerId(1000 + number), cell.store
    node = node_store(cell.redis, node=f"n{number}", machine=f"m{number}")
    assert await node.take_lease(seconds=600) is None
    await node.report([ReportedServer(id=server, account_id=ACCOUNT, name=f"web-{number}", power="on")], FACTS)
    await node.publish(server, [], [])
    asked: Mapping[str, Any] = {"account_id": ACCOUNT, "server_id": server, "request_id": "r"}
    kept = await store.create(name="kept", description="d", **asked)
    await _ended(node, kept.job.id, DONE)
    lost = await store.create(name="lost", description="d", **asked)
    await _ended(node, lost.job.id, STRANDED)
    check = await store.check_create(name="third", **asked)
    spec = ScheduleSpec(name="nightly", when="daily", keep=2, expire_after=timedelta(days=1), enabled=True)
    schedule = await Schedules(cell.redis).create(account_id=ACCOUNT, server_id=server, spec=spec, idempotency=None)
    await node.tell_findings(server, [{"finding": "stray_tag", "tag": "vps-1", "at": "1"}])
    async with cell.redis.pipeline() as pipe:
        pipe.hset(f"snapshot:{kept.snapshot.id}", "expires_ms", "1000")
        pipe.zadd("snapshots:expiring", {str(kept.snapshot.id): 1000})
        pipe.zadd("snapshots:failed", {str(lost.snapshot.id): 1000})
        pipe.zadd("schedules:due", {schedule.id: 1000})
        pipe.zadd("jobs:waiting", {check.id: 1000})
        await pipe.execute()
    ids: Mapping[str, Sequence[str]] = {
        "snapshot": [str(kept.snapshot.id), str(lost.snapshot.id)],
        "job": [kept.job.id, lost.job.id, check.id],
        "schedule": [schedule.id],
        "server": [str(server)],
        "node": [f"n{number}"],
    }
    return Hosted(node=node, server=server, ids=ids)


async def _have_webhooks(cell: Cell) -> Sequence[str]:
    """Ten, each with a test to be delivered; the last is told of a job too."""
    webhooks = Webhooks(cell.redis)
    made = []
    for number in range(10):
        events = [JobEvent.QUEUED] if number == 9 else []
        change = WebhookChange(url="https://example.com/", description="", events=events, enabled=True)
        made.append((await webhooks.create(account_id=ACCOUNT, change=change)).webhook.id)
        await webhooks.test(account_id=ACCOUNT, webhook_id=made[-1])
    return made


@asynccontextmanager
async def _serving(cell: Cell) -> AsyncIterator[FrontEnd]:
    """Without what runs beside the requests: its rounds are run one by one."""
    settings = ApiSettings.model_validate({"port": 0, "calls_per_minute": 10_000_000})
    tokens = Tokens(cell.redis)
    new = await tokens.create(name="a customer", account_id=ACCOUNT, permissions=READ_WRITE)
    app = build(cell.redis, settings, resolver=NO_NAMES)
    app.cleanup_ctx.clear()
    async with listening(app, settings) as address, ClientSession() as client:
        yield FrontEnd(app=app, client=client, port=int(address[1]), cell=cell, tokens=tokens, token=new.secret)


@asynccontextmanager
async def _made(cell: Cell, *, servers: int) -> AsyncIterator[World]:
    await cell.redis.flushdb()
    webhooks = await _have_webhooks(cell)
    hosted = [await _hosted(cell, number) for number in range(servers)]
    keeper = AuditKeeper(cell.redis, kept=timedelta(days=1))
    await Audit(cell.redis, keeper=keeper).write({"token": "t", "job": "x"})
    async with _serving(cell) as api:
        ops = await api.new_token(account=None, permissions={Permission.OPERATOR})
        browser = Browser(client=api.client, port=api.port)
        assert (await browser.login(ops)).status == 303
        keys = [key async for key in cell.redis.scan_iter(count=1000)]
        async with cell.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.pttl(key)
                pipe.dump(key)
            told = await pipe.execute()
        # without what has expired since
        dumped = [one for one in zip(keys, told[::2], told[1::2], strict=True) if one[2] is not None]
        yield World(api=api, browser=browser, ops=ops, hosted=hosted, webhooks=webhooks, dumped=dumped)


@pytest.fixture
async def world(cell: Cell) -> AsyncIterator[World]:
    async with _made(cell, servers=3) as world:
        yield world


@pytest.fixture
async def large(cell: Cell) -> AsyncIterator[World]:
    async with _made(cell, servers=SERVERS) as world:
        yield world


async def work(world: World, *, well: Hosted | None) -> None:
    """A round of every chore and loop, none of which may break; what is `well` is served by them."""
    redis = world.redis
    with capture_logs() as logs:
        await CellStore(redis).numbers()
        chores = Chores(redis, node_silent_seconds=3600, waiting_seconds=0)
        await chores.fail_stale_jobs()
        await chores.forget_failed()
        await Scheduler(chores=chores).round()
        events = Events(redis)
        for audience in (None, ACCOUNT):
            await events.after(audience, NOTHING_BEFORE)
            await events.newest(audience)
        heard = await events.next({None: NOTHING_BEFORE, ACCOUNT: NOTHING_BEFORE}, wait_seconds=0.001)
        claimed = [claim async for claim in _claims(Deliveries(redis))]
        if well is not None:
            await _work_of(world, well)
    assert [line for line in logs if line["event"].endswith("broke")] == []
    if well is None:
        return
    assert len(heard) == 2
    assert world.webhooks[-1] in claimed
    snapshot, lost = well.ids["snapshot"]
    assert await redis.hget(f"snapshot:{snapshot}", "status") == b"deleting"
    assert not await redis.exists(f"snapshot:{lost}")
    assert await redis.hget(f"schedule:{well.ids['schedule'][0]}", "last_job")
    assert await redis.hget(f"job:{well.ids['job'][2]}", "state") == b"failed"


async def _claims(deliveries: Deliveries) -> AsyncIterator[str]:
    for _ in range(50):
        claim = await deliveries.claim(lease_seconds=60, most=8)
        if claim is None:
            return
        yield claim.webhook_id
        await deliveries.settle(claim, {}, patience_seconds=60)


async def _work_of(world: World, hosted: Hosted) -> None:
    """What the worker of a node asks of the store, where nothing of its own is damaged."""
    node, server = hosted.node, hosted.server
    assert await node.take_lease(seconds=600) is None
    number = int(server) - 1000
    await node.report([ReportedServer(id=server, account_id=ACCOUNT, name=f"web-{number}", power="on")], FACTS)
    await node.known(server, [SnapshotId(int(one)) for one in hosted.ids["snapshot"]])
    await node.publish(server, [], [])
    await node.retry_deletes()
    held = await world.redis.hget(f"server:{server}", "job")
    if held is not None:
        await _ended(node, JobId(held.decode()), DONE)


async def _work_damaged(hosted: Hosted) -> None:
    """The same where something is: it may refuse that, and nothing else."""
    node, server = hosted.node, hosted.server
    assert await node.take_lease(seconds=600) is None
    await node.report([ReportedServer(id=server, account_id=ACCOUNT, name="web", power="on")], FACTS)
    with suppress(RecordUnreadable, ClaimRefused):
        await node.known(server, [SnapshotId(int(one)) for one in hosted.ids["snapshot"]])
    await node.retry_deletes()
    for job_id in hosted.ids["job"]:
        with suppress(BeginRefused):
            await node.begin(JobId(job_id))
        with suppress(ClaimRefused):
            await node.progress(JobId(job_id), Step.PREFLIGHT)
        with suppress(ClaimRefused):
            await node.finish(JobId(job_id), DONE)
    with suppress(RecordUnreadable, ClaimRefused):
        await node.publish(server, [], [])


def fields_of(kind: str) -> list[str]:
    (row,) = [row for row in ROWS if row.pattern == f"{kind}:<{kind}>"]
    assert row.fields is not None
    return sorted(row.fields)


def ways(fields: Iterable[str]) -> list[tuple[str, str]]:
    """Each field with the names of its damages."""
    names = list(DAMAGES)
    return [
        (field, name)
        for place, field in enumerate(sorted(fields))
        for name in (names if ALL_WAYS else {"absent": 0, "text": 0, names[place % len(names)]: 0})
    ]


def batches(kind: str, many: int) -> Iterator[list[tuple[str, str]]]:
    pairs = ways(fields_of(kind))
    for first in range(0, len(pairs), many):
        yield pairs[first : first + many]


@pytest.mark.parametrize("kind", ["job", "snapshot", "server", "node", "schedule"])
async def test_a_damaged_field_hides_its_own_record_only(large: World, kind: str) -> None:
    world = large
    await world.lists({})
    assert await world.told() == set()
    for batch in batches(kind, SERVERS - 1):
        await world.restore()
        damaged = []
        for place, ((field, name), hosted) in enumerate(zip(batch, world.hosted, strict=False)):
            record = hosted.ids[kind][place % len(hosted.ids[kind])]
            await world.damage(f"{kind}:{record}", field, DAMAGES[name])
            damaged.append(record)
        await world.lists({kind: set(damaged)})
        for record in damaged:
            await world.singles(kind, record)
        for key in await world.told():
            assert key.startswith((f"{kind}:", f"account:{ACCOUNT}:{kind}s ")), key
        for _, hosted in zip(batch, world.hosted, strict=False):
            await _work_damaged(hosted)
        await work(world, well=world.hosted[-1])


@pytest.mark.parametrize("kind", ["webhook", "delivery", "token:webhook"])
async def test_a_damaged_webhook_delays_no_other(world: World, kind: str) -> None:
    pattern = f"{kind}:<{kind.removeprefix('token:')}>"
    (fields,) = [row.fields for row in ROWS if row.pattern == pattern]
    pairs = ways(fields or ())
    for first in range(0, len(pairs), 9):
        await world.restore()
        damaged = world.webhooks[: len(pairs[first : first + 9])]
        for (field, name), webhook in zip(pairs[first:], damaged, strict=False):
            key = f"{kind}:{webhook}"
            if kind == "delivery":
                (delivery,) = await world.redis.zrange(f"webhook:{webhook}:log", 0, -1)
                key = f"delivery:{delivery.decode()}"
            await world.damage(key, field, DAMAGES[name])
        await world.lists({"webhook": set(damaged) if kind == "webhook" else set()})
        for webhook in damaged:
            await world.singles("webhook", webhook)
        await work(world, well=world.hosted[-1])
        assert all(
            key.startswith((f"{kind}:", "webhook:", f"account:{ACCOUNT}:webhooks ")) for key in await world.told()
        )


def keys_of(world: World, pattern: str) -> list[str]:
    (row,) = [row for row in ROWS if row.pattern == pattern]
    return sorted(key.decode() for key, _, _ in world.dumped if row.matches(key.decode(errors="replace")))


PATTERNS = [row.pattern for row in ROWS]
SHARED = [pattern for pattern in PATTERNS if "<" not in pattern or pattern.startswith(("account:<account>", "stats:"))]
MEMBERS: Mapping[str, Sequence[Sequence[Any]]] = {
    "hash": (("HSET", "nobody", "{"), ("HSET", b"\xff", b"\xff")),
    "zset": (("ZADD", 1, "nobody"), ("ZADD", "+inf", "1" * 32), ("ZADD", 2, b"\xff\xfe"), ("ZADD", "-inf", "-1")),
    "set": (("SADD", "nobody", b"\xff\xfe"),),
    "list": (("LPUSH", "{", b"\xff\xfe", "[1]", "9" * 30),),
    "stream": (("XADD", "*", "f", b"\xff"), ("XADD", "*", "job", "x", "kind", "new", "account", "nan")),
    "string": (("SET", "some text"), ("SET", b"\xff\xfe"), ("SET", "9" * 30), ("SET", "{}"), ("SET", "")),
}


async def _replace(world: World, key: str) -> None:
    """By a key of another type."""
    kind = await world.redis.type(key)
    await world.redis.delete(key)
    await (world.redis.rpush(key, "x") if kind in {b"string", b"none"} else world.redis.set(key, "x"))


def others(world: World, key: str) -> Hosted | None:
    """One whose records the damaged key says nothing of."""
    last = world.hosted[-1]
    mine = {str(last.server), *(one for ids in last.ids.values() for one in ids)}
    is_shared = any(row.matches(key) for row in ROWS if row.pattern in SHARED)
    return None if is_shared or mine & set(key.split(":")) else last


@pytest.mark.parametrize("section", ["job", "arq", "snapshot", "server", "node", "webhook", "account", ""])
async def test_a_key_of_another_type_or_with_members_that_lead_nowhere_breaks_nothing(
    world: World, section: str
) -> None:
    for pattern in _patterns(section):
        for key in (await _not_of_the_last(world, keys_of(world, pattern)))[:1]:
            await world.restore()
            await _replace(world, key)
            await _tried(world, key, missing=True)
            await world.restore()
            kind = (await world.redis.type(key)).decode()
            for command, *arguments in MEMBERS[kind]:
                await world.api.cell.raw(command, key, *arguments)
            await _tried(world, key, missing=False)


async def _not_of_the_last(world: World, keys: Sequence[str]) -> list[str]:
    """Without those of the last webhook, which is to be served."""
    last = world.webhooks[-1]
    deliveries = {f"delivery:{one.decode()}" for one in await world.redis.zrange(f"webhook:{last}:log", 0, -1)}
    return [key for key in keys if last not in key and key not in deliveries]


def _patterns(section: str) -> list[str]:
    """Of the keys that begin with the word; '' for all others, but for what callers prove themselves with."""
    words = ("job", "arq", "snapshot", "server", "node", "webhook", "account")
    beginning = {pattern: next((word for word in words if pattern.startswith(word)), "") for pattern in PATTERNS}
    credentials = {"token:<sha256>", "token:session:<sha256>"}
    return [pattern for pattern, word in beginning.items() if word == section and pattern not in credentials]


async def _tried(world: World, key: str, *, missing: bool) -> None:
    kind, _, rest = key.partition(":")
    if missing:  # all of what it lists may be
        record = rest.split(":")[0]
        gone = {one: world.ids(one) for one in LISTS if one} if others(world, key) is None else {kind: {record}}
        await world.lists(gone)
    else:
        is_record = any(row.matches(key) and row.fields for row in ROWS)
        await world.lists({kind: {rest}} if is_record else {})
    await _work_damaged(world.hosted[0])
    for one in SINGLES:
        await world.singles(one, world.webhooks[0] if one == "webhook" else world.hosted[0].ids[one][0])
    await work(world, well=others(world, key) if missing else None)


@pytest.mark.parametrize("kind", ["token", "token:session"])
async def test_a_damaged_credential_lets_nobody_in_and_keeps_nobody_out(world: World, kind: str) -> None:
    (pattern,) = [pattern for pattern in PATTERNS if pattern == f"{kind}:<sha256>"]
    (fields,) = [row.fields for row in ROWS if row.pattern == pattern]
    browser, secret = world.browser, await world.api.new_token()
    known = set(keys_of(world, pattern))
    (new,) = {key.decode() async for key in world.redis.scan_iter(f"{kind}:*") if key.count(b":") == 1} - known or {""}
    if kind == "token:session":
        (new,) = known
    kept = await world.redis.dump(new)
    for field, name in ways(fields or ()):
        await world.redis.restore(new, 0, kept, replace=True)
        await world.damage(new, field, DAMAGES[name])
        if kind == "token":
            answer = await world.api.call("GET", token=secret)
            assert answer.status in {200, 401, 403, 400}, (field, name, answer.raw)
            await world.answered("api/v1/ops/tokens/")
        else:
            assert (await browser.get("/ops/jobs/")).status in {200, 303}, (field, name)
            await world.answered("api/v1/ops/overview/")


async def test_what_was_answered_before_and_cannot_be_read_is_not_done_again(world: World) -> None:
    key = {"Idempotency-Key": uuid4().hex}
    body = {"url": "https://example.com/"}
    await world.redis.delete(f"account:{ACCOUNT}:webhooks")
    assert (await world.api.call("POST", "/api/v1/webhooks/", body=body, headers=key)).status == 201
    (kept,) = [one async for one in world.redis.scan_iter("idempotency:*")]
    for damage in (b"some text", b"[]", b'{"fingerprint": 1}', b"\xff"):
        await world.redis.set(kept, damage)
        again = await world.api.call("POST", "/api/v1/webhooks/", body=body, headers=key)
        again.refused(409, "record_unreadable")
    assert len((await world.api.call("GET", "/api/v1/webhooks/")).body["results"]) == 1


async def test_operators_are_told_the_key_on_every_way(world: World) -> None:
    snapshot = world.hosted[0].ids["snapshot"][0]
    await world.damage(f"snapshot:{snapshot}", "size_mb", b"large")
    with capture_logs() as logs:
        for _ in range(3):
            await world.api.call("GET")
    told = [line for line in logs if line["event"] == "record.unreadable"]
    assert [(line["key"], line["log_level"]) for line in told] == [(f"snapshot:{snapshot}", "warning")]
    assert await world.told() == {f"snapshot:{snapshot}"}
    assert f"snapshot:{snapshot}" in await world.browser.seen("/ops/findings/")
    assert "cannot be read" in await world.browser.seen("/ops/")
    assert (await world.answered("api/v1/ops/overview/")).body["unreadable_records"] == 1
    assert (await CellStore(world.redis).numbers()).unreadable == 1
    cli = Cli(url=f"http://127.0.0.1:{world.api.port}", token=world.ops)
    listed = await cli.run("findings")
    assert f"snapshot:{snapshot}" in listed.out, listed
    for command in ("overview", "jobs", "nodes", "servers", "tokens"):
        assert (await cli.run(command)).code == 0, command
    await world.redis.delete(f"snapshot:{snapshot}")
    assert await world.told() == set()


async def test_operators_are_told_of_a_member_that_leads_nowhere(world: World) -> None:
    snapshot, index = world.hosted[0].ids["snapshot"][0], f"account:{ACCOUNT}:snapshots"
    await world.redis.delete(f"snapshot:{snapshot}")
    await world.lists({"snapshot": {snapshot}})
    assert await world.told() == {f"{index} {snapshot}"}


async def test_a_stranger_learns_nothing_of_a_damaged_record(world: World) -> None:
    stranger = await world.api.new_token(account=AccountId(78))
    for kind, field in (("snapshot", "created_ms"), ("job", "queued_ms"), ("schedule", "server"), ("webhook", "url")):
        record = world.webhooks[0] if kind == "webhook" else world.hosted[0].ids[kind][0]
        await world.damage(f"{kind}:{record}", field, b"some text" if kind != "webhook" else None)
        path = f"/api/v1/{kind}s/{record}/"
        (await world.api.call("GET", path)).refused(409, "record_unreadable")
        (await world.api.call("GET", path, token=stranger)).refused(404, f"{kind}_not_found")


async def test_a_server_whose_job_is_gone_takes_the_next_one(world: World) -> None:
    server = world.hosted[0].server
    await world.redis.hset(f"server:{server}", "job", "0" * 32)
    made = await world.api.call("POST", body={"server_id": server, "name": "next"})
    assert made.status == 201, made.raw
