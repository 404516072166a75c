"""What operators see of a silent node: its servers, jobs and guests as last reported."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import SERVER, Cell
from tests.integration.test_dashboard import visible
from tests.integration.test_guests_off import ops, stop
from worker.store.model import JobId

MARK = "node silent"


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def falls_silent(dashboard: Dashboard) -> None:
    """Make the node silent for two minutes."""
    await dashboard.cell.raw("HSET", "node:n1", "heartbeat_ms", round((time.time() - 120) * 1000))


async def stopped(dashboard: Dashboard) -> JobId:
    """A job in progress whose guest is off."""
    job = (await dashboard.cell.create()).job.id
    await stop(dashboard, job, ago=130)
    return job


async def page(dashboard: Dashboard, path: str) -> str:
    return visible(await dashboard.browser.seen(f"/ops/{path}"))


async def server(dashboard: Dashboard) -> Any:
    return await ops(dashboard, f"servers/{SERVER}/")


async def test_its_servers_accept_no_jobs_and_their_pages_say_why(dashboard: Dashboard) -> None:
    assert (await server(dashboard))["reachable"] is True
    assert MARK not in await page(dashboard, "servers/")
    assert "not responding" not in await page(dashboard, f"servers/{SERVER}/")
    await falls_silent(dashboard)
    assert (await server(dashboard))["reachable"] is False
    assert MARK in await page(dashboard, "servers/")
    assert "n1 is not responding since" in await page(dashboard, f"servers/{SERVER}/")


async def test_a_server_whose_snapshots_are_not_known_yet_accepts_no_jobs(dashboard: Dashboard) -> None:
    await dashboard.cell.raw("HSET", f"server:{SERVER}", "unpublished", "1")
    assert (await server(dashboard))["reachable"] is False
    text = await page(dashboard, f"servers/{SERVER}/")
    assert "has not reported the server's snapshots yet" in text
    assert "not responding" not in text


@pytest.mark.parametrize("path", ["", "jobs/", "nodes/n1/", f"servers/{SERVER}/", "jobs/JOB/"])
async def test_nothing_claims_that_its_job_or_guest_is_still_in_that_state(dashboard: Dashboard, path: str) -> None:
    path = path.replace("JOB", await stopped(dashboard))
    before = await page(dashboard, path)
    assert "off for 2 min" in before
    assert MARK not in before
    await falls_silent(dashboard)
    now = await page(dashboard, path)
    assert "off at last report" in now
    assert "off for 2" not in now
    assert MARK in now


async def test_the_command_line_does_not_count_on_either(dashboard: Dashboard) -> None:
    await stopped(dashboard)
    cli = Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
    assert "2 min" in (await cli.run("servers", "--off")).out
    await falls_silent(dashboard)
    for command in (("servers", "--off"), ("server", "show", SERVER)):
        told = (await cli.run(*command)).out
        assert "last report" in told
        assert "2 min" not in told


async def test_the_jobs_page_explains_what_the_node_does_meanwhile(dashboard: Dashboard) -> None:
    job = await stopped(dashboard)
    assert "not responding" not in await page(dashboard, f"jobs/{job}/")
    await falls_silent(dashboard)
    text = await page(dashboard, f"jobs/{job}/")
    assert "n1 is not responding since" in text
    assert "finishes the job and starts the guest without the service" in text
    assert "running at last report 10 s" in text  # without the two minutes since


async def test_a_drain_waits_for_jobs_of_the_last_report(dashboard: Dashboard) -> None:
    await stopped(dashboard)
    await dashboard.browser.done("/ops/nodes/n1/pause/", {"reason": "a new disk"})
    assert "last report" not in await page(dashboard, "nodes/")
    await falls_silent(dashboard)
    assert "draining: 1 job running at last report" in await page(dashboard, "nodes/")
    assert "waiting for 1 job that was running at its last report" in await page(dashboard, "nodes/n1/")
