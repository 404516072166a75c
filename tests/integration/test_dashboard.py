"""The dashboard's pages and an operator's actions on them."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from api.dashboard.assets import STATIC, Assets
from api.dashboard.bulk import MATCHING_MAX
from api.dashboard.rendering import HEADERS
from api.dashboard.routes import LINKS, PAGES, QUESTIONS
from api.dashboard.runbook import GUIDES, RUNBOOK
from api.dashboard.session import COOKIE
from tests.bench.seeding import Size, seed
from tests.conftest import RedisServer
from tests.integration.browsing import Dashboard, dashboard_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import DONE
from worker.store.model import Failure, JobId, JobState, ServerId, SnapshotStatus, Step
from worker.store.nodes.claims import ReportedServer
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, NodeFacts, Pool, StepBegun

PROJECT = Path(__file__).parents[2]
HOSTILE = "<script>alert('x')</script>\"'&{{7*7}}"
FRAGMENT: dict[str, Any] = {"HX_Request": "true"}
NO_JOB = "0" * 32


@pytest.fixture
async def dashboard(cell: Cell) -> AsyncIterator[Dashboard]:
    async with dashboard_of(cell) as dashboard:
        yield dashboard


def failed(code: str = "not_enough_space", *, detail: str = "Too little space.", stranded: bool = False) -> Outcome:
    failure = Failure(code=code, detail=detail, stranded=stranded)
    return Outcome(state=JobState.FAILED, failure=failure, snapshot_status=SnapshotStatus.FAILED)


async def made(
    dashboard: Dashboard, outcome: Outcome | None = None, *, name: str = "a", server: ServerId = SERVER
) -> JobId:
    """A create with that outcome; None: it stays queued."""
    job = (await dashboard.cell.create(name, server=server)).job
    if outcome is not None:
        await dashboard.cell.node.begin(job.id)
        await dashboard.cell.node.finish(job.id, outcome)
    return job.id


async def have_many(dashboard: Dashboard, count: int, outcome: Outcome | None) -> list[JobId]:
    servers = [ServerId(1000 + n) for n in range(count)]
    await dashboard.cell.have([SERVER, *servers])
    return [await made(dashboard, outcome, server=server) for server in servers]


async def audited(dashboard: Dashboard) -> list[dict[str, str]]:
    found = await dashboard.cell.redis.xrange("audit")
    entries = [{name.decode(): text.decode() for name, text in fields.items()} for _, fields in found]
    return [entry for entry in entries if entry["path"] != "/ops/login/"]


def visible(page: str) -> str:
    """The visible text, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())


