"""Everything is found by its ID or name, and a snapshot's history shows who did what, also after its deletion."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import BROKE, DONE, SNAPSHOTS
from tests.integration.test_dashboard import visible
from tests.integration.test_ops_api import Ops
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.tokens import Permission, key_of
from worker.store.access.usage import TokenUses
from worker.store.bounds import Bounds
from worker.store.chores.chores import Chores
from worker.store.model import ServerId, SnapshotId
from worker.store.nodes.claims import ReportedServer

SECOND = ServerId(9)


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


@pytest.fixture
def ops(dashboard: Dashboard) -> Ops:
    return Ops(api=dashboard.api, token=dashboard.token)


@pytest.fixture
def cli(dashboard: Dashboard) -> Cli:
    return Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)


async def found(ops: Ops, text: str) -> list[str]:
    """Kind and ID of the API's results; a star marks an exact match."""
    results = (await ops.get(f"search/?q={text}"))["results"]
    return [f"{one['kind']} {one['id']}{'*' if one['exact'] else ''}" for one in results]


async def deleted(dashboard: Dashboard, snapshot_id: int, request_id: str = "r-deleted") -> None:
    answer = await dashboard.api.call("DELETE", f"{SNAPSHOTS}{snapshot_id}/", headers={"X-Request-Id": request_id})
    assert answer.status == 204, answer.raw
    await dashboard.api.work(answer)


