"""An operator at work: what happens is seen without a reload, and what is done takes place."""

import re

import pytest
from playwright.async_api import Locator, expect

from drivers.fake_faults import Effect, Rule
from tests.browser.conftest import Desk
from tests.queueing import until_told
from worker.store.model import JobId, JobState

pytestmark = pytest.mark.asyncio(loop_scope="package")


def row(desk: Desk, job_id: JobId) -> Locator:
    return desk.page.locator(f"#job-{job_id}")


async def press(desk: Desk, name: str, *, answer: str, reason: str = "") -> None:
    """A button that asks, and the one of its question."""
    await desk.page.get_by_role("button", name=name, exact=True).click()
    question = desk.page.get_by_role("dialog")
    if reason:
        await question.get_by_label("Why?").fill(reason)
    await question.get_by_role("button", name=answer, exact=True).click()
    await expect(question).to_be_hidden()


async def failed(desk: Desk) -> JobId:
    """A job that has failed and left its server as it was."""
    server_id = desk.a_server()
    desk.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, fails=True))
    job_id = await desk.stage.create(server_id)
    assert (await desk.stage.ended(job_id)).state is JobState.FAILED
    desk.node.befall()
    return job_id


async def waiting(desk: Desk) -> JobId:
    """A job on the paused node."""
    return await desk.stage.create(desk.a_server())


async def test_a_job_is_followed_from_its_admission_to_its_end_in_one_document(desk: Desk) -> None:
    await desk.open("jobs/")
    await desk.mark()
    server_id = desk.a_server()
    desk.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, seconds=1.5))
    job_id = await desk.stage.create(server_id, "seen-live")
    await expect(row(desk, job_id)).to_contain_text("snapshotting")
    await expect(row(desk, job_id).get_by_text("in progress")).to_be_visible()
    await expect(row(desk, job_id).get_by_text("completed")).to_be_visible()
    assert await desk.is_same_document()


async def test_a_jobs_page_shows_its_steps_as_they_come(desk: Desk) -> None:
    server_id = desk.a_server()
    desk.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, seconds=1.5))
    job_id = await desk.stage.create(server_id)
    await desk.stage.at_step(job_id, "snapshotting")
    await desk.open(f"jobs/{job_id}/")
    await desk.mark()
    steps = desk.page.locator(".steps li")
    await expect(steps.filter(has_text="snapshotting").get_by_text("under way")).to_be_visible()
    await expect(steps.filter(has_text="measuring").get_by_text("to come")).to_be_visible()
    await expect(desk.page.locator(".head").get_by_text("completed")).to_be_visible()
    await expect(steps.filter(has_text="to come")).to_have_count(0)
    await expect(desk.page.get_by_text("job.completed")).to_be_visible()
    assert await desk.is_same_document()


async def test_a_filter_shows_what_it_asks_for_and_stands_in_the_address(desk: Desk) -> None:
    bad, good = await failed(desk), await desk.stage.create(desk.a_server(), "a-good-one")
    await desk.stage.ended(good)
    await desk.open("jobs/")
    await desk.page.get_by_label("State").select_option("failed")
    await expect(row(desk, bad)).to_be_visible()
    await expect(row(desk, good)).to_have_count(0)
    await expect(desk.page).to_have_url(re.compile(r"/ops/jobs/\?state=failed$"))
    await desk.page.get_by_role("link", name="All", exact=True).click()
    await expect(desk.page).to_have_url(re.compile(r"/ops/jobs/$"))
    await desk.is_live()
    await desk.page.keyboard.press("/")
    await desk.page.keyboard.type("A-GOOD-ONE")
    await desk.page.keyboard.press("Enter")
    await expect(row(desk, good)).to_be_visible()
    await expect(row(desk, bad)).to_have_count(0)


async def test_a_failed_job_tells_why_and_what_to_do_and_is_tried_again(desk: Desk) -> None:
    job_id = await failed(desk)
    await desk.open(f"jobs/{job_id}/")
    link = desk.page.get_by_role("link", name="What to do: runbook")
    await expect(link).to_have_attribute("href", re.compile(r"#disk_failed$"))
    await press(desk, "Retry", answer="Retry")
    await desk.page.get_by_role("link", name="Look at it").click()
    await expect(desk.page.locator(".head").get_by_text("completed")).to_be_visible()
    assert job_id not in desk.page.url