class TestOverview:
    async def test_an_empty_cell_says_all_clear(self, dashboard: Dashboard) -> None:
        text = visible(await dashboard.browser.seen("/ops/"))
        assert "All clear. 1 node alive" in text
        assert "No jobs finished in the last 24 hours" in text

    async def test_a_stranded_server_comes_first_with_its_job_node_and_error(self, dashboard: Dashboard) -> None:
        job = await made(dashboard, failed("start_failed", detail="It does not start.", stranded=True))
        page = await dashboard.browser.seen("/ops/")
        text = visible(page[page.index("<main") :])
        assert text.startswith("Overview 1 stranded server")
        for said in (f"{SERVER} web-server-01", "n1", job[:8], "start_failed", "It does not start.", "1 job failed"):
            assert said in text
        assert f'href="/ops/jobs/{job}/"' in page
        assert "<title>(1) Overview" in page
        await dashboard.browser.done(f"/ops/jobs/{job}/resolve/", {"reason": "started by hand"})
        assert "stranded" not in await dashboard.browser.seen("/ops/")
        assert "stranded" not in await dashboard.browser.seen("/ops/jobs/")
        text = visible(await dashboard.browser.seen(f"/ops/jobs/{job}/"))
        assert "The server was stranded: start_failed" in text
        assert "by a test: started by hand" in text

    async def test_silent_full_and_paused_nodes_and_a_job_that_waits_too_long_are_alarms(
        self, dashboard: Dashboard
    ) -> None:
        cell = dashboard.cell
        pools = (Pool(path="/full", free_bytes=1 << 30, total_bytes=100 << 30),)
        facts = NodeFacts(worker="0.1.0", hypervisor="libvirt 9.0.0", emulator="QEMU 7.2.0", pools=pools)
        await cell.node.report([], facts)
        await cell.have()
        await dashboard.browser.done("/ops/nodes/n1/pause/", {"reason": "a new disk"})
        assert await node_store(cell.redis, node="n2", machine="m2").take_lease(seconds=60) is None
        await cell.raw("HSET", "node:n2", "heartbeat_ms", 1000)
        await cell.raw("ZADD", "nodes:by:heartbeat", 1000, "n2")
        job = await made(dashboard)
        await cell.raw("ZADD", "jobs:state:queued", 1000, job)

        text = visible(await dashboard.browser.seen("/ops/"))
        for alarm in (
            "1 node is not responding; new jobs for its servers are refused n2",
            "Oldest job has been waiting",
            "Storage is low on n1 1 GiB of 100 GiB free in /full",
            "1 node is paused; its jobs are waiting n1",
        ):
            assert alarm in text

    async def test_the_window_of_the_charts_is_chosen(self, dashboard: Dashboard) -> None:
        await made(dashboard, replace(DONE, size_mb=1, downtime_seconds=2.0))
        for window, step, points in (("1h", 300, 12), ("6h", 300, 72), ("24h", 900, 96), ("7d", 3600, 168)):
            page = await dashboard.browser.seen(f"/ops/?window={window}")
            ended, *_ = [json.loads(unescape(text)) for text in re.findall(r'data-chart="([^"]+)"', page)]
            assert (ended["step"], len(ended["times"]), ended["unit"]) == (step, points, "jobs")
            (created,) = [one["values"] for one in ended["series"] if one["label"] == "create"]
            assert sum(created) == 1, window
        assert (await dashboard.browser.get("/ops/?window=1y")).status == 400

    async def test_the_last_day_is_drawn_by_kind(self, dashboard: Dashboard) -> None:
        await made(dashboard, replace(DONE, size_mb=1, downtime_seconds=2.0))
        page = await dashboard.browser.seen("/ops/")
        for label in ("create", "failed", "create p50", "create p95"):
            assert f"&#34;label&#34;: &#34;{label}&#34;" in page


