"""The operators' API, for the whole cell."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientSession, ClientTimeout

from api.events.calls import OPS_EVENTS
from api.http.calls import OPS
from api.resources import OPERATORS_CALLS
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import Answer, FrontEnd, serving
from tests.integration.test_streams import Stream
from tests.queueing import until_told
from worker.store.access.tokens import Permission
from worker.store.model import AccountId, Failure, JobId, JobState, ServerId, SnapshotStatus, Step
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, NodeFacts, Pool, StepBegun

OTHERS, THEIRS = AccountId(78), ServerId(2)
DONE = Outcome(state=JobState.COMPLETED, snapshot_status=SnapshotStatus.COMPLETED, size_mb=1, downtime_seconds=2.0)
NO_JOB = "0" * 32


def failed(code: str = "not_enough_space", *, stranded: bool = False) -> Outcome:
    failure = Failure(code=code, detail="The storage has too little free space.", stranded=stranded)
    return Outcome(state=JobState.FAILED, failure=failure, snapshot_status=SnapshotStatus.FAILED)


@dataclass(frozen=True, kw_only=True)
class Ops:
    api: FrontEnd
    token: str

    async def call(self, method: str, path: str, body: object = None, **given: Any) -> Answer:
        return await self.api.call(method, f"{OPS}{path}", body=body, token=self.token, **given)

    async def get(self, path: str) -> Any:
        answer = await self.call("GET", path)
        assert answer.status == 200, answer.raw
        return answer.body

    async def post(self, path: str, body: object = None, *, status: int = 200) -> Any:
        answer = await self.call("POST", path, body)
        assert answer.status == status, answer.raw
        return answer.body

    async def made(self, name: str, outcome: Outcome | None = DONE, *, server: ServerId = SERVER) -> JobId:
        """A create with that outcome; None: it stays queued."""
        await asyncio.sleep(0.002)  # in a separate millisecond, because lists are sorted by it
        account = ACCOUNT if server == SERVER else OTHERS
        job = (
            await self.api.cell.store.create(
                account_id=account, server_id=server, name=name, description="", request_id=f"of-{name}"
            )
        ).job
        if outcome is not None:
            await self.api.cell.node.begin(job.id)
            await self.api.cell.node.finish(job.id, outcome)
        return job.id

    async def listed(self, query: str = "") -> list[str]:
        return [job["id"] for job in (await self.get(f"jobs/{query}"))["results"]]


@pytest.fixture
async def ops(cell: Cell) -> AsyncIterator[Ops]:
    async with serving(cell, calls_per_minute=100_000, heartbeat_seconds=0.2) as api:
        yield Ops(api=api, token=await api.new_token(account=None, permissions={Permission.OPERATOR}))


async def have_theirs(cell: Cell) -> None:
    """Add a second node with a server of another account."""
    other = node_store(cell.redis, node="n2", machine="m2")
    assert await other.take_lease(seconds=60) is None
    await Cell(redis=cell.redis, store=cell.store, node=other).have([THEIRS], account=OTHERS)


class TestCallers:
    @pytest.mark.parametrize("operation", OPERATORS_CALLS, ids=[call.id for call in OPERATORS_CALLS])
    async def test_only_an_operators_own_token_gets_in(self, ops: Ops, operation: Any) -> None:
        path = operation.path.replace("{job_id}", NO_JOB).replace("{node}", "n1").replace("{server_id}", "1")
        path = path.replace("{account_id}", "1")
        path = path.replace("{token_id}", "0" * 12).replace("{snapshot_id}", "1")
        of_account = await ops.api.new_token(permissions=set(Permission))
        service = await ops.api.new_token(account=None)
        for token in (of_account, service, ops.api.token):
            answer = await ops.api.call(operation.method, path, token=token, headers={"X-Account-Id": "77"})
            answer.refused(403, "permission_denied")

    async def test_an_operator_is_no_customer(self, ops: Ops) -> None:
        (await ops.api.call("GET", token=ops.token)).refused(403, "permission_denied")

    async def test_what_is_changed_is_in_the_audit_with_its_reason(self, ops: Ops) -> None:
        await ops.post("nodes/n1/pause/", {"reason": "a new disk"})
        (entry,) = (await ops.get("audit/?method=POST"))["results"]
        assert entry["fields"]["path"] == f"{OPS}nodes/n1/pause/"
        assert entry["fields"]["reason"] == "a new disk"
        assert "account" not in entry["fields"]

    async def test_a_call_that_waits_too_long_for_the_store_is_503(self, cell: Cell) -> None:
        async with serving(cell, request_seconds=0.2) as api:
            token = await api.new_token(account=None, permissions={Permission.OPERATOR})
            await cell.raw("CLIENT", "PAUSE", "60000", "WRITE")
            try:
                (await Ops(api=api, token=token).call("GET", "overview/")).refused(503, "store_unavailable")
            finally:
                await cell.raw("CLIENT", "UNPAUSE")


class TestJobs:
    async def test_they_are_found_by_each_filter_and_by_several(self, ops: Ops) -> None:
        await have_theirs(ops.api.cell)
        good, bad = await ops.made("good"), await ops.made("bad", failed())
        waiting = await ops.made("waits", None)
        await ops.api.cell.node.begin(waiting)
        theirs = await ops.made("theirs", None, server=THEIRS)

        assert await ops.listed() == [theirs, waiting, bad, good]
        for query, found in {
            "state=queued": [theirs],
            "state=failed": [bad],
            "kind=create": [theirs, waiting, bad, good],
            "kind=restore": [],
            "node=n1": [waiting, bad, good],
            "node=n2&state=queued": [theirs],
            "node=n2&state=completed": [],
            "node=n1&state=completed": [good],
            f"account_id={OTHERS}": [theirs],
            f"server_id={SERVER}&state=failed": [bad],
            "error_code=not_enough_space": [bad],
            "error_code=disk_failed": [],
            "text=TOO+LITTLE": [bad],
            "text=of-good": [good],
            f"text={theirs[4:20]}": [theirs],
            "text=web-server&node=n2": [theirs],
        }.items():
            assert await ops.listed(f"?{query}") == found, query

    async def test_a_text_is_found_in_any_case_of_any_alphabet(self, ops: Ops) -> None:
        names = [await ops.made(name) for name in ("Vor Übernahme", "перед ОБНОВЛЕНИЕМ", "avant MISE à jour")]
        for text, found in {
            "übernahme": names[:1],
            "ÜBERNAHME": names[:1],
            "Обновлением": names[1:2],
            "À JOUR": names[2:],
            "ubernahme": [],
        }.items():
            assert await ops.listed(f"?text={quote(text)}") == found, text

    async def test_a_job_is_listed_by_the_state_that_it_has_now(self, ops: Ops) -> None:
        job = await ops.made("a", None)
        for state in ("queued", "in_progress", "failed"):
            if state == "in_progress":
                await ops.api.cell.node.begin(job)
            elif state == "failed":
                await ops.api.cell.node.finish(job, failed())
            assert {
                s: await ops.listed(f"?node=n1&state={s}") for s in ("queued", "in_progress", "completed", "failed")
            } == {s: [job] if s == state else [] for s in ("queued", "in_progress", "completed", "failed")}

    async def test_a_cursor_reaches_all_of_them_while_jobs_are_added_and_change(self, ops: Ops) -> None:
        jobs = [await ops.made(f"job-{n}", failed()) for n in range(7)]
        part = await ops.get("jobs/?limit=3&state=failed")
        assert part["count"] == 7
        seen = [job["id"] for job in part["results"]]
        newest = await ops.made("newest", failed())
        await ops.api.cell.redis.zrem("jobs:state:failed", seen[-1])  # the one that the cursor names
        while part["after"]:
            answer = await ops.call("GET", f"jobs/?limit=3&state=failed&after={part['after']}")
            part = answer.body
            seen += [job["id"] for job in part["results"]]
        assert seen == jobs[::-1]
        assert newest not in seen
        assert "Link" not in answer.headers

    async def test_a_rare_match_is_reached_in_short_parts(self, ops: Ops) -> None:
        rare = await ops.made("rare")
        many = {f"{n:032x}": float(2_000_000_000_000 + n) for n in range(3000)}
        await ops.api.cell.redis.zadd("jobs", many)

        first = await ops.get("jobs/?text=of-rare")
        assert (first["results"], first["count"]) == ([], None)
        second = await ops.get(f"jobs/?text=of-rare&after={first['after']}")
        assert ([job["id"] for job in second["results"]], second["after"]) == ([rare], None)

    async def test_one_is_shown_with_its_steps_its_log_and_the_power_of_its_server(self, ops: Ops) -> None:
        job = await ops.made("a", None)
        node = ops.api.cell.node
        await node.begin(job)
        begun = [StepBegun(step=step, at=at, attempt=n) for step, at, n in [
            (Step.PREFLIGHT, 1000.0, 1), (Step.STOPPING, 1000.5, 1), (Step.STOPPING, 1002.0, 2), (None, 1005.25, 1),
        ]]  # fmt: skip
        await node.progress(job, Step.STOPPING, JobReport(steps=tuple(begun[:2]), log=('{"event": "one"}',)))
        under_way = await ops.get(f"jobs/{job}/")
        assert [step["seconds"] for step in under_way["steps"]] == [0.5, None]
        lines = tuple(f'{{"event": "{"x" * 1000}"}}' for _ in range(60))
        await node.finish(job, failed(stranded=True), JobReport(steps=tuple(begun[2:]), log=(*lines, '{"event": "la')))

        shown = await ops.get(f"jobs/{job}/")
        assert [(step["step"], step["seconds"], step["attempt"]) for step in shown["steps"]] == [
            ("preflight", 0.5, 1),
            ("stopping", 1.5, 1),
            ("stopping", 3.25, 2),
        ]
        assert (shown["power_found"], shown["power_now"], shown["account_id"]) == ("on", "on", ACCOUNT)
        assert shown["runbook"] == "/ops/runbook/#not_enough_space"
        assert shown["log"][-1] == {"event": '{"event": "la'}
        assert 20 < len(shown["log"]) < 60
        assert 0 < await ops.api.cell.redis.ttl(f"job:{job}:log") <= 7 * 86400
        (await ops.call("GET", f"jobs/{NO_JOB}/")).refused(404, "job_not_found")

    async def test_a_failed_one_is_admitted_anew_by_the_rules(self, ops: Ops) -> None:
        job = await ops.made("again", failed())
        answer = await ops.call("POST", f"jobs/{job}/retry/")
        assert answer.status == 202
        new = answer.headers["X-Job-Id"]
        assert (answer.body["id"], answer.body["state"], answer.body["snapshot"]["name"]) == (new, "queued", "again")
        (await ops.call("POST", f"jobs/{job}/retry/")).refused(409, "job_not_retryable")
        (await ops.call("POST", f"jobs/{new}/retry/")).refused(409, "job_not_retryable")
        assert (await ops.post(f"jobs/{new}/cancel/"))["error"]["code"] == "cancelled"
        (await ops.call("POST", f"jobs/{new}/cancel/")).refused(409, "job_not_cancellable")

    async def test_a_time_is_a_filter(self, ops: Ops) -> None:
        jobs = [await ops.made(name, failed()) for name in "abcdef"]
        for hour, job in enumerate(jobs):  # queued from 2025-01-16 00:00 on, an hour apart
            await ops.api.cell.raw("HSET", f"job:{job}", "queued_ms", at(hour))
            for key in await ops.api.cell.redis.keys("*jobs*"):
                if await ops.api.cell.raw("TYPE", key) == b"zset":
                    await ops.api.cell.raw("ZADD", key, "XX", at(hour), job)
        for query, found in (
            ("since=2025-01-16T02:00:00Z&until=2025-01-16T04:00:00Z", jobs[2:4]),
            ("since=2025-01-16T05:00:00%2B01:00", jobs[4:]),
            ("until=2025-01-16T01:00:00Z&state=failed", jobs[:1]),
            ("since=2025-01-16T04:00:00Z&node=n1&kind=create", jobs[4:]),
            ("since=2025-01-17T00:00:00Z", []),
            ("until=1960-01-01T00:00:00Z", []),
        ):
            assert await ops.listed(f"?{query}") == [*reversed(found)], query
        page = await ops.get("jobs/?since=2025-01-16T01:00:00Z&until=2025-01-16T05:00:00Z&state=failed&limit=3")
        assert ([one["id"] for one in page["results"]], page["count"]) == ([*reversed(jobs[2:5])], 4)
        rest = await ops.listed(f"?since=2025-01-16T01:00:00Z&until=2025-01-16T05:00:00Z&after={page['after']}")
        assert rest == [jobs[1]]
        without = await ops.get("jobs/?since=2025-01-16T04:00:00Z&state=failed&cancelled=false")
        assert without["count"] == 2
        (await ops.call("GET", "jobs/?since=yesterday")).refused_fields()

    async def test_the_time_at_which_they_ended_is_a_filter(self, ops: Ops) -> None:
        jobs = [await ops.made(name, failed()) for name in "abcd"]
        waiting = await ops.made("waits", None)
        now_ms = int(await ops.api.cell.raw("HGET", f"job:{waiting}", "queued_ms"))
        for hours, job in enumerate(jobs):  # queued now, and ended after that many hours
            await ops.api.cell.raw("HSET", f"job:{job}", "finished_ms", now_ms + hours * 3_600_000)

        def at_end(hours: int) -> str:
            return datetime.fromtimestamp(now_ms / 1000 + hours * 3600, UTC).isoformat().replace("+00:00", "Z")

        for query, found in (
            (f"ended_since={at_end(1)}&ended_until={at_end(3)}", jobs[1:3]),
            (f"ended_since={at_end(2)}&state=failed&node=n1", jobs[2:]),
            (f"ended_until={at_end(2)}", jobs[:2]),
            (f"ended_since={at_end(1)}&until={at_end(-1)}", []),
            (f"ended_since={at_end(25)}", []),
        ):
            assert await ops.listed(f"?{query}") == [*reversed(found)], query
        assert (await ops.get(f"jobs/?ended_since={at_end(1)}"))["count"] is None
        (await ops.call("GET", "jobs/?ended_since=yesterday")).refused_fields()

    async def test_those_that_were_cancelled_are_listed_apart(self, ops: Ops) -> None:
        bad, cancelled = await ops.made("bad", failed()), await ops.made("cancelled", None)
        await ops.post(f"jobs/{cancelled}/cancel/")
        done = await ops.made("done")
        for query, found, count in (
            ("?state=failed", {bad, cancelled}, 2),
            ("?state=failed&cancelled=false", {bad}, 1),
            ("?cancelled=true", {cancelled}, 1),
            ("?cancelled=true&state=failed", {cancelled}, None),
            ("?cancelled=false", {bad, done}, None),
            ("?cancelled=true&node=n2", set(), None),
            ("?cancelled=false&node=n1", {bad, done}, None),
        ):
            page = await ops.get(f"jobs/{query}")
            assert ({one["id"] for one in page["results"]}, page["count"]) == (found, count), query
        (await ops.call("GET", "jobs/?cancelled=maybe")).refused_fields()

    @pytest.mark.parametrize("kind", ["restore", "delete", "undo", "check_create"])
    async def test_each_kind_of_work_can_be_tried_again(self, ops: Ops, kind: str) -> None:
        api, node = ops.api, ops.api.cell.node
        asked: asyncio.Future[Answer] | None = None

        async def some_wait() -> bool:
            return bool(await ops.listed("?state=queued"))

        snapshot = await api.have_snapshot()
        path = f"/api/v1/snapshots/{snapshot}/"
        if kind == "delete":
            await api.call("DELETE", path)
        elif kind == "check_create":
            asked = asyncio.ensure_future(
                api.call("POST", "/api/v1/snapshots/?dry_run=true", body={"server_id": SERVER, "name": "x"})
            )
            await until_told(some_wait)
        else:
            restored = await api.call("POST", f"{path}restore/")
            if kind == "undo":
                await api.work(restored, Outcome(state=JobState.COMPLETED, undoable_seconds=60))
                await api.call("POST", f"/api/v1/restores/{restored.headers['X-Job-Id']}/undo/")
        (job,) = await ops.listed("?state=queued")
        await node.begin(JobId(job))
        await node.finish(JobId(job), failed())

        answer = await ops.call("POST", f"jobs/{job}/retry/?force=true")
        if asked is not None:
            assert (await asked).status == 200
            answer.refused(409, "job_not_retryable")
        else:
            assert (answer.status, answer.body["kind"]) == (202, kind), answer.raw
            await node.begin(JobId(answer.body["id"]))
            assert await node.finish(JobId(answer.body["id"]), DONE) == "published"

    async def test_many_at_once_are_answered_one_by_one(self, ops: Ops) -> None:
        await have_theirs(ops.api.cell)
        good, bad, theirs = (
            await ops.made("good"),
            await ops.made("bad", failed()),
            await ops.made("t", None, server=THEIRS),
        )
        results = (await ops.post("jobs/bulk/", {"action": "retry", "ids": [bad, good, NO_JOB]}))["results"]
        assert [(one["id"], one["done"], one["code"]) for one in results] == [
            (bad, True, None),
            (good, False, "job_not_retryable"),
            (NO_JOB, False, "job_not_found"),
        ]
        (done,) = (await ops.post("jobs/bulk/", {"action": "cancel", "ids": [theirs]}))["results"]
        assert done["done"]
        assert await ops.listed("?state=queued") == [results[0]["job_id"]]
        too_many = await ops.call("POST", "jobs/bulk/", {"action": "retry", "ids": [NO_JOB] * 101})
        assert too_many.refused_fields() == ["ids"]

    async def test_those_without_a_recent_snapshot_are_a_filter(self, ops: Ops) -> None:
        servers = [ServerId(n) for n in (2, 3, 4, 5)]
        await ops.api.cell.have(servers, account=OTHERS)
        fresh, old, broken, none = servers
        for server in (fresh, old):
            await ops.made(f"of-{server}", server=server)
        await ops.made("broken", failed(), server=broken)
        (snapshot,) = await ops.api.cell.redis.smembers(f"server:{old}:counted")  # type: ignore[misc] # redis-py: sync or async
        eight_days_ago = (datetime.now(UTC) - timedelta(days=8)).timestamp() * 1000
        await ops.api.cell.raw("HSET", f"snapshot:{int(snapshot)}", "created_ms", round(eight_days_ago))

        async def ids(days: int) -> list[int]:
            page = await ops.get(f"servers/?no_snapshot_days={days}")
            assert page["count"] is None
            return [one["id"] for one in page["results"] if one["id"] in servers]

        assert await ids(7) == [old, broken, none]
        assert await ids(30) == [broken, none]
        (await ops.call("GET", "servers/?no_snapshot_days=0")).refused_fields()

    async def test_a_stranded_server_is_listed_until_it_is_resolved(self, ops: Ops) -> None:
        fine, job = await ops.made("fine", failed()), await ops.made("bad", failed("start_failed", stranded=True))
        (server,) = (await ops.get("servers/?stranded=true"))["results"]
        assert (server["id"], server["stranded_by"]) == (SERVER, job)
        assert (await ops.get("overview/"))["stranded_servers"] == 1

        (await ops.call("POST", f"jobs/{fine}/resolve/", {"reason": "x"})).refused(409, "job_not_stranded")
        resolved = await ops.post(f"jobs/{job}/resolve/", {"reason": "started by hand"})
        assert (resolved["resolution"]["reason"], resolved["resolution"]["by"]) == ("started by hand", "a test")
        (await ops.call("POST", f"jobs/{job}/resolve/", {"reason": "x"})).refused(409, "job_not_stranded")
        assert (await ops.get("servers/?stranded=true"))["results"] == []
        assert (await ops.get("overview/"))["stranded_servers"] == 0

    async def test_a_server_that_two_jobs_have_stranded_waits_for_the_later(self, ops: Ops) -> None:
        one, other = [await ops.made(name, failed(stranded=True)) for name in ("one", "other")]
        await ops.post(f"jobs/{one}/resolve/", {"reason": "x"})
        assert (await ops.get(f"servers/{SERVER}/"))["stranded_by"] == other


class TestNodes:
    async def test_a_node_is_shown_with_what_it_does_and_what_it_runs_on(self, ops: Ops) -> None:
        pools = (Pool(path="/a", free_bytes=5, total_bytes=10), Pool(path="/b", free_bytes=3, total_bytes=10))
        facts = NodeFacts(worker="0.1.0", hypervisor="libvirt 9.0.0", emulator="QEMU 7.2.0", pools=pools)
        await ops.api.cell.node.report([], facts)
        await ops.api.cell.have([SERVER, ServerId(3)])
        running = await ops.made("a", None)
        await ops.api.cell.node.begin(running)
        await ops.api.cell.node.progress(running, Step.STOPPING)

        node = await ops.get("nodes/n1/")
        assert (node["alive"], node["paused"], node["queued"], node["running"], node["servers"]) == (
            True,
            None,
            0,
            1,
            2,
        )
        assert node["versions"] == {"worker": "0.1.0", "hypervisor": "libvirt 9.0.0", "emulator": "QEMU 7.2.0"}
        assert [pool["free_bytes"] for pool in node["pools"]] == [5, 3]
        assert [(job["id"], job["step"], job["percent"]) for job in node["jobs"]] == [(running, "stopping", 14)]
        assert node["worker_at"] == "pid 1 on m1"
        (await ops.call("GET", "nodes/n9/")).refused(404, "node_not_found")
        (await ops.call("GET", "nodes/..%20/")).refused(404, "node_not_found")

    async def test_they_are_sorted_filtered_and_cut_into_parts(self, ops: Ops) -> None:
        redis = ops.api.cell.redis
        for name in ("b", "a", "c"):
            await node_store(redis, node=name, machine=name).take_lease(seconds=60)
        await redis.hset("node:b", "heartbeat_ms", "1")  # type: ignore[misc] # typed for the blocking client too
        await redis.zadd("nodes:by:heartbeat", {"b": 1})
        await ops.made("a", None)
        await ops.post("nodes/c/pause/", {"reason": "x"})

        async def names(query: str) -> list[str]:
            return [node["name"] for node in (await ops.get(f"nodes/?{query}"))["results"]]

        assert await names("") == ["a", "b", "c", "n1"]
        assert await names("sort=-name&limit=2") == ["n1", "c"]
        await ops.api.cell.node.take_lease(seconds=60)  # a heartbeat
        assert (await names("sort=-queued"))[0] == "n1"
        assert (await names("sort=heartbeat"))[0] == "b"
        assert await names("state=silent") == ["b"]
        assert await names("state=alive") == ["a", "c", "n1"]
        assert await names("state=paused") == ["c"]
        after = (await ops.get("nodes/?limit=3"))["after"]
        assert await names(f"limit=3&after={after}") == ["n1"]
        assert (await ops.get("overview/"))["nodes"] == {"alive": 3, "silent": 1, "paused": 1}

    async def test_a_reconciliation_that_was_asked_for_reaches_the_node(self, ops: Ops) -> None:
        before = (await ops.api.cell.node.report([])).reconcile_asked
        await ops.post("nodes/n1/reconcile/", status=202)
        assert (await ops.api.cell.node.report([])).reconcile_asked != before
        (await ops.call("POST", "nodes/n9/reconcile/")).refused(404, "node_not_found")

    async def test_a_pause_is_shown_with_who_and_why_and_ends(self, ops: Ops) -> None:
        paused = (await ops.post("nodes/n1/pause/", {"reason": "a new disk"}))["paused"]
        assert (paused["reason"], paused["by"]) == ("a new disk", "a test")
        assert await ops.made("while-paused", None)  # admitted and queued
        assert (await ops.post("nodes/n1/resume/", {"reason": "done"}))["paused"] is None
        assert (await ops.call("POST", "nodes/n1/pause/", {})).refused_fields() == ["reason"]
        (await ops.call("POST", "nodes/n9/pause/", {"reason": "x"})).refused(404, "node_not_found")


@pytest.mark.parametrize("path", ["overview/", "jobs/", "nodes/", "nodes/n1/", "events/", "tokens/", "audit/"])
async def test_a_parameter_that_a_call_does_not_have_is_refused_by_its_name(ops: Ops, path: str) -> None:
    assert (await ops.call("GET", f"{path}?stat=failed")).refused_fields() == ["stat"]
    (await ops.api.call("GET", f"{OPS}{path}?stat=failed")).refused(403, "permission_denied")


class TestOverview:
    async def test_it_counts_what_is_and_what_was(self, ops: Ops) -> None:
        await ops.made("good")
        await ops.made("bad", failed())
        cancelled = await ops.made("not-wanted", None)
        await ops.post(f"jobs/{cancelled}/cancel/")  # cancelled on purpose, which is not a failure
        waiting = await ops.made("waits", None)
        now = await ops.get("overview/")

        assert (now["queued"], now["in_progress"], now["oldest_queued"]["id"]) == (1, 0, waiting)
        assert (now["completed"], now["failed"]) == ({"hour": 1, "day": 1}, {"hour": 1, "day": 1})
        assert now["nodes"] == {"alive": 1, "silent": 0, "paused": 0}
        (chart,) = now["charts"]
        assert chart["kind"] == "create"
        (point,) = chart["points"]
        assert (point["completed"], point["failed"]) == (1, 1)
        assert point["downtime_seconds"]["p95"] == pytest.approx(2.0, rel=0.05)
        assert point["seconds"]["p50"] is not None

    async def test_postponing_its_deadline_keeps_the_oldest_waiting_job_the_oldest(self, ops: Ops) -> None:
        await have_theirs(ops.api.cell)
        first = await ops.made("first", None)
        await ops.made("second", None, server=THEIRS)
        await ops.api.cell.redis.zincrby("jobs:waiting", 60_000, first)
        assert (await ops.get("overview/"))["oldest_queued"]["id"] == first

    async def test_percentiles_of_many_durations_are_accurate(self, ops: Ops) -> None:
        for seconds in range(1, 101):
            outcome = Outcome(state=JobState.FAILED, failure=failed().failure, downtime_seconds=float(seconds))
            await ops.made(f"job-{seconds}", outcome)
        points = (await ops.get("overview/"))["charts"][0]["points"]
        assert sum(point["failed"] for point in points) == 100
        if len(points) == 1:  # otherwise, the quarter of an hour ended meanwhile
            assert points[0]["downtime_seconds"]["p50"] == pytest.approx(50, rel=0.07)
            assert points[0]["downtime_seconds"]["p95"] == pytest.approx(95, rel=0.07)


class TestServersAndFindings:
    async def test_servers_are_listed_by_node_and_account_and_follow_their_moves(self, ops: Ops) -> None:
        cell = ops.api.cell
        await have_theirs(cell)

        async def ids(query: str = "") -> list[int]:
            return [server["id"] for server in (await ops.get(f"servers/{query}"))["results"]]

        assert await ids() == [THEIRS, SERVER]
        assert await ids("?node=n2") == await ids(f"?account_id={OTHERS}") == [THEIRS]
        assert await ids(f"?node=n1&account_id={OTHERS}") == []
        await cell.give(OTHERS)
        assert await ids(f"?account_id={ACCOUNT}") == []
        assert await ids(f"?node=n1&account_id={OTHERS}") == [SERVER]
        await cell.node.report([])
        assert await ids() == [THEIRS]
        assert (await ops.get(f"servers/{SERVER}/"))["missing"]

    async def test_one_is_shown_with_its_snapshots_jobs_and_findings(self, ops: Ops) -> None:
        bad, good = await ops.made("bad", failed()), await ops.made("good")
        finding = {"finding": "torn_snapshot", "tag": "vps-1", "at": "1737044100"}
        await ops.api.cell.node.tell_findings(SERVER, [finding])

        shown = await ops.get(f"servers/{SERVER}/")
        assert (shown["node"], shown["account_id"], shown["power"]) == ("n1", ACCOUNT, "on")
        assert {one["name"]: one["status"] for one in shown["snapshot_list"]} == {"bad": "failed", "good": "completed"}
        assert [job["id"] for job in shown["jobs"]] == [good, bad]
        found = [{"kind": "torn_snapshot", "tag": "vps-1", "at": "2025-01-16T16:15:00Z"}]
        assert shown["findings"] == found
        (await ops.call("GET", "servers/999/")).refused(404, "server_not_found")

        listed = await ops.get("findings/")
        assert (listed["count"], listed["results"][0]["findings"]) == (1, found)
        assert (await ops.get("overview/"))["servers_with_findings"] == 1
        await ops.api.cell.raw("ZADD", "findings", at(2), SERVER)
        for query, count in (("since=2025-01-16T02:00:00Z", 1), ("until=2025-01-16T02:00:00Z", 0)):
            page = await ops.get(f"findings/?{query}")
            assert (len(page["results"]), page["count"]) == (count, count), query
        await ops.api.cell.node.tell_findings(SERVER, [])
        assert (await ops.get("findings/"))["results"] == []


class TestAudit:
    async def test_it_is_read_newest_first_by_filters_and_in_parts(self, ops: Ops) -> None:
        for name in ("a", "b", "c"):
            await ops.api.create(name)
        assert [e["fields"]["status"] for e in (await ops.get("audit/"))["results"]] == ["400", "400", "201"]
        part = await ops.get("audit/?limit=2")
        rest = await ops.get(f"audit/?limit=2&after={part['after']}")
        (created,) = rest["results"]
        assert created["fields"]["status"] == "201"
        assert created["fields"]["account"] == str(ACCOUNT)
        (found,) = (await ops.get(f"audit/?job_id={created['fields']['job']}"))["results"]
        assert found == created
        assert (await ops.get(f"audit/?request_id={created['fields']['request_id']}"))["results"] == [created]
        assert len((await ops.get(f"audit/?account_id={ACCOUNT}&method=POST"))["results"]) == 3
        assert len((await ops.get(f"audit/?token_id={created['fields']['token']}"))["results"]) == 3
        assert (await ops.get(f"audit/?account_id={OTHERS}"))["results"] == []
        future = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        assert (await ops.get(f"audit/?since={future}"))["results"] == []
        assert len((await ops.get(f"audit/?until={future}"))["results"]) == 3

    @pytest.mark.parametrize(
        ("path", "field"),
        [
            ("audit/?after=0-0", "after"),
            *[
                ("jobs/?after=" + cursor, "after")
                for cursor in ("6-:x", "96e.:x", "%2B:x", "94.0e-08.:x", "nan:x", ".:x")
            ],
        ],
    )
    async def test_an_invalid_cursor_is_named(self, ops: Ops, path: str, field: str) -> None:
        assert (await ops.call("GET", path)).refused_fields() == [field]

    @pytest.mark.parametrize("query", ["since=0001-01-01T00:00:00Z", "until=1970-01-01T00:00:00Z", "after=1-0"])
    async def test_a_moment_before_the_stream_knows_any_is_one(self, ops: Ops, query: str) -> None:
        await ops.post("nodes/n1/pause/", {"reason": "x"})
        found = (await ops.get(f"audit/?{query}"))["results"]
        assert len(found) == (1 if query.startswith("since") else 0)


class TestTokens:
    async def test_one_is_made_shown_once_and_revoked(self, ops: Ops) -> None:
        asked = {"name": "billing", "permissions": ["snapshots:read"], "account_id": 77, "lifetime_hours": 1}
        made = await ops.post("tokens/", asked, status=201)
        assert (await ops.api.call("GET", token=made["secret"])).status == 200
        listed = await ops.get("tokens/?account_id=77")
        assert made["id"] in {token["id"] for token in listed["results"]}
        assert "secret" not in str(listed)
        assert (await ops.call("DELETE", f"tokens/{made['id']}/")).status == 204
        (await ops.api.call("GET", token=made["secret"])).refused(401, "token_invalid")
        (await ops.call("DELETE", f"tokens/{made['id']}/")).refused(404, "token_not_found")
        both = await ops.call("POST", "tokens/", asked | {"permissions": ["operator"]})
        assert both.refused_fields() == ["account_id"]


def at(hour: int) -> int:
    """A time of 2025-01-16, in ms."""
    return round(datetime(2025, 1, 16, hour, tzinfo=UTC).timestamp() * 1000)


KEY = {"Idempotency-Key": "9c07602c-94ec"}
TAKING = {"ops_take_server", "ops_release_server"}
POSTS = [call for call in OPERATORS_CALLS if call.method == "POST"]


class TestOnce:
    """A POST that is repeated with its key takes effect once."""

    async def body(self, ops: Ops, call_id: str) -> tuple[JobId, object]:
        """A job for the call, and the call's body."""
        if call_id == "ops_cancel_job":
            return await ops.made("waits", None), None
        job = await ops.made("bad", failed(stranded=call_id in {"ops_resolve_job", *TAKING}))
        if call_id == "ops_rotate_credential":
            await ops.post("nodes/n1/credentials/", {}, status=201)
        bodies: dict[str, object] = {
            "ops_bulk_jobs": {"action": "retry", "ids": [job]},
            "ops_create_token": {"name": "billing", "permissions": ["snapshots:read"], "account_id": 77},
            "ops_create_credential": {},
            "ops_rotate_credential": {},
        }
        needs_none = call_id in {"ops_retry_job", "ops_reconcile_node", *TAKING}
        return job, None if needs_none else bodies.get(call_id, {"reason": "a new disk"})

    @pytest.mark.parametrize("operation", POSTS, ids=[call.id for call in POSTS])
    async def test_of_identical_calls_at_once_one_runs_and_all_get_its_answer(self, ops: Ops, operation: Any) -> None:
        job, body = await self.body(ops, operation.id)
        path = operation.path.removeprefix(OPS).replace("{job_id}", job).replace("{node}", "n1")
        path = path.replace("{server_id}", str(SERVER))
        jobs, tokens = len(await ops.listed()), len((await ops.get("tokens/"))["results"])

        answers = await asyncio.gather(*[ops.call("POST", path, body, headers=KEY) for _ in range(5)])

        assert {answer.status for answer in answers} == {reply.status for reply in operation.replies}
        assert len({answer.raw for answer in answers}) == 1
        assert [answer.headers.get("Idempotent-Replayed") for answer in answers].count("true") == 4
        more_jobs = 1 if operation.id in {"ops_retry_job", "ops_bulk_jobs"} else 0
        assert len(await ops.listed()) == jobs + more_jobs
        more_tokens = 1 if operation.id == "ops_create_token" else 0
        assert len((await ops.get("tokens/"))["results"]) == tokens + more_tokens
        other = await ops.call("POST", "nodes/n1/pause/", {"reason": "another"}, headers=KEY)
        other.refused(422, "idempotency_key_reused")

    async def test_a_repeat_does_not_redo_what_was_undone_meanwhile(self, ops: Ops) -> None:
        why = {"reason": "a new disk"}
        for _ in range(2):
            assert (await ops.call("POST", "nodes/n1/pause/", why, headers=KEY)).status == 200
            await ops.post("nodes/n1/resume/", why)
        assert (await ops.call("POST", "nodes/n1/pause/", why, headers=KEY)).body["paused"] is None

    async def test_many_with_another_list_are_refused_and_none_is_touched(self, ops: Ops) -> None:
        job = await ops.made("bad", failed())
        await ops.call("POST", "jobs/bulk/", {"action": "retry", "ids": [NO_JOB]}, headers=KEY)
        other = await ops.call("POST", "jobs/bulk/", {"action": "retry", "ids": [job]}, headers=KEY)
        other.refused(422, "idempotency_key_reused")
        assert await ops.listed("?state=queued") == []

    async def test_a_key_is_its_tokens_own(self, ops: Ops) -> None:
        await ops.call("POST", "nodes/n1/pause/", {"reason": "one"}, headers=KEY)
        colleague = await ops.api.new_token(account=None, permissions={Permission.OPERATOR})
        answer = await Ops(api=ops.api, token=colleague).call("POST", "nodes/n1/pause/", {"reason": "two"}, headers=KEY)
        assert (answer.status, answer.body["paused"]["reason"]) == (200, "two")

    async def test_a_tokens_secret_is_repeated_and_stored_nowhere(self, ops: Ops) -> None:
        asked = {"name": "billing", "permissions": ["snapshots:read"], "account_id": 77}
        first, again = [await ops.call("POST", "tokens/", asked, headers=KEY) for _ in range(2)]
        secret = first.body["secret"]

        assert first.raw == again.raw
        assert (await ops.api.call("GET", token=secret)).status == 200
        redis = ops.api.cell.redis
        kept = [key + (await redis.dump(key) or b"") async for key in redis.scan_iter("*")]
        assert not any(part.encode() in record for record in kept for part in (secret, secret[4:], ops.token[4:]))
        assert (await ops.post("tokens/", asked, status=201))["secret"] != secret


async def test_a_fixed_path_keeps_its_methods_though_it_looks_like_an_id(ops: Ops) -> None:
    answer = await ops.call("GET", "jobs/bulk/")
    answer.refused(405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


async def test_the_stream_has_the_events_of_all_accounts(ops: Ops) -> None:
    await have_theirs(ops.api.cell)
    url = f"http://127.0.0.1:{ops.api.port}{OPS_EVENTS}"
    async with (
        ClientSession(timeout=ClientTimeout(total=30)) as client,
        client.get(url, headers={"Authorization": f"Bearer {ops.token}"}) as response,
    ):
        assert response.headers["RateLimit"]
        assert response.headers["X-Request-Id"]
        stream = Stream(response)
        assert await stream.block() == {"retry": "2000", "id": "0-0"}
        mine, theirs = await ops.made("mine", None), await ops.made("theirs", None, server=THEIRS)
        heard = [(await stream.job())[1] for _ in range(2)]
    assert [(event["job_id"], event["account_id"]) for event in heard] == [(mine, ACCOUNT), (theirs, OTHERS)]
