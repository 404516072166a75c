"""An operator at work: pages show changes without a reload, and actions take effect."""

import re

import pytest
from playwright.async_api import Locator, expect

from drivers.fake_faults import Effect, Rule
from tests.browser.conftest import Operator
from tests.queueing import until_told
from worker.store.model import JobId, JobState

pytestmark = pytest.mark.asyncio(loop_scope="package")


def row(operator: Operator, job_id: JobId) -> Locator:
    return operator.page.locator(f"#job-{job_id}")


async def press(operator: Operator, name: str, *, answer: str, reason: str = "") -> None:
    """Press a button that asks for confirmation, and then the one that confirms."""
    await operator.page.get_by_role("button", name=name, exact=True).click()
    question = operator.page.get_by_role("dialog")
    if reason:
        await question.get_by_label("Reason").fill(reason)
    await question.get_by_role("button", name=answer, exact=True).click()
    await expect(question).to_be_hidden()


async def failed(operator: Operator) -> JobId:
    """A failed job that left its server unchanged."""
    server_id = operator.a_server()
    operator.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, fails=True))
    job_id = await operator.stage.create(server_id)
    assert (await operator.stage.ended(job_id)).state is JobState.FAILED
    operator.node.befall()
    return job_id


async def waiting(operator: Operator) -> JobId:
    """A job that waits on the paused node."""
    return await operator.stage.create(operator.a_server())


async def test_a_job_is_followed_from_its_admission_to_its_end_in_one_document(operator: Operator) -> None:
    await operator.open("jobs/")
    await operator.mark()
    server_id = operator.a_server()
    operator.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, waits=True))
    job_id = await operator.stage.create(server_id, "seen-live")
    await expect(row(operator, job_id)).to_contain_text("snapshotting")
    await expect(row(operator, job_id).get_by_text("in progress")).to_be_visible()
    operator.node.befall()
    await expect(row(operator, job_id).get_by_text("completed")).to_be_visible()
    assert await operator.is_same_document()


async def test_a_jobs_page_shows_its_steps_as_they_come(operator: Operator) -> None:
    server_id = operator.a_server()
    operator.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, waits=True))
    job_id = await operator.stage.create(server_id)
    await operator.stage.at_step(job_id, "snapshotting")
    await operator.open(f"jobs/{job_id}/")
    await operator.mark()
    steps = operator.page.locator(".steps li")
    await expect(steps.filter(has_text="snapshotting").get_by_text("running")).to_be_visible()
    await expect(steps.filter(has_text="measuring").get_by_text("pending")).to_be_visible()
    operator.node.befall()
    await expect(operator.page.locator(".head").get_by_text("completed")).to_be_visible()
    await expect(steps.filter(has_text="pending")).to_have_count(0)
    await expect(operator.page.get_by_text("job.completed")).to_be_visible()
    assert await operator.is_same_document()


async def test_a_filter_shows_its_choice_and_is_in_the_address(operator: Operator) -> None:
    bad, good = await failed(operator), await operator.stage.create(operator.a_server(), "a-good-one")
    await operator.stage.ended(good)
    await operator.open("jobs/")
    await operator.page.get_by_label("State").select_option("failed")
    await expect(row(operator, bad)).to_be_visible()
    await expect(row(operator, good)).to_have_count(0)
    await expect(operator.page).to_have_url(re.compile(r"/ops/jobs/\?state=failed$"))
    await operator.page.get_by_role("link", name="Clear filters", exact=True).click()
    await expect(operator.page).to_have_url(re.compile(r"/ops/jobs/$"))
    await operator.is_live()
    await operator.page.keyboard.press("/")
    await operator.page.keyboard.type("A-GOOD-ONE")
    await operator.page.keyboard.press("Enter")
    await expect(row(operator, good)).to_be_visible()
    await expect(row(operator, bad)).to_have_count(0)