class TestJobs:
    async def test_they_are_listed_by_the_filter_in_the_address(self, dashboard: Dashboard) -> None:
        bad, waiting = await made(dashboard, failed()), await made(dashboard, name="b")
        for query, found in {
            "": {bad, waiting},
            "?state=&kind=&node=&text=": {bad, waiting},
            "?state=failed": {bad},
            "?error_code=not_enough_space&node=n1": {bad},
            f"?server_id={SERVER}&state=queued": {waiting},
            f"?account_id={ACCOUNT}&kind=create": {bad, waiting},
            "?node=other": set(),
            "?since=2025-01-16T16:15&until=2999-01-01T00:00": {bad, waiting},
            "?until=2025-01-16T16:15": set(),
        }.items():
            page = await dashboard.browser.seen(f"/ops/jobs/{query}")
            assert set(re.findall(r'<tr id="job-([0-9a-f]{32})"', page)) == found, query

    @pytest.mark.parametrize(
        ("path", "field", "text"),
        [
            ("jobs/", "server_id", "web-1"),
            ("jobs/", "state", "lost"),
            ("servers/", "node", "no/node"),
            ("servers/", "stranded", "perhaps"),
            ("servers/", "off", "perhaps"),
            ("servers/", "no_snapshot_days", "soon"),
            ("nodes/", "state", "lost"),
            ("nodes/", "sort", "color"),
            ("audit/", "about", "server:x"),
            ("audit/", "method", "LOOK"),
        ],
    )
    async def test_an_invalid_filter_is_kept_and_explained_at_its_field(
        self, dashboard: Dashboard, path: str, field: str, text: str
    ) -> None:
        await made(dashboard)
        page = await dashboard.browser.get(f"/ops/{path}?{field}={text}&account_id={ACCOUNT}")
        assert page.status == 400
        of_field = re.search(
            rf'<(input|select) name="{field}"[^>]*aria-describedby="wrong-{field}".*?</label>', page.text, re.DOTALL
        )
        assert of_field
        assert f'value="{text}"' in of_field[0]
        assert "Must be" in visible(of_field[0])
        assert f'id="filter-account_id" value="{ACCOUNT}"' in page.text or path in {"nodes/", "audit/"}
        assert "<tbody>" not in page.text
        assert "hx-get" not in page.text

    @pytest.mark.parametrize(
        "query", ["since=then", "until=0000-00-00T00:00", "since=0001-01-01T00:00", "after=x", "limit=0"]
    )
    async def test_an_invalid_query_is_explained(self, dashboard: Dashboard, query: str) -> None:
        page = await dashboard.browser.get(
            f"/ops/jobs/?{query}", Cookie=f"{COOKIE}={dashboard.browser.session}; ops-zone=Asia/Tokyo"
        )
        assert page.status == 400
        assert f"{query.partition('=')[0]}: Must" in visible(page.text)

    async def test_times_are_in_the_zone_of_the_browser(self, dashboard: Dashboard) -> None:
        job = await made(dashboard)
        await dashboard.cell.raw("HSET", f"job:{job}", "queued_ms", 1_737_044_100_000)  # 16:15 in UTC
        await dashboard.cell.raw("ZADD", "jobs", 1_737_044_100_000, job)
        browser = dashboard.browser
        query = "since=2025-01-17T01:15&until=2025-01-17T01:16"
        for zone, shown, is_found in (
            ("Asia/Tokyo", "2025-01-17 01:15:00 JST", True),
            ("UTC", "2025-01-16 16:15:00 UTC", False),
            ("Nowhere/Town", "2025-01-16 16:15:00 UTC", False),
            ("../../etc/passwd", "2025-01-16 16:15:00 UTC", False),
        ):
            cookie = f"{COOKIE}={browser.session}; ops-zone={zone}"
            assert f'title="{shown}"' in (await browser.get(f"/ops/jobs/{job}/", Cookie=cookie)).text, zone
            page = (await browser.get(f"/ops/jobs/?{query}", Cookie=cookie)).text
            assert (f'id="job-{job}"' in page) == is_found, zone
            assert 'value="2025-01-17T01:15"' in page

    async def test_next_leads_through_all_of_them_and_first_leads_back(self, dashboard: Dashboard) -> None:
        jobs = await have_many(dashboard, 7, None)
        seen: list[str] = []
        path = "/ops/jobs/?limit=3&state=queued"
        for _ in range(3):
            page = await dashboard.browser.seen(path)
            seen += re.findall(r'<tr id="job-([0-9a-f]{32})"', page)
            following = re.search(r'rel="next" href="([^"]+)"', page)
            path = unescape(following[1]) if following else ""
        assert (sorted(seen), path) == (sorted(jobs), "")
        assert 'href="/ops/jobs/?limit=3&amp;state=queued">First' in page

    async def test_one_is_shown_with_all_that_is_known_of_it(self, dashboard: Dashboard) -> None:
        job = await made(dashboard)
        await dashboard.cell.node.begin(job)
        begun = [
            StepBegun(step=Step.PREFLIGHT, at=1000.0, attempt=1),
            StepBegun(step=Step.STOPPING, at=1000.5, attempt=2),
        ]
        log = ('{"event": "step.tried", "level": "warning", "timestamp": "2026-01-02T03:04:05Z", "step": "stopping"}',)
        await dashboard.cell.node.progress(job, Step.STOPPING, JobReport(steps=tuple(begun), log=(*log, '{"cut', "[]")))
        page = await dashboard.browser.seen(f"/ops/jobs/{job}/")
        text = visible(page)
        for said in (
            "preflight 0.5 s",
            "stopping attempt 2 running",
            "snapshotting pending",
            "stopping · 14%",
            "on → on",
            "03:04:05 warning step.tried step= stopping",
            '{"cut',
        ):
            assert said in text, said
        assert "/retry/" not in page
        await dashboard.cell.node.finish(job, failed())
        page = await dashboard.browser.seen(f"/ops/jobs/{job}/")
        assert 'href="/ops/runbook/#not_enough_space"' in page
        assert f"/ops/jobs/{job}/retry/" in page
        assert "pending" not in visible(page)

    async def test_a_failed_one_is_tried_again_and_a_waiting_one_cancelled(self, dashboard: Dashboard) -> None:
        job = await made(dashboard, failed())
        assert "Retry this create?" in await dashboard.browser.seen(f"/ops/jobs/{job}/retry/")
        page = await dashboard.browser.post(f"/ops/jobs/{job}/retry/", **FRAGMENT)
        new = page.headers["X-Job-Id"]
        assert f'href="/ops/jobs/{new}/"' in page.text
        assert "<html" not in page.text
        await dashboard.browser.done(f"/ops/jobs/{new}/cancel/")
        shown = visible(await dashboard.browser.seen(f"/ops/jobs/{new}/"))
        assert "Cancelled The job was cancelled before its node started it." in shown
        assert "Failed:" not in shown
        retried, cancelled = await audited(dashboard)
        assert (retried["path"], retried["job"], retried["status"]) == (f"/ops/jobs/{job}/retry/", new, "200")
        assert (cancelled["path"], cancelled["token_name"]) == (f"/ops/jobs/{new}/cancel/", "a test")

    async def test_a_refusal_is_explained_on_the_same_page(self, dashboard: Dashboard) -> None:
        job = await made(dashboard)
        page = await dashboard.browser.post(f"/ops/jobs/{job}/retry/", **FRAGMENT)
        assert (page.status, page.headers["HX-Retarget"]) == (409, "#notice")
        assert "Only a failed job can be retried. job_not_retryable" in visible(page.text)
        whole = await dashboard.browser.post(f"/ops/jobs/{job}/retry/")
        assert "<html" in whole.text
        assert [entry["code"] for entry in await audited(dashboard)] == ["job_not_retryable"] * 2

    async def test_a_reason_is_asked_for_and_kept(self, dashboard: Dashboard) -> None:
        job = await made(dashboard, failed("start_failed", stranded=True))
        page = await dashboard.browser.post(f"/ops/jobs/{job}/resolve/", {"reason": "  "})
        assert (page.status, "reason" in page.text) == (400, True)
        asked = await dashboard.browser.post(f"/ops/jobs/{job}/resolve/", {"reason": "  "}, **FRAGMENT)
        assert (asked.status, asked.headers["HX-Retarget"]) == (400, ".ask-trouble")  # the dialog stays as it is
        await dashboard.browser.done(f"/ops/jobs/{job}/resolve/", {"reason": "started by hand, Žižkov"})
        assert "started by hand, Žižkov" in visible(await dashboard.browser.seen(f"/ops/jobs/{job}/"))
        assert [entry.get("reason") for entry in await audited(dashboard)] == [None, None, "started by hand, Žižkov"]


