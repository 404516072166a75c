"""`worker/store/KEYS.md` lists the keys that a full run of the service leaves in Redis, and the accounts that may
access them."""

import re
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from api.gateway.scheduler import Scheduler
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import SNAPSHOTS, Answer, FrontEnd, serving
from tests.integration.test_given_at_once import deaf, waiting
from tests.integration.test_notes import CREATED, RESTORED
from tests.integration.test_ops_api import Ops, failed
from tests.integration.test_schedules import NIGHTLY, SCHEDULES, fall_due
from tests.integration.test_webhooks import EVERY, WEBHOOKS, latest, made, receiving
from tests.queueing import until_told
from worker.program import tracing
from worker.store.access.audit import Audit
from worker.store.access.credentials import Credentials
from worker.store.access.sessions import SessionLifetime, Sessions
from worker.store.access.tokens import Limits, Permission
from worker.store.backup.file import BackupFile, write
from worker.store.backup.restore import Restore
from worker.store.backup.rows import Backup, Row
from worker.store.chores.cell_clock import CellClock
from worker.store.chores.chores import Chores
from worker.store.errors import RecordUnreadable
from worker.store.model import JobId, JobKind, JobState, ServerId, SnapshotId, SnapshotStatus, Step
from worker.store.nodes.claims import BegunJob, ClaimRefused, PublishedSnapshot, ReportedServer
from worker.store.reports import JobReport, NodeFacts, Pool, StepBegun
from worker.store.webhooks.deliveries import Deliveries
from worker.store.webhooks.webhooks import WebhookChange, Webhooks