class TestSearch:
    async def test_a_server_is_found_by_its_id_and_by_the_beginning_of_its_name(self, ops: Ops) -> None:
        cell = ops.api.cell
        await cell.have([SERVER, SECOND])
        both = [f"server {SECOND}", f"server {SERVER}"]
        assert await found(ops, f"{SERVER}") == [f"server {SERVER}*"]
        assert sorted(await found(ops, "WEB-server")) == sorted(both)
        assert f"server {SERVER}*" in await found(ops, "web-server-01")
        await cell.node.report([])
        assert await found(ops, "web-server") == []
        assert await found(ops, f"server%20{SERVER}") == [f"server {SERVER}*"]

    async def test_a_snapshot_is_found_by_its_id_and_name_and_after_its_end_by_its_id(
        self, dashboard: Dashboard, ops: Ops
    ) -> None:
        snapshot_id = await ops.api.have_snapshot("Before-Update")
        assert await found(ops, f"{snapshot_id}") == [f"snapshot {snapshot_id}*"]
        assert await found(ops, "before-") == [f"snapshot {snapshot_id}"]
        assert await found(ops, "before-update") == [f"snapshot {snapshot_id}*"]
        await deleted(dashboard, snapshot_id)
        assert await found(ops, "before-update") == []
        (one,) = (await ops.get(f"search/?q=snapshot:{snapshot_id}"))["results"]
        assert (one["state"], one["name"], one["server_id"]) == ("deleted", "Before-Update", SERVER)

    async def test_an_older_snapshot_is_found_by_name_once_its_node_reconciled(self, ops: Ops) -> None:
        snapshot_id, redis = await ops.api.have_snapshot("older"), ops.api.cell.redis
        await redis.delete("snapshots:by:name")
        assert await found(ops, "older") == []
        await ops.api.cell.node.known(SERVER, [])
        assert await found(ops, "older") == [f"snapshot {snapshot_id}*"]

    async def test_a_job_is_found_by_eight_digits_also_one_of_an_earlier_version(self, ops: Ops) -> None:
        job_id = await ops.made("one")
        for digits in (job_id, job_id[:8], job_id[:9].upper()):
            assert f"job {job_id}*" in await found(ops, digits)
        assert await found(ops, job_id[:7]) == []
        await ops.api.cell.redis.delete(f"jobs:id:{job_id[:3]}")
        assert f"job {job_id}*" in await found(ops, job_id[:8])

    async def test_accounts_nodes_and_tokens_are_found(self, ops: Ops) -> None:
        assert await found(ops, f"{ACCOUNT}") == [f"account {ACCOUNT}*"]
        assert await found(ops, "n1") == ["node n1*"]
        assert await found(ops, "node%20n") == ["node n1"]
        token = (await ops.api.tokens.all())[0]
        assert await found(ops, token.id) == [f"token {token.id}*"]
        assert await found(ops, "4711") == []

    async def test_a_token_is_found_by_its_name_and_after_its_end_by_its_id(self, ops: Ops) -> None:
        tokens, redis = ops.api.tokens, ops.api.cell.redis
        names = ("CI of shop", "ci of wiki", "ops")
        given = frozenset({Permission.SNAPSHOTS_READ})
        made = [(await tokens.create(name=name, account_id=ACCOUNT, permissions=given)).token for name in names]
        ci = {f"token {token.id}" for token in made[:2]}
        assert set(await found(ops, "CI")) == ci
        assert await found(ops, "token%20Ci%20of%20Shop") == [f"token {made[0].id}*"]
        await Audit(redis, keeper=AuditKeeper(redis, kept=None)).write({"token": made[0].id, "token_name": names[0]})
        for token in made[:2]:
            assert await tokens.revoke(token.id)
        assert await found(ops, "ci") == []
        assert await found(ops, made[0].id) == [f"token {made[0].id}*"]
        assert await found(ops, made[1].id) == []  # it has made no call

    async def test_a_token_that_has_expired_is_passed_over_and_leaves_the_list(self, ops: Ops) -> None:
        tokens, redis = ops.api.tokens, ops.api.cell.redis
        for n in range(45):
            token = await tokens.create(name=f"ci {n:02}", account_id=None, permissions=frozenset())
            await redis.delete(key_of(token.secret))  # as Redis expires it
        last = await tokens.create(name="ci", account_id=None, permissions=frozenset())
        later = await tokens.create(name="ci 99", account_id=None, permissions=frozenset())
        assert await found(ops, "ci") == [f"token {last.token.id}*", f"token {later.token.id}"]
        await tokens.all()
        members = await redis.zrangebylex("tokens:by:name", "[ci", "[cj")
        assert [member.split(b"\0")[0] for member in members] == [b"ci", b"ci 99"]

    async def test_a_token_of_an_earlier_version_is_found_by_its_name_once_it_is_used(self, ops: Ops) -> None:
        await ops.api.cell.redis.delete("tokens:by:name")
        assert await found(ops, "a%20customer") == []
        customer = next(token for token in await ops.api.tokens.all() if token.name == "a customer")
        uses = TokenUses(ops.api.cell.redis)
        uses.note(customer.id)
        await uses.keep()
        assert await found(ops, "a%20customer") == [f"token {customer.id}*"]

    async def test_a_request_is_found_by_its_id(self, ops: Ops) -> None:
        answer = await ops.api.call(
            "POST", body={"server_id": SERVER, "name": "n"}, headers={"X-Request-Id": "r-created"}
        )
        assert answer.status == 201
        await AuditKeeper(ops.api.cell.redis, kept=None).keep()
        for text in ("r-created", "request%20r-created"):
            (one,) = (await ops.get(f"search/?q={text}"))["results"]
            assert (one["kind"], one["id"], one["exact"]) == ("request", "r-created", True)
            assert (one["name"], one["state"]) == (f"POST {SNAPSHOTS}", "201")
            assert (one["server_id"], one["account_id"]) == (SERVER, ACCOUNT)
        assert await found(ops, "r-create") == []

    async def test_a_kind_in_front_leaves_out_all_others(self, ops: Ops) -> None:
        await ops.api.cell.have([ServerId(ACCOUNT)])
        assert await found(ops, f"{ACCOUNT}") == [f"server {ACCOUNT}*", f"account {ACCOUNT}*"]
        assert await found(ops, f"account%20{ACCOUNT}") == [f"account {ACCOUNT}*"]

    async def test_a_name_is_found_as_it_is_written_in_any_script(self, ops: Ops) -> None:
        servers = [ReportedServer(id=SERVER, account_id=ACCOUNT, name="Übung-ДБ", power="on")]
        await ops.api.cell.node.report(servers)
        assert await found(ops, "%C3%9Cbung-%D0%94%D0%91") == [f"server {SERVER}*"]
        assert await found(ops, "%C3%9CBUNG") == [f"server {SERVER}"]

    async def test_exact_matches_come_first(self, ops: Ops) -> None:
        servers = [ReportedServer(id=SERVER, account_id=ACCOUNT, name="n", power="on")]
        await ops.api.cell.node.report(servers)
        assert await found(ops, "n") == [f"server {SERVER}*", "node n1"]

    async def test_no_text_is_refused_by_the_api(self, ops: Ops) -> None:
        assert (await ops.call("GET", "search/")).refused_fields() == ["q"]
        assert (await ops.call("GET", "search/?q=%20")).refused_fields() == ["q"]