class TestMany:
    async def test_each_selected_job_has_its_own_result_and_audit_entry(self, dashboard: Dashboard) -> None:
        bad, waiting = await have_many(dashboard, 1, failed()), await made(dashboard)
        query = f"?action=retry&ids={bad[0]}&ids={waiting}"
        question = await dashboard.browser.seen(f"/ops/jobs/bulk/{query}")
        assert "Retry 1 job?" in question
        assert f"1 job left out: not possible {waiting[:8]} create of a on web-server-01" in visible(question)
        assert ". The job is queued. Only a failed job can be retried." in visible(question)
        fields = re.findall(r'<input type="hidden" name="(action|ids)" value="([^"]+)">', question)
        assert fields == [("action", "retry"), ("ids", bad[0])]

        text = visible(await dashboard.browser.done("/ops/jobs/bulk/", {"action": "retry", "ids": [bad[0], waiting]}))
        assert "1 retried, 1 refused." in text
        assert "job_not_retryable 1" in text
        entries = {entry["job"]: (entry["reason"], entry.get("code")) for entry in await audited(dashboard)}
        assert entries == {bad[0]: ("retry", None), waiting: ("retry", "job_not_retryable")}

    async def test_all_that_match_are_done_and_no_other(self, dashboard: Dashboard) -> None:
        await have_many(dashboard, 5, None)
        other = await made(dashboard, failed())
        filters = {"action": "cancel", "all": "true", "state": "queued", "node": "n1"}
        query = "&".join(f"{name}={value}" for name, value in filters.items())
        question = visible(await dashboard.browser.seen(f"/ops/jobs/bulk/?{query}"))
        assert f"Jobs with state queued, node n1 (at most {MATCHING_MAX}, newest first)" in question
        assert "Cancel 5 jobs?" in question
        assert "5 cancelled, 0 refused." in visible(await dashboard.browser.done("/ops/jobs/bulk/", filters))
        assert await dashboard.cell.raw("ZCARD", "jobs:state:queued") == 0
        assert other not in {entry["job"] for entry in await audited(dashboard)}

    async def test_the_question_before_a_cancel_names_the_jobs_and_no_later_one_is_cancelled(
        self, dashboard: Dashboard
    ) -> None:
        waiting = await have_many(dashboard, 2, None)
        begun = waiting.pop()
        await dashboard.cell.node.begin(begun)
        page = await dashboard.browser.seen("/ops/jobs/bulk/?action=cancel&all=true&state=queued")
        text = visible(page)
        assert f"Cancel 1 job? Jobs with state queued (at most {MATCHING_MAX}, newest first)" in text
        assert f"1 create {waiting[0][:8]} create of a on web-server-01" in text
        later = await made(dashboard)
        fields = re.findall(r'<input type="hidden" name="(action|ids|all)" value="([^"]+)">', page)
        assert fields == [("action", "cancel"), ("ids", waiting[0])]
        sent = {"action": "cancel", "ids": waiting}
        assert "1 cancelled, 0 refused." in visible(await dashboard.browser.done("/ops/jobs/bulk/", sent))
        assert await dashboard.cell.raw("ZRANGE", "jobs:state:queued", 0, -1) == [later.encode()]

        query = "&".join(f"ids={job}" for job in (begun, waiting[0], NO_JOB))
        text = visible(await dashboard.browser.seen(f"/ops/jobs/bulk/?action=cancel&{query}"))
        for said in (
            "Nothing to cancel",
            "3 jobs left out: not possible",
            "The job is in_progress. Only a queued create, restore or undo can be cancelled.",
            "There is no such job.",
        ):
            assert said in text, said
        assert "Cancel the jobs" not in text

    @pytest.mark.parametrize(
        "fields",
        [
            {"action": "retry"},
            {"action": "retry", "ids": ["x"]},
            {"action": "retry", "ids": [NO_JOB] * 501},
            {"action": "retry", "ids": [NO_JOB], "force": "true"},
            {"action": "retry", "ids": [NO_JOB], "force": "true", "typed": "2"},
            {"action": "retry", "all": "true", "state": "failed", "force": "true", "typed": "1"},
            {"action": "explode", "ids": [NO_JOB]},
            {"action": "retry", "all": "true"},
            {"action": "retry", "all": "true", "state": "queued"},
            {"action": "cancel", "all": "true", "state": "failed"},
        ],
        ids=str,
    )
    async def test_an_invalid_request_is_refused_before_any_change(self, dashboard: Dashboard, fields: Any) -> None:
        job = await made(dashboard)
        assert (await dashboard.browser.post("/ops/jobs/bulk/", fields)).status == 400
        assert await dashboard.cell.raw("ZSCORE", "jobs:state:queued", job)


