"""Retries on the dashboard: the confirmation's text, typed confirmation for force, and where no retry is offered."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest

from api.dashboard.routes import ACTIONS, PAGES, QUESTIONS
from api.dashboard.session import LOGOUT
from api.http.calls import OPS
from api.resources import OPERATORS_CALLS
from tests.integration.browsing import Browser, Dashboard, dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE
from tests.integration.test_dashboard import FRAGMENT, audited, failed, made, visible
from worker.store.access.tokens import Permission
from worker.store.model import JobId, ServerId
from worker.store.nodes.claims import ReportedServer

OTHER, THIRD = ServerId(12346), ServerId(12347)


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


async def a_failed_restore(dashboard: Dashboard, *, server: ServerId = SERVER, off: ServerId | None = None) -> JobId:
    """`off`: the server is off when the job fails; all others are running."""
    cell = dashboard.cell
    await cell.have([SERVER, OTHER, THIRD])
    admitted = await cell.create("to-restore", server=server)
    await cell.node.begin(admitted.job.id)
    await cell.node.finish(admitted.job.id, DONE)
    await asyncio.sleep(0.002)  # in a separate millisecond, because lists are sorted by it
    restored = await cell.store.restore(account_id=ACCOUNT, snapshot_id=admitted.snapshot.id, request_id="r")
    await cell.node.begin(restored.job.id)
    powers = {one: "off" if one == off else "on" for one in (SERVER, OTHER, THIRD)}
    await cell.node.report(
        [ReportedServer(id=one, account_id=ACCOUNT, name="web-server-01", power=powers[one]) for one in powers]
    )
    await asyncio.sleep(0.002)
    await cell.node.finish(restored.job.id, failed())
    return restored.job.id


def hidden(page: str) -> list[tuple[str, str]]:
    fields = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', page)
    return [(name, value) for name, value in fields if name != "csrf"]


class TestOne:
    async def test_a_restore_of_a_server_that_runs_is_forced_by_typing_its_id(self, dashboard: Dashboard) -> None:
        job, browser = await a_failed_restore(dashboard), dashboard.browser
        path = f"/ops/jobs/{job}/retry/"
        page = await browser.seen(path)
        text = visible(page)
        for said in (
            "Force the retry of this restore?",
            "The server has been running since the job failed: the restore would overwrite the data that "
            "it has written.",
            f"It overwrites all data of server {SERVER}.",
            f"Type {SERVER} , the ID of the server, to confirm",
        ):
            assert said in text, said
        assert hidden(page) == [("force", "true")]

        unforced = await browser.post(path, **FRAGMENT)
        assert (unforced.status, "retry_needs_force" in unforced.text) == (409, True)
        for typed in ({}, {"typed": "12"}):
            wrong = await browser.post(path, {"force": "true", **typed}, **FRAGMENT)
            assert (wrong.status, f"Type {SERVER} to confirm." in wrong.text) == (400, True)
        assert "retried as job" in await browser.done(path, {"force": "true", "typed": f" {SERVER} "})
        assert (await audited(dashboard))[-1]["reason"] == "forced"

    async def test_a_restore_of_a_server_that_is_off_overwrites_and_needs_no_typing(self, dashboard: Dashboard) -> None:
        job = await a_failed_restore(dashboard, off=SERVER)
        page = await dashboard.browser.seen(f"/ops/jobs/{job}/retry/")
        assert "Retry this restore?" in page
        assert f"It overwrites all data of server {SERVER}." in visible(page)
        assert 'name="typed"' not in page
        assert "retried as job" in await dashboard.browser.done(f"/ops/jobs/{job}/retry/")

    async def test_one_that_was_retried_is_not_offered_again_wherever_it_is_shown(self, dashboard: Dashboard) -> None:
        job, browser = await made(dashboard, failed()), dashboard.browser
        new = (await browser.post(f"/ops/jobs/{job}/retry/")).headers["X-Job-Id"]
        asked = await browser.get(f"/ops/jobs/{job}/retry/")
        assert (asked.status, f"already retried as job {new}" in asked.text) == (409, True)
        for path in ("/ops/jobs/", f"/ops/jobs/{job}/", f"/ops/servers/{SERVER}/", "/ops/"):
            page = await browser.seen(path)
            assert f'href="/ops/jobs/{new}/">retried as <code>{new[:8]}' in page, path
            assert f"/ops/jobs/{job}/retry/" not in page, path

    async def test_a_stranded_server_is_repaired_first(self, dashboard: Dashboard) -> None:
        earlier = await made(dashboard, failed(), name="b")
        job, browser = await made(dashboard, failed("start_failed", stranded=True)), dashboard.browser
        for path in (f"/ops/jobs/{job}/", f"/ops/servers/{SERVER}/"):
            page = await browser.seen(path)
            (first, *_) = re.findall(r'<a class="button[^>]*>([^<]*)</a>', page)
            assert first == "Mark as resolved", path
            assert page.index("#start_failed") < page.index("<dl"), path
            assert "/retry/" not in page, path
        page = await browser.seen(f"/ops/jobs/{earlier}/")
        assert f"/ops/jobs/{earlier}/retry/" not in page
        assert f"Job {job} stranded the server." in visible(page)
        assert (await browser.get(f"/ops/jobs/{job}/retry/")).status == 409
        await browser.done(f"/ops/jobs/{job}/resolve/", {"reason": "started by hand"})
        assert f"/ops/jobs/{job}/retry/" in await browser.seen(f"/ops/jobs/{job}/")


class TestMany:
    async def test_the_question_counts_and_names_what_it_does_with_the_restores_apart(
        self, dashboard: Dashboard
    ) -> None:
        used, browser = await a_failed_restore(dashboard, server=THIRD), dashboard.browser
        restore = await a_failed_restore(dashboard, off=SERVER)
        older = await made(dashboard, failed(), name="older", server=OTHER)
        await asyncio.sleep(0.002)
        create = await made(dashboard, failed(), name="newer", server=OTHER)
        page = await browser.seen("/ops/jobs/bulk/?action=retry&all=true&state=failed")
        text = visible(page)
        for said in (
            "Retry 2 jobs?",
            "The oldest failed",
            f"1 create {create[:8]} create of newer on web-server-01 ({OTHER}), failed",
            f"1 restore, overwriting all data of the server {restore[:8]} restore of to-restore on web-server-01",
            f"1 job left out: not possible {older[:8]} create of older on web-server-01 ({OTHER}), failed",
            f"1 job left out: only with force {used[:8]} restore of to-restore on web-server-01 ({THIRD}), failed",
            f". The server has had a later job, {create}.",
            ". The server has been running since the job failed",
            "Include 1 job with force",
        ):
            assert said in text, said
        assert hidden(page) == [("action", "retry"), ("ids", create), ("ids", restore)]
        assert 'name="typed"' not in page

        (wider,) = re.findall(r'href="([^"]*force=true[^"]*)"', page)
        page = await browser.seen(wider.replace("&amp;", "&"))
        assert "Force the retry of 3 jobs?" in page
        assert "Type 3 , the number of jobs, to confirm" in visible(page)
        named = [("ids", job) for job in (create, restore, used)]
        assert hidden(page) == [("action", "retry"), *named, ("force", "true")]
        fields = {"action": "retry", "ids": [create, restore, used, older], "force": "true"}
        assert (await browser.post("/ops/jobs/bulk/", fields | {"typed": "3"})).status == 400
        text = visible(await browser.done("/ops/jobs/bulk/", fields | {"typed": "4"}))
        assert "3 retried, 1 refused. job_not_retryable 1" in text
        assert {entry["reason"] for entry in (await audited(dashboard))[1:]} == {"retry, forced"}

    async def test_pressed_three_times_it_restores_once(self, dashboard: Dashboard) -> None:
        await a_failed_restore(dashboard, off=SERVER)
        query = "/ops/jobs/bulk/?action=retry&all=true&state=failed"
        fields = {"action": "retry", "all": "true", "state": "failed"}
        assert "1 retried, 0 refused." in visible(await dashboard.browser.done("/ops/jobs/bulk/", fields))
        new = await dashboard.cell.holder()
        await dashboard.cell.node.begin(new)
        await dashboard.cell.node.finish(new, DONE)
        for _ in range(2):
            page = await dashboard.browser.seen(query)
            assert "Nothing to retry" in page
            assert '<button type="submit"' not in page[page.index('class="ask"') :]
            assert "0 retried, 1 refused." in visible(await dashboard.browser.done("/ops/jobs/bulk/", fields))

    async def test_all_of_a_time_are_those_of_that_time(self, dashboard: Dashboard) -> None:
        job = await made(dashboard, failed())
        for since, found in (("2025-01-16T16:15", True), ("2999-01-01T00:00", False)):
            path = f"/ops/jobs/bulk/?action=retry&all=true&state=failed&since={since}"
            page = await dashboard.browser.seen(path)
            assert (job[:8] in page) is found, since
            assert f"since {since}:00Z" in page
        fields = {"action": "retry", "all": "true", "state": "failed", "since": "2999-01-01T00:00:00Z"}
        assert "0 retried, 0 refused." in visible(await dashboard.browser.done("/ops/jobs/bulk/", fields))

    async def test_missing_jobs_are_omitted(self, dashboard: Dashboard) -> None:
        page = visible(await dashboard.browser.seen(f"/ops/jobs/bulk/?action=retry&ids={'0' * 32}"))
        assert "1 job left out: not possible 00000000 There is no such job." in page


class TestCancelled:
    async def test_they_are_a_state_of_their_own(self, dashboard: Dashboard) -> None:
        await dashboard.cell.have([SERVER, OTHER])
        bad, cancelled = await made(dashboard, failed()), await made(dashboard, server=OTHER)
        await dashboard.browser.done(f"/ops/jobs/{cancelled}/cancel/")
        for query, found in {"state=failed": {bad}, "state=cancelled": {cancelled}, "": {bad, cancelled}}.items():
            page = await dashboard.browser.seen(f"/ops/jobs/?{query}")
            assert set(re.findall(r'<tr id="job-([0-9a-f]{32})"', page)) == found, query
        for path in ("/ops/", "/ops/nodes/n1/"):
            assert f"/ops/jobs/{cancelled}/" not in await dashboard.browser.seen(path), path
        text = visible(await dashboard.browser.seen("/ops/jobs/bulk/?action=retry&all=true&state=failed"))
        assert (bad[:8] in text, cancelled[:8] in text) == (True, False)

    async def test_one_that_was_selected_is_left_out(self, dashboard: Dashboard) -> None:
        cancelled = await made(dashboard)
        await dashboard.browser.done(f"/ops/jobs/{cancelled}/cancel/")
        text = visible(await dashboard.browser.seen(f"/ops/jobs/bulk/?action=retry&ids={cancelled}"))
        assert "1 job left out: not possible" in text
        assert "The job was cancelled." in text
        assert "Retry this create?" in await dashboard.browser.seen(f"/ops/jobs/{cancelled}/retry/")


class TestReader:
    """An operator whose token has only `operator:read`."""

    @pytest.fixture
    async def reader(self, dashboard: Dashboard) -> Browser:
        token = await dashboard.api.new_token(account=None, permissions={Permission.OPERATOR_READ})
        browser = dashboard.stranger()
        assert (await browser.login(token)).status == 303
        return browser

    @pytest.fixture
    async def ids(self, dashboard: Dashboard) -> dict[str, str]:
        await dashboard.cell.have([SERVER, OTHER, THIRD])
        await made(dashboard, failed("start_failed", stranded=True))
        await made(dashboard, failed(), server=THIRD)
        job = await made(dashboard, server=OTHER)
        token = next(token for token in await dashboard.api.tokens.all() if token.account_id is None)
        snapshot_id = (await dashboard.cell.raw("HGET", f"job:{job}", "snapshot")).decode()
        ids = {
            "{job_id}": job,
            "{node}": "n1",
            "{server_id}": str(SERVER),
            "{account_id}": "77",
            "{token_id}": token.id,
        }
        return ids | {"{snapshot_id}": snapshot_id}

    def path(self, path: str, ids: dict[str, str]) -> str:
        path = re.sub(r"\{action:(\w+)[^}]*\}", r"\1", path)
        for name, value in ids.items():
            path = path.replace(name, value)
        return path

    async def test_sees_every_page_without_a_button_that_changes_anything(
        self, dashboard: Dashboard, reader: Browser, ids: dict[str, str]
    ) -> None:
        jobs = [job.decode() for job in await dashboard.cell.redis.zrange("jobs", 0, -1)]
        more = ("/ops/jobs/?state=failed", "/ops/jobs/?state=queued", *(f"/ops/jobs/{job}/" for job in jobs))
        actions = "retry|cancel|resolve|pause|resume|reconcile|revoke|new|bulk"
        questions = re.compile(rf'="/ops/(?:[^"]*/)?({actions})/')
        offered: set[str] = set()
        for path in (*(self.path(path, ids) for path in PAGES), *more):
            page = await reader.seen(path)
            assert questions.findall(page) == [], path
            posted = re.findall(r'<form[^>]*method="post"[^>]*>', page)
            assert [form for form in posted if f'action="{LOGOUT}"' not in form] == [], path
            assert "data-pick" not in page, path
            assert "(read only)" in page, path
            offered |= set(questions.findall(await dashboard.browser.seen(path)))
        assert offered == {"retry", "cancel", "resolve", "pause", "reconcile", "revoke", "new", "bulk"}

    async def test_is_refused_each_question_and_each_action(
        self, dashboard: Dashboard, reader: Browser, ids: dict[str, str]
    ) -> None:
        for path in QUESTIONS:
            assert (await reader.get(self.path(path, ids))).status == 403, path
        for path in ACTIONS:
            if path != LOGOUT:
                assert (await reader.post(self.path(path, ids))).status == 403, path
        assert await dashboard.cell.raw("HGET", "node:n1", "paused_ms") is None
        assert (await reader.post(LOGOUT)).status == 303

    async def test_is_refused_each_call_of_the_api_that_changes_anything(
        self, dashboard: Dashboard, ids: dict[str, str]
    ) -> None:
        token = await dashboard.api.new_token(account=None, permissions={Permission.OPERATOR_READ})
        changing = [call for call in OPERATORS_CALLS if call.changes]
        assert len(changing) > 10
        for call in changing:
            answer = await dashboard.api.call(call.method, self.path(call.path, ids), body={}, token=token)
            answer.refused(403, "permission_denied")
        assert (await dashboard.api.call("GET", f"{OPS}jobs/{ids['{job_id}']}/", token=token)).status == 200
