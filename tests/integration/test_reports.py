"""A node's report without changes costs little, and changes are never missed."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.test_ops_api import failed
from worker.store.backup.restore import Restore
from worker.store.model import AccountId, ServerId
from worker.store.nodes.claims import LeaseLost, Reported, ReportedServer
from worker.store.nodes.node_store import NodeStore
from worker.store.operators.operator_store import OperatorStore
from worker.store.reports import NodeFacts

OTHER = ServerId(77)


def named(server: ServerId = SERVER, *, account: AccountId = ACCOUNT, power: str = "on") -> ReportedServer:
    return ReportedServer(id=server, account_id=account, name="web-server-01", power=power)


@dataclass(frozen=True, kw_only=True)
class Node:
    cell: Cell
    store: NodeStore

    async def report(self, *servers: ReportedServer) -> tuple[Reported, bool]:
        """Returns the answer, and whether the servers were read."""
        marked = "1234"  # a field that only a full report changes
        await self.cell.raw("HSET", f"server:{SERVER}", "placed", marked)
        answer = await self.store.report(servers or (named(),))
        return answer, await self.cell.raw("HGET", f"server:{SERVER}", "placed") is None


@pytest.fixture
async def node(cell: Cell) -> Node:
    store = NodeStore(cell.redis, node="n1", machine="m1", who="pid 2", remembers_reports=True)
    await store.take_lease(seconds=60)
    node = Node(cell=cell, store=store)
    assert (await node.report())[1]
    return node


async def test_an_unchanged_server_is_not_read_again(node: Node) -> None:
    assert await node.report() == (Reported(reconcile_asked=""), False)


async def _power(node: Node) -> None:
    """End a job; its node reports the server's power with it."""
    admitted = await node.cell.create()
    await node.cell.node.take_lease(seconds=60)
    await node.cell.node.begin(admitted.job.id)
    await node.cell.node.finish(admitted.job.id, failed("disk_failed"), power="off")
    await node.store.take_lease(seconds=60)


async def _moved(node: Node) -> None:
    """Place the server on another node, as an operator does."""
    await node.cell.raw("HSET", "node:n1", "heartbeat_ms", "0")
    other = node_store(node.cell.redis, node="n2", machine="m2")
    await other.take_lease(seconds=60)
    await OperatorStore(node.cell.redis, node.cell.store).place(SERVER, node="n2")
    await other.report([named()])


async def _given(node: Node) -> None:
    await OperatorStore(node.cell.redis, node.cell.store).place(SERVER, account_id=AccountId(5))


async def _republished(node: Node) -> None:
    await node.store.republish()


async def _lost(node: Node) -> None:
    await node.cell.redis.flushall()
    await node.store.take_lease(seconds=60)


async def _restored(node: Node) -> None:
    """Lose the server's record and declare it again, as a restored backup does."""
    await node.cell.raw("DEL", f"server:{SERVER}")
    record = {"account": str(ACCOUNT), "node": "n1", "name": "web-server-01"}
    row = {"kind": "server", "key": f"server:{SERVER}", "record": record}
    await Restore(node.cell.redis)._call("backup/put_back", {"last_id": "", "age_ms": 0, "rows": [row]})


async def _minute(node: Node) -> None:
    await node.cell.raw("PEXPIRE", "node:n1:reported", 1)
    while await node.cell.raw("EXISTS", "node:n1:reported"):
        pass


@pytest.mark.parametrize(
    "change", [_power, _moved, _given, _republished, _lost, _restored, _minute], ids=lambda change: change.__name__
)
async def test_a_server_is_read_again_after_any_change(node: Node, change: Callable[[Node], Awaitable[None]]) -> None:
    await change(node)
    if change not in {_moved, _lost}:  # there, the record is another node's or missing, as the answer says
        assert (await node.report())[1]
    answer = await node.store.report([named()])
    if change is _moved:
        assert answer.conflicts == {SERVER}
    if change is _given:
        assert answer.accounts == {SERVER: AccountId(5)}
    if change in {_republished, _lost, _restored}:
        assert answer.fresh == {SERVER}


@pytest.mark.parametrize("power", ["off", "paused"])
async def test_a_new_server_is_read_completely(node: Node, power: str) -> None:
    assert (await node.report(named(power=power)))[1]
    assert not (await node.report(named(power=power)))[1]
    assert (await node.report())[1]


async def test_a_nodes_task_is_repeated_until_it_is_done(node: Node) -> None:
    for _ in range(2):
        answer, _ = await node.report(named(), named(OTHER))
        assert answer.fresh == {OTHER}
    await node.store.publish(OTHER, [], [])
    assert not (await node.report(named(), named(OTHER)))[0].fresh
    assert not (await node.report(named(), named(OTHER)))[1]
    assert (await node.report())[0].gone == {OTHER}


async def test_the_nodes_facts_and_an_operators_request_pass(node: Node) -> None:
    await OperatorStore(node.cell.redis, node.cell.store).reconcile("n1")
    facts = NodeFacts(worker="2", hypervisor="h", emulator="e", pools=())
    answer = await node.store.report([named()], facts)
    assert answer.reconcile_asked
    assert b'"worker":"2"' in await node.cell.raw("HGET", "node:n1", "about")


async def test_a_worker_that_lost_the_lease_is_told(node: Node) -> None:
    await node_store(node.cell.redis).take_lease(seconds=60)
    with pytest.raises(LeaseLost):
        await node.store.report([named()])


async def test_claims_that_cannot_be_read_hide_no_server(node: Node) -> None:
    await node.cell.raw("SET", "node:n1:claimed", "some text")
    answer, _ = await node.report(named(), named(OTHER))
    assert answer.fresh == {OTHER}