class TestNodes:
    async def test_one_is_shown_with_what_it_runs_on_and_what_it_does(self, dashboard: Dashboard) -> None:
        pools = (Pool(path="/a", free_bytes=50 << 30, total_bytes=100 << 30),)
        facts = NodeFacts(worker="0.1.0", hypervisor="libvirt 9.0.0", emulator="QEMU 7.2.0", pools=pools)
        server = ReportedServer(id=SERVER, account_id=ACCOUNT, name="web", power="on")
        await dashboard.cell.node.report([server], facts)
        job = await made(dashboard)
        await dashboard.cell.node.begin(job)
        for path in ("/ops/nodes/", "/ops/nodes/n1/"):
            text = visible(await dashboard.browser.seen(path))
            for said in ("n1", "alive", "0.1.0", "libvirt 9.0.0", "QEMU 7.2.0", "50 GiB free of 100 GiB"):
                assert said in text, (path, said)
        assert job[:8] in text

    async def test_it_is_paused_and_resumed_with_a_reason_and_asked_to_reconcile(self, dashboard: Dashboard) -> None:
        assert "It starts no new jobs" in await dashboard.browser.seen("/ops/nodes/n1/pause/")
        await dashboard.browser.done("/ops/nodes/n1/pause/", {"reason": "a new disk"})
        assert "paused a new disk, a test" in visible(await dashboard.browser.seen("/ops/nodes/?state=paused"))
        await dashboard.browser.done("/ops/nodes/n1/resume/", {"reason": "it is in"})
        assert "No paused nodes." in await dashboard.browser.seen("/ops/nodes/?state=paused")
        await dashboard.browser.done("/ops/nodes/n1/reconcile/")
        entries = [(entry["path"], entry.get("reason")) for entry in await audited(dashboard)]
        assert entries == [
            ("/ops/nodes/n1/pause/", "a new disk"),
            ("/ops/nodes/n1/resume/", "it is in"),
            ("/ops/nodes/n1/reconcile/", None),
        ]

    async def test_they_are_sorted_and_come_in_pages(self, dashboard: Dashboard) -> None:
        for name in ("n2", "n3"):
            assert await node_store(dashboard.cell.redis, node=name, machine=name).take_lease(seconds=60) is None
        seen, path = [], "/ops/nodes/?limit=2&sort=-name"
        while path:
            page = await dashboard.browser.seen(path)
            seen += re.findall(r'<tr id="node-([^"]+)"', page)
            following = re.search(r'rel="next" href="([^"]+)"', page)
            path = unescape(following[1]) if following else ""
        assert seen == ["n3", "n2", "n1"]