async def test_a_failed_job_tells_why_and_what_to_do_and_is_retried(operator: Operator) -> None:
    job_id = await failed(operator)
    await operator.open(f"jobs/{job_id}/")
    link = operator.page.get_by_role("link", name="Runbook: disk_failed")
    await expect(link).to_have_attribute("href", re.compile(r"#disk_failed$"))
    await press(operator, "Retry", answer="Retry")
    await operator.page.get_by_role("link", name="View job").click()
    await expect(operator.page.locator(".head").get_by_text("completed")).to_be_visible()
    assert job_id not in operator.page.url


async def test_a_restore_that_would_overwrite_what_was_written_since_is_forced_by_typing(operator: Operator) -> None:
    server_id, page = operator.a_server(), operator.page
    made = await operator.stage.ended(await operator.stage.create(server_id))
    operator.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, fails=True))
    job_id = await operator.stage.ask("POST", f"/api/v1/snapshots/{made.snapshot_id}/restore/")
    assert (await operator.stage.ended(job_id)).state is JobState.FAILED
    operator.node.befall()

    await operator.open("jobs/?state=failed")
    await page.locator(f"#pick-{job_id}").check()
    await page.get_by_role("button", name="Retry selected", exact=True).click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Nothing to retry")
    await expect(dialog.get_by_role("button", name="Retry", exact=True)).to_have_count(0)
    await dialog.get_by_role("link", name="Include 1 job with force").click()
    await expect(dialog).to_contain_text("1 restore, overwriting all data of the server")
    await expect(dialog.get_by_label("the number of jobs")).to_be_focused()
    await page.keyboard.press("Escape")

    await operator.open(f"jobs/{job_id}/")
    await page.get_by_role("button", name="Retry", exact=True).click()
    await expect(dialog).to_contain_text("The server has been running since the job failed")
    field, force = dialog.get_by_label("the ID of the server"), dialog.get_by_role("button", name="Force the retry")
    await expect(field).to_be_focused()
    await field.fill("1")
    await force.click()
    await expect(field).to_be_visible()  # the browser refuses to submit the form
    assert (await operator.stage.job(job_id)).job.retried_by is None
    await field.fill(str(server_id))
    await force.click()
    await expect(dialog).to_be_hidden()
    await page.get_by_role("link", name="View job").click()
    await expect(page.locator(".head").get_by_text("completed")).to_be_visible()


async def test_a_node_is_paused_a_job_that_waits_there_cancelled_and_the_node_resumed(operator: Operator) -> None:
    await operator.open("nodes/node-1/")
    await press(operator, "Pause (drain)", answer="Pause", reason="a new disk")
    await expect(operator.page.locator(".head").get_by_text("paused")).to_be_visible()
    await expect(operator.page.get_by_text("a new disk")).to_be_visible()
    first, second = await waiting(operator), await waiting(operator)
    await expect(row(operator, first).get_by_text("queued")).to_be_visible()
    await row(operator, first).get_by_role("link", name=first[:8]).click()
    await press(operator, "Cancel the job", answer="Cancel the job")
    await expect(operator.page.locator(".head").get_by_text("cancelled")).to_be_visible()
    assert (await operator.stage.job(second)).job.state is JobState.QUEUED
    await operator.open("nodes/node-1/")
    await press(operator, "Resume", answer="Resume", reason="the disk is in")
    await expect(operator.page.locator(".head").get_by_text("alive")).to_be_visible()
    assert (await operator.stage.ended(second)).state is JobState.COMPLETED


