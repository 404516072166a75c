"""Operators see why a queued job has not started, its place in the queue, and when it will fail."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.test_dashboard import visible
from worker.store.model import JobId, ServerId
from worker.store.reports import NodeFacts

OTHERS = tuple(ServerId(number) for number in (2, 3))


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    await cell.have([SERVER, *OTHERS])
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def shown(dashboard: Dashboard, job_id: JobId) -> Any:
    answer = await dashboard.api.call("GET", f"/api/v1/ops/jobs/{job_id}/", token=dashboard.token)
    assert answer.status == 200, answer.raw
    return answer.body["waiting"]


async def page(dashboard: Dashboard, job_id: JobId) -> str:
    return visible(await dashboard.browser.seen(f"/ops/jobs/{job_id}/"))


async def test_one_whose_node_is_about_to_take_it(dashboard: Dashboard) -> None:
    job = (await dashboard.cell.create()).job.id
    told = await shown(dashboard, job)
    assert (told["reason"], told["place"], told["queued"], told["given_up_at"]) == ("node", 1, 1, None)
    assert "n1 will start it within seconds." in await page(dashboard, job)
    await dashboard.cell.node.begin(job)
    assert await shown(dashboard, job) is None
    assert "Why this job is waiting" not in await page(dashboard, job)


async def test_one_of_a_paused_node_says_by_whom_and_why_and_its_place(dashboard: Dashboard) -> None:
    reason = {"reason": "kernel upgrade"}
    await dashboard.browser.done("/ops/nodes/n1/pause/", reason)
    jobs = [(await dashboard.cell.create(server=server)).job.id for server in (SERVER, *OTHERS)]
    by_place = {(await shown(dashboard, job))["place"]: job for job in jobs}  # jobs of one millisecond in any order
    assert sorted(by_place) == [1, 2, 3]
    told = await shown(dashboard, by_place[2])
    assert (told["reason"], told["queued"]) == ("node_paused", 3)
    text = await page(dashboard, by_place[2])
    assert "a test paused n1" in text
    assert "kernel upgrade" in text
    assert "It is number 2 of 3 in the queue of n1." in text
    assert "fails if n1 does not respond for 10 min" in text
    done = await Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token).run(
        "job", "show", by_place[2]
    )
    assert "a test paused n1" in " ".join(done.out.split())


async def test_one_of_a_silent_node_says_when_it_is_given_up(dashboard: Dashboard) -> None:
    job = (await dashboard.cell.create()).job.id
    silent_since = round((time.time() - 120) * 1000)
    await dashboard.cell.raw("HSET", "node:n1", "heartbeat_ms", silent_since)
    await dashboard.cell.raw("HSET", f"job:{job}", "queued_ms", silent_since - 1000)
    told = await shown(dashboard, job)
    assert told["reason"] == "node_silent"
    assert told["given_up_at"] is not None
    assert "n1 is not responding; its last heartbeat was 2 min ago." in await page(dashboard, job)
    assert "It fails in" in await page(dashboard, job)


async def test_one_behind_others_says_that_all_slots_are_taken(dashboard: Dashboard) -> None:
    facts = NodeFacts(worker="1", hypervisor="h", emulator="e", pools=(), slots=1)
    first = (await dashboard.cell.create()).job.id
    job = (await dashboard.cell.create(server=OTHERS[0])).job.id
    await dashboard.cell.node.report([], facts)
    assert (await shown(dashboard, job))["reason"] == "node"
    await dashboard.cell.node.begin(first)
    assert (await shown(dashboard, job))["reason"] == "slots_full"
    assert "All slots of n1 are in use: it runs 1 job." in await page(dashboard, job)


async def test_one_of_a_node_with_busy_disks_says_so(dashboard: Dashboard) -> None:
    facts = NodeFacts(worker="1", hypervisor="h", emulator="e", pools=(), slots=1, slots_max=4)
    first = (await dashboard.cell.create()).job.id
    job = (await dashboard.cell.create(server=OTHERS[0])).job.id
    await dashboard.cell.node.report([], facts)
    assert (await shown(dashboard, job))["reason"] == "node"
    await dashboard.cell.node.begin(first)
    assert (await shown(dashboard, job))["reason"] == "disks_busy"
    assert "The disks of n1 are busy; it runs 1 job at a time instead of 4." in await page(dashboard, job)
    node = (await dashboard.api.call("GET", "/api/v1/ops/nodes/n1/", token=dashboard.token)).body
    assert (node["slots"], node["slots_max"]) == (1, 4)
    assert "disks busy" in visible(await dashboard.browser.seen("/ops/nodes/n1/"))


async def test_a_dry_run_of_a_busy_server_names_the_job_that_holds_it(dashboard: Dashboard) -> None:
    cell = dashboard.cell
    facts = NodeFacts(worker="1", hypervisor="h", emulator="e", pools=(), slots=4)
    await cell.have([SERVER])
    check = (await cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="x", request_id="r")).id
    holder = (await cell.create()).job.id
    await cell.node.begin(holder)
    await cell.raw("HSET", "node:n1", "about", facts.model_dump_json())
    told = await shown(dashboard, check)
    assert told["reason"] == "server_busy"
    assert holder[:8] in told["detail"]
