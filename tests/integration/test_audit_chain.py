"""The audit log with the shipped accounts: only its keeper can change it, and any other change is detected."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from tests.integration.conftest import Cell
from tests.integration.front_end import serving
from tests.integration.test_deployed import DeployedRedis
from tests.integration.test_deployed import deployed as deployed  # noqa: PLC0414 - a fixture
from tests.queueing import until_told
from tests.redis_program import NOT_ALLOWED_IN_SCRIPT
from worker.store.access.audit import HEAD, NEW, STREAM, Audit, AuditKeeper
from worker.store.access.audit_check import AuditCheck, check
from worker.store.access.tokens import Permission
from worker.store.redis_client import RedisSettings, connect

KEPT = timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class Log:
    """The log with the accounts of its keeper, of a front end, and of an administrator."""

    keeper: Redis
    front_end: Redis
    thief: Redis

    async def have(self, *paths: str) -> None:
        for path in paths:
            await Audit(self.front_end).write({"method": "POST", "path": path})
        await AuditKeeper(self.keeper, kept=KEPT).keep()

    async def ids(self) -> list[str]:
        return [entry_id.decode() for entry_id, _ in await self.keeper.xrange(STREAM)]

    async def check(self, **given: Any) -> AuditCheck:
        return await check(self.front_end, **given)

    async def faults(self) -> list[tuple[str, str]]:
        return [(fault.kind, fault.entry) for fault in (await self.check()).faults]


@pytest.fixture
async def log(deployed: DeployedRedis) -> AsyncIterator[Log]:
    def client(name: str) -> Redis:
        password = SecretStr(f"{name.upper()}-PASSWORD")
        return connect(RedisSettings(url=f"unix://{deployed.socket}", username=name, password=password))

    log = Log(keeper=client("audit"), front_end=client("api"), thief=client("operator"))
    await log.thief.delete(STREAM, NEW, HEAD)
    yield log
    for redis in (log.keeper, log.front_end, log.thief):
        await redis.aclose(close_connection_pool=True)


async def test_the_kept_entries_are_ordered_and_complete(log: Log) -> None:
    paths = [f"/{n}" for n in range(450)]
    await log.have(*paths)

    assert [fields[b"path"].decode() for _, fields in await log.keeper.xrange(STREAM)] == paths
    whole = await log.check()
    assert (whole.checked, whole.unchained, whole.faults, whole.after, whole.seq) == (450, 0, (), None, 450)
    first = await log.check(at_most=400)
    assert (first.checked, first.faults) == (450, ())  # in batches of 500
    assert not await log.keeper.llen(NEW)  # type: ignore[misc]  # typed for the blocking client too


async def test_a_check_continues_where_it_ended(log: Log) -> None:
    await log.have(*(f"/{n}" for n in range(1200)))
    forged = (await log.ids())[700]
    await log.thief.execute_command("XDEL", STREAM, forged)  # type: ignore[no-untyped-call]  # redis-py's gap

    first = await log.check(at_most=500)
    second = await log.check(after=first.after, at_most=500)
    third = await log.check(after=second.after)

    assert [part.checked for part in (first, second, third)] == [500, 500, 199]
    assert [len(part.faults) for part in (first, second, third)] == [0, 1, 0]


@pytest.mark.parametrize(
    "command",
    [
        "XTRIM audit MAXLEN 0",
        "XADD audit MAXLEN 0 * path /forged",
        "XADD audit * path /forged",
        "DEL audit",
        "LTRIM audit:new 1 0",
        "LPUSH audit:new x",
        "HSET audit:head seq 7",
        "EXPIRE audit 1",
    ],
)
async def test_a_front_end_can_only_append(log: Log, command: str) -> None:
    words = command.split()
    script = f"return redis.call({','.join(map(repr, words))})"

    with pytest.raises(NoPermissionError):
        await log.front_end.execute_command(*words)  # type: ignore[no-untyped-call]  # redis-py's gap
    with pytest.raises(ResponseError, match=NOT_ALLOWED_IN_SCRIPT):
        await log.front_end.execute_command("EVAL", script, "0")  # type: ignore[no-untyped-call]  # redis-py's gap


@pytest.mark.parametrize(
    "command", ["GET token:x", "HGETALL server:1", "SET x 1", "DEL audit", "FLUSHALL", "CONFIG GET dir", "ACL LIST"]
)
async def test_the_keeper_can_do_nothing_else(log: Log, command: str) -> None:
    with pytest.raises(NoPermissionError):
        await log.keeper.execute_command(*command.split())  # type: ignore[no-untyped-call]  # redis-py's gap


async def test_anything_that_a_front_end_appends_becomes_an_entry(log: Log) -> None:
    far = 2**62
    junk: list[Any] = [b"\xff", b"[]", b"7", b"{}", b'{"at_ms": "x"}', json.dumps({"at_ms": far, "path": "/later"})]
    junk += [json.dumps({"at_ms": 1, "path": "a" * 9000, "seq": "7", "chain": "x"}), '{"at_ms": 1, "path": "\\ud800"}']
    await log.front_end.rpush(NEW, *junk)  # type: ignore[misc]  # typed for the blocking client too
    await log.have("/after")

    found = await log.keeper.xrange(STREAM)
    assert len(found) == len(junk) + 1
    assert found[-1][1][b"path"] == b"/after"
    assert await log.faults() == []


async def test_changes_of_the_log_are_detected(log: Log) -> None:
    await log.have("/1", "/2", "/3", "/4", "/5")
    first, second, third, _, last = await log.ids()
    assert await log.faults() == []

    await log.thief.xdel(STREAM, second)
    assert await log.faults() == [("gap", third)]
    await log.thief.xdel(STREAM, first)
    assert ("gap", third) in await log.faults()  # at the beginning
    await log.thief.xdel(STREAM, last)
    assert [kind for kind, _ in await log.faults()] == ["gap", "cut"]
    await log.thief.xtrim(STREAM, maxlen=0, approximate=False)
    assert [kind for kind, _ in await log.faults()] == ["cut"]


async def test_a_forged_and_a_changed_entry_show(log: Log) -> None:
    await log.have("/1", "/2")
    (_, (last, fields)) = await log.keeper.xrange(STREAM)
    forged = (await log.thief.xadd(STREAM, {"path": "/forged"})).decode()
    copied = (await log.thief.xadd(STREAM, {**fields})).decode()
    assert await log.faults() == [("forged", forged), ("forged", copied)]

    await log.thief.xdel(STREAM, last, forged, copied)
    changed = (await log.thief.xadd(STREAM, {**fields, b"path": b"/changed"})).decode()
    assert await log.faults() == [("changed", changed)]


async def test_keepers_beside_each_other_lose_and_repeat_nothing(log: Log) -> None:
    paths = [f"/{n}" for n in range(1000)]
    for path in paths:
        await Audit(log.front_end).write({"path": path})

    await asyncio.gather(*(AuditKeeper(log.keeper, kept=KEPT).keep() for _ in range(5)))

    assert [fields[b"path"].decode() for _, fields in await log.keeper.xrange(STREAM)] == paths
    assert await log.faults() == []


async def test_the_entries_of_an_earlier_version_stand_before_the_chain(log: Log) -> None:
    await log.thief.xadd(STREAM, {"path": "/old"})
    await log.have("/new")

    found = await log.check()
    assert (found.checked, found.unchained, found.faults) == (2, 1, ())


async def test_removed_old_entries_are_not_a_gap(log: Log) -> None:
    old = datetime.now(UTC) - KEPT - timedelta(days=1)
    for n in range(250):
        await Audit(log.front_end, now=lambda: old).write({"path": str(n)})
    await log.have("/new")
    await log.have("/newer")

    found = await log.check()
    assert found.checked < 200
    assert found.faults == ()


@pytest.mark.parametrize("front_end_is_ahead", [True, False])
async def test_a_clock_that_is_ahead_removes_nothing(log: Log, front_end_is_ahead: bool) -> None:
    def ahead() -> datetime:
        return datetime.now(UTC) + timedelta(days=200)

    await log.have(*(f"/{n}" for n in range(250)))
    if front_end_is_ahead:
        await Audit(log.front_end, now=ahead).write({"path": "/ahead"})
        await AuditKeeper(log.keeper, kept=KEPT).keep()
    else:
        await Audit(log.front_end).write({"path": "/now"})
        await AuditKeeper(log.keeper, kept=KEPT, now=ahead).keep()

    assert len(await log.ids()) == 251


async def test_operators_are_notified(cell: Cell) -> None:
    async with serving(cell) as api:
        token = await api.new_token(account=None, permissions={Permission.OPERATOR_READ})
        await api.create()
        await api.create("again")

        async def has_both() -> bool:
            return bool(await cell.redis.xlen(STREAM) >= 2)

        await until_told(has_both)
        whole = await api.call("GET", "/api/v1/ops/audit/check/", token=token)
        await cell.redis.xtrim(STREAM, maxlen=0, approximate=False)
        cut = await api.call("GET", "/api/v1/ops/audit/check/", token=token)

    assert [whole.body[name] for name in ("checked", "unchained", "faults", "seq", "after")] == [2, 0, [], 2, None]
    assert [fault["kind"] for fault in cut.body["faults"]] == ["cut"]


DAMAGES_OF_THE_HEAD = (
    ("HSET", HEAD, "seq", "some text"),
    ("HSET", HEAD, "seq", "-5"),
    ("HSET", HEAD, "seq", "9" * 30),
    ("HSET", HEAD, "seq", b"\xff"),
    ("HSET", HEAD, "first", "some text"),
    ("HDEL", HEAD, "seq"),
    ("DEL", HEAD),
    ("SET", HEAD, "some text"),
)


@pytest.mark.parametrize("damage", DAMAGES_OF_THE_HEAD, ids=lambda damage: repr(damage[::2]))
async def test_an_unreadable_head_is_a_broken_chain_and_stops_no_keeper(
    log: Log, damage: tuple[str | bytes, ...]
) -> None:
    await log.have("/1", "/2")
    await log.thief.execute_command(*damage)  # type: ignore[no-untyped-call]  # redis-py's gap
    assert [kind for kind, _ in await log.faults()] == ["cut"]

    await log.have("/3")
    await log.have("/4")

    paths = [fields[b"path"].decode() for _, fields in await log.keeper.xrange(STREAM)]
    assert paths == ["/1", "/2", "/3", "/4"]
    if b"first" not in damage and "first" not in damage:  # the keeper writes that field again with each entry
        assert "changed" in [kind for kind, _ in await log.faults()]


async def test_two_keepers_that_cannot_read_the_head_move_each_entry_once(log: Log) -> None:
    await log.have("/1")
    await log.thief.set(HEAD, "some text")
    for n in range(20):
        await Audit(log.front_end).write({"path": f"/{n}"})

    await asyncio.gather(*(AuditKeeper(log.keeper, kept=KEPT).keep() for _ in range(3)))
    await AuditKeeper(log.keeper, kept=KEPT).keep()

    assert [fields[b"path"].decode() for _, fields in await log.keeper.xrange(STREAM)] == [
        "/1",
        *(f"/{n}" for n in range(20)),
    ]


async def test_unreadable_entries_are_reported_as_faults(log: Log) -> None:
    await log.have("/1")
    await log.thief.execute_command("XADD", STREAM, "*", "seq", b"\xff", b"\xff", b"\xff")  # type: ignore[no-untyped-call]  # redis-py's gap
    await log.thief.execute_command("XADD", STREAM, "*", "seq", "9" * 5000, "chain", b"\xff")  # type: ignore[no-untyped-call]  # redis-py's gap
    assert [kind for kind, _ in await log.faults()] == ["forged", "forged"]

    await log.thief.execute_command("SET", STREAM, "some text")  # type: ignore[no-untyped-call]  # redis-py's gap
    assert await log.faults() == [("cut", "0-0")]
