"""A cell in Redis: a front end's store, a node's store, and a server."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.conftest import in_memory
from worker.store.customers.customer_store import Admitted, CustomerStore
from worker.store.model import AccountId, Job, JobId, ServerId
from worker.store.nodes.claims import ReportedServer
from worker.store.nodes.node_store import NodeStore
from worker.store.operators.operator_store import OperatorStore

ACCOUNT = AccountId(77)
SERVER = ServerId(12345)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One node `n1` that holds its lease, with both sides' access to Redis."""

    redis: Redis
    store: CustomerStore
    node: NodeStore

    async def have(
        self, servers: Iterable[ServerId] = (SERVER,), *, account: AccountId = ACCOUNT, power: str = "on"
    ) -> None:
        listed = [
            ReportedServer(id=server, account_id=account, name="web-server-01", power=power) for server in servers
        ]
        for _ in range(1 + len(listed) // 400):  # a report adds at most this many
            for fresh in (await self.node.report(listed)).fresh:
                await self.node.publish(fresh, [], [])

    async def give(self, account: AccountId, server: ServerId = SERVER) -> None:
        """Move the server to another account, as an operator does."""
        await OperatorStore(self.redis, self.store).place(server, account_id=account)

    async def create(
        self, name: str = "before-update", *, server: ServerId = SERVER, description: str = "", live: bool = False
    ) -> Admitted:
        return await self.store.create(
            account_id=ACCOUNT, server_id=server, name=name, description=description, live=live, request_id="r1"
        )

    async def job(self, admitted: Admitted) -> Job:
        """The record of an admitted job of ACCOUNT."""
        return await self.store.job(account_id=ACCOUNT, job_id=admitted.job.id)

    async def holder(self, server: ServerId = SERVER) -> JobId:
        """The job that holds the server."""
        held: bytes = await self.raw("HGET", f"server:{server}", "job")
        return JobId(held.decode())

    async def fill(self, share: float) -> None:
        """Use this share of Redis's `maxmemory` from now on."""
        # 64 MB, so that the scripts that Redis loads and the buffers of connections are only a small part
        await self.redis.config_set("maxmemory", 0)
        await self.redis.setrange("filler", 64 << 20, b"x")
        await self.raw("EVAL", "collectgarbage()", 0)  # otherwise, a part of 64 MB could be free again at any time
        used = int((await self.redis.info("memory"))["used_memory"])
        await self.redis.config_set("maxmemory", round(used / share))
        await self.raw("HDEL", "clock", "room_ms")  # scripts would trust it for 200 ms

    async def empty(self) -> None:
        """Undo `fill`."""
        await self.redis.config_set("maxmemory", 0)
        await self.redis.delete("filler")

    async def raw(self, *command: str | int | bytes) -> Any:
        """Redis's unprocessed answer to a command."""
        return await self.redis.execute_command(*command)  # type: ignore[no-untyped-call] # redis-py's gap


def node_store(redis: Redis, *, node: str = "n1", machine: str = "m1", who: str = "pid 1 on m1") -> NodeStore:
    return NodeStore(redis, node=node, machine=machine, who=who)


async def nothing_more(_: ServerId) -> None:
    """For a publisher whose node has nothing more to report."""


@pytest.fixture
async def cell(redis: Redis) -> Cell:
    node = node_store(redis)
    assert await node.take_lease(seconds=60) is None
    cell = Cell(redis=redis, store=CustomerStore(redis), node=node)
    await cell.have()
    return cell


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory if possible, because each step waits for the journal's file."""
    with tempfile.TemporaryDirectory(prefix="vps-test-", dir=in_memory()) as folder:
        yield Path(folder)