async def test_a_node_is_paused_a_job_that_waits_there_cancelled_and_the_node_resumed(desk: Desk) -> None:
    await desk.open("nodes/node-1/")
    await press(desk, "Pause (drain)", answer="Pause", reason="a new disk")
    await expect(desk.page.locator(".head").get_by_text("paused")).to_be_visible()
    await expect(desk.page.get_by_text("a new disk")).to_be_visible()
    first, second = await waiting(desk), await waiting(desk)
    await expect(row(desk, first).get_by_text("queued")).to_be_visible()
    await row(desk, first).get_by_role("link", name=first[:8]).click()
    await press(desk, "Cancel the job", answer="Cancel the job")
    await expect(desk.page.locator(".head").get_by_text("cancelled")).to_be_visible()
    assert (await desk.stage.job(second)).job.state is JobState.QUEUED
    await desk.open("nodes/node-1/")
    await press(desk, "Resume", answer="Resume", reason="the disk is in")
    await expect(desk.page.locator(".head").get_by_text("alive")).to_be_visible()
    assert (await desk.stage.ended(second)).state is JobState.COMPLETED


async def test_many_jobs_are_ticked_and_tried_again_and_each_is_answered_for(desk: Desk) -> None:
    retried = [await failed(desk), await failed(desk)]
    refused = await desk.stage.create(desk.a_server())
    await desk.stage.ended(refused)
    await desk.open("jobs/")
    for job_id in (*retried, refused):
        await desk.page.locator(f"#pick-{job_id}").check()
    await expect(desk.page.get_by_text("3 ticked")).to_be_visible()
    await press(desk, "Retry them", answer="Retry")
    notice = desk.page.locator("#notice")
    await expect(notice).to_contain_text("job_not_retryable")
    await expect(notice).to_contain_text(re.compile(r"\b2\b"))

    async def audited() -> bool:
        part = await desk.stage.redis.xrevrange("audit", count=20)
        told = {fields.get(b"job", b"").decode() for _, fields in part}
        return {*retried, refused} <= told

    await until_told(audited)


async def test_a_stranded_server_stands_first_until_somebody_tells_how_it_was_put_right(desk: Desk) -> None:
    server_id = desk.a_server()
    await desk.open()
    await desk.mark()
    desk.node.befall(Rule(effect=Effect.START, server_id=server_id, fails=True))
    job_id = await desk.stage.create(server_id)
    first = desk.page.locator("main section").first
    await expect(first.get_by_role("heading")).to_contain_text("stranded server")
    await expect(first.get_by_role("link", name=str(server_id))).to_be_visible()
    assert await desk.is_same_document()
    await first.get_by_role("link", name=job_id[:8]).click()
    await press(desk, "Mark as resolved", answer="It is resolved", reason="Started it by hand")
    await expect(desk.page.get_by_text("Started it by hand")).to_be_visible()
    await desk.open(f"servers/{server_id}/")
    await expect(desk.page.locator(".head").get_by_text("stranded")).to_have_count(0)
    await expect(row(desk, job_id).get_by_text("put right")).to_be_visible()


async def test_a_page_is_right_again_after_the_front_end_was_away(desk: Desk) -> None:
    server_id = desk.a_server()
    desk.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, seconds=1.0))
    job_id = await desk.stage.create(server_id)
    await desk.open(f"jobs/{job_id}/")
    await desk.mark()
    await desk.stage.stop_front_end()
    await expect(desk.page.locator("#connection")).to_contain_text("Reconnecting")
    assert (await desk.stage.ended(job_id)).state is JobState.COMPLETED
    await desk.stage.start_front_end()
    await desk.is_live()
    await expect(desk.page.locator(".head").get_by_text("completed")).to_be_visible()
    again = await desk.stage.create(server_id, "after-the-restart")
    await desk.stage.ended(again)
    assert await desk.is_same_document()


async def test_a_token_is_made_shown_once_and_revoked(desk: Desk) -> None:
    await desk.open("tokens/")
    await desk.page.get_by_role("button", name="New token").click()
    form = desk.page.get_by_role("dialog")
    await form.get_by_label("Name").fill("a night shift")
    await form.get_by_label("operator", exact=True).check()
    await form.get_by_role("button", name="Create the token").click()
    secret = await desk.page.locator("#secret").inner_text()
    assert re.fullmatch(r"vps_[A-Za-z0-9_-]{43}", secret)
    made = desk.page.get_by_role("row", name="a night shift")
    await made.get_by_role("button", name="Revoke").click()
    await desk.page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await expect(made).to_have_count(0)
    await desk.page.reload()
    assert secret not in await desk.page.content()
