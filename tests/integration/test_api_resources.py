"""Additions to the contract: lists with filters, servers, edits, protection, cancelling, safe retries."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import BROKE, DONE, SNAPSHOTS, FrontEnd, serving
from worker.store.model import AccountId, JobId, JobState, ServerId, Step
from worker.store.outcome import Outcome

JOBS = "/api/v1/jobs/"
OTHERS = AccountId(78)


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, body_seconds=2.0) as front_end:
        yield front_end


async def names(api: FrontEnd, query: str) -> list[str]:
    answer = await api.call("GET", f"{SNAPSHOTS}?{query}")
    assert answer.status == 200, answer.raw
    assert answer.body["count"] == len(answer.body["results"])
    return [result["name"] for result in answer.body["results"]]


class TestList:
    async def test_it_is_filtered_by_status_name_and_moment(self, api: FrontEnd) -> None:
        for name in ("a", "b"):
            await api.have_snapshot(name)
        broken = await api.create("c")
        await api.work(broken, BROKE)
        moment = broken.body["created_at"]
        await api.create("d")

        assert await names(api, "status=completed") == ["b", "a"]
        assert await names(api, "status=failed") == ["c"]
        assert await names(api, "status=in_progress") == ["d"]
        assert await names(api, "name=a") == ["a"]
        assert await names(api, "name=A") == []
        assert await names(api, f"created_before={moment.replace('20', '19', 1)}") == []
        assert await names(api, f"created_from={moment.replace('20', '19', 1)}&status=completed") == ["b", "a"]
        assert await names(api, "created_from=2990-01-01T00:00:00%2B02:00") == []

    async def test_it_is_sorted_both_ways(self, api: FrontEnd) -> None:
        for name, size_mb in (("b", 3), ("a", 10), ("c", 1)):
            answer = await api.create(name)
            await api.work(answer, replace(DONE, size_mb=size_mb))

        assert await names(api, "sort=created_at") == ["b", "a", "c"]
        assert await names(api, "sort=name") == ["a", "b", "c"]
        assert await names(api, "sort=-name") == ["c", "b", "a"]
        assert await names(api, "sort=size_mb") == ["c", "b", "a"]
        assert await names(api, "sort=-size_mb&status=completed") == ["a", "b", "c"]

    async def test_a_filtered_list_has_pages_too(self, api: FrontEnd) -> None:
        for n in range(5):
            await api.have_snapshot(f"s{n}")

        pages = [
            (await api.call("GET", f"{SNAPSHOTS}?sort=name&page_size=2&page={page}")).body for page in (1, 2, 3, 4)
        ]

        assert [page["count"] for page in pages] == [5, 5, 5, 5]
        assert [[r["name"] for r in page["results"]] for page in pages] == [["s0", "s1"], ["s2", "s3"], ["s4"], []]

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("status=deleting", "status"),
            ("sort=id", "sort"),
            ("name=a%20b", "name"),
            ("created_from=1", "created_from"),
            ("created_from=2025-01-01", "created_from"),
            ("created_before=2025-01-01T00:00:00", "created_before"),
            ("created_before=2025-13-01T00:00:00Z", "created_before"),
            ("sort=name&sort=name", "sort"),
        ],
    )
    async def test_an_unknown_filter_is_named(self, api: FrontEnd, query: str, field: str) -> None:
        assert (await api.call("GET", f"{SNAPSHOTS}?{query}")).refused_fields() == [field]


class TestSpared:
    async def test_an_answer_that_the_caller_has_is_not_sent_again(self, api: FrontEnd) -> None:
        snapshot_id = await api.have_snapshot()
        for path in (SNAPSHOTS, f"{SNAPSHOTS}{snapshot_id}/", JOBS, f"/api/v1/servers/{SERVER}/"):
            first = await api.call("GET", path)
            again = await api.call("GET", path, headers={"If-None-Match": f'"other", {first.headers["ETag"]}'})
            assert (again.status, again.raw, again.headers["ETag"]) == (304, b"", first.headers["ETag"])

        await api.create("more")

        changed = await api.call("GET", headers={"If-None-Match": first.headers["ETag"]})
        assert changed.status == 200

    async def test_a_long_answer_is_compressed_if_accepted(self, api: FrontEnd) -> None:
        for n in range(5):
            await api.have_snapshot(f"s{n}")
        plain = await api.call("GET", headers={"Accept-Encoding": "gzip;q=0"})

        async with ClientSession(auto_decompress=False) as client:
            headers = {"Authorization": f"Bearer {api.token}", "Accept-Encoding": "br, gzip;q=0.5"}
            async with client.get(f"http://127.0.0.1:{api.port}{SNAPSHOTS}", headers=headers) as response:
                packed = await response.read()
                assert response.headers["Content-Encoding"] == "gzip"
                assert response.headers["ETag"] == plain.headers["ETag"]

        assert "Content-Encoding" not in plain.headers
        assert gzip.decompress(packed) == plain.raw


class TestJobs:
    async def test_they_are_listed_newest_first_by_server_and_state(self, api: FrontEnd) -> None:
        other = ServerId(2)
        await api.cell.have([SERVER, other])
        snapshot_id = await api.have_snapshot()
        restore = await api.call("POST", f"{SNAPSHOTS}{snapshot_id}/restore/")
        await api.call("POST", body={"server_id": other, "name": "other"})

        async def kinds(query: str = "") -> list[tuple[str, int]]:
            body = (await api.call("GET", f"{JOBS}{query}")).body
            assert body["count"] == len(body["results"])
            return [(job["kind"], job["server"]["id"]) for job in body["results"]]

        assert await kinds() == [("create", other), ("restore", SERVER), ("create", SERVER)]
        assert await kinds(f"?server_id={SERVER}") == [("restore", SERVER), ("create", SERVER)]
        assert await kinds("?state=queued") == [("create", other), ("restore", SERVER)]
        assert await kinds(f"?state=completed&server_id={SERVER}") == [("create", SERVER)]
        await api.cell.node.begin(JobId(restore.headers["X-Job-Id"]))
        assert await kinds("?state=in_progress") == [("restore", SERVER)]
        assert await kinds("?state=failed") == []
        (await api.call("GET", f"{JOBS}?state=over")).refused(400, "invalid_request")

    async def test_a_time_is_a_filter(self, api: FrontEnd) -> None:
        servers = [ServerId(n) for n in range(2, 7)]
        await api.cell.have(servers)
        jobs = [(await api.call("POST", body={"server_id": server, "name": "a"})) for server in servers]
        ids = [job.headers["X-Job-Id"] for job in jobs]
        for hour, job in enumerate(ids):
            for key in (f"account:{ACCOUNT}:jobs", f"account:{ACCOUNT}:jobs:queued"):
                await api.cell.raw("ZADD", key, "XX", 1_737_000_000_000 + hour * 3_600_000, job)

        async def listed(query: str) -> tuple[list[str], int]:
            body = (await api.call("GET", f"{JOBS}?{query}")).body
            return [job["id"] for job in body["results"]], body["count"]

        one, three = "2025-01-16T05:00:00Z", "2025-01-16T07:00:00Z"  # the first was queued at 04:00
        assert await listed(f"since={one}&until={three}") == ([ids[2], ids[1]], 2)
        assert await listed(f"since={one}&page_size=3&page=2") == ([ids[1]], 4)
        assert await listed(f"until={three}&state=queued") == ([*reversed(ids[:3])], 3)
        assert await listed(f"since={three}&until={one}") == ([], 0)
        (await api.call("GET", f"{JOBS}?since=yesterday")).refused_fields()

    async def test_expired_jobs_are_not_counted(self, api: FrontEnd) -> None:
        for n in range(3):
            await api.have_snapshot(f"s{n}")
        oldest = (await api.call("GET", JOBS)).body["results"][-1]["id"]
        await api.cell.redis.delete(f"job:{oldest}")

        for query in ("", f"?server_id={SERVER}", "?state=completed"):
            body = (await api.call("GET", f"{JOBS}{query}")).body
            assert (body["count"], len(body["results"])) == (2, 2)

    async def test_another_accounts_list_is_empty(self, api: FrontEnd) -> None:
        await api.create()
        stranger = await api.new_token(account=OTHERS)

        for query in ("", f"?server_id={SERVER}", "?state=queued"):
            assert (await api.call("GET", f"{JOBS}{query}", token=stranger)).body == {"count": 0, "results": []}


class TestServer:
    async def test_it_shows_its_current_job_and_its_snapshots(self, api: FrontEnd) -> None:
        await api.have_snapshot()
        idle = (await api.call("GET", f"/api/v1/servers/{SERVER}/")).body
        job = await api.create("second")
        busy = (await api.call("GET", f"/api/v1/servers/{SERVER}/")).body

        assert idle == {
            "id": SERVER,
            "name": "web-server-01",
            "status": "active",
            "snapshots": 1,
            "snapshots_max": 5,
            "job": None,
            "reachable": True,
            "consistency": None,
            "labels": {},
        }
        assert (busy["status"], busy["snapshots"]) == ("snapshotting", 2)
        assert busy["job"] == {"id": job.headers["X-Job-Id"], "kind": "create"}

    @pytest.mark.parametrize("server_id", ["99", "0", "x", "012345"])
    async def test_one_that_is_not_there_is_not_found(self, api: FrontEnd, server_id: str) -> None:
        (await api.call("GET", f"/api/v1/servers/{server_id}/")).refused(404, "server_not_found")

    async def test_another_accounts_is_not_found(self, api: FrontEnd) -> None:
        stranger = await api.new_token(account=OTHERS)
        (await api.call("GET", f"/api/v1/servers/{SERVER}/", token=stranger)).refused(404, "server_not_found")


class TestCancel:
    async def test_a_queued_job_ends_at_once_and_its_node_never_gets_it(self, api: FrontEnd) -> None:
        created = await api.create()
        job_id = created.headers["X-Job-Id"]

        answer = await api.call("POST", f"{JOBS}{job_id}/cancel/")

        assert answer.status == 200
        assert (answer.body["state"], answer.body["error"]["code"]) == ("failed", "cancelled")
        assert await api.cell.redis.zcard("arq:queue:n1") == 0
        assert (await api.call("GET", f"{SNAPSHOTS}{created.body['id']}/")).body["status"] == "failed"
        assert (await api.create()).status == 201
        (await api.call("POST", f"{JOBS}{job_id}/cancel/")).refused(409, "job_not_cancellable")

    async def test_a_started_job_continues(self, api: FrontEnd) -> None:
        job_id = JobId((await api.create()).headers["X-Job-Id"])
        await api.cell.node.begin(job_id)
        await api.cell.node.progress(job_id, Step.STOPPING)

        (await api.call("POST", f"{JOBS}{job_id}/cancel/")).refused(409, "job_not_cancellable")

        assert (await api.call("GET", f"{JOBS}{job_id}/")).body["state"] == "in_progress"

    async def test_a_delete_cannot_be_taken_back(self, api: FrontEnd) -> None:
        await api.call("DELETE", f"{SNAPSHOTS}{await api.have_snapshot()}/")
        job_id = await api.cell.holder()

        (await api.call("POST", f"{JOBS}{job_id}/cancel/")).refused(409, "job_not_cancellable")

    async def test_another_accounts_job_is_not_found(self, api: FrontEnd) -> None:
        job_id = (await api.create()).headers["X-Job-Id"]
        stranger = await api.new_token(account=OTHERS)
        (await api.call("POST", f"{JOBS}{job_id}/cancel/", token=stranger)).refused(404, "job_not_found")


class TestEdit:
    async def test_only_the_given_fields_change(self, api: FrontEnd) -> None:
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/"

        labeled = await api.call("PATCH", path, body={"labels": {"env": "production", "a/b": ""}})
        described = await api.call("PATCH", path, body={"description": "näw\n"})
        nothing = await api.call("PATCH", path, body={})

        assert labeled.status == 200
        assert labeled.body["labels"] == {"env": "production", "a/b": ""}
        assert (described.body["description"], described.body["labels"]) == ("näw\n", labeled.body["labels"])
        assert nothing.body == described.body == (await api.call("GET", path)).body
        assert (await api.call("PATCH", path, body={"labels": {}})).body["labels"] == {}

    async def test_a_protected_snapshot_is_not_deleted_until_that_is_lifted(self, api: FrontEnd) -> None:
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/"
        assert (await api.call("PATCH", path, body={"protected": True})).body["protected"] is True

        (await api.call("DELETE", path)).refused(409, "snapshot_protected")

        assert (await api.call("PATCH", path, body={"protected": False})).body["protected"] is False
        assert (await api.call("DELETE", path)).status == 204

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"description": None}, "description"),
            ({"description": "x" * 1001}, "description"),
            ({"protected": 1}, "protected"),
            ({"labels": {"": "x"}}, "labels"),
            ({"labels": {"a b": "x"}}, "labels"),
            ({"labels": {"a": 1}}, "labels"),
            ({"labels": {"a": "x" * 64}}, "labels"),
            ({"labels": {f"k{n}": "" for n in range(21)}}, "labels"),
            ({"name": "other"}, "name"),
            ([], "body"),
        ],
    )
    async def test_what_cannot_be_is_named_and_changes_nothing(self, api: FrontEnd, body: Any, field: str) -> None:
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/"
        before = (await api.call("GET", path)).body

        assert (await api.call("PATCH", path, body=body)).refused_fields()[0] == field

        assert (await api.call("GET", path)).body == before

    async def test_another_accounts_snapshot_is_not_found(self, api: FrontEnd) -> None:
        path = f"{SNAPSHOTS}{await api.have_snapshot()}/"
        stranger = await api.new_token(account=OTHERS)
        (await api.call("PATCH", path, body={"protected": True}, token=stranger)).refused(404, "snapshot_not_found")


KEY = {"Idempotency-Key": "9c07602c-94ec"}
ONCE = {"server_id": SERVER, "name": "once", "description": ""}


class TestIdempotency:
    async def test_the_same_request_gets_the_first_answer_again(self, api: FrontEnd) -> None:
        first = await api.call("POST", body=ONCE, headers=KEY)
        await api.work(first)
        again = await api.call("POST", body=ONCE, headers=KEY)

        assert (again.status, again.raw) == (201, first.raw)
        for header in ("Location", "Operation-Location", "X-Job-Id"):
            assert again.headers[header] == first.headers[header]
        assert (await api.call("GET", JOBS)).body["count"] == 1

    async def test_of_identical_calls_at_once_one_runs_and_all_get_its_answer(self, api: FrontEnd) -> None:
        answers = await asyncio.gather(*[api.call("POST", body=ONCE, headers=KEY) for _ in range(30)])

        assert {(answer.status, answer.raw) for answer in answers} == {(201, answers[0].raw)}
        assert (await api.call("GET", JOBS)).body["count"] == 1

    async def test_the_key_with_another_request_is_refused(self, api: FrontEnd) -> None:
        first = await api.call("POST", body=ONCE, headers=KEY)
        other = await api.call("POST", body={**ONCE, "name": "other"}, headers=KEY)
        dry = await api.call("POST", f"{SNAPSHOTS}?dry_run=true", body=ONCE, headers=KEY)
        restore = await api.call("POST", f"{SNAPSHOTS}{first.body['id']}/restore/", headers=KEY)

        for answer in (other, dry, restore):
            answer.refused(422, "idempotency_key_reused")

    async def test_a_restore_an_undo_and_a_cancel_have_it_too(self, api: FrontEnd) -> None:
        snapshot_id = await api.have_snapshot()
        restore = [
            await api.call("POST", f"{SNAPSHOTS}{snapshot_id}/restore/", headers={"Idempotency-Key": "r"})
            for _ in range(2)
        ]
        await api.work(restore[0], Outcome(state=JobState.COMPLETED, undoable_seconds=60))
        undo = [
            await api.call(
                "POST", f"/api/v1/restores/{restore[0].headers['X-Job-Id']}/undo/", headers={"Idempotency-Key": "u"}
            )
            for _ in range(2)
        ]
        cancel = [
            await api.call("POST", f"{JOBS}{undo[0].headers['X-Job-Id']}/cancel/", headers={"Idempotency-Key": "c"})
            for _ in range(2)
        ]

        assert [answer.status for answer in (*restore, *undo, *cancel)] == [200, 200, 202, 202, 200, 200]
        for first, again in (restore, undo, cancel):
            assert first.raw == again.raw
            assert [answer.headers.get("Idempotent-Replayed") for answer in (first, again)] == [None, "true"]

    async def test_a_refusal_is_decided_anew(self, api: FrontEnd) -> None:
        holder = await api.create("holder")
        (await api.call("POST", body=ONCE, headers=KEY)).refused(400, "server_busy")
        await api.work(holder)

        assert (await api.call("POST", body=ONCE, headers=KEY)).status == 201

    async def test_a_key_is_its_accounts_own_and_lives_a_day(self, api: FrontEnd) -> None:
        other = ServerId(2)
        await api.cell.have([other], account=OTHERS)
        await api.cell.have([SERVER])
        assert (await api.call("POST", body=ONCE, headers=KEY)).status == 201
        (key,) = [key async for key in api.cell.redis.scan_iter(_type="string", match="idempotency:*")]
        assert 86_000 < await api.cell.redis.ttl(key) <= 86_400

        stranger = await api.new_token(account=OTHERS)
        answer = await api.call("POST", body=ONCE, headers=KEY, token=stranger)
        answer.refused(404, "server_not_found")

    @pytest.mark.parametrize("key", ["", "a b", "x" * 256, "ü"])
    async def test_an_invalid_key_is_named(self, api: FrontEnd, key: str) -> None:
        answer = await api.call("POST", body=ONCE, headers={"Idempotency-Key": key})
        assert answer.refused_fields() == ["Idempotency-Key"]
