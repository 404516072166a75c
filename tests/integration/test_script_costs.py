"""The cost of a script in Redis, which runs nothing else meanwhile: bounded commands, however long the lists."""

from collections.abc import Mapping
from datetime import timedelta

from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, Cell, node_store
from tests.integration.test_bounds import counting
from worker.store.calls import Cursor
from worker.store.model import AccountId, ServerId
from worker.store.nodes.claims import ReportedServer
from worker.store.nodes.node_store import NodeStore
from worker.store.operators.operator_store import OperatorStore

MOST = 10_000  # commands: 10 ms
SERVERS = 1000
SNAPSHOTS = 5  # per server


async def have_records(cell: Cell, records: Mapping[str, Mapping[str, str]], lists: Mapping[str, list[str]]) -> None:
    """Write hashes, and sorted sets in the order of their members."""
    async with cell.redis.pipeline(transaction=False) as pipe:
        for key, record in records.items():
            pipe.hset(key, mapping=dict(record))
        for key, members in lists.items():
            pipe.zadd(key, {member: place for place, member in enumerate(members)})
        await pipe.execute()


async def have_old_snapshots(cell: Cell) -> None:
    """Write SERVERS with SNAPSHOTS each, taken in 1970."""
    records, servers = {}, [str(n) for n in range(1, SERVERS + 1)]
    for server in servers:
        records[f"server:{server}"] = {
            "v": "3",
            "account": str(ACCOUNT),
            "name": f"web-{server}",
            "node": "n1",
            "power": "on",
        }
        for place in range(SNAPSHOTS):
            snapshot = f"{server}{place}"
            records[f"snapshot:{snapshot}"] = {"status": "completed", "created_ms": "1", "server": server}
    await have_records(cell, records, {"servers": servers})
    async with cell.redis.pipeline(transaction=False) as pipe:
        for server in servers:
            pipe.sadd(f"server:{server}:counted", *[f"{server}{place}" for place in range(SNAPSHOTS)])
            pipe.sadd("node:n1:servers", server)
        await pipe.execute()


async def test_a_list_of_servers_without_a_snapshot(cell: Cell, redis_server: RedisServer) -> None:
    await cell.redis.delete("servers")
    await have_old_snapshots(cell)
    async with cell.redis.pipeline(transaction=False) as pipe:  # all but the last one have a snapshot of today
        for server in range(1, SERVERS):
            pipe.hset(f"snapshot:{server}4", "created_ms", str(2**42))
        await pipe.execute()
    operators, found, after = OperatorStore(cell.redis, cell.store), [], None
    async with counting(cell, redis_server.socket) as commands:
        while True:
            page = await operators.servers(
                node=None,
                account_id=None,
                stranded=False,
                cursor=Cursor(limit=100, after=after),
                without_snapshot_of=timedelta(days=1),
            )
            found += [one.view.server.id for one in page.results]
            if (after := page.after) is None:
                break
    assert found == [SERVERS]
    assert max(commands.values()) < 3000
    assert len(commands) >= 3


def servers(many: int, *, account: AccountId = ACCOUNT, power: str = "on") -> list[ReportedServer]:
    return [ReportedServer(id=ServerId(n + 1), account_id=account, name=f"web-{n}", power=power) for n in range(many)]


async def test_the_first_report_of_a_large_node_and_its_last(cell: Cell, redis_server: RedisServer) -> None:
    """Each report adds or removes only a part."""
    for reported, known in ((servers(SERVERS), SERVERS), ([], 0)):
        async with counting(cell, redis_server.socket) as commands:
            for _ in range(SERVERS // 400 + 1):
                await cell.node.report(reported)
        assert await cell.redis.zcard("servers:node:n1") == known
        assert max(commands.values()) < MOST


async def test_a_report_of_what_is_not_the_nodes(cell: Cell, redis_server: RedisServer) -> None:
    """Malformed servers and those of another node: each is refused and counted."""
    for _ in range(6):
        await cell.node.report(servers(2000))
    hostile = node_store(cell.redis, node="n2", machine="m2")
    await hostile.take_lease(seconds=60)
    await hostile.report(servers(2000))
    async with cell.redis.pipeline(transaction=False) as pipe:  # it has claimed them for longer than a migration takes
        for n in range(2000):
            pipe.hset("node:n2:claimed", str(n + 1), "1")
        await pipe.execute()
    async with counting(cell, redis_server.socket) as commands:
        await hostile.report(servers(2000))
        await hostile.report(servers(2000, power="x"))
    assert max(commands.values()) < 2 * MOST
    assert await refusals(cell) == {b"n2:report:other_node": 2000, b"n2:report:malformed": 2000}


async def refusals(cell: Cell) -> dict[bytes, int]:
    names = await cell.redis.zrange("refused_claims", 0, -1)
    return {name: int(await cell.raw("HGET", b"refused_claim:" + name, "count")) for name in names}


async def test_servers_that_leave_a_node_with_many_deletes_to_come(cell: Cell, redis_server: RedisServer) -> None:
    """The node's list is read once, not once per server."""
    many = 100
    await cell.node.report(servers(many))
    deleting = [str(n) for n in range(10_000, 11_000)]
    records = {f"snapshot:{n}": {"server": str(int(n) % many + 1), "node": "n1"} for n in deleting}
    await have_records(cell, records, {"node:n1:deleting": deleting})
    await cell.node.report([])
    other: NodeStore = node_store(cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    async with counting(cell, redis_server.socket) as commands:
        await other.report(servers(many))
    assert await cell.redis.zcard("node:n2:deleting") == len(deleting)
    assert await cell.redis.zcard("node:n1:deleting") == 0
    assert max(commands.values()) < MOST