class TestEveryPage:
    async def paths(self, dashboard: Dashboard, job: JobId) -> list[str]:
        token = next(token for token in await dashboard.api.tokens.all() if token.account_id is None)
        snapshot_id = (await dashboard.cell.raw("HGET", f"job:{job}", "snapshot")).decode()
        return [
            re.sub(r"\{action:(\w+)[^}]*\}", r"\1", path)
            .replace("{job_id}", job)
            .replace("{node}", "n1")
            .replace("{server_id}", str(SERVER))
            .replace("{snapshot_id}", snapshot_id)
            .replace("{token_id}", token.id)
            .replace("/bulk/", f"/bulk/?action=retry&ids={job}")
            .replace("/drain/", "/drain/?action=pause&nodes=n1")
            for path in (*PAGES, *QUESTIONS)
        ]

    async def test_has_the_links_in_its_header_and_their_keys_in_the_list_of_shortcuts(
        self, dashboard: Dashboard
    ) -> None:
        for here in LINKS:
            page = await dashboard.browser.seen(here.href)
            header, _, rest = page.partition("</nav>")
            found = re.findall(r'<a href="([^"]+)" data-key="(.)"( aria-current="page")?>(\w+)</a>', header)
            assert found == [(of.href, of.key, ' aria-current="page"' * (of is here), of.name) for of in LINKS]
            shortcuts = rest.partition("<kbd>g</kbd> then")[2].partition("</div>")[0]
            assert [shortcuts.count(f" <kbd>{of.key}</kbd>") for of in LINKS] == [1] * len(LINKS)

    async def test_shows_what_others_wrote_as_text(self, dashboard: Dashboard) -> None:
        cell = dashboard.cell
        facts = NodeFacts(
            worker=HOSTILE,
            hypervisor=HOSTILE,
            emulator=HOSTILE,
            pools=(Pool(path=HOSTILE, free_bytes=1, total_bytes=2),),
        )
        await cell.node.report([ReportedServer(id=SERVER, account_id=ACCOUNT, name=HOSTILE, power="on")], facts)
        job = await made(dashboard, failed("start_failed", detail=HOSTILE, stranded=True))
        await cell.raw("HSET", f"job:{job}", "snapshot_name", HOSTILE, "server_name", HOSTILE, "request_id", HOSTILE)
        await cell.raw("RPUSH", f"job:{job}:log", '{"event": "<script>", "level": "<script>", "<script>": "<script>"}')
        await cell.node.tell_findings(SERVER, [{"finding": "stray_tag", "tag": HOSTILE, "at": "1"}])
        found = json.dumps([{"finding": HOSTILE, "tag": HOSTILE, "at": "1"}])
        await cell.raw("HSET", "node:n1:findings", SERVER, found)
        await cell.raw("ZADD", "refused_claims", 1, "n1:report:other_node")
        refused = ("count", 1, "first_ms", 1, "about", HOSTILE)
        await cell.raw("HSET", "refused_claim:n1:report:other_node", *refused)
        snapshot = f"snapshot:{(await cell.raw('HGET', f'job:{job}', 'snapshot')).decode()}"
        await cell.raw("HSET", snapshot, "name", HOSTILE, "description", HOSTILE)
        entry = {"what": HOSTILE, "ms": "1", "token": HOSTILE, "token_name": HOSTILE, "request": HOSTILE}
        await cell.raw("RPUSH", f"{snapshot}:history", json.dumps(entry))
        await cell.raw("RPUSH", f"job:{job}:steps", '{"step": "<script>", "ms": 1, "attempt": 1}')
        await dashboard.browser.done("/ops/nodes/n1/pause/", {"reason": HOSTILE})
        await dashboard.browser.done(f"/ops/jobs/{job}/resolve/", {"reason": HOSTILE})
        told = 0
        for path in [*await self.paths(dashboard, job), "/ops/jobs/?text=%3Cscript%3E%22%27"]:
            page = await dashboard.browser.get(path)
            assert page.status == 200, (path, page.text)
            assert "<script>" not in page.text, path
            told += page.text.count("&lt;script&gt;")
        assert told > 10

    async def test_a_missing_object_is_reported_as_missing(self, dashboard: Dashboard) -> None:
        for path in (
            "/ops/nodes/no-such/",
            "/ops/nodes/.../",
            f"/ops/jobs/{NO_JOB}/",
            "/ops/jobs/x/",
            "/ops/nowhere/",
            "/ops/servers/9/",
        ):
            page = await dashboard.browser.get(path)
            assert page.status == 404, path
            assert "Not found" in page.text

    async def test_without_the_store_it_says_so_and_what_continues(self, cell: Cell) -> None:
        async with dashboard_of(cell, request_seconds=0.2) as dashboard:
            await cell.raw("CLIENT", "PAUSE", "60000", "WRITE")
            try:
                page = await dashboard.browser.get("/ops/")
                part = await dashboard.browser.get("/ops/", **FRAGMENT)
            finally:
                await cell.raw("CLIENT", "UNPAUSE")
            assert page.status == 503
            assert "Redis is not responding" in page.text
            assert (part.status, part.headers["HX-Retarget"]) == (503, "#trouble")

    async def test_asked_for_by_a_page_is_its_inside_only(self, dashboard: Dashboard) -> None:
        for path in ("/ops/", "/ops/jobs/", "/ops/nodes/", "/ops/servers/", "/ops/audit/", "/ops/tokens/"):
            whole, inside = await dashboard.browser.get(path), await dashboard.browser.get(path, **FRAGMENT)
            assert "<html" in whole.text
            assert "<h1" in inside.text
            assert "<html" not in inside.text
            assert '<form class="filter"' not in inside.text

    async def test_costs_the_store_no_more_with_four_times_the_data(self, cell: Cell) -> None:
        async def commands(dashboard: Dashboard, path: str) -> int:
            await cell.raw("CONFIG", "RESETSTAT")
            await dashboard.browser.seen(path)
            told = await cell.redis.info("commandstats")
            return sum(
                stat["calls"] for name, stat in told.items() if not name.startswith(("cmdstat_xread", "cmdstat_info"))
            )

        cost: dict[int, dict[str, int]] = {}
        for times in (1, 4):
            await cell.redis.flushdb()
            await seed(cell.redis, Size(nodes=60 * times, servers_per_node=2, jobs=2000 * times, open_jobs=120 * times))
            async with dashboard_of(cell) as dashboard:
                paths = ["/ops/", "/ops/jobs/", "/ops/jobs/?state=failed", "/ops/nodes/", "/ops/nodes/node-3/"]
                paths += [
                    "/ops/servers/",
                    "/ops/servers/?node=node-3",
                    "/ops/servers/3/",
                    "/ops/findings/",
                    "/ops/audit/",
                ]
                # the smaller of two: during one, the front end may read the cell for its metrics, which counts too
                cost[times] = {path: min([await commands(dashboard, path) for _ in range(2)]) for path in paths}
        assert {path: many for path, many in cost[4].items() if many > cost[1][path] + 100} == {}


