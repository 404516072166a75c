"""The trusted side decides where a server is and who owns it; a node's report is only a claim."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from drivers.fake import FakeHypervisor
from drivers.fake_state import FakeServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import FrontEnd, serving
from tests.integration.test_ops_api import Ops
from tests.security.conftest import ITS_ACCOUNT, ITS_SERVER, Hostile
from worker.inventory import Inventory
from worker.store import errors
from worker.store.access.tokens import Permission
from worker.store.model import AccountId, ServerId
from worker.store.nodes.claims import ClaimRefused, ReportedServer
from worker.store.nodes.node_store import NodeStore, Placement
from worker.store.operators.operator_store import OperatorStore

NEW = ServerId(999)
CLAIM = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web-server-01", power="on")
EVIL = ReportedServer(id=ITS_SERVER, account_id=ITS_ACCOUNT, name="evil", power="on")


@pytest.fixture
def operators(cell: Cell) -> OperatorStore:
    return OperatorStore(cell.redis, cell.store)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as api:
        yield api


@pytest.fixture
async def ops(api: FrontEnd) -> Ops:
    return Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))


async def long_ago(cell: Cell) -> None:
    """Make `n2`'s claim of `n1`'s server look old."""
    for server_id in await cell.raw("HKEYS", "node:n2:claimed"):
        await cell.raw("HSET", "node:n2:claimed", server_id, 1)


async def falls_silent(cell: Cell, node: str = "n1") -> None:
    await cell.raw("HSET", f"node:{node}", "heartbeat_ms", "1")


@pytest.mark.parametrize("power", ["on", "off"])
async def test_a_live_node_keeps_its_server_and_a_lasting_claim_is_shown(hostile: Hostile, power: str) -> None:
    cell = hostile.cell
    await cell.have(power=power)
    before = await hostile.everything()
    for _ in range(2):
        assert (await hostile.node.report([EVIL, CLAIM])).conflicts == {SERVER}
    with pytest.raises(ClaimRefused):  # while a migration may be ending, nothing is reported
        await hostile.node.known(SERVER, [])
    assert hostile.refused == []
    await long_ago(cell)
    await hostile.node.report([EVIL, CLAIM])
    assert hostile.refused == [("report", "other_node")]
    assert await hostile.everything() == before
    assert (await cell.job(await cell.create())).node == "n1"


async def test_a_server_of_a_silent_node_moves_only_by_an_operator(hostile: Hostile, operators: OperatorStore) -> None:
    cell = hostile.cell
    with pytest.raises(errors.ServerOnLiveNode):
        await operators.place(SERVER, node="n2")
    await falls_silent(cell)
    assert (await hostile.node.report([EVIL, CLAIM])).conflicts == {SERVER}
    await long_ago(cell)
    assert (await hostile.node.report([EVIL, CLAIM])).conflicts == {SERVER}
    assert hostile.refused == [("report", "silent_node")]
    placed = await operators.place(SERVER, node="n2")
    assert (placed.view.server.node, placed.missing) == ("n2", True)
    reported = await hostile.node.report([EVIL, CLAIM])
    assert not reported.conflicts
    assert reported.fresh == {SERVER}
    assert not (await operators.server(SERVER)).missing


async def test_an_operators_placement_holds_when_the_node_comes_back(
    hostile: Hostile, operators: OperatorStore
) -> None:
    await falls_silent(hostile.cell)
    await operators.place(SERVER, node="n2")
    await hostile.cell.node.take_lease(seconds=60)
    assert (await hostile.cell.node.report([CLAIM])).conflicts == {SERVER}
    await operators.place(SERVER, node="n1")  # the server is not on n2
    assert (await hostile.cell.node.report([CLAIM])).conflicts == frozenset()


async def test_claims_of_the_former_node_after_a_move_are_refused_and_not_shown(
    hostile: Hostile,
) -> None:
    await hostile.node.report([])
    cell = hostile.cell
    await cell.have([SERVER, ITS_SERVER], account=ITS_ACCOUNT)
    with pytest.raises(ClaimRefused, match="other_node"):
        await hostile.node.tell_findings(ITS_SERVER, [])
    assert ("findings", "other_node") not in hostile.refused


async def test_a_reported_account_does_not_count_for_a_server_that_is_known(hostile: Hostile) -> None:
    before = await hostile.everything()
    other = replace(EVIL, account_id=ACCOUNT)
    assert (await hostile.node.report([other])).accounts == {ITS_SERVER: ITS_ACCOUNT}
    assert hostile.refused == [("report", "other_account")]
    assert await hostile.everything() == before


async def test_a_node_writes_a_changed_account_into_the_domain(cell: Cell, operators: OperatorStore) -> None:
    refused: list[tuple[str, str]] = []
    node = NodeStore(
        cell.redis, node="n1", machine="m1", who="pid 2", refused=lambda call, why: refused.append((call, why))
    )
    await node.take_lease(seconds=60)
    hypervisor = FakeHypervisor([FakeServer(name="web-server-01", server_id=SERVER, account_id=ACCOUNT)])

    async def publish(server_id: ServerId) -> None:
        await node.publish(server_id, [], [])

    inventory = Inventory(hypervisor, node, publish=publish)
    await inventory.report()
    await operators.place(SERVER, account_id=AccountId(5))
    assert await inventory.report()
    assert [domain.account_id for domain in await hypervisor.domains()] == [5]
    assert await inventory.report()
    assert refused == []
    await hypervisor.adopt("web-server-01", server_id=SERVER, account_id=ACCOUNT)  # on the node, by hand
    await inventory.report()
    assert refused == [("report", "other_account")]
    assert [domain.account_id for domain in await hypervisor.domains()] == [5]
    # a rebuild after a loss of Redis does not restore the old one
    await cell.redis.flushall()
    await node.take_lease(seconds=60)
    await inventory.report()
    assert (await operators.server(SERVER)).view.server.account_id == 5


async def test_only_declared_servers_are_taken_where_the_policy_says_so(cell: Cell, operators: OperatorStore) -> None:
    refused: list[str] = []
    node = NodeStore(
        cell.redis,
        node="n2",
        machine="m2",
        who="pid 1",
        placement=Placement.DECLARED,
        refused=lambda _, why: refused.append(why),
    )
    await node.take_lease(seconds=60)
    new = ReportedServer(id=NEW, account_id=ACCOUNT, name="new", power="on")
    await node.report([new])
    assert refused == ["undeclared_server"]
    with pytest.raises(errors.ServerNotFound):
        await operators.server(NEW)
    await operators.place(NEW, node="n2", account_id=AccountId(5))
    with pytest.raises(errors.ServerNotFound):  # not before its node reports it
        await cell.store.server(account_id=AccountId(5), server_id=NEW)
    assert (await node.report([new])).accounts == {NEW: 5}
    await node.publish(NEW, [], [])
    assert (await cell.store.server(account_id=AccountId(5), server_id=NEW)).server.name == "new"


@pytest.mark.parametrize(
    "claim",
    [
        replace(CLAIM, id=ServerId(0)),
        replace(CLAIM, id=ServerId(-1)),
        replace(CLAIM, id=ServerId(10**30)),
        replace(CLAIM, id=ServerId(2**53)),  # from here on, not all integers are exact in Lua
        replace(CLAIM, account_id=AccountId(0)),
        replace(CLAIM, id=NEW, account_id=AccountId(2**53)),
        replace(CLAIM, name="x" * 100_000),
        replace(CLAIM, power="burning"),
    ],
    ids=lambda claim: f"{claim.id} {claim.account_id} {claim.name[:3]} {claim.power}",
)
async def test_a_report_that_cannot_be_is_left_out(hostile: Hostile, claim: ReportedServer) -> None:
    before = await hostile.everything()
    await hostile.node.report([EVIL, claim])
    assert hostile.refused == [("report", "malformed")]
    assert await hostile.everything() == before


async def test_a_node_has_a_bounded_number_of_servers(hostile: Hostile) -> None:
    many = [replace(CLAIM, id=ServerId(n)) for n in range(1, 5000)]
    with pytest.raises(ClaimRefused, match="too_many"):
        await hostile.node.report(many)


class TestApi:
    async def test_a_server_is_declared_placed_and_given(self, ops: Ops) -> None:
        cell, path = ops.api.cell, f"servers/{NEW}/"
        put = await ops.call("PUT", path, {"node": "n1", "account_id": 5})
        assert (put.status, put.body["node"], put.body["account_id"], put.body["missing"]) == (200, "n1", 5, True)
        again = await ops.call("PUT", path, {"node": "n1", "account_id": 5})
        assert again.body == put.body
        await cell.node.report([CLAIM, ReportedServer(id=NEW, account_id=AccountId(5), name="new", power="on")])
        given = await ops.call("PUT", f"{path}account/", {"account_id": 6})
        assert (given.status, given.body["account_id"], given.body["missing"]) == (200, 6, False)

        other = node_store(cell.redis, node="n2", machine="m2")
        await other.take_lease(seconds=60)
        refused = await ops.call("PUT", f"{path}node/", {"node": "n2"})
        assert "Node n1 is alive and has the server" in refused.refused(409, "server_on_live_node")["detail"]
        await falls_silent(cell)
        moved = await ops.call("PUT", f"{path}node/", {"node": "n2"})
        assert (moved.status, moved.body["node"]) == (200, "n2")
        entries = (await ops.get("audit/?method=PUT"))["results"]
        assert [entry["fields"]["path"] for entry in entries][:2] == [f"/api/v1/ops/{path}node/"] * 2
        assert entries[0]["fields"]["made"] == "node n2"

    async def test_a_node_with_a_credential_is_known_before_it_reports(self, ops: Ops) -> None:
        path, body = f"servers/{NEW}/", {"node": "n7", "account_id": 5}
        (await ops.call("PUT", path, body)).refused(404, "node_not_found")
        assert (await ops.call("POST", "nodes/n7/credentials/", {})).status == 201
        declared = await ops.call("PUT", path, body)
        assert (declared.status, declared.body["node"], declared.body["missing"]) == (200, "n7", True)
        assert (await ops.get(f"servers/{NEW}/"))["node"] == "n7"

    async def test_what_cannot_be_is_refused(self, ops: Ops) -> None:
        (await ops.call("PUT", f"servers/{NEW}/node/", {"node": "n1"})).refused(404, "server_not_found")
        (await ops.call("PUT", f"servers/{SERVER}/node/", {"node": "n9"})).refused(404, "node_not_found")
        (await ops.call("PUT", f"servers/{SERVER}/node/", {"node": "n:1"})).refused(400, "invalid_request")
        (await ops.call("PUT", f"servers/{NEW}/", {"node": "n1"})).refused(400, "invalid_request")
        await ops.api.create()
        (await ops.call("PUT", f"servers/{SERVER}/account/", {"account_id": 5})).refused(409, "server_busy")

    async def test_refused_claims_are_listed_with_the_findings(self, ops: Ops, hostile: Hostile) -> None:
        for _ in range(3):
            with pytest.raises(ClaimRefused):
                await hostile.node.tell_findings(SERVER, [])
        (claim,) = (await ops.get("findings/"))["refused_claims"]
        assert (claim["node"], claim["call"], claim["reason"]) == ("n2", "findings", "other_node")
        assert (claim["about"], claim["count"]) == ("server:12345", 3)