class TestSearchBox:
    async def test_a_single_match_opens_its_page(self, dashboard: Dashboard, ops: Ops) -> None:
        snapshot_id, job_id = await ops.api.have_snapshot(), await ops.made("two")
        customer = next(token for token in await ops.api.tokens.all() if token.name == "a customer")
        for text, page in (
            (f"{SERVER}", f"/ops/servers/{SERVER}/"),
            (f"snapshot+{snapshot_id}", f"/ops/snapshots/{snapshot_id}/"),
            (job_id[:8], f"/ops/jobs/{job_id}/"),
            ("n1", "/ops/nodes/n1/"),
            (f"{ACCOUNT}", f"/ops/servers/?account_id={ACCOUNT}"),
            ("a+customer", f"/ops/audit/?token_id={customer.id}"),
        ):
            answer = await dashboard.browser.get(f"/ops/find/?q={text}")
            assert (answer.status, answer.headers.get("Location")) == (303, page)
            assert (await dashboard.browser.get(page)).status == 200

    async def test_several_matches_are_listed_and_no_match_is_reported(self, dashboard: Dashboard) -> None:
        await dashboard.cell.have([SERVER, SECOND])
        page = await dashboard.browser.seen("/ops/find/?q=web-server")
        assert f'href="/ops/servers/{SERVER}/"' in page
        assert f'href="/ops/servers/{SECOND}/"' in page
        assert "No matches for this ID or name" in await dashboard.browser.seen("/ops/find/?q=nothing-here")
        assert "What are you looking for?" in await dashboard.browser.seen("/ops/find/?q=")


