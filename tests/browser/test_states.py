"""Special states of a page: refused, read-only, disconnected, or showing the result of an action; axe finds nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, expect

from tests.browser.axe import findings
from tests.browser.conftest import Operator, at_browser, log_in
from tests.browser.stage import Stage
from tests.browser.test_live import badge, hanging, redis
from tests.browser.test_work import failed, press
from worker.store.access.tokens import Permission
from worker.store.model import ServerId

pytestmark = pytest.mark.asyncio(loop_scope="package")


@asynccontextmanager
async def read_only(stage: Stage) -> AsyncIterator[None]:
    """Redis refuses writes within the block."""
    await stage.redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await stage.redis.config_set("min-replicas-to-write", 0)


async def test_answers_to_actions(operator: Operator) -> None:
    page, found = operator.page, {}
    await operator.open("nodes/node-1/")
    await press(operator, "Reconcile", answer="Reconcile")
    await expect(page.locator("#notice")).to_contain_text("Reconcile requested")
    found["done"] = await findings(page)
    job = await failed(operator)
    server_id = (await operator.stage.job(job)).job.server_id
    await operator.open(f"jobs/?state=failed&server_id={server_id}")
    await press(operator, "Retry all matching", answer="Retry")
    await expect(page.locator("#notice")).to_contain_text("1 retried, 0 refused")
    found["bulk"] = await findings(page)
    await operator.open("tokens/")
    await page.get_by_role("button", name="New token").click()
    form = page.get_by_role("dialog")
    await form.get_by_label("Name").fill("made to be looked at")
    await form.get_by_label("snapshots:read").check()
    await form.get_by_role("button", name="Create token").click()
    await expect(page.locator("#notice")).to_contain_text("vps_")
    found["token"] = await findings(page)
    assert {name: some for name, some in found.items() if some} == {}


async def test_troubles(operator: Operator) -> None:
    page, stage, found = operator.page, operator.stage, {}
    await operator.open("jobs/")
    with hanging(redis(stage)):
        await expect(badge(operator)).to_contain_text("Reconnecting")
        found["reconnecting"] = await findings(page)
        response = await page.goto(f"{stage.url}/ops/jobs/")
        assert response
        assert response.status == 503
        found["503"] = await findings(page)
    await operator.is_live()
    async with read_only(stage):
        await operator.open()
        await expect(page.locator("#read-only")).to_be_visible()
        found["read only"] = await findings(page)
    assert {name: some for name, some in found.items() if some} == {}


async def test_pages_without_permission_and_without_a_login(
    stage: Stage, browser: Browser, unused: list[ServerId], stranger: Operator
) -> None:
    page, found = stranger.page, {}
    await page.goto(f"{stage.url}/ops/login/?ended=true")
    found["session ended"] = await findings(page)
    await page.get_by_label("Token").fill("vps_wrong")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_be_visible()
    found["wrong token"] = await findings(page)
    permissions = frozenset({Permission.OPERATOR_READ})
    reader = await stage.tokens.create(name="reads", account_id=None, permissions=permissions)
    async with at_browser(stage, browser, unused, None) as reading:
        await log_in(reading.page, stage, reader.secret)
        await expect(reading.page.get_by_text("(read only)")).to_be_visible()
        found["reader"] = await findings(reading.page)
        await reading.page.goto(f"{stage.url}/ops/nodes/node-1/pause/")
        found["403"] = await findings(reading.page)
    assert {name: some for name, some in found.items() if some} == {}
