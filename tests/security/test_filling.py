"""Customers make all calls that they may until each is refused: Redis is not full, and deletes make room."""

from collections.abc import Awaitable, Callable, Iterator
from itertools import count

import pytest

from tests.conftest import RedisServer, running_redis
from tests.integration.conftest import ACCOUNT, Cell
from tests.integration.front_end import BROKE, DONE
from worker.store import errors
from worker.store.calls import Idempotency
from worker.store.customers.customer_store import Edit
from worker.store.model import JobId, ServerId, SnapshotId
from worker.store.webhooks.webhooks import WebhookChange, Webhooks

SERVERS = [ServerId(n + 1) for n in range(500)]
ROOM_BYTES = 5 << 19  # of `maxmemory`, above the initial use
DESCRIPTION = "x" * 1000  # the longest allowed
LABELS = {f"label-{n}": "y" * 60 for n in range(10)}
# without events: messages of one account's webhooks have their own limit, which is far above this room
HOOK = WebhookChange(url="https://gone.example/", description="", events=[], enabled=True)

keys = count()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A new one: what other tests leave in memory would be most of it."""
    with running_redis() as server:
        yield server


@pytest.fixture
async def filling(cell: Cell) -> Cell:
    await cell.redis.config_set("appendfsync", "no")
    await cell.have(SERVERS)
    return cell


async def _used(cell: Cell) -> int:
    return int((await cell.redis.info("memory"))["used_memory"])


async def _share(cell: Cell) -> float:
    return await _used(cell) / int((await cell.redis.config_get("maxmemory"))["maxmemory"])


async def _until_refused(ask: Callable[[], Awaitable[object]]) -> None:
    for _ in range(5000):
        try:
            await ask()
        except errors.StoreNearlyFull:
            return
    pytest.fail("it goes on and on")


async def test_customers_do_not_fill_redis_and_can_make_room(filling: Cell) -> None:
    cell, store, hooks = filling, filling.store, Webhooks(filling.redis)
    made: list[SnapshotId] = []
    hook = await hooks.create(account_id=ACCOUNT, change=HOOK)

    async def run(job_id: JobId) -> None:
        await cell.node.begin(job_id)
        await cell.node.finish(job_id, BROKE if next(keys) % 2 else DONE)

    async def create() -> None:
        new = await cell.create(f"n-{len(made)}", server=SERVERS[len(made) % len(SERVERS)])
        made.append(new.snapshot.id)
        await cell.node.begin(new.job.id)
        await cell.node.finish(new.job.id, DONE)

    async def restore() -> None:
        key = Idempotency(key=f"{next(keys):064x}", fingerprint="f" * 64)
        job = await store.restore(
            account_id=ACCOUNT, snapshot_id=made[next(keys) % len(made)], request_id="r", idempotency=key
        )
        await run(job.job.id)

    async def rotate() -> None:
        key = Idempotency(key=f"{next(keys):064x}", fingerprint="f" * 64)
        await hooks.rotate(account_id=ACCOUNT, webhook_id=hook.webhook.id, idempotency=key)

    async def describe() -> None:
        edit = Edit(description=DESCRIPTION + str(next(keys)), labels=LABELS)
        await store.edit(account_id=ACCOUNT, snapshot_id=made[next(keys) % len(made)], edit=edit)

    async def delete(snapshot: SnapshotId) -> None:
        job = await store.delete(account_id=ACCOUNT, snapshot_id=snapshot, request_id="r")
        assert job is not None
        await cell.node.begin(job.id)
        assert await cell.node.finish(job.id, DONE) == "published"

    for ask in (create, create, restore, rotate, describe):  # Redis keeps the scripts
        await ask()
    await delete(made.pop())
    await cell.redis.config_set("maxmemory", await _used(cell) + ROOM_BYTES)

    # the refused call used memory that is free again when the share is computed
    await _until_refused(create)
    assert 0.89 <= await _share(cell) < 0.95
    for ask in (restore, rotate, describe):
        await _until_refused(ask)
    assert 0.94 <= await _share(cell) < 1

    # everything that exists is deleted: older history is dropped, which makes room for restores again
    for snapshot in made:
        await delete(snapshot)
        assert await _share(cell) < 1
    await cell.raw("EVAL", "collectgarbage()", 0)  # garbage of scripts can be a tenth of so small a Redis
    assert await _share(cell) < 0.93
