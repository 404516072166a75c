"""The badge "Live" is correct: it disappears when the front end or Redis hangs, and returns with them."""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.async_api import Locator, expect

from tests.browser.conftest import Operator
from tests.browser.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="package")

SILENT_MS = 6_000  # one second longer than the page's own timeout
AGE = re.compile(r"as of \d+ (s|min|h|d) ago")


@contextmanager
def hanging(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def front_end(stage: Stage) -> int:
    assert stage.front_end
    return stage.front_end.pid


def redis(stage: Stage) -> int:
    assert stage.redis_server.process
    return stage.redis_server.process.pid


def badge(operator: Operator) -> Locator:
    return operator.page.locator("#connection[data-state=lost]")


async def test_a_page_shows_its_age_five_seconds_after_the_front_end_hangs(
    operator: Operator,
) -> None:
    page = operator.page
    await page.clock.install()
    await operator.open("jobs/")
    await operator.mark()
    with hanging(front_end(operator.stage)):
        now_ms = await page.evaluate("Date.now()")
        await page.clock.pause_at((now_ms + SILENT_MS) / 1000)  # from here on, only the test advances the page's clock
        await expect(badge(operator)).to_contain_text(AGE)
        await expect(badge(operator)).to_contain_text("Reconnecting")
        await page.clock.resume()
    await operator.is_live()
    await expect(page.locator("#connection")).to_have_text("Live")
    assert await operator.is_same_document()


async def test_a_page_is_not_live_while_redis_hangs_and_shows_afterward_what_it_missed(operator: Operator) -> None:
    await operator.open("jobs/")
    await operator.mark()
    with hanging(redis(operator.stage)):
        await expect(badge(operator)).to_contain_text(AGE)
    await operator.is_live()
    await expect(operator.page.locator("#trouble")).to_be_empty()
    job_id = await operator.stage.create(operator.a_server(), "after-the-hang")
    await expect(operator.page.locator(f"#job-{job_id}")).to_be_visible()
    assert await operator.is_same_document()


async def test_a_page_that_could_not_be_shown_opens_by_itself(operator: Operator) -> None:
    page = operator.page
    with hanging(redis(operator.stage)):
        response = await page.goto(f"{operator.stage.url}/ops/jobs/?kind=create")
        assert response
        assert response.status == 503
        await expect(page.get_by_text("loads automatically")).to_be_visible()
    await expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    await operator.is_live()
    assert page.url.endswith("/ops/jobs/?kind=create")
