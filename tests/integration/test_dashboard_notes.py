"""The dashboard shows the notes of jobs and the contents of snapshots."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.test_dashboard import failed, made, visible
from tests.integration.test_notes import CHAIN, CREATED, HELD, RESTORED
from tests.queueing import until_told
from worker.store.model import JobId, JobState, LeftOut, Note, NoteCode
from worker.store.outcome import Outcome


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def page_of(dashboard: Dashboard, job_id: JobId) -> str:
    return await dashboard.browser.seen(f"/ops/jobs/{job_id}/")


async def test_a_create_tells_what_the_snapshot_holds_and_so_does_its_server(dashboard: Dashboard) -> None:
    job = await made(dashboard, CREATED)
    text = visible(await page_of(dashboard, job))
    for said in ("Notes left out The snapshot does not hold sda (a CD-ROM).", "without sda (a CD-ROM)"):
        assert said in text, said
    server = visible(await dashboard.browser.seen(f"/ops/servers/{SERVER}/"))
    for shown in (text, server):
        assert (
            "vda 64 MiB , vdb 1.0 MiB , UEFI variables" in shown or "vda 64 MiB, vdb 1.0 MiB, UEFI variables" in shown
        )
        assert "/srv" not in shown


async def test_a_dry_run_tells_what_the_job_would_do(dashboard: Dashboard) -> None:
    check = await dashboard.cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="a", request_id="r")
    await dashboard.cell.node.begin(check.id)
    await dashboard.cell.node.finish(check.id, Outcome(state=JobState.COMPLETED, notes=CREATED.notes, contents=HELD))
    text = visible(await page_of(dashboard, check.id))
    assert "Notes left out" in text
    assert "Would contain vda" in text


async def test_a_restore_tells_its_notes_and_the_audit_their_codes(dashboard: Dashboard) -> None:
    admitted = await dashboard.cell.create("b")
    await dashboard.cell.node.begin(admitted.job.id)
    await dashboard.cell.node.finish(admitted.job.id, CREATED)
    path = f"/api/v1/snapshots/{admitted.snapshot.id}/restore/?disks=present"
    job = JobId((await dashboard.api.call("POST", path)).headers["X-Job-Id"])
    await dashboard.cell.node.begin(job)
    await dashboard.cell.node.finish(job, RESTORED)

    text = visible(await page_of(dashboard, job))
    assert f"backup chain ended {CHAIN.detail}" in text
    assert "present disks only" in text

    async def is_audited() -> bool:
        return "backup chain ended" in visible(await dashboard.browser.seen(f"/ops/audit/?job_id={job}"))

    await until_told(is_audited)


async def test_texts_of_a_node_are_escaped(dashboard: Dashboard) -> None:
    evil = "<script>alert(1)</script>"
    contents = replace(HELD, left_out=(LeftOut(target=evil, reason=evil),))
    note = Note(code=NoteCode.DISK_REPAIRED, detail=evil, disks=(evil,))
    job = await made(dashboard, replace(CREATED, notes=(note,), contents=contents))
    for page in (await page_of(dashboard, job), await dashboard.browser.seen(f"/ops/servers/{SERVER}/")):
        assert evil not in page
        assert "&lt;script&gt;" in page


async def test_a_job_that_was_retried_leads_to_the_new_one_and_is_not_offered_again(dashboard: Dashboard) -> None:
    job = await made(dashboard, failed())
    assert f"/ops/jobs/{job}/retry/" in await page_of(dashboard, job)
    new = (await dashboard.browser.post(f"/ops/jobs/{job}/retry/")).headers["X-Job-Id"]
    page = await page_of(dashboard, job)
    assert f'href="/ops/jobs/{new}/"' in page
    assert f"/ops/jobs/{job}/retry/" not in page
    assert (await dashboard.browser.post(f"/ops/jobs/{job}/retry/")).status == 409


async def test_all_that_match_are_retried_once(dashboard: Dashboard) -> None:
    older = await made(dashboard, failed())
    await asyncio.sleep(0.002)  # in a separate millisecond, because lists are sorted by it
    newer = await made(dashboard, failed(), name="b")
    fields = {"action": "retry", "all": "true", "state": "failed"}
    text = visible(await dashboard.browser.done("/ops/jobs/bulk/", fields))
    assert "1 retried, 1 refused." in text
    assert f"{older[:8]} The server has had a later job" in text
    again = visible(await dashboard.browser.done("/ops/jobs/bulk/", fields))
    assert "0 retried, 2 refused." in again
    assert f"{newer[:8]} The job was already retried as job" in again
