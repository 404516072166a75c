"""A customer with a valid token makes as many calls as allowed, to fill Redis for all accounts."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.test_bounds import BROKEN, DONE
from worker.store.bounds import Bounds
from worker.store.calls import Idempotency
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import AccountId, JobId, ServerId
from worker.store.webhooks.deliveries import Deliveries, Result
from worker.store.webhooks.webhooks import WEBHOOKS_PER_ACCOUNT, JobEvent, WebhookChange, Webhooks

ONE_ACCOUNT_BYTES = 15_000_000  # stated in docs/adr/0025-bounds-per-account.md
VICTIM, ITS_SERVER = AccountId(78), ServerId(1)
AT_ONCE = 10
DESCRIPTION = "x" * 1000  # the longest allowed
GONE = Result(status=None, error="connection_failed", retry_in=timedelta(seconds=1))


@pytest.fixture
async def attacked(cell: Cell) -> AsyncIterator[Cell]:
    """A cell with ten webhooks of the attacker and a server of another account. Redis does not wait for the disk."""
    await cell.redis.config_set("appendfsync", "no")
    await cell.redis.config_set("hash-max-listpack-value", "1024")  # as in deploy/redis/redis.conf
    await Chores(cell.redis).keep_bounds(Bounds())
    await cell.have([SERVER])
    change = WebhookChange(url="https://gone.example/", description="", events=[*JobEvent], enabled=True)
    for _ in range(WEBHOOKS_PER_ACCOUNT):
        await Webhooks(cell.redis).create(account_id=ACCOUNT, change=change)
    yield cell
    await cell.redis.config_set("appendfsync", "always")
    await cell.redis.config_set("hash-max-listpack-value", "64")
    await cell.redis.config_set("maxmemory", "0")


async def _used(cell: Cell) -> int:
    return int((await cell.redis.info("memory"))["used_memory"])


async def _take_from_queue(cell: Cell, job_id: JobId) -> None:
    """Take the job as the node's worker does."""
    await cell.redis.zrem("arq:queue:n1", job_id)


async def _dry_run(cell: Cell, call: int) -> None:
    key = Idempotency(key=f"{call:064x}", fingerprint="f" * 64)
    job = await cell.store.check_create(
        account_id=ACCOUNT, server_id=SERVER, name="dry", request_id="r" * 64, idempotency=key
    )
    await cell.node.begin(job.id)
    await cell.node.finish(job.id, DONE)
    await _take_from_queue(cell, job.id)


async def _failing_create(cell: Cell, call: int) -> None:
    job_id = (await cell.create(f"fails-{call}", description=DESCRIPTION)).job.id
    await cell.node.begin(job_id)
    await cell.node.finish(job_id, BROKEN)
    await _take_from_queue(cell, job_id)


async def _send_in_vain(cell: Cell) -> None:
    """Fail the deliveries, as a front end's sender does if the receiver is unreachable."""
    deliveries = Deliveries(cell.redis)
    claim = await deliveries.claim(lease_seconds=60, most=8)
    if claim is not None:
        await deliveries.settle(claim, dict.fromkeys([one.id for one in claim.deliveries], GONE), patience_seconds=1e6)


async def _attack(cell: Cell, calls: range) -> None:
    for call in calls[::AT_ONCE]:
        await cell.node.take_lease(seconds=60)  # the node's heartbeat
        await _failing_create(cell, call)
        await asyncio.gather(*(_dry_run(cell, call + n) for n in range(1, AT_ONCE)), _send_in_vain(cell))


async def _repeat_answers(cell: Cell, many: int) -> None:
    """Add what that many more calls would store: copies of a response."""
    mine = f"idempotency:{ACCOUNT}"
    answer = await cell.redis.get(f"{mine}:{599:064x}")
    assert answer is not None
    async with cell.redis.pipeline(transaction=False) as pipe:
        for call in range(10_000, 10_000 + many):
            pipe.set(f"{mine}:{call:064x}", answer, px=3_600_000)
            pipe.rpush(f"{mine}:answers", f"{mine}:{call:064x}")
        await pipe.execute()


async def test_one_account_leaves_no_more_than_a_stated_number_of_bytes(attacked: Cell) -> None:
    before = await _used(attacked)
    await _attack(attacked, range(600))  # everything but the stored responses has reached its limit
    await _repeat_answers(attacked, Bounds().answers_per_account)
    filled = await _used(attacked)
    assert filled - before < ONE_ACCOUNT_BYTES
    await _attack(attacked, range(600, 900))  # and stays there, however long the attack continues
    assert await _used(attacked) - filled < 300_000

    # in a cell that has room for only one such account, all calls of another account work
    await attacked.redis.config_set("maxmemory", str(round((before + ONE_ACCOUNT_BYTES) / 0.8)))
    await _all_calls_work(attacked)


async def _all_calls_work(cell: Cell) -> None:
    await cell.have([ITS_SERVER], account=VICTIM)
    store = CustomerStore(cell.redis)
    check = await store.check_create(account_id=VICTIM, server_id=ITS_SERVER, name="first", request_id="r")
    await cell.node.begin(check.id)
    await cell.node.finish(check.id, DONE)
    made = await store.create(account_id=VICTIM, server_id=ITS_SERVER, name="first", description="", request_id="r")
    await cell.node.begin(made.job.id)
    await cell.node.finish(made.job.id, DONE)
    restored = await store.restore(account_id=VICTIM, snapshot_id=made.snapshot.id, request_id="r")
    await cell.node.begin(restored.job.id)
    await cell.node.finish(restored.job.id, DONE)
    assert await store.delete(account_id=VICTIM, snapshot_id=made.snapshot.id, request_id="r") is not None
    assert (await store.jobs(account_id=VICTIM, server_id=None, state=None, offset=0, limit=10)).count == 4