class TestHistory:
    async def test_it_shows_who_did_what_even_after_the_deletion(
        self, dashboard: Dashboard, ops: Ops, cli: Cli
    ) -> None:
        api = dashboard.api
        snapshot_id = await api.have_snapshot("before")
        one = f"{SNAPSHOTS}{snapshot_id}/"
        for change in ({"protected": True}, {"protected": True}, {"protected": False, "labels": {"a": "b"}}):
            assert (await api.call("PATCH", one, body=change)).status == 200
        snapshot = SnapshotId(snapshot_id)
        await dashboard.cell.store.check_restore(account_id=ACCOUNT, snapshot_id=snapshot, request_id="r-dry")
        restored = await api.call("POST", f"{one}restore/", headers={"X-Request-Id": "r-restored"})
        await api.work(restored, BROKE)
        retried = await ops.call("POST", f"jobs/{restored.headers['X-Job-Id']}/retry/?force=true")
        assert retried.status == 202, retried.raw
        await api.work(retried)
        await deleted(dashboard, snapshot_id)

        known = await ops.get(f"snapshots/{snapshot_id}/")
        assert (known["status"], known["name"], known["snapshot"]) == ("deleted", "before", None)
        assert [entry["what"] for entry in known["history"]] == [
            *("created", "protected", "unprotected", "restored", "restored", "deleted", "forgotten")
        ]
        entries = known["history"]
        assert entries[3]["request_id"] == "r-restored"
        assert entries[3]["job_id"] == restored.headers["X-Job-Id"]
        assert entries[3]["token"] != entries[4]["token"]  # the customer's, and that of the operator who retried it
        customer = next(token.id for token in await api.tokens.all() if token.name == "a customer")
        assert {entry["token"] for entry in entries[:4]} == {customer}
        assert (entries[5]["token"], entries[5]["token_name"]) == (customer, "a customer")
        assert entries[5]["request_id"] == "r-deleted"
        assert entries[6]["token"] is None

        text = visible(await dashboard.browser.seen(f"/ops/snapshots/{snapshot_id}/"))
        assert "deleted a customer token" in text
        assert "r-deleted" in text
        shown = await cli.run("find", "snapshot", snapshot_id)
        assert "deleted" in shown.out
        assert "r-deleted" in shown.out

    async def test_the_service_itself_is_named_as_having_deleted_it(self, dashboard: Dashboard, ops: Ops) -> None:
        snapshot_id = await ops.api.have_snapshot()
        await dashboard.cell.redis.hset(f"snapshot:{snapshot_id}", "expires_ms", "1")  # type: ignore[misc]
        await dashboard.cell.redis.zadd("snapshots:expiring", {str(snapshot_id): 1})
        await Chores(dashboard.cell.redis).expire()
        entries = (await ops.get(f"snapshots/{snapshot_id}/"))["history"]
        assert [(entry["what"], entry["token"]) for entry in entries][1:] == [("expired", None)]

    async def test_it_has_a_bound_for_each_snapshot_and_for_an_account(self, dashboard: Dashboard, ops: Ops) -> None:
        first, redis = await ops.api.have_snapshot("first"), dashboard.cell.redis
        for n in range(40):
            await ops.api.call("PATCH", f"{SNAPSHOTS}{first}/", body={"protected": n % 2 == 0})
        entries = (await ops.get(f"snapshots/{first}/"))["history"]
        assert len(entries) == 30
        assert entries[0]["what"] == "created"
        await Chores(redis).keep_bounds(Bounds(deleted_snapshots_per_account=1))
        second = await ops.api.have_snapshot("second")
        for snapshot_id in (first, second):
            await deleted(dashboard, snapshot_id)
        (await ops.call("GET", f"snapshots/{first}/")).refused(404, "snapshot_not_found")
        assert (await ops.get(f"snapshots/{second}/"))["status"] == "deleted"
        assert 0 < await redis.pttl(f"snapshot:{second}:history") <= 30 * 86_400_000
        assert await redis.exists(f"snapshot:{first}:history") == 0

    async def test_one_of_an_earlier_version_has_none_and_is_shown(self, dashboard: Dashboard, ops: Ops) -> None:
        snapshot_id = await ops.api.have_snapshot()
        await dashboard.cell.redis.delete(f"snapshot:{snapshot_id}:history")
        assert (await ops.get(f"snapshots/{snapshot_id}/"))["history"] == []
        assert "No history" in await dashboard.browser.seen(f"/ops/snapshots/{snapshot_id}/")
        (await ops.call("GET", "snapshots/999999999/")).refused(404, "snapshot_not_found")


async def test_the_command_lists_possible_matches_and_shows_an_exact_one(ops: Ops, cli: Cli) -> None:
    await ops.api.cell.have([SERVER, SECOND])
    job_id = await ops.made("three", DONE)
    assert job_id in (await cli.run("find", job_id[:8])).out
    listed = await cli.run("find", "web-server")
    assert str(SERVER) in listed.out
    assert str(SECOND) in listed.out
    token = (await ops.api.tokens.all())[0]
    assert "AUDIT LOG" in (await cli.run("find", token.name)).out.upper()
    none = await cli.run("find", "nothing-here")
    assert (none.code, none.out) == (3, "")
    assert (await cli.run("find", "n1", "--json")).body["results"][0]["kind"] == "node"
    customer = replace(cli, token=ops.api.token)
    assert (await customer.run("find", "n1")).code == 4
