"""A node reports the outcomes of its recent jobs, and a node whose jobs all fail is not healthy."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import DONE
from tests.integration.test_dashboard import failed, made, visible
from worker.store.model import JobId
from worker.store.outcome import Outcome


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    assert await node_store(cell.redis, node="a-healthy-one", machine="m2").take_lease(seconds=60) is None
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def nodes(dashboard: Dashboard, query: str = "") -> list[Any]:
    answer = await dashboard.api.call("GET", f"/api/v1/ops/nodes/{query}", token=dashboard.token)
    assert answer.status == 200, answer.raw
    return list(answer.body["results"])


async def node(dashboard: Dashboard) -> Any:
    (found,) = [one for one in await nodes(dashboard) if one["name"] == "n1"]
    return found


async def fail(dashboard: Dashboard, count: int, outcome: Outcome | None = None) -> None:
    for number in range(count):
        await made(dashboard, outcome or failed("start_failed"), name=f"n{number}")


async def test_one_whose_jobs_all_fail_is_failing_and_comes_first(dashboard: Dashboard) -> None:
    await fail(dashboard, 1)
    assert (await node(dashboard))["failing"] is False  # the server may be the cause
    await fail(dashboard, 1, failed("start_failed", stranded=True))
    told = await node(dashboard)
    assert (told["failing"], told["alive"]) == (True, True)
    assert told["last_hour"] == {"completed": 0, "failed": 2, "stranded": 1}
    assert [one["name"] for one in await nodes(dashboard, "?sort=-failed")] == ["n1", "a-healthy-one"]
    assert [one["name"] for one in await nodes(dashboard, "?state=failing&sort=-failed")] == ["n1"]
    assert [one["name"] for one in await nodes(dashboard, "?state=failing")] == ["n1"]

    overview = visible(await dashboard.browser.seen("/ops/"))
    assert "All jobs of n1 fail 2 jobs in the last hour" in overview
    assert "2 jobs failed in the last hour n1: 2" in overview
    assert "a-healthy-one: " not in overview
    listed = visible(await dashboard.browser.seen("/ops/nodes/?sort=-failed"))
    assert "n1 failing" in listed
    assert "2 · 1 stranded" in listed
    assert "All 2 jobs of the last hour failed." in visible(await dashboard.browser.seen("/ops/nodes/n1/"))
    cli = Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
    assert "failing" in (await cli.run("nodes", "--state", "failing", "--sort=-failed")).out


async def test_one_that_completes_a_job_is_alive_again(dashboard: Dashboard) -> None:
    await fail(dashboard, 3)
    await made(dashboard, DONE, name="good")
    told = await node(dashboard)
    assert (told["failing"], told["last_hour"]) == (False, {"completed": 1, "failed": 3, "stranded": 0})
    assert "alive" in visible(await dashboard.browser.seen("/ops/nodes/n1/"))


async def test_neither_cancelled_jobs_nor_dry_runs_count(dashboard: Dashboard) -> None:
    for number in range(2):
        job = (await dashboard.cell.create(f"n{number}")).job.id
        await dashboard.browser.done(f"/ops/jobs/{job}/cancel/")
        check = await dashboard.cell.store.check_create(
            account_id=ACCOUNT, server_id=SERVER, name=f"c{number}", request_id="r"
        )
        await dashboard.cell.node.begin(JobId(check.id))
        await dashboard.cell.node.finish(check.id, failed("unsupported_server"))
    told = await node(dashboard)
    assert (told["failing"], told["last_hour"]) == (False, {"completed": 0, "failed": 0, "stranded": 0})


async def test_outcomes_older_than_an_hour_are_dropped(dashboard: Dashboard) -> None:
    await fail(dashboard, 2)
    redis = dashboard.cell.redis
    counted = await dashboard.cell.raw("HGETALL", "node:n1:ended")
    await redis.delete("node:n1:ended")
    for field, count in counted.items():
        period, outcome = field.decode().split(":")
        await dashboard.cell.raw("HSET", "node:n1:ended", f"{int(period) - 12}:{outcome}", count)
    assert await dashboard.cell.raw("ZSCORE", "nodes:by:failed", "n1") == 2
    await dashboard.cell.node.take_lease(seconds=60)
    assert await dashboard.cell.raw("ZSCORE", "nodes:by:failed", "n1") == 0
    assert (await node(dashboard))["last_hour"] == {"completed": 0, "failed": 0, "stranded": 0}
    await fail(dashboard, 1)
    assert len(await dashboard.cell.raw("HKEYS", "node:n1:ended")) == 1
