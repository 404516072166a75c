"""The entries about one object are found in a long audit log without reading all of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from tests.conftest import RedisServer
from tests.integration.conftest import Cell
from worker.store.access.audit import HEAD, NEW, Audit, AuditKeeper
from worker.store.calls import Cursor
from worker.store.customers.customer_store import CustomerStore
from worker.store.operators.operator_store import AuditFilter, OperatorStore
from worker.store.redis_client import RedisSettings, connect

MANY = 2500  # more entries than one call reads
PAUSED = {"token": "a" * 12, "token_name": "ops", "method": "POST", "path": "/ops/nodes/n7/pause/", "request_id": "r-7"}


@dataclass(frozen=True, kw_only=True)
class Log:
    redis: Redis
    audit: Audit
    keeper: AuditKeeper
    store: OperatorStore

    async def fill(self, count: int = MANY) -> None:
        """Add entries about another object."""
        await self.audit.write(*({"path": f"/api/v1/snapshots/{n}/", "token": "b" * 12} for n in range(count)))
        await self.keeper.keep()

    async def add(self, **fields: str) -> None:
        await self.audit.write({**PAUSED, **fields})
        await self.keeper.keep()

    async def first_page(self, **wanted: dict[str, str]) -> tuple[list[str], str | None]:
        """The requests, and the cursor of the next page."""
        page = await self.store.audit(AuditFilter(**wanted), Cursor(limit=50))  # type: ignore[arg-type]
        return [entry.fields.get("request_id", "") for entry in page.results], page.after

    async def whole(self, *, limit: int = 50, **wanted: dict[str, str]) -> list[str]:
        found, after = list[str](), None
        while True:
            page = await self.store.audit(AuditFilter(**wanted), Cursor(limit=limit, after=after))  # type: ignore[arg-type]
            found += [entry.fields.get("request_id", "") for entry in page.results]
            after = page.after
            if after is None:
                return found


@pytest.fixture
async def log(cell: Cell) -> Log:
    keeper = AuditKeeper(cell.redis, kept=None)
    store = OperatorStore(cell.redis, cell.store)
    return Log(redis=cell.redis, audit=Audit(cell.redis), keeper=keeper, store=store)


WANTED = (
    {"about": {"node": "n7"}},
    {"fields": {"request_id": "r-7"}},
    {"fields": {"token": "a" * 12}},
    {"fields": {"token": "a" * 12, "token_name": "ops"}, "about": {"node": "n7"}},
)


@pytest.mark.parametrize("wanted", WANTED, ids=str)
async def test_an_old_entry_is_on_the_first_page(log: Log, wanted: dict[str, dict[str, str]]) -> None:
    await log.add()
    await log.fill()
    assert await log.first_page(**wanted) == (["r-7"], None)


async def test_pages_lead_through_all_of_them_once(log: Log) -> None:
    for n in range(7):
        await log.add(request_id=f"r-{n}")
    await log.fill(20)
    assert await log.whole(limit=2, about={"node": "n7"}) == [f"r-{n}" for n in range(6, -1, -1)]


async def test_those_of_an_earlier_version_are_found_too(log: Log) -> None:
    await log.add(request_id="r-1")
    await log.redis.hdel(HEAD, "listed_from", "listed_seq")  # type: ignore[misc]  # redis-py's types
    await log.redis.delete("audit:of:node:n7")
    await log.fill(10)
    await log.add(request_id="r-2")
    assert await log.whole(about={"node": "n7"}) == ["r-2", "r-1"]


async def test_entries_moved_by_an_earlier_keeper_are_not_missed(log: Log) -> None:
    await log.add(request_id="r-1")
    await log.add(request_id="r-2")
    await log.redis.zrem("audit:of:node:n7", *(await log.redis.zrange("audit:of:node:n7", 1, 1)))
    await log.redis.hset(HEAD, "listed_seq", "1")  # type: ignore[misc]  # as that of the entry before
    await log.add(request_id="r-3")
    assert await log.whole(about={"node": "n7"}) == ["r-3", "r-2", "r-1"]


async def test_a_list_is_bounded_and_older_entries_are_still_found(log: Log) -> None:
    await log.add()
    await log.fill()
    assert await log.redis.zcard(f"audit:of:token:{'b' * 12}") == 2000
    assert len(await log.whole(limit=500, fields={"token": "b" * 12})) == MANY


@asynccontextmanager
async def account_of_an_earlier_version(log: Log, server: RedisServer, *rights: str) -> AsyncIterator[Redis]:
    await log.redis.execute_command("ACL", "SETUSER", "earlier", "on", ">secret", *rights)  # type: ignore[no-untyped-call]
    redis = connect(RedisSettings(url=f"unix://{server.socket}", username="earlier", password=SecretStr("secret")))
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)
        await log.redis.execute_command("ACL", "DELUSER", "earlier")  # type: ignore[no-untyped-call]


async def test_an_account_of_redis_that_may_read_no_lists_searches_the_log(log: Log, redis_server: RedisServer) -> None:
    await log.add()
    of_the_log = "(%R~audit %R~audit:head resetchannels +xrange +xrevrange +xlen +hgetall)"
    rights = ("~[^a]*", "~a[^u]*", "+@read", "+@write", "+@connection", "+@scripting", "+time", of_the_log)
    async with account_of_an_earlier_version(log, redis_server, *rights) as redis:
        earlier = replace(log, store=OperatorStore(redis, CustomerStore(redis)))
        assert await earlier.whole(about={"node": "n7"}) == ["r-7"]


async def test_an_account_of_redis_that_may_keep_no_lists_keeps_the_log(log: Log, redis_server: RedisServer) -> None:
    rights = ("~audit", "~audit:new", "~audit:head", "~clock", "+@all")
    async with account_of_an_earlier_version(log, redis_server, *rights) as redis:
        await log.audit.write(PAUSED)
        await AuditKeeper(redis, kept=None).keep()
    assert await log.redis.llen(NEW) == 0  # type: ignore[misc]  # redis-py's types
    assert await log.whole(about={"node": "n7"}) == ["r-7"]
    assert await log.redis.hget(HEAD, "listed_from") is None  # type: ignore[misc]