async def test_selected_jobs_are_retried_and_each_has_its_own_result(operator: Operator) -> None:
    retried = [await failed(operator), await failed(operator)]
    refused = await operator.stage.create(operator.a_server())
    await operator.stage.ended(refused)
    await operator.open("jobs/")
    for job_id in (*retried, refused):
        await operator.page.locator(f"#pick-{job_id}").check()
    await expect(operator.page.get_by_text("3 selected")).to_be_visible()
    await operator.page.set_viewport_size({"width": 1280, "height": 320})  # lower than the dialog
    await operator.page.get_by_role("button", name="Retry selected", exact=True).click()
    dialog = operator.page.get_by_role("dialog")
    await expect(dialog.get_by_role("heading", name="Retry 2 jobs?")).to_be_in_viewport(ratio=1)
    await expect(dialog.get_by_role("button", name="Retry", exact=True)).to_be_in_viewport(ratio=1)
    assert await dialog.evaluate("dialog => dialog.scrollHeight > dialog.clientHeight")
    await expect(dialog).to_contain_text("1 job left out: not possible")
    await dialog.get_by_role("button", name="Retry", exact=True).click()
    await expect(operator.page.locator("#notice")).to_contain_text("2 retried, 0 refused.")

    async def audited() -> bool:
        part = await operator.stage.redis.xrevrange("audit", count=20)
        told = {fields.get(b"job", b"").decode() for _, fields in part}
        return {*retried} <= told

    await until_told(audited)


async def test_a_stranded_server_comes_first_until_it_is_marked_as_resolved(operator: Operator) -> None:
    server_id = operator.a_server()
    await operator.open()
    await operator.mark()
    operator.node.befall(Rule(effect=Effect.START, server_id=server_id, fails=True))
    job_id = await operator.stage.create(server_id)
    first = operator.page.locator("main section").first
    await expect(first.get_by_role("heading")).to_contain_text("stranded server")
    await expect(first.get_by_role("link", name=str(server_id))).to_be_visible()
    assert await operator.is_same_document()
    await first.get_by_role("link", name=job_id[:8]).click()
    await press(operator, "Mark as resolved", answer="Mark as resolved", reason="Started it by hand")
    await expect(operator.page.get_by_text("Started it by hand")).to_be_visible()
    await operator.open(f"servers/{server_id}/")
    await expect(operator.page.locator(".head").get_by_text("stranded")).to_have_count(0)
    await expect(row(operator, job_id).get_by_text("resolved")).to_be_visible()


async def test_a_page_is_correct_again_after_the_front_end_was_down(operator: Operator) -> None:
    server_id = operator.a_server()
    operator.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, waits=True))
    job_id = await operator.stage.create(server_id)
    await operator.open(f"jobs/{job_id}/")
    await operator.mark()
    await operator.stage.stop_front_end()
    await expect(operator.page.locator("#connection")).to_contain_text("Reconnecting")
    operator.node.befall()
    assert (await operator.stage.ended(job_id)).state is JobState.COMPLETED
    await operator.stage.start_front_end()
    await operator.is_live()
    await expect(operator.page.locator(".head").get_by_text("completed")).to_be_visible()
    again = await operator.stage.create(server_id, "after-the-restart")
    await operator.stage.ended(again)
    assert await operator.is_same_document()


async def test_a_token_is_made_shown_once_and_revoked(operator: Operator) -> None:
    await operator.open("tokens/")
    await operator.page.get_by_role("button", name="New token").click()
    form = operator.page.get_by_role("dialog")
    await form.get_by_label("Name").fill("a night shift")
    await form.get_by_role("button", name="Create token").click()
    await expect(form.get_by_role("alert")).to_contain_text("permissions: ")
    await expect(form.get_by_label("Name")).to_have_value("a night shift")
    await form.get_by_label("operator", exact=True).check()
    await form.get_by_role("button", name="Create token").click()
    secret = await operator.page.locator("#secret").inner_text()
    assert re.fullmatch(r"vps_[A-Za-z0-9_-]{43}", secret)
    made = operator.page.get_by_role("row", name="a night shift")
    await made.get_by_role("button", name="Revoke").click()
    await operator.page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await expect(made).to_have_count(0)
    await operator.page.reload()
    assert secret not in await operator.page.content()