class TestAssets:
    async def test_each_may_be_kept_for_ever_and_is_packed_and_needs_no_login(self, dashboard: Dashboard) -> None:
        page = await dashboard.stranger().get("/ops/login/")
        addresses = set(re.findall(rf'(?:href|src)="({STATIC}[^"]+)"', page.text))
        assert len(addresses) >= 4
        for address in addresses:
            async with dashboard.api.client.get(f"http://127.0.0.1:{dashboard.api.port}{address}") as answer:
                assert answer.status == 200
                assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
                assert answer.headers["Content-Encoding"] == "gzip"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert (await dashboard.stranger().get(address.replace(STATIC, f"{STATIC}0"))).status == 404

    async def test_the_first_page_with_all_that_it_needs_is_small(self, dashboard: Dashboard) -> None:
        await have_many(dashboard, 10, failed())
        url, cookie = f"http://127.0.0.1:{dashboard.api.port}", {"Cookie": f"__Host-ops={dashboard.browser.session}"}
        size, page = 0, await dashboard.browser.seen("/ops/")
        for address in {"/ops/", *re.findall(rf'(?:href|src)="({STATIC}[^"]+)"', page)}:
            async with dashboard.api.client.get(url + address, headers=cookie, auto_decompress=False) as answer:
                size += len(await answer.read())
        assert 40_000 < size < 100_000

    def test_each_that_a_template_names_is_there(self) -> None:
        assert Assets().url("ops.js").startswith(STATIC)
        with pytest.raises(KeyError):
            Assets().url("nothing.js")


