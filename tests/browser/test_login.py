"""Who can log in, and whose session ends."""

import re
from datetime import timedelta

import pytest
from playwright.async_api import expect

from tests.browser.conftest import Operator, log_in
from worker.store.access.tokens import Permission

pytestmark = pytest.mark.asyncio(loop_scope="package")

LOGIN = re.compile(r"/ops/login/")


async def enter(operator: Operator, secret: str) -> None:
    await operator.page.get_by_label("Token").fill(secret)
    await operator.page.get_by_role("button", name="Log in").click()


async def test_a_bad_token_is_refused_and_a_good_one_opens_the_requested_page(stranger: Operator) -> None:
    page = stranger.page
    await page.goto(f"{stranger.stage.url}/ops/jobs/?state=failed")
    await expect(page).to_have_url(LOGIN)
    await enter(stranger, "vps_" + "x" * 43)
    await expect(page.get_by_role("alert")).to_contain_text("token_invalid")
    await enter(stranger, (await stranger.stage.new_operator()).secret)
    await expect(page).to_have_url(f"{stranger.stage.url}/ops/jobs/?state=failed")
    await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()


async def test_a_customers_token_opens_nothing(stranger: Operator) -> None:
    permissions = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
    new = await stranger.stage.tokens.create(name="a customer", account_id=None, permissions=permissions)
    await stranger.page.goto(f"{stranger.stage.url}/ops/")
    await enter(stranger, new.secret)
    await expect(stranger.page.get_by_role("alert")).to_contain_text("permission_denied")


async def test_a_logout_applies_to_all_windows_and_to_the_back_button(stranger: Operator) -> None:
    page = stranger.page
    await log_in(page, stranger.stage, (await stranger.stage.new_operator()).secret)
    other = await page.context.new_page()
    await other.goto(f"{stranger.stage.url}/ops/nodes/")
    await page.get_by_role("button", name="Log out").click()
    await expect(page).to_have_url(LOGIN)
    await page.go_back()
    await expect(page).to_have_url(LOGIN)
    await other.reload()
    await expect(other).to_have_url(LOGIN)


async def test_an_open_page_leads_to_the_login_when_its_token_was_revoked(stranger: Operator) -> None:
    stage, page = stranger.stage, stranger.page
    new = await stage.new_operator("Ben")
    await log_in(page, stage, new.secret)
    await stranger.open("jobs/?kind=create")
    assert await stage.tokens.revoke(new.token.id)
    await stage.ended(await stage.create(stranger.a_server()))  # an event makes the page refresh
    await expect(page).to_have_url(LOGIN)
    await enter(stranger, (await stage.new_operator("Ben")).secret)
    await expect(page).to_have_url(f"{stage.url}/ops/jobs/?kind=create")


async def test_a_token_that_has_expired_opens_nothing_and_ends_its_session(stranger: Operator) -> None:
    stage, page = stranger.stage, stranger.page
    new = await stage.new_operator("a night shift", lifetime=timedelta(hours=8))
    await log_in(page, stage, new.secret)
    await page.goto("about:blank")  # an open page would notice the end and go to the login during the navigation
    (key,) = [key for key in [await stage.redis.hget("tokens", new.token.id)] if key]  # type: ignore[misc] # redis-py: sync or async
    await stage.redis.pexpire(key, 1)  # the session expires
    await page.goto(f"{stage.url}/ops/nodes/")
    await expect(page).to_have_url(LOGIN)
    await enter(stranger, new.secret)
    await expect(page.get_by_role("alert")).to_contain_text("token_invalid")
