"""A cell whose records can be damaged, and everything that reads them: every list, page, record, chore and loop."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from aiohttp import ClientSession
from redis.asyncio import Redis
from structlog.testing import capture_logs

from api.app import build
from api.gateway.scheduler import Scheduler
from api.http.server import listening
from api.settings import ApiSettings
from tests.integration.browsing import Browser
from tests.integration.conftest import ACCOUNT, Cell, node_store
from tests.integration.front_end import NO_NAMES, READ_WRITE, Answer, FrontEnd
from tests.integration.test_ops_api import failed
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Permission, Tokens
from worker.store.bounds import Bounds
from worker.store.calls import Idempotency
from worker.store.chores.chores import Chores
from worker.store.customers.events import NOTHING_BEFORE, Events
from worker.store.errors import RecordUnreadable, StoreUnavailable
from worker.store.model import JobId, JobState, ServerId, SnapshotId, SnapshotStatus, Step
from worker.store.nodes.claims import BeginRefused, ClaimRefused, ReportedServer
from worker.store.nodes.node_store import NodeStore
from worker.store.operators.cell import Cell as CellStore
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, NodeFacts, Pool, StepBegun
from worker.store.schedules.schedules import Schedules, ScheduleSpec
from worker.store.webhooks.deliveries import Deliveries
from worker.store.webhooks.webhooks import JobEvent, WebhookChange, Webhooks

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
LISTS: Mapping[str, Sequence[str]] = {
    "snapshot": (
        "snapshots/?page_size=500",
        "snapshots/?page_size=500&sort=-size_mb",
        "snapshots/?page_size=500&sort=name",
    ),
    "job": ("jobs/?page_size=500", "ops/jobs/?limit=500"),
    "schedule": ("schedules/?page_size=500",),
    "webhook": ("webhooks/",),
    "server": ("ops/servers/?limit=500",),
    "node": ("ops/nodes/?limit=500", "ops/nodes/?limit=500&sort=-heartbeat"),
    "": (
        *("ops/overview/", "ops/findings/?limit=500", "ops/tokens/", "ops/servers/?stranded=true"),
        *("ops/audit/", "ops/audit/check/"),
    ),
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
    """A node with one server, and the IDs of its records by kind."""

    node: NodeStore
    server: ServerId
    secret: str  # the node's credential
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
        """Request the path of a call or of a page."""
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
        """Check that every list and page answers and omits only these records."""
        for kind, paths in LISTS.items():
            for path in paths:
                rows = (await self.answered(f"api/v1/{path}")).body.get("results", [])
                listed = {str(row["name"] if kind == "node" else row["id"]) for row in rows} if kind else set()
                lacking = self.ids(kind) - missing.get(kind, set()) - listed if kind else set()
                assert not lacking, (path, lacking)
        for page in PAGES:
            await self.answered(f"ops/{page}")

    async def singles(self, kind: str, record: str) -> None:
        """Check that a record is shown when requested by its ID, or refused with a clear reason."""
        for path in SINGLES[kind]:
            answer = await self.ask(path.format(record))
            assert answer.status in {200, 404, 409}, (path, answer.raw[:2000])
            if answer.status == 409 and not path.startswith("ops/"):
                answer.refused(409, "record_unreadable")

    async def told(self) -> set[str]:
        """The keys that are shown to operators."""
        findings = (await self.answered("api/v1/ops/findings/")).body
        return {one["key"] for one in findings["unreadable_records"]}


async def ended(node: NodeStore, job_id: JobId, outcome: Outcome) -> None:
    await node.begin(job_id)
    steps = (StepBegun(step=Step.PREFLIGHT, at=1.0, attempt=1),)
    await node.progress(job_id, Step.PREFLIGHT, JobReport(steps=steps, log=('{"event": "e"}',)))
    assert await node.finish(job_id, outcome) == "published"


async def _hosted(cell: Cell, number: int) -> Hosted:
    """A node with a completed job, one that stranded the server, a waiting and an ended dry run, a schedule that is
    due, and a finding."""
    server, store = ServerId(1000 + number), cell.store
    node = node_store(cell.redis, node=f"n{number}", machine=f"m{number}")
    assert await node.take_lease(seconds=600) is None
    await node.report([ReportedServer(id=server, account_id=ACCOUNT, name=f"web-{number}", power="on")], FACTS)
    await node.publish(server, [], [])
    asked: Mapping[str, Any] = {"account_id": ACCOUNT, "server_id": server, "request_id": "r"}
    kept = await store.create(name="kept", description="d", **asked)
    await ended(node, kept.job.id, DONE)
    lost = await store.create(name="lost", description="d", **asked)
    await ended(node, lost.job.id, STRANDED)
    check, checked = [await store.check_create(name=name, **asked) for name in ("third", "fourth")]
    await ended(node, checked.id, DONE)
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
        "job": [kept.job.id, lost.job.id, check.id, checked.id],
        "schedule": [schedule.id],
        "server": [str(server)],
        "node": [f"n{number}"],
    }
    secret = (await Credentials(cell.redis).create(f"n{number}")).secret
    return Hosted(node=node, server=server, secret=secret, ids=ids)


async def _have_webhooks(cell: Cell) -> Sequence[str]:
    """Create ten webhooks, each with two undelivered tests; the last one also has a job's event."""
    webhooks = Webhooks(cell.redis)
    made = []
    for number in range(10):
        events = [JobEvent.QUEUED] if number == 9 else []
        change = WebhookChange(url="https://example.com/", description="", events=events, enabled=True)
        made.append((await webhooks.create(account_id=ACCOUNT, change=change)).webhook.id)
        for _ in range(2):
            await webhooks.test(account_id=ACCOUNT, webhook_id=made[-1])
    return made


