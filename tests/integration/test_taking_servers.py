"""An operator takes a stranded server: the others see who is repairing it until it is no longer stranded."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.browsing import Browser, Dashboard, dashboard_of
from tests.integration.cli import Cli
from tests.integration.conftest import SERVER, Cell
from tests.integration.front_end import Answer
from tests.integration.test_dashboard import audited, failed, made, visible
from worker.store.access.tokens import Permission
from worker.store.model import JobId

BAD = failed("start_failed", stranded=True)


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def call(dashboard: Dashboard, method: str, path: str = "", *, token: str | None = None) -> Answer:
    path = f"/api/v1/ops/servers/{SERVER}/{path}"
    return await dashboard.api.call(method, path, token=token or dashboard.token)


async def taken(dashboard: Dashboard) -> Any:
    return (await call(dashboard, "GET")).body["taken"]


async def test_others_see_who_took_it_until_it_is_resolved(dashboard: Dashboard) -> None:
    job = await made(dashboard, BAD)
    pages = ("", f"servers/{SERVER}/", f"jobs/{job}/")
    for page in pages:
        assert "obody" in visible(await dashboard.browser.seen(f"/ops/{page}"))
    assert "Are you repairing this server?" in await dashboard.browser.seen(f"/ops/servers/{SERVER}/take/")
    assert "You are on server" in visible(await dashboard.browser.done(f"/ops/servers/{SERVER}/take/"))
    assert (await taken(dashboard))["by"] == "a test"

    other = await colleague(dashboard)
    for page in pages[1:]:
        text = visible(await other.seen(f"/ops/{page}"))
        assert "a test took it" in text
        assert "Take over" in text
    assert "a test now" in visible(await other.seen("/ops/"))
    assert "a test took it" in await other.seen(f"/ops/servers/{SERVER}/take/")

    await dashboard.browser.done(f"/ops/jobs/{job}/resolve/", {"reason": "started by hand"})
    assert await taken(dashboard) is None
    await made(dashboard, BAD, name="again")
    assert await taken(dashboard) is None
    assert [entry["path"] for entry in await audited(dashboard)].count(f"/ops/servers/{SERVER}/take/") == 1


async def colleague(dashboard: Dashboard) -> Browser:
    new = await dashboard.api.tokens.create(name="alice", account_id=None, permissions=frozenset({Permission.OPERATOR}))
    browser = dashboard.stranger()
    assert (await browser.login(new.secret)).status == 303
    return browser


async def test_it_can_be_taken_over_and_released(dashboard: Dashboard) -> None:
    await made(dashboard, BAD)
    await (await colleague(dashboard)).done(f"/ops/servers/{SERVER}/take/")
    assert (await taken(dashboard))["by"] == "alice"
    assert (await call(dashboard, "POST", "take/")).body["taken"]["by"] == "a test"
    assert (await call(dashboard, "POST", "release/")).body["taken"] is None
    cli = Cli(url=f"http://127.0.0.1:{dashboard.api.port}", token=dashboard.token)
    assert "is taken by you" in (await cli.run("server", "take", SERVER, "--yes")).out
    assert "a test" in (await cli.run("servers", "--stranded")).out
    assert "is released" in (await cli.run("server", "release", SERVER, "--yes")).out
    assert await taken(dashboard) is None


async def test_only_a_stranded_one_can_be_taken(dashboard: Dashboard) -> None:
    for what in ("take/", "release/"):
        (await call(dashboard, "POST", what)).refused(409, "server_not_stranded")
    assert "I'm on it" not in visible(await dashboard.browser.seen(f"/ops/servers/{SERVER}/"))


async def test_a_read_only_operator_sees_it_without_a_button(dashboard: Dashboard) -> None:
    job: JobId = await made(dashboard, BAD)
    await call(dashboard, "POST", "take/")
    token = await dashboard.api.new_token(account=None, permissions={Permission.OPERATOR_READ})
    (await call(dashboard, "POST", "take/", token=token)).refused(403, "permission_denied")
    reader = dashboard.stranger()
    await reader.login(token)
    for page in (f"servers/{SERVER}/", f"jobs/{job}/"):
        text = visible(await reader.seen(f"/ops/{page}"))
        assert "a test took it" in text
        assert "Take over" not in text
        assert "Release" not in text
    assert (await reader.get(f"/ops/servers/{SERVER}/take/")).status == 403
    assert (await reader.post(f"/ops/servers/{SERVER}/take/")).status == 403
