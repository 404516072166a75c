"""A cell with an honest node `n1` and a hostile node `n2`, which holds a real lease."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.integration.conftest import Cell, cell
from worker.store.model import AccountId, ServerId
from worker.store.nodes.claims import ReportedServer
from worker.store.nodes.node_store import NodeStore

__all__ = ["cell"]

ITS_SERVER, ITS_ACCOUNT = ServerId(666), AccountId(66)


READ: dict[bytes, tuple[str | int, ...]] = {  # by type: the command and its arguments after the key
    b"string": ("GET",),
    b"hash": ("HGETALL",),
    b"set": ("SMEMBERS",),
    b"list": ("LRANGE", 0, -1),
    b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
    b"stream": ("XRANGE", "-", "+"),
}


async def kept(cell: Cell, key: bytes) -> Any:
    """The value of a key in Redis."""
    command, *arguments = READ[await cell.raw("TYPE", key)]
    return await cell.raw(str(command), key, *arguments)


@dataclass(kw_only=True)
class Hostile:
    """`n2`, which has server 666 of account 66. `refused`: the claims that its gateway reported."""

    cell: Cell
    node: NodeStore
    refused: list[tuple[str, str]] = field(default_factory=list)

    async def everything(self) -> dict[bytes, Any]:
        """All data in Redis except the time, what a node may write about itself, and the count of refusals."""
        return {
            key: await kept(self.cell, key)
            async for key in self.cell.redis.scan_iter(count=1000)
            # how much a node has added lately is soon forgotten
            if not key.startswith((b"refused_claim", b"node:n2", b"nodes", b"clock")) and not key.endswith(b":told")
        }

    async def told(self) -> dict[bytes, int]:
        """How often each refusal was shown to operators."""
        return {
            key.removeprefix(b"refused_claim:"): int(await self.cell.raw("HGET", key, "count"))
            async for key in self.cell.redis.scan_iter(match="refused_claim:*")
        }


@pytest.fixture
async def hostile(cell: Cell, redis: Redis) -> Hostile:
    refused: list[tuple[str, str]] = []
    node = NodeStore(
        redis, node="n2", machine="m2", who="pid 1 on m2", refused=lambda call, why: refused.append((call, why))
    )
    assert await node.take_lease(seconds=60) is None
    await node.report([ReportedServer(id=ITS_SERVER, account_id=ITS_ACCOUNT, name="evil", power="on")])
    await node.publish(ITS_SERVER, [], [])
    return Hostile(cell=cell, node=node, refused=refused)