@asynccontextmanager
async def _serving(cell: Cell) -> AsyncIterator[FrontEnd]:
    """A front end without its background work, whose rounds the tests run one by one."""
    settings = ApiSettings.model_validate({"port": 0, "calls_per_minute": 10_000_000})
    tokens = Tokens(cell.redis)
    new = await tokens.create(name="a customer", account_id=ACCOUNT, permissions=READ_WRITE)
    app = build(cell.redis, settings, resolver=NO_NAMES)
    app.cleanup_ctx.clear()
    async with listening(app, settings) as address, ClientSession() as client:
        yield FrontEnd(app=app, client=client, port=int(address[1]), cell=cell, tokens=tokens, token=new.secret)


def _keeper(redis: Redis) -> AuditKeeper:
    return AuditKeeper(redis, kept=timedelta(days=1))


@asynccontextmanager
async def made(cell: Cell, *, servers: int) -> AsyncIterator[World]:
    await cell.redis.flushdb()
    webhooks = await _have_webhooks(cell)
    hosted = [await _hosted(cell, number) for number in range(servers)]
    with suppress(ClaimRefused):
        await hosted[0].node.known(hosted[1].server, [])
    await cell.store.check_create(
        account_id=ACCOUNT,
        server_id=hosted[0].server,
        name="fifth",
        request_id="r",
        idempotency=Idempotency(key="a" * 64, fingerprint="f"),
    )
    await Chores(cell.redis).keep_bounds(Bounds())
    await Audit(cell.redis, keeper=_keeper(cell.redis)).write({"token": "t", "job": "x"})
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
        # without keys that have expired since
        dumped = [one for one in zip(keys, told[::2], told[1::2], strict=True) if one[2] is not None]
        yield World(api=api, browser=browser, ops=ops, hosted=hosted, webhooks=webhooks, dumped=dumped)


async def work(world: World, *, well: Hosted | None) -> None:
    """Run a round of every chore and loop and check that none fails and that the records of `well` are processed."""
    redis = world.redis
    with capture_logs() as logs:
        await CellStore(redis).numbers()
        chores = Chores(redis, node_silent_seconds=3600, waiting_seconds=0)
        await chores.fail_stale_jobs()
        await chores.forget_failed()
        await chores.keep_bounds(Bounds())
        await Scheduler(chores=chores).round()
        with suppress(StoreUnavailable):  # if the log itself has another type, its entries wait
            await _keeper(redis).keep()
        credential = await Credentials(redis).find(world.hosted[-1].secret)
        await Credentials(redis).all()
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
    assert credential is not None
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
    """What a node's worker requests from the store, if nothing of the node is damaged."""
    node, server = hosted.node, hosted.server
    assert await node.take_lease(seconds=600) is None
    number = int(server) - 1000
    await node.report([ReportedServer(id=server, account_id=ACCOUNT, name=f"web-{number}", power="on")], FACTS)
    await node.known(server, [SnapshotId(int(one)) for one in hosted.ids["snapshot"]])
    await node.publish(server, [], [])
    await node.retry_deletes()
    held = await world.redis.hget(f"server:{server}", "job")
    if held is not None:
        await ended(node, JobId(held.decode()), DONE)


async def work_damaged(hosted: Hosted) -> None:
    """Do the same if something is damaged: only that may be refused."""
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
