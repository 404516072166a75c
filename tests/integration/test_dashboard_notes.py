"""The dashboard tells what jobs have noted and what snapshots hold."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.integration.browsing import Desk, at_desk
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.test_dashboard import failed, made, visible
from tests.integration.test_notes import CHAIN, CREATED, HELD, RESTORED
from worker.store.model import JobId, JobState, LeftOut, Note, NoteCode
from worker.store.outcome import Outcome


@pytest.fixture
async def desk(cell: Cell) -> AsyncIterator[Desk]:
    async with at_desk(cell) as desk:
        yield desk


async def page_of(desk: Desk, job_id: JobId) -> str:
    return await desk.browser.seen(f"/ops/jobs/{job_id}/")


async def test_a_create_tells_what_the_snapshot_holds_and_so_does_its_server(desk: Desk) -> None:
    job = await made(desk, CREATED)
    text = visible(await page_of(desk, job))
    for said in ("What it did besides left out The snapshot does not hold sda (a CD-ROM).", "without sda (a CD-ROM)"):
        assert said in text, said
    server = visible(await desk.browser.seen(f"/ops/servers/{SERVER}/"))
    for shown in (text, server):
        assert (
            "vda 64 MiB , vdb 1.0 MiB , UEFI variables" in shown or "vda 64 MiB, vdb 1.0 MiB, UEFI variables" in shown
        )
        assert "/srv" not in shown


async def test_a_dry_run_tells_what_the_job_would_do(desk: Desk) -> None:
    check = await desk.cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="a", request_id="r")
    await desk.cell.node.begin(check.id)
    await desk.cell.node.finish(check.id, Outcome(state=JobState.COMPLETED, notes=CREATED.notes, contents=HELD))
    text = visible(await page_of(desk, check.id))
    assert "What it would do besides" in text
    assert "Would hold vda" in text


async def test_a_restore_tells_its_notes_and_the_audit_their_codes(desk: Desk) -> None:
    admitted = await desk.cell.create("b")
    await desk.cell.node.begin(admitted.job.id)
    await desk.cell.node.finish(admitted.job.id, CREATED)
    path = f"/api/v1/snapshots/{admitted.snapshot.id}/restore/?disks=present"
    job = JobId((await desk.api.call("POST", path)).headers["X-Job-Id"])
    await desk.cell.node.begin(job)
    await desk.cell.node.finish(job, RESTORED)

    text = visible(await page_of(desk, job))
    assert f"backup chain ended {CHAIN.detail}" in text
    assert "only those that are present" in text
    assert "backup chain ended" in visible(await desk.browser.seen(f"/ops/audit/?job_id={job}"))


async def test_what_a_node_says_is_text_and_no_page(desk: Desk) -> None:
    evil = "<script>alert(1)</script>"
    contents = replace(HELD, left_out=(LeftOut(target=evil, reason=evil),))
    note = Note(code=NoteCode.DISK_REPAIRED, detail=evil, disks=(evil,))
    job = await made(desk, replace(CREATED, notes=(note,), contents=contents))
    for page in (await page_of(desk, job), await desk.browser.seen(f"/ops/servers/{SERVER}/")):
        assert evil not in page
        assert "&lt;script&gt;" in page


async def test_a_job_that_was_retried_leads_to_the_new_one_and_is_not_offered_again(desk: Desk) -> None:
    job = await made(desk, failed())
    assert f"/ops/jobs/{job}/retry/" in await page_of(desk, job)
    new = (await desk.browser.post(f"/ops/jobs/{job}/retry/")).headers["X-Job-Id"]
    page = await page_of(desk, job)
    assert f'href="/ops/jobs/{new}/"' in page
    assert f"/ops/jobs/{job}/retry/" not in page
    assert (await desk.browser.post(f"/ops/jobs/{job}/retry/")).status == 409


async def test_all_that_match_are_retried_once(desk: Desk) -> None:
    older = await made(desk, failed())
    await asyncio.sleep(0.002)  # in a millisecond of its own: that is what the lists go by
    newer = await made(desk, failed(), name="b")
    fields = {"action": "retry", "all": "true", "state": "failed"}
    text = visible(await desk.browser.done("/ops/jobs/bulk/", fields))
    assert "1 tried again, 1 refused." in text
    assert f"{older[:8]} Its server has had a later job" in text
    again = visible(await desk.browser.done("/ops/jobs/bulk/", fields))
    assert "0 tried again, 2 refused." in again
    assert f"{newer[:8]} The job was retried before, as job" in again