class TestRunbook:
    async def test_the_link_of_each_error_leads_to_its_place(self, dashboard: Dashboard) -> None:
        page = await dashboard.stranger().seen(RUNBOOK)
        for code in ("not_enough_space", "start_failed", "interrupted"):
            assert f'<h3 id="{code}">' in page
        assert "<table>" in page
        assert 'href="adr' not in page

    async def test_it_and_all_that_it_links_to_are_shown_without_a_session_and_without_redis(
        self, dashboard: Dashboard, redis_server: RedisServer
    ) -> None:
        stranger, shown = dashboard.stranger(), {}
        redis_server.kill()
        try:
            assert (await dashboard.browser.get("/ops/")).status == 503
            for path in GUIDES:
                page = await stranger.get(path)
                assert page.status == 200, (path, page.text)
                assert page.headers.items() >= HEADERS.items()
                shown[path] = page.text
            links = {
                link for text in shown.values() for link in re.findall(r'href="(/ops/runbook/[^"]*|/docs[^"]*)"', text)
            }
            links |= {f"{path}{link}" for path, text in shown.items() for link in re.findall(r'href="(#[^"]+)"', text)}
            assert {
                *("/ops/runbook/recover/#all-data-of-redis-is-lost", "/docs/operators/#retrying-failed-jobs"),
                *("/ops/runbook/install/#2-front-end", "/ops/runbook/#vpssnapshotsnodesilent"),  # of guides in a folder
            } <= links
            for link in links:
                path, _, anchor = link.partition("#")
                text = shown.get(path) or await stranger.seen(path)
                assert not anchor or f'id="{anchor}"' in text, link
        finally:
            redis_server.start()

    def test_every_guide_for_operators_is_served(self) -> None:
        written = {f"operations/{file.name}" for file in (PROJECT / "docs" / "operations").glob("*.md")}
        assert written <= {*GUIDES.values()}
