"""Draining nodes for a kernel upgrade: a pause with an end, and a wait until no job is running."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from api.cli.exits import Exit
from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import SERVER, Cell, node_store
from tests.integration.front_end import DONE, Answer
from tests.integration.test_dashboard import audited, visible
from worker.store.access.audit import AuditKeeper
from worker.store.access.tokens import Permission
from worker.store.operators.operator_store import OperatorStore
from worker.store.operators.waiting import WaitReason
from worker.store.reports import NodeFacts

FACTS = NodeFacts(worker="1", hypervisor="h", emulator="e", pools=(), slots=4, boot="first")
UPGRADE = {"reason": "kernel upgrade"}
SOON = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def post(dashboard: Dashboard, path: str, body: object) -> Answer:
    return await dashboard.api.call("POST", f"/api/v1/ops/nodes/{path}", body=body, token=dashboard.token)


async def paused(dashboard: Dashboard, node: str = "n1") -> Any:
    answer = await dashboard.api.call("GET", f"/api/v1/ops/nodes/{node}/", token=dashboard.token)
    assert answer.status == 200, answer.raw
    return answer.body["paused"]


async def given(cell: Cell) -> int:
    """How many jobs the node would get now."""
    return len(await cell.node.take(running=[], free=4, seconds=0))


async def pass_until(cell: Cell, moment: datetime) -> None:
    """Pass the end of the pause."""
    assert await cell.raw("HGET", "node:n1", "paused_until_ms") == str(round(moment.timestamp() * 1000)).encode()
    await cell.raw("HSET", "node:n1", "paused_until_ms", round(datetime.now(UTC).timestamp() * 1000) - 1)


class TestTheEndOfAPause:
    async def test_a_pause_ends_at_its_time(self, dashboard: Dashboard) -> None:
        cell = dashboard.cell
        answer = await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        assert datetime.fromisoformat(answer.body["paused"]["until"]) == SOON
        await cell.create()
        assert await given(cell) == 0
        await pass_until(cell, SOON)
        assert await paused(dashboard) is None
        assert "No paused nodes" in await dashboard.browser.seen("/ops/nodes/?state=paused")
        assert await given(cell) == 1
        assert await cell.raw("SCARD", "nodes:paused") == 0

    async def test_it_ends_by_the_time_of_the_cell(self, dashboard: Dashboard) -> None:
        cell = dashboard.cell
        await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        job_id = (await cell.create()).job.id
        await cell.raw("HSET", "clock", "ahead_ms", 3 * 3_600_000)
        operators = OperatorStore(cell.redis, cell.store, node_silent_seconds=4 * 3600)
        assert (await operators.node("n1")).pause is None
        waiting = (await operators.job(job_id)).waiting
        assert waiting
        assert (waiting.reason, waiting.pause) == (WaitReason.NODE, None)
        assert await given(cell) == 1

    async def test_a_node_that_has_nothing_to_do_ends_it_with_its_heartbeat(self, dashboard: Dashboard) -> None:
        await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        await pass_until(dashboard.cell, SOON)
        await dashboard.cell.node.take_lease(seconds=60)
        assert await dashboard.cell.raw("HEXISTS", "node:n1", "paused_ms") == 0
        assert await dashboard.cell.raw("SCARD", "nodes:paused") == 0

    async def test_a_pause_ends_when_the_host_is_back_and_not_with_its_worker(self, dashboard: Dashboard) -> None:
        cell = dashboard.cell
        await cell.node.report([], FACTS)
        assert (await post(dashboard, "n1/pause/", UPGRADE | {"until_back": True})).body["paused"]["until_back"] is True
        restarted = node_store(cell.redis)
        await restarted.take_lease(seconds=60)
        await restarted.report([], FACTS)
        assert await paused(dashboard) is not None
        await restarted.report([], replace_boot("second"))
        assert await paused(dashboard) is None

    async def test_a_host_that_has_just_been_started_is_not_taken_for_the_one_before(
        self, dashboard: Dashboard
    ) -> None:
        """Its worker has the lease but has not reported the new boot yet."""
        cell = dashboard.cell
        await cell.node.report([], FACTS)
        restarted = node_store(cell.redis)
        await restarted.take_lease(seconds=60)
        until_back = UPGRADE | {"until_back": True}
        (await post(dashboard, "n1/pause/", until_back)).refused(409, "node_boot_unknown")
        await restarted.report([], replace_boot("second"))
        assert (await post(dashboard, "n1/pause/", until_back)).status == 200
        await restarted.report([], replace_boot("second"))
        assert await paused(dashboard) is not None

    async def test_a_pause_without_an_end_lasts_through_a_start_of_the_host(self, dashboard: Dashboard) -> None:
        await dashboard.cell.node.report([], FACTS)
        await post(dashboard, "n1/pause/", UPGRADE)
        await dashboard.cell.node.report([], replace_boot("second"))
        assert (await paused(dashboard))["until"] is None

    async def test_one_that_does_not_report_its_starts_is_not_paused_until_it_is_back(
        self, dashboard: Dashboard
    ) -> None:
        (await post(dashboard, "n1/pause/", UPGRADE | {"until_back": True})).refused(409, "node_boot_unknown")
        assert await paused(dashboard) is None

    async def test_an_end_is_in_the_future_and_one(self, dashboard: Dashboard) -> None:
        past = await post(dashboard, "n1/pause/", UPGRADE | {"until": "2025-01-16T16:15:00Z"})
        assert past.refused_fields() == ["until"]
        both = await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat(), "until_back": True})
        assert both.refused(400, "invalid_request")

    async def test_the_time_of_the_cell_decides_what_is_in_the_future(self, cell: Cell) -> None:
        now = datetime.now(UTC).replace(microsecond=0)
        until = {"sooner": now + timedelta(hours=1), "later": now + timedelta(hours=4)}
        await cell.raw("HSET", "clock", "ahead_ms", 3 * 3_600_000)
        async with dashboard_of(cell) as dashboard:
            sooner, later = [
                await post(dashboard, "n1/pause/", UPGRADE | {"until": until[name].isoformat()}) for name in until
            ]
            assert sooner.refused_fields() == ["until"]
            assert later.status == 200, later.raw
            form = UPGRADE | {"until": f"{until['sooner']:%Y-%m-%dT%H:%M}"}
            assert (await dashboard.browser.post("/ops/nodes/n1/pause/", form)).status == 400

    async def test_an_end_by_itself_is_in_the_audit_log(self, dashboard: Dashboard) -> None:
        cell = dashboard.cell
        await cell.node.report([], FACTS)
        await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        await pass_until(cell, SOON)
        await cell.node.take_lease(seconds=60)
        await post(dashboard, "n1/pause/", UPGRADE | {"until_back": True})
        await cell.node.report([], replace_boot("second"))
        await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        await pass_until(cell, SOON)
        await post(dashboard, "n1/pause/", UPGRADE)  # the node was silent when that pause ended
        await post(dashboard, "n1/resume/", UPGRADE)
        await AuditKeeper(cell.redis, kept=None).keep()
        path = "/api/v1/ops/audit/?node=n1&method=SERVICE"
        entries = (await dashboard.api.call("GET", path, token=dashboard.token)).body["results"]
        assert [entry["text"] for entry in entries] == [
            f"the service ended the pause of n1: {why} (paused by a test: kernel upgrade)"
            for why in ("the pause expired", "its host has rebooted", "the pause expired")
        ]
        text = visible(await dashboard.browser.seen("/ops/audit/?about=node+n1&method=SERVICE"))
        assert text.count("the service ended the pause of n1") == 3

    async def test_an_end_whose_entry_cannot_be_written_is_an_end(self, dashboard: Dashboard) -> None:
        await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        await pass_until(dashboard.cell, SOON)
        await dashboard.cell.raw("SET", "audit:new", "no list")
        await dashboard.cell.node.take_lease(seconds=60)
        assert await dashboard.cell.raw("HEXISTS", "node:n1", "paused_ms") == 0
        await dashboard.cell.raw("DEL", "audit:new")

    async def test_a_reason_is_not_empty(self, dashboard: Dashboard) -> None:
        for blank in (" ", "\t \u00a0", ""):
            assert (await post(dashboard, "n1/pause/", {"reason": blank})).refused_fields() == ["reason"]
        assert (await dashboard.browser.post("/ops/nodes/n1/pause/", {"reason": "  "})).status == 400
        assert await paused(dashboard) is None

    async def test_a_later_pause_replaces_the_end(self, dashboard: Dashboard) -> None:
        await post(dashboard, "n1/pause/", UPGRADE | {"until": SOON.isoformat()})
        await post(dashboard, "n1/pause/", {"reason": "a new disk"})
        assert (await paused(dashboard))["until"] is None
        assert (await post(dashboard, "n1/resume/", UPGRADE)).body["paused"] is None


def replace_boot(boot: str) -> NodeFacts:
    return FACTS.model_copy(update={"boot": boot})


class TestTheCommandLine:
    async def test_several_nodes_are_drained_until_all_are_empty_and_resumed(self, dashboard: Dashboard) -> None:
        cell, cli = dashboard.cell, Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
        assert await node_store(cell.redis, node="n2", machine="m2").take_lease(seconds=60) is None
        job = (await cell.create()).job.id
        await cell.node.begin(job)
        late = await cli.run("node", "drain", "n1", "n2", "--reason", "kernel", "--max-wait", 0.5, "--yes")
        assert late.code == Exit.STILL_RUNNING
        assert "n1 still runs 1 job." in late.err
        arguments = ("node", "drain", "n1", "n2", "--reason", "kernel", "--until", "2h", "--yes")
        async with cli.running(*arguments) as draining:
            assert draining.stderr
            noted = sorted([await draining.stderr.readline(), await draining.stderr.readline()])
            assert noted[0].startswith(b"n1: 1 running: create of before-update on web-server-01")
            assert noted[1] == b"n2: no running jobs\n"
            await cell.node.finish(job, DONE)
            out, _ = await draining.communicate()
        assert draining.returncode == 0
        lines = out.decode().splitlines()
        assert [line.split()[0] for line in lines] == ["n1", "n2"]
        assert all(" UTC, no running jobs, 0 queued" in line for line in lines)
        assert (await paused(dashboard, "n2"))["until"] is not None
        assert "pause ends" in (await cli.run("node", "show", "n1")).out
        done = await cli.run("node", "resume", "n1", "n2", "--reason", "done", "--yes", "--json")
        assert [node["paused"] for node in done.body["results"]] == [None, None]

    async def test_a_drain_ends_with_the_pause(self, dashboard: Dashboard) -> None:
        cell, cli = dashboard.cell, Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
        await cell.node.begin((await cell.create()).job.id)
        async with cli.running("node", "drain", "n1", "--reason", "kernel", "--until", "2h", "--yes") as draining:
            assert draining.stderr
            await draining.stderr.readline()
            await cell.raw("HSET", "node:n1", "paused_until_ms", 1)
            _, told = await draining.communicate()
        assert draining.returncode == Exit.REFUSED
        assert b"The pause of n1 ended before the node was drained." in told

    async def test_a_node_is_drained_until_its_host_is_back(self, dashboard: Dashboard) -> None:
        cli = Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
        await dashboard.cell.node.report([], FACTS)
        done = await cli.run("node", "drain", "n1", "--reason", "kernel", "--until-back", "--yes")
        assert "until its host has rebooted" in done.out
        assert (await paused(dashboard))["until_back"] is True
        both = await cli.run("node", "drain", "n1", "--reason", "x", "--until-back", "--until", "2h", "--yes")
        assert both.code == Exit.USAGE


class TestTheDashboard:
    async def test_several_nodes_are_paused_with_an_end_followed_until_empty_and_resumed(
        self, dashboard: Dashboard
    ) -> None:
        cell, browser = dashboard.cell, dashboard.browser
        assert await node_store(cell.redis, node="n2", machine="m2").take_lease(seconds=60) is None
        await cell.node.report([], FACTS)
        await cell.have()
        job = (await cell.create()).job.id
        await cell.node.begin(job)
        assert "/ops/drain/?action=pause" in await browser.seen("/ops/nodes/")
        question = await browser.seen("/ops/drain/?action=pause&nodes=n1&nodes=n2")
        assert "Pause 2 nodes?" in question
        for asked in (question, await browser.seen("/ops/nodes/n1/pause/")):
            text = visible(asked)
            assert "1 running job to wait for" in text
            assert f"create on web-server-01 ({SERVER}), n1: starting, 0%" in text
        assert 'name="until_back"' in question
        fields = {"action": "pause", "nodes": ["n1", "n2"], "reason": "kernel", "until": f"{SOON:%Y-%m-%dT%H:%M}"}
        said = visible(await browser.done("/ops/drain/", fields))
        assert "2 nodes paused; 1 job still running." in said

        listed = visible(await browser.seen("/ops/nodes/?state=paused"))
        assert "1 of 2 paused nodes is drained; 1 job still running." in listed
        assert "draining: 1 job running" in listed
        text = visible(await browser.seen("/ops/nodes/n1/"))
        assert f"Draining: waiting for 1 job: create of server {SERVER}" in text
        assert f"until {SOON:%Y-%m-%d %H:%M}" in text
        await cell.node.finish(job, DONE)
        assert "2 of 2 paused nodes are drained." in visible(await browser.seen("/ops/nodes/"))

        await browser.done("/ops/drain/", {"action": "resume", "nodes": ["n1", "n2"], "reason": "done"})
        assert await paused(dashboard) is None
        assert await paused(dashboard, "n2") is None
        entries = {(entry["path"], entry["reason"].split(" (")[0]) for entry in await audited(dashboard)}
        assert {("/ops/nodes/n1/pause/", "kernel"), ("/ops/nodes/n2/resume/", "done")} <= entries

    async def test_each_node_that_is_refused_is_named(self, dashboard: Dashboard) -> None:
        fields = {"action": "pause", "nodes": ["n1", "n9"], "reason": "kernel", "until_back": "true"}
        said = visible(await dashboard.browser.done("/ops/drain/", fields))
        assert "0 nodes paused." in said
        assert "n1: The node's worker does not report when its host booted." in said
        assert "n9: " in said

    async def test_one_node_is_paused_until_its_host_is_back(self, dashboard: Dashboard) -> None:
        await dashboard.cell.node.report([], FACTS)
        await dashboard.browser.done("/ops/nodes/n1/pause/", UPGRADE | {"until_back": "true"})
        assert "until its host has rebooted" in visible(await dashboard.browser.seen("/ops/nodes/n1/"))
        past = await dashboard.browser.post("/ops/nodes/n1/pause/", UPGRADE | {"until": "2025-01-16T16:15"})
        assert past.status == 400

    async def test_a_read_only_operator_cannot(self, dashboard: Dashboard) -> None:
        token = await dashboard.api.new_token(account=None, permissions={Permission.OPERATOR_READ})
        reader = dashboard.stranger()
        await reader.login(token)
        page = await reader.seen("/ops/nodes/")
        assert "/ops/drain/" not in page
        assert "data-pick" not in page
        fields = {"action": "pause", "nodes": ["n1"], "reason": "kernel"}
        assert (await reader.get("/ops/drain/?action=pause&nodes=n1")).status == 403
        assert (await reader.post("/ops/drain/", fields)).status == 403
        refused = await dashboard.api.call("POST", "/api/v1/ops/nodes/n1/pause/", body=UPGRADE, token=token)
        refused.refused(403, "permission_denied")
