"""How long guests have been off for a job, as operators see it in the API and on the dashboard."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.conftest import SERVER, Cell
from tests.integration.test_dashboard import visible
from worker.store.customers.customer_store import AdmittedJob
from worker.store.model import Failure, JobId, JobState, ServerId, SnapshotStatus, Step
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, StepBegun

OTHER = ServerId(20_000)
FAILED = Failure(code="start_failed", detail="The server does not start.", stranded=True)
STRANDED = Outcome(state=JobState.FAILED, snapshot_status=SnapshotStatus.COMPLETED, size_mb=1, failure=FAILED)
DONE = Outcome(state=JobState.COMPLETED, snapshot_status=SnapshotStatus.COMPLETED, size_mb=1, downtime_seconds=2.0)


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def create(dashboard: Dashboard, server: ServerId = SERVER) -> AdmittedJob:
    return (await dashboard.cell.create(server=server)).job


async def stop(dashboard: Dashboard, job_id: JobId, *, ago: float = 0.0) -> None:
    """Start the job and stop the guest that many seconds ago, by the node's clock."""
    await dashboard.cell.node.begin(job_id)
    await dashboard.cell.raw("HSET", f"job:{job_id}", "started_ms", round((time.time() - 7200) * 1000))
    stopping = StepBegun(step=Step.STOPPING, at=time.time() - ago, attempt=1)
    await dashboard.cell.node.progress(job_id, Step.SNAPSHOTTING, JobReport(steps=(stopping,)))


async def ops(dashboard: Dashboard, path: str) -> Any:
    answer = await dashboard.api.call("GET", f"/api/v1/ops/{path}", token=dashboard.token)
    assert answer.status == 200, answer.raw
    return answer.body


async def off(dashboard: Dashboard) -> list[int]:
    listed = await ops(dashboard, "servers/?off=true")
    assert listed["count"] == len(listed["results"]) == (await ops(dashboard, "overview/"))["servers_off"]
    return [server["id"] for server in listed["results"]]


async def test_a_guest_that_a_job_has_stopped_is_off_until_the_job_ends(dashboard: Dashboard) -> None:
    job = await create(dashboard)
    assert await off(dashboard) == []
    await stop(dashboard, job.id, ago=127)
    assert await off(dashboard) == [SERVER]
    assert (await ops(dashboard, f"jobs/{job.id}/"))["off_since"]
    assert (await ops(dashboard, f"servers/{SERVER}/"))["off_since"]
    for page in ("", f"jobs/{job.id}/", f"servers/{SERVER}/", "servers/?off=true"):
        text = await dashboard.browser.seen(f"/ops/{page}")
        assert "/clock.js" in text
        assert "data-clock=" in text, page
    assert "off for 2 min" in visible(await dashboard.browser.seen(f"/ops/jobs/{job.id}/"))
    await dashboard.cell.node.finish(job.id, DONE)
    assert await off(dashboard) == []
    assert (await ops(dashboard, f"jobs/{job.id}/"))["off_since"] is None
    assert "data-clock" not in await dashboard.browser.seen("/ops/")


async def test_the_longest_comes_first(dashboard: Dashboard) -> None:
    await dashboard.cell.have([SERVER, OTHER])
    await stop(dashboard, (await create(dashboard)).id, ago=10)
    await stop(dashboard, (await create(dashboard, OTHER)).id, ago=4000)
    assert await off(dashboard) == [OTHER, SERVER]
    text = visible(await dashboard.browser.seen("/ops/"))
    assert text.index("1 h 06 min") < text.index(" 10 s")
    assert "2 guests off for a job" in text


async def test_one_that_was_off_before_is_not_off_for_the_job(dashboard: Dashboard) -> None:
    await dashboard.cell.have(power="off")
    await stop(dashboard, (await create(dashboard)).id)
    assert await off(dashboard) == []


@pytest.mark.parametrize("ends_by", ["resolve", "report"])
async def test_a_stranded_one_stays_off_until_it_is_resolved_or_runs_again(dashboard: Dashboard, ends_by: str) -> None:
    job = await create(dashboard)
    await stop(dashboard, job.id)
    await dashboard.cell.have(power="off")
    await dashboard.cell.node.finish(job.id, STRANDED, power="off")
    assert await off(dashboard) == [SERVER]
    assert "off for" in visible(await dashboard.browser.seen(f"/ops/servers/{SERVER}/"))
    if ends_by == "resolve":
        await dashboard.browser.done(f"/ops/jobs/{job.id}/resolve/", {"reason": "started by hand"})
    else:
        await dashboard.cell.have(power="on")
    assert await off(dashboard) == []
    assert (await ops(dashboard, f"jobs/{job.id}/"))["off_since"] is None


@pytest.mark.parametrize("seen_by", ["report", "end of a job"])
async def test_a_stranded_one_that_runs_again_during_a_later_job_is_not_off(dashboard: Dashboard, seen_by: str) -> None:
    cell, stranding = dashboard.cell, await create(dashboard)
    await stop(dashboard, stranding.id)
    await cell.have(power="off")
    await cell.node.finish(stranding.id, STRANDED, power="off")
    later = (await cell.create("later")).job
    await cell.node.begin(later.id)
    if seen_by == "report":
        await cell.have(power="on")
    else:
        await cell.node.finish(later.id, DONE, power="on")
    assert await off(dashboard) == []
    assert (await ops(dashboard, f"jobs/{stranding.id}/"))["off_since"] is None


async def test_a_server_stranded_twice_is_not_off_once_both_are_resolved(dashboard: Dashboard) -> None:
    cell, first = dashboard.cell, await create(dashboard)
    await stop(dashboard, first.id)
    await cell.have(power="off")
    await cell.node.finish(first.id, STRANDED, power="off")
    second = (await cell.create("later")).job
    await cell.node.begin(second.id)
    await cell.node.finish(second.id, STRANDED, power="off")
    for job in (first, second):
        await dashboard.browser.done(f"/ops/jobs/{job.id}/resolve/", {"reason": "started by hand"})
        assert (await ops(dashboard, f"jobs/{job.id}/"))["off_since"] is None
    assert await off(dashboard) == []


async def test_a_moment_that_cannot_be_is_now(dashboard: Dashboard) -> None:
    """A node's time is only a claim."""
    before = time.time()
    job = await create(dashboard)
    await stop(dashboard, job.id, ago=-86_400)
    since = await dashboard.cell.raw("ZSCORE", "servers:off", SERVER)
    assert before - 1 <= since / 1000 <= time.time() + 1


async def test_a_server_whose_create_waits_is_queued_to_operators_and_as_before_to_its_owner(
    dashboard: Dashboard,
) -> None:
    job = await create(dashboard)
    mine = await dashboard.api.call("GET", f"/api/v1/servers/{SERVER}/")
    assert mine.body["status"] == "snapshotting"
    assert mine.body["job"] == {"id": job.id, "kind": "create"}
    theirs = await ops(dashboard, f"servers/{SERVER}/")
    assert (theirs["status"], theirs["job"]["state"]) == ("snapshotting", "queued")
    for page in ("servers/", f"servers/{SERVER}/"):
        text = visible(await dashboard.browser.seen(f"/ops/{page}"))
        assert "snapshotting" not in text
        assert "queued" in text
    await dashboard.cell.node.begin(job.id)
    assert "snapshotting" in visible(await dashboard.browser.seen(f"/ops/servers/{SERVER}/"))