ROOT = Path(__file__).parents[2]
GONE = ServerId(4)
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
KEY = "Idempotency-Key"
PLACEHOLDERS = {
    **dict.fromkeys(("account", "server", "snapshot", "number"), r"\d+"),
    **dict.fromkeys(("job", "schedule", "webhook", "delivery", "wait"), "[0-9a-f]{32}"),
    "token": "[0-9a-f]{12}",
    "sha256": "[0-9a-f]{64}",
    "hex3": "[0-9a-f]{3}",
    "object": "[a-z]+:.+",
    "node": "[^:]+",
    **dict.fromkeys(("code", "call", "reason"), "[a-z_]+"),
    "address": "[0-9.]+",
    "state": "|".join(JobState),
    "kind": "|".join(JobKind),
    "owner": r"\d+|token:[0-9a-f]{12}",
    "key": "[0-9a-f]{64}(:.+)?",
}
READ_AND_WRITE = {  # by type: what an account with access to a key may do with it
    "string": (("GET",), ("SET", "x")),
    "hash": (("HGETALL",), ("HSET", "f", "x")),
    "list": (("LLEN",), ("LPUSH", "x")),
    "set": (("SCARD",), ("SADD", "x")),
    "zset": (("ZCARD",), ("ZADD", "1", "x")),
    "stream": (("XLEN",), ("XADD", "*", "f", "x")),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of KEYS.md. `fields` None: any."""

    pattern: str
    type: str
    fields: frozenset[str] | None
    expires: bool
    accounts: frozenset[str]

    def matches(self, key: str) -> bool:
        parts = re.split("<([a-z0-9]+)>", self.pattern)
        return (
            re.fullmatch("".join(f"({PLACEHOLDERS[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts)), key)
            is not None
        )


def documented() -> list[Line]:
    lines = (ROOT / "worker/store/KEYS.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return [
        Line(
            pattern=key.strip("`"),
            type=kind,
            fields=frozenset(members.split("`")[1].split())
            if members.startswith("`") and kind in {"hash", "stream"}
            else None,
            expires="expires" in goes,
            accounts=frozenset(accounts.split()),
        )
        for key, kind, members, _, goes, accounts in cells
    ]


ROWS = documented()


@dataclass
class Keyspace:
    """The keys seen in Redis at several moments."""

    cell: Cell
    types: dict[str, str] = field(default_factory=dict)
    fields: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    expiring: set[str] = field(default_factory=set)

    async def look(self) -> None:
        redis = self.cell.redis
        async for raw in redis.scan_iter(count=1000):
            key = raw.decode()
            kind = (await redis.type(key)).decode()
            if kind == "none":  # deleted since
                continue
            self.types[key] = kind
            if kind == "hash":
                self.fields[key] |= {name.decode() for name in await self.cell.raw("HKEYS", key)}
            if kind == "stream":
                self.fields[key] |= {name.decode() for _, entry in await redis.xrange(key) for name in entry}
            if await redis.pttl(key) > 0:
                self.expiring.add(key)


@pytest.fixture
async def seen(cell: Cell) -> Keyspace:
    """The keys after a run of everything that the service does."""
    seen = Keyspace(cell)
    limits: dict[str, Any] = {"webhooks_to_private": True, "webhook_seconds": 5.0}
    async with serving(cell, **limits) as api:
        ops = Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))
        await cell.have((SERVER, GONE))
        await _callers(seen, ops)
        await _webhooks(seen, api)
        snapshot_id = await _snapshots(seen, api)
        await _schedules(seen, api)
        await _failures(seen, ops, snapshot_id)
        await _nodes(seen, ops)
        await seen.look()
    await _steps(seen)
    await _without_front_end(seen)
    await _restored(seen)
    await _damaged(seen)
    return seen


async def _callers(seen: Keyspace, ops: Ops) -> None:
    api = ops.api
    await Audit(api.cell.redis).write({"method": "CLI", "path": "token create"})
    await api.cell.raw("RPUSH", "audit:new", "no entry")
    await seen.look()  # no keeper has taken the entry yet
    await ops.post("tokens/", {"name": "t", "permissions": ["operator"], "lifetime_hours": 1}, status=201)
    (await api.call("GET", token="vps_" + "A" * 43)).refused(401, "token_invalid")
    sessions = Sessions(
        api.cell.redis,
        lifetime=SessionLifetime(at_most=timedelta(hours=1), idle=timedelta(hours=1)),
        limits=Limits(calls=100, failed_logins=100),
    )
    session = await sessions.open(ops.token)
    assert await sessions.find(session.id, by_person=True)


async def _webhooks(seen: Keyspace, api: FrontEnd) -> None:
    async with receiving() as good, receiving(answers=[410]) as gone:
        good.open.clear()
        created = await api.call("POST", WEBHOOKS, body={"url": good.url, "events": EVERY}, headers={KEY: "webhook"})
        await made(api, gone.url, events=EVERY)
        unheard = await made(api, "http://127.0.0.1:1/", events=EVERY)  # nothing listens there: it will be retried
        first = await api.create("first")
        await good.has(1)
        await seen.look()  # its sender has claimed the webhook
        good.open.set()
        await latest(api, created.body, lambda one: one["delivered_at"] is not None)
        await latest(api, unheard, lambda one: one["attempts"] > 0)
        assert (await api.call("POST", f"{WEBHOOKS}{unheard['id']}/redeliver/")).body["redelivered"] == 1
        await api.work(first)

        async def disabled() -> bool:
            return any(hook["disabled_reason"] for hook in (await api.call("GET", WEBHOOKS)).body["results"])

        await until_told(disabled)
        await seen.look()


async def _snapshots(seen: Keyspace, api: FrontEnd) -> SnapshotId:
    cell = api.cell
    body = {"server_id": SERVER, "name": "second"}
    created = await api.call("POST", body=body, headers={KEY: "create", "traceparent": TRACE})
    snapshot_id = SnapshotId(created.body["id"])
    job_id = _job_of(created)
    await cell.node.begin(job_id)
    steps = (StepBegun(step=Step.PREFLIGHT, at=1.0, attempt=1),)
    await cell.node.progress(job_id, Step.PREFLIGHT, JobReport(steps=steps, log=("{}",)))
    await seen.look()
    await cell.node.finish(job_id, CREATED)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    change = {"labels": {"a": "b"}, "protected": True, "expires_at": tomorrow}
    assert (await api.call("PATCH", f"{SNAPSHOTS}{snapshot_id}/", body=change)).status == 200
    assert (await api.call("PATCH", f"/api/v1/servers/{SERVER}/", body={"consistency": "stop"})).status == 200
    assert (await api.call("DELETE", f"{SNAPSHOTS}{snapshot_id}/")).body["code"] == "snapshot_protected"
    check = await cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="third", live=True, request_id="r")
    await seen.look()
    await cell.node.begin(check.id)
    await cell.node.finish(check.id, CREATED)

    restored = await cell.store.restore(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r", present_only=True)
    await cell.node.begin(restored.job.id)
    await cell.node.finish(restored.job.id, RESTORED)
    undo = await cell.store.undo(account_id=ACCOUNT, job_id=restored.job.id, request_id="r")
    await cell.node.begin(undo.id)
    await cell.node.finish(undo.id, RESTORED)

    assert (await api.call("PATCH", f"{SNAPSHOTS}{snapshot_id}/", body={"protected": False})).status == 200
    await seen.look()
    with tracing.span("a request", {}, parent={"traceparent": TRACE}):
        delete = await cell.store.delete(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
    assert delete is not None
    await cell.node.begin(delete.id)
    await cell.node.finish(delete.id, failed("disk_failed"))
    await seen.look()
    forgotten = SnapshotId(await api.have_snapshot("forgotten"))
    deleted = await api.call("DELETE", f"{SNAPSHOTS}{forgotten}/")
    await api.work(deleted)
    return snapshot_id


async def _schedules(seen: Keyspace, api: FrontEnd) -> None:
    schedule = (await api.call("POST", SCHEDULES, body=NIGHTLY | {"expire_after_hours": 1})).body
    for _ in range(2):  # the second is refused: the server is busy
        await fall_due(api, schedule["id"])
        await Scheduler(chores=Chores(api.cell.redis)).round()
    assert (await api.call("GET", f"{SCHEDULES}{schedule['id']}/")).body["last_run"]["error"] == "server_busy"
    await seen.look()
    assert (await api.call("POST", f"/api/v1/jobs/{await api.cell.holder()}/cancel/", body={})).status == 200
    await _window(seen, api)


async def _window(seen: Keyspace, api: FrontEnd) -> None:
    begun = datetime.now(UTC) - timedelta(minutes=1)
    when = {"when": f"{begun.minute} {begun.hour} * * *", "time_zone": "Etc/UTC", "window_minutes": 60}
    await api.call("PATCH", f"/api/v1/servers/{SERVER}/", body={"labels": {"env": "prod"}})
    schedule = (await api.call("POST", SCHEDULES, body={"server_labels": {"env": "prod"}, "name": "all"} | when)).body
    await fall_due(api, schedule["id"])
    await api.cell.redis.hset(f"schedule:{schedule['id']}", "planned_after", "[]")  # type: ignore[misc]
    await seen.look()
    chores = Chores(api.cell.redis)
    await Scheduler(chores=chores).round()
    await api.cell.redis.zadd("schedules:runs", {f"{schedule['id']}:{SERVER}": 1})
    await seen.look()
    await Scheduler(chores=chores).round()
    await seen.look()
    assert (await api.call("POST", f"/api/v1/jobs/{await api.cell.holder()}/cancel/", body={})).status == 200


async def _failures(seen: Keyspace, ops: Ops, snapshot_id: SnapshotId) -> None:
    cell = ops.api.cell
    answer = await ops.api.create("stranded")
    await cell.node.begin(_job_of(answer))
    stopping = StepBegun(step=Step.STOPPING, at=time.time(), attempt=1)
    await cell.node.progress(_job_of(answer), Step.STOPPING, JobReport(steps=(stopping,)))
    await seen.look()
    await ops.api.work(answer, replace(failed("start_failed", stranded=True), cause="starting: no memory"))
    await ops.post(f"servers/{SERVER}/take/")
    await seen.look()
    await ops.post(f"jobs/{_job_of(answer)}/resolve/", {"reason": "started by hand"})
    retried = await ops.call("POST", f"jobs/{_job_of(answer)}/retry/", {}, headers={KEY: "retry"})
    assert retried.status == 202, retried.raw
    await ops.call("POST", f"jobs/{await cell.holder()}/cancel/", {})
    lost = await ops.api.have_snapshot("lost")
    assert await cell.node.lose(SERVER, SnapshotId(lost))


async def _waits(seen: Keyspace) -> None:
    cell = seen.cell
    async with deaf(cell) as node, waiting(cell, node):
        await seen.look()
        check = await cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="at once", request_id="r")
        await seen.look()
        await node.finish(check.id, CREATED)
    await cell.node.take_lease(seconds=60)


async def _nodes(seen: Keyspace, ops: Ops) -> None:
    cell = ops.api.cell
    await _waits(seen)
    await cell.node.tell_findings(SERVER, [{"finding": "stray_tag", "tag": "vps-1", "at": "1"}])
    pools = (Pool(path="/srv", free_bytes=1, total_bytes=2),)
    facts = NodeFacts(worker="1", hypervisor="fake", emulator="fake", pools=pools, slots=4, boot="first")
    await cell.have((SERVER, GONE), power="off")
    left = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
    assert GONE in (await cell.node.report([left], facts)).gone
    published = BegunJob(
        id=JobId("b" * 32),
        kind=JobKind.CHECK_CREATE,
        snapshot_id=SnapshotId(0),
        snapshot_name="x",
        snapshot_description="",
        snapshot_created_at=datetime.now(UTC),
        request_id="",
        undoes=None,
    )
    found = PublishedSnapshot(
        id=SnapshotId(3),
        name="found",
        description="x" * 4000,  # so that its byte count lasts for seconds
        created_at=datetime.now(UTC),
        size_mb=1,
        status=SnapshotStatus.COMPLETED,
    )
    await cell.node.publish(SERVER, [found], [published])
    await seen.look()
    with pytest.raises(ClaimRefused):
        await cell.node.finish(published.id, failed("NO CODE"))
    await cell.node.republish()
    second = node_store(cell.redis, node="n2", machine="m2")
    await second.take_lease(seconds=60)
    await second.report([left])
    await seen.look()
    await ops.call("PUT", f"servers/{GONE}/", {"node": "n2", "account_id": 5})
    await seen.look()
    await second.report([])
    await ops.post("nodes/n1/reconcile/", status=202)
    await ops.call("PUT", f"accounts/{ACCOUNT}/", {"snapshots_max": 6})
    for end in ({"until": "2030-01-01T00:00:00Z"}, {"until_back": True}):
        await ops.post("nodes/n1/pause/", {"reason": "new disks", **end})
        await seen.look()
    await ops.post("nodes/n1/resume/", {"reason": "done"})


async def _steps(seen: Keyspace) -> None:
    """Set Redis's clock forward twice; the second time, everything was down meanwhile."""
    redis = seen.cell.redis
    clock = CellClock(redis)
    await clock.compare()
    for is_known in (True, False):
        await seen.cell.raw("HINCRBY", "clock", "shown_ms", -3_600_000)
        if not is_known:
            clock = CellClock(redis)
        await clock.compare()
        await seen.look()


async def _without_front_end(seen: Keyspace) -> None:
    """Wake-ups that no node has taken, and credentials of nodes."""
    cell = seen.cell
    await cell.node.publish(SERVER, [], [])
    await cell.create("last")
    credentials = Credentials(cell.redis)
    await credentials.create("n1")
    await credentials.rotate("n1", lifetime=timedelta(hours=1))
    webhooks = Webhooks(cell.redis)
    change = WebhookChange(url="http://127.0.0.1:1/", description="", events=[], enabled=True)
    for _ in range(2):
        webhook = (await webhooks.create(account_id=ACCOUNT, change=change)).webhook
        await webhooks.test(account_id=ACCOUNT, webhook_id=webhook.id)
    await seen.look()
    await Deliveries(cell.redis).claim(lease_seconds=60, most=1)  # of the two that are waiting
    await seen.look()


async def _restored(seen: Keyspace) -> None:
    """Restore a backup with a snapshot that its node has not published."""
    record = {"server": str(SERVER), "account": str(ACCOUNT), "description": "", "labels": "{}", "protected": "1"}
    record |= {"status": "completed", "expires_ms": "1", "schedule": "a" * 32}

    async def rows() -> AsyncIterator[Row]:
        yield {"kind": "snapshot", "key": "snapshot:999", "record": record}

    with TemporaryDirectory() as folder:
        path = Path(folder) / "backup"
        await write(path, rows(), made_ms=0, last_id="", recipient=None, life="another")
        await Backup(seen.cell.redis).made(1)
        await Backup(seen.cell.redis).life()
        await Restore(seen.cell.redis).records(BackupFile.open(path, identity=None), now_ms=0)
    await seen.look()


async def _damaged(seen: Keyspace) -> None:
    redis, store = seen.cell.redis, seen.cell.store
    await redis.hset(f"server:{SERVER}", "account", str(ACCOUNT))  # type: ignore[misc] # redis-py's types
    await redis.hset(f"server:{SERVER}", "power", "sideways")  # type: ignore[misc]
    with pytest.raises(RecordUnreadable):
        await store.server(account_id=ACCOUNT, server_id=SERVER)
    await seen.look()


def _job_of(answer: Answer) -> JobId:
    return JobId(answer.headers["Operation-Location"].split("/")[-2])


async def test_each_key_is_documented_and_each_documented_key_is_seen(seen: Keyspace) -> None:
    rows = {key: [row for row in ROWS if row.matches(key)] for key in seen.types}
    assert {key: [row.pattern for row in found] for key, found in rows.items() if len(found) != 1} == {}
    of_key = {key: found[0] for key, found in rows.items()}
    assert {row.pattern for row in ROWS} - {row.pattern for row in of_key.values()} == set(), "never seen"
    assert {key: kind for key, kind in seen.types.items() if of_key[key].type != kind} == {}

    fields: defaultdict[str, set[str]] = defaultdict(set)
    for key, names in seen.fields.items():
        fields[of_key[key].pattern] |= names
    stated = {row.pattern: set(row.fields) for row in ROWS if row.fields is not None}
    assert {pattern: fields[pattern] ^ names for pattern, names in stated.items() if fields[pattern] != names} == {}

    expiring = {of_key[key].pattern for key in seen.expiring}
    assert {row.pattern for row in ROWS if row.expires} == expiring


async def test_the_accounts_of_redis_may_touch_what_is_documented_and_nothing_else(
    seen: Keyspace, accounts: Mapping[str, str]
) -> None:
    wrong = {}
    for key, kind in seen.types.items():
        (row,) = [row for row in ROWS if row.matches(key)]
        for account, user in accounts.items():
            for way, (command, *arguments) in enumerate(READ_AND_WRITE[kind]):
                allowed = account in row.accounts or (way == 0 and f"{account}-reads" in row.accounts)
                answer = await seen.cell.raw("ACL", "DRYRUN", user, command, key, *arguments)
                if (answer == b"OK") != allowed:
                    wrong[key, account, command] = answer
    assert wrong == {}


@pytest.fixture
async def accounts(cell: Cell) -> AsyncIterator[Mapping[str, str]]:
    """The accounts of `users.acl`, created in this Redis under the test's own names."""
    lines = (ROOT / "deploy/redis/users.acl").read_text().splitlines()
    rules = {line.split()[1]: re.findall(r"\([^)]*\)|\S+", line)[2:] for line in lines if line.startswith("user ")}
    made = {account: f"keyspace-{account}" for account in ("api", "audit", "gateway")}
    for account, user in made.items():
        await cell.raw("ACL", "SETUSER", user, *rules[account])
    yield made
    await cell.raw("ACL", "DELUSER", *made.values())
