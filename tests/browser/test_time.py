"""Time in the browser: charts link to the jobs of a period, and all times are in the chosen time zone."""

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.async_api import Browser, StorageState, expect

from tests.browser.conftest import Operator, at_browser
from tests.browser.stage import Stage
from worker.store.model import ServerId

pytestmark = pytest.mark.asyncio(loop_scope="package")

ZONE = "Asia/Tokyo"  # ahead of UTC all year


async def test_a_point_of_a_chart_links_to_the_jobs_that_ended_then(operator: Operator) -> None:
    page, stage = operator.page, operator.stage
    job_id = await stage.create(operator.a_server())
    job = await stage.ended(job_id)
    assert job.finished_at
    for by_key in (False, True):
        await operator.open("?window=1h")
        plot = page.get_by_role("slider", name="Jobs finished")
        await expect(plot).to_have_attribute("aria-valuetext", re.compile(r"\d\d:\d\d: .*create \d+ jobs"))
        if by_key:
            await plot.focus()
            await page.keyboard.press("ArrowLeft")
            await page.keyboard.press("ArrowRight")
            await page.keyboard.press("Enter")
        else:
            box = await plot.bounding_box()
            assert box
            await plot.click(position={"x": box["width"] - 12, "y": 20})  # within the last five minutes
        await page.wait_for_url(re.compile("/ops/jobs/"))
        query = parse_qs(urlsplit(page.url).query)
        assert list(query) == ["ended_since", "ended_until"]
        await expect(page.get_by_text("Ended from")).to_be_visible()
        if query["ended_since"][0] <= f"{job.finished_at:%Y-%m-%dT%H:%M:%SZ}" < query["ended_until"][0]:
            await expect(page.locator(f"#job-{job_id}")).to_be_visible()
        await page.get_by_label("State").select_option("completed")
        await expect(page).to_have_url(re.compile("state=completed.*ended_since="))


async def test_a_chart_names_its_units_and_the_dashed_percentile(operator: Operator) -> None:
    page = operator.page
    await operator.stage.ended(await operator.stage.create(operator.a_server()))
    await operator.open()
    durations = page.locator("#chart-seconds")
    dashed = durations.locator(".u-series", has_text="p95").first.locator(".u-marker")
    assert "dashed" in (await dashed.get_attribute("style") or "")
    solid = durations.locator(".u-series", has_text="p50").first.locator(".u-marker")
    assert "solid" in (await solid.get_attribute("style") or "")
    await expect(page.get_by_role("slider", name="Durations")).to_have_attribute(
        "aria-valuetext", re.compile(r"create p95 [\d.]+ (s|min)")
    )
    await page.get_by_role("link", name="7 d").click()
    await operator.is_live()
    await expect(page.get_by_role("heading", name="Last 7 days")).to_be_visible()


async def test_times_are_shown_and_taken_in_the_zone_that_one_has_chosen(
    stage: Stage, browser: Browser, unused: list[ServerId], session: StorageState
) -> None:
    async with at_browser(stage, browser, unused, session, timezone_id=ZONE) as operator:
        page = operator.page
        job_id = await stage.create(operator.a_server())
        await operator.open(f"jobs/{job_id}/")
        time = page.locator(".facts time").first
        await expect(time).to_have_attribute("title", re.compile("UTC$"))
        await page.get_by_role("button", name="Show local time").click()
        await expect(time).to_have_attribute("title", re.compile("JST$"))
        await operator.open("jobs/")
        await page.get_by_label("From (local time)").fill("2025-01-17T01:15")
        await page.get_by_role("button", name="Filter", exact=True).click()
        await expect(page).to_have_url(re.compile("since=2025-01-16T16%3A15%3A00Z$"))
        await expect(page.get_by_label("From (local time)")).to_have_value("2025-01-17T01:15")
        await expect(page.locator(f"#job-{job_id}")).to_be_visible()
        await operator.is_live()
        await page.keyboard.press("u")
        await expect(page.get_by_label("From (UTC)")).to_have_value("2025-01-16T16:15")
