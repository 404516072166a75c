"""Which failed jobs can be retried, one by one and in bulk."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.http.calls import OPS
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.front_end import DONE, SNAPSHOTS, Answer, FrontEnd, serving
from tests.queueing import until_told
from worker.store.access.tokens import Permission
from worker.store.chores.chores import Chores
from worker.store.model import Failure, JobId, JobState, SnapshotId, SnapshotStatus
from worker.store.operators.operator_store import OperatorStore
from worker.store.outcome import Outcome

FAILED = Outcome(
    state=JobState.FAILED,
    failure=Failure(code="not_enough_space", detail="The storage has too little free space."),
    snapshot_status=SnapshotStatus.FAILED,
)


class Desk:
    """An operator, and the customer whose jobs fail."""

    def __init__(self, api: FrontEnd, token: str) -> None:
        self.api = api
        self.token = token

    async def call(self, path: str, body: object = None, **given: Any) -> Answer:
        await asyncio.sleep(0.002)  # in a separate millisecond, because lists are sorted by it
        return await self.api.call("POST", f"{OPS}jobs/{path}", body=body, token=self.token, **given)

    async def retry(self, job_id: JobId, *, force: bool = False) -> Answer:
        return await self.call(f"{job_id}/retry/{'?force=true' if force else ''}")

    async def offered(self, job_id: JobId) -> tuple[bool, bool, str | None]:
        """The job's own answer about a retry: possible, only with force, and why."""
        shown = await self.api.call("GET", f"{OPS}jobs/{job_id}/", token=self.token)
        retry = shown.body["retry"]
        return retry["possible"], retry["needs_force"], retry["detail"]

    async def bulk(self, *job_ids: JobId, **more: bool) -> list[dict[str, Any]]:
        answer = await self.call("bulk/", {"action": "retry", "ids": job_ids, **more})
        assert answer.status == 200, answer.raw
        return list(answer.body["results"])

    async def refused(self, job_id: JobId, code: str = "job_not_retryable") -> str:
        """Why it is not part of a bulk retry."""
        (foretold,) = await self.bulk(job_id, dry_run=True)
        (one,) = await self.bulk(job_id)
        assert (one["done"], one["job_id"], one["code"]) == (False, None, code)
        assert (foretold["code"], foretold["detail"]) == (one["code"], one["detail"])
        return str(one["detail"])

    async def needs_force(self, job_id: JobId) -> str:
        """Why it is retried only with force, alone and in bulk."""
        detail = str((await self.retry(job_id)).refused(409, "retry_needs_force")["detail"])
        assert await self.offered(job_id) == (True, True, detail)
        assert await self.refused(job_id, "retry_needs_force") == detail
        assert (await self.job(job_id))["retried_by"] is None
        return detail

    async def has_power(self, power: str) -> None:
        await self.api.cell.have(power=power)

    async def asked(self, path: str, outcome: Outcome | None = FAILED, **given: Any) -> JobId:
        await asyncio.sleep(0.002)
        answer = await self.api.call("POST", path, **given)
        assert answer.status in {200, 201, 202}, answer.raw
        if outcome is not None:
            await self.api.work(answer, outcome)
        return JobId(answer.headers["X-Job-Id"])

    async def create(self, name: str, outcome: Outcome | None = FAILED) -> JobId:
        return await self.asked(SNAPSHOTS, outcome, body={"server_id": SERVER, "name": name})

    async def done(self, job_id: JobId) -> None:
        await self.api.cell.node.begin(job_id)
        await self.api.cell.node.finish(job_id, DONE)

    async def job(self, job_id: JobId) -> dict[str, Any]:
        return dict((await self.api.call("GET", f"/api/v1/jobs/{job_id}/")).body)


@pytest.fixture
async def desk(cell: Cell) -> AsyncIterator[Desk]:
    async with serving(cell, calls_per_minute=100_000) as api:
        yield Desk(api, await api.new_token(account=None, permissions={Permission.OPERATOR}))


async def test_the_latest_failed_job_is_retried_and_names_the_new_one(desk: Desk) -> None:
    job_id = await desk.create("a")
    assert (await desk.job(job_id))["retried_by"] is None
    (one,) = await desk.bulk(job_id)
    assert one["done"]
    assert (await desk.job(job_id))["retried_by"] == one["job_id"]


async def test_one_that_was_retried_is_retried_no_more_however_the_retry_ended(desk: Desk) -> None:
    job_id = await desk.create("a")
    first = JobId((await desk.retry(job_id)).body["id"])
    for _ in range(2):  # while the retry is queued, and when it has ended
        assert f"as job {first}" in (await desk.retry(job_id)).refused(409, "job_not_retryable")["detail"]
        assert f"as job {first}" in await desk.refused(job_id)
        if (await desk.job(first))["state"] == "queued":
            await desk.api.cell.node.begin(first)
            await desk.api.cell.node.finish(first, FAILED)
    assert (await desk.retry(first)).status == 202, "the last of the chain can be"


async def test_a_restore_that_ran_into_trouble_three_times_is_done_once(desk: Desk) -> None:
    """As in an operator's bulk retry of all matching jobs: newest first."""
    path = f"{SNAPSHOTS}{await desk.api.have_snapshot()}/restore/"
    await desk.has_power("off")
    failed = [await desk.asked(path) for _ in range(3)]

    newest, *older = await desk.bulk(*reversed(failed))
    assert newest["done"]
    assert [(one["code"], "later job" in one["detail"]) for one in older] == [("job_not_retryable", True)] * 2
    await desk.done(JobId(newest["job_id"]))
    for force in (False, True):
        assert [one["done"] for one in await desk.bulk(*failed, force=force)] == [False] * 3


async def test_a_cancelled_job_is_retried_alone_but_not_in_bulk(desk: Desk) -> None:
    job_id = await desk.create("a", None)
    assert (await desk.api.call("POST", f"/api/v1/jobs/{job_id}/cancel/")).status == 200
    assert "cancelled" in await desk.refused(job_id)
    (forced,) = await desk.bulk(job_id, force=True)
    assert forced["code"] == "job_not_retryable"
    assert (await desk.retry(job_id)).status == 202


@pytest.mark.parametrize("outcome", [DONE, FAILED, None], ids=["completed", "failed", "waits"])
async def test_one_whose_server_has_had_a_later_job_is_done_only_with_force(
    desk: Desk, outcome: Outcome | None
) -> None:
    job_id = await desk.create("a")
    later = await desk.create("b", outcome)
    assert later in (await desk.retry(job_id)).refused(409, "retry_needs_force")["detail"]
    possible, needs_force, detail = await desk.offered(job_id)
    assert (possible, needs_force, later in str(detail)) == (True, True, True)
    assert later in await desk.refused(job_id)
    assert (await desk.bulk(job_id, force=True))[0]["code"] == "job_not_retryable"
    answer = await desk.retry(job_id, force=True)
    if outcome is None:
        answer.refused(400, "server_busy")
        assert (await desk.job(job_id))["retried_by"] is None, "refused, so not retried"
    else:
        assert answer.status == 202


async def test_one_that_failed_long_ago_is_done_only_with_force(cell: Cell) -> None:
    async with serving(cell, calls_per_minute=100_000, retry_within_seconds=60) as api:
        desk = Desk(api, await api.new_token(account=None, permissions={Permission.OPERATOR}))
        lately, job_id = await desk.create("a"), await desk.create("b")
        for one, seconds in ((lately, 50), (job_id, 61)):
            await cell.raw("HINCRBY", f"job:{one}", "finished_ms", -1000 * seconds)
        await cell.raw("DEL", f"jobs:server:{SERVER}")
        assert await desk.offered(lately) == (True, False, None)
        assert "too long ago" in await desk.needs_force(job_id)
        (forced,) = await desk.bulk(job_id, force=True)
        assert forced["done"]
        assert (await desk.job(job_id))["retried_by"] == forced["job_id"]


async def test_an_hour_is_the_limit_unless_it_is_set(desk: Desk) -> None:
    job_id = await desk.create("a")
    await desk.api.cell.raw("HINCRBY", f"job:{job_id}", "finished_ms", -3500 * 1000)
    assert (await desk.offered(job_id))[1] is False
    await desk.api.cell.raw("HINCRBY", f"job:{job_id}", "finished_ms", -101 * 1000)
    assert (await desk.offered(job_id))[1] is True


class TestOverwriting:
    """A retried restore or undo overwrites what the server has written since the failure."""

    @pytest.fixture(params=["restore", "undo"])
    async def failed(self, desk: Desk, request: pytest.FixtureRequest) -> JobId:
        snapshot_id = await desk.api.have_snapshot()
        await desk.has_power("off")
        path = f"{SNAPSHOTS}{snapshot_id}/restore/"
        if request.param == "undo":
            restored = await desk.asked(path, Outcome(state=JobState.COMPLETED, undoable_seconds=60))
            path = f"/api/v1/restores/{restored}/undo/"
        return await desk.asked(path)

    async def test_it_is_done_while_the_server_is_off(self, desk: Desk, failed: JobId) -> None:
        assert await desk.offered(failed) == (True, False, None)
        assert (await desk.retry(failed)).status == 202

    @pytest.mark.parametrize("now", ["on", "off"])
    async def test_it_is_done_only_with_force_once_the_server_has_run(
        self, desk: Desk, failed: JobId, now: str
    ) -> None:
        await asyncio.sleep(0.002)
        for power in ("on", now):
            await desk.has_power(power)
        kind = (await desk.job(failed))["kind"]
        assert f"the {kind} would overwrite the data that it has written" in await desk.needs_force(failed)
        assert (await desk.retry(failed, force=True)).status == 202

    async def test_one_of_a_server_that_an_older_release_has_listed_is(self, desk: Desk, failed: JobId) -> None:
        await desk.api.cell.raw("HDEL", f"server:{SERVER}", "ran_ms")
        assert (await desk.offered(failed))[1] is False
        await desk.api.cell.raw("HSET", f"server:{SERVER}", "power", "on")
        assert (await desk.offered(failed))[1] is True

    async def test_all_reasons_are_given(self, desk: Desk, failed: JobId) -> None:
        later = await desk.create("b")
        await desk.has_power("on")
        await desk.api.cell.raw("HINCRBY", f"job:{failed}", "finished_ms", -3601 * 1000)
        detail = str((await desk.retry(failed)).refused(409, "retry_needs_force")["detail"])
        for part in (later, "too long ago", "has been running", "force the retry"):
            assert part in detail


async def test_a_create_is_done_although_its_server_runs(desk: Desk) -> None:
    job_id = await desk.create("a")
    await desk.has_power("on")
    assert await desk.offered(job_id) == (True, False, None)


async def test_nothing_is_retried_while_the_server_is_stranded(desk: Desk) -> None:
    """A restore would find the server off and leave it off: completed, but still stranded."""
    cell = desk.api.cell
    path = f"{SNAPSHOTS}{await desk.api.have_snapshot()}/restore/"
    earlier = await desk.create("a")
    failure = Failure(code="start_failed", detail="The server does not start.", stranded=True)
    stranded = await desk.asked(path, None)
    await cell.node.begin(stranded)
    await desk.has_power("off")
    await asyncio.sleep(0.002)
    await cell.node.finish(stranded, Outcome(state=JobState.FAILED, failure=failure))
    for job_id in (earlier, stranded):
        detail = (await desk.retry(job_id, force=True)).refused(409, "job_not_retryable")["detail"]
        assert f"Job {stranded} stranded the server" in detail
        assert await desk.offered(job_id) == (False, False, detail)
        assert await desk.refused(job_id) == detail

    await OperatorStore(cell.redis, cell.store).resolve(stranded, by="a test", reason="started by hand")
    assert (await desk.retry(stranded)).status == 202


async def test_a_server_whose_stranding_job_is_gone_is_retried(desk: Desk) -> None:
    job_id = await desk.create("a")
    await desk.api.cell.raw("HSET", f"server:{SERVER}", "stranded", "0" * 32)
    assert (await desk.retry(job_id)).status == 202


class TestForetelling:
    async def test_it_names_what_would_be_done_and_changes_nothing(self, desk: Desk) -> None:
        snapshot_id = await desk.api.have_snapshot()
        failed, nobodys = await desk.asked(f"{SNAPSHOTS}{snapshot_id}/restore/"), JobId("0" * 32)
        count = await desk.api.cell.raw("ZCARD", "jobs")
        one, other = await desk.bulk(failed, nobodys, dry_run=True)
        assert (one["done"], one["code"], one["job"]["kind"]) == (False, "retry_needs_force", "restore")
        assert (other["done"], other["code"], other["job"]) == (False, "job_not_found", None)
        (forced,) = await desk.bulk(failed, dry_run=True, force=True)
        assert (forced["done"], forced["job_id"], forced["code"]) == (True, None, None)
        assert await desk.api.cell.raw("ZCARD", "jobs") == count
        assert (await desk.job(failed))["retried_by"] is None

    async def test_a_cancel_takes_neither_dry_run_nor_force(self, desk: Desk) -> None:
        for more in ({"dry_run": True}, {"force": True}):
            answer = await desk.call("bulk/", {"action": "cancel", "ids": ["0" * 32], **more})
            assert answer.refused_fields() == ["body"]

    async def test_one_that_can_not_be_read_is_left_out(self, desk: Desk) -> None:
        job_id = await desk.create("a")
        await desk.api.cell.raw("HSET", f"job:{job_id}", "queued_ms", "?")
        (one,) = await desk.bulk(job_id, dry_run=True)
        assert one["done"] is False


async def test_a_dry_run_is_no_later_job_and_many_of_them_end_the_search(desk: Desk) -> None:
    cell, job_id = desk.api.cell, await desk.create("a")

    async def check() -> JobId:
        await asyncio.sleep(0.002)
        return (await cell.store.check_create(account_id=ACCOUNT, server_id=SERVER, name="c", request_id="r")).id

    await desk.done(await check())
    (one,) = await desk.bulk(job_id)
    assert one["done"]

    await desk.api.cell.node.begin(JobId(one["job_id"]))
    await desk.api.cell.node.finish(JobId(one["job_id"]), FAILED)
    for _ in range(200):
        await desk.done(await check())
    assert "later job" in await desk.refused(JobId(one["job_id"]))


async def test_of_concurrent_retries_one_starts_a_job(desk: Desk) -> None:
    job_id = await desk.create("a")
    answers = await asyncio.gather(*(desk.retry(job_id) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [202] + [409] * 9


async def test_of_concurrent_forced_retries_one_starts_a_job(desk: Desk) -> None:
    job_id = await desk.create("a")
    await desk.create("b")
    answers = await asyncio.gather(*(desk.retry(job_id, force=True) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [202] + [409] * 9


async def test_that_a_retry_was_forced_is_in_the_audit_log(desk: Desk) -> None:
    job_id = await desk.create("a")
    assert (await desk.retry(job_id, force=True)).status == 202
    await desk.bulk(job_id, force=True)

    async def reasons() -> list[str]:
        audit = await desk.api.call("GET", f"{OPS}audit/?method=POST", token=desk.token)
        return [entry["fields"].get("reason", "") for entry in audit.body["results"]]

    async def are_told() -> bool:
        return {"forced", "retry, forced"} <= set(await reasons())

    await until_told(are_told)


async def test_a_retry_that_is_asked_for_again_with_its_key_is_answered_as_before(desk: Desk) -> None:
    job_id = await desk.create("a")
    asked = [await desk.call(f"{job_id}/retry/", headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert asked[0].raw == asked[1].raw
    many = {"action": "retry", "ids": [job_id]}
    refused = [await desk.call("bulk/", many, headers={"Idempotency-Key": "l"}) for _ in range(2)]
    assert [answer.body["results"][0]["code"] for answer in refused] == ["job_not_retryable"] * 2


async def test_a_restore_of_the_disks_that_are_there_stays_one(desk: Desk) -> None:
    snapshot_id = await desk.api.have_snapshot()
    job_id = await desk.asked(f"{SNAPSHOTS}{snapshot_id}/restore/?disks=present")
    retried = (await desk.retry(job_id, force=True)).body
    assert (retried["kind"], retried["disks"]) == ("restore", "present")


async def test_an_undo_of_the_disks_that_are_there_stays_one(desk: Desk) -> None:
    snapshot_id = await desk.api.have_snapshot()
    done = Outcome(state=JobState.COMPLETED, undoable_seconds=60)
    restored = await desk.asked(f"{SNAPSHOTS}{snapshot_id}/restore/", done)
    job_id = await desk.asked(f"/api/v1/restores/{restored}/undo/?disks=present")
    retried = (await desk.retry(job_id, force=True)).body
    assert (retried["kind"], retried["disks"]) == ("undo", "present")


class TestDeletes:
    async def test_a_failing_delete_is_retried_at_growing_intervals_and_counted(self, cell: Cell) -> None:
        admitted = await cell.create()
        snapshot_id = admitted.snapshot.id
        await cell.node.begin(admitted.job.id)
        await cell.node.finish(admitted.job.id, DONE)
        await cell.store.delete(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
        waits = []
        for tries in range(9):
            job_id = await cell.holder()
            await cell.node.begin(job_id)
            now = await _now_ms(cell)
            await cell.node.finish(job_id, FAILED)
            waits.append(round((await _due_ms(cell, snapshot_id) - now) / 60_000))
            record = (await cell.node.known(SERVER, [snapshot_id])).on_disk[snapshot_id]
            assert record is not None
            assert record.failed_deletes == tries + 1
            await cell.redis.zadd("node:n1:deleting", {str(snapshot_id): 0})
            assert await cell.node.retry_deletes() == 1
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]

    async def test_a_delete_that_its_node_has_not_started_is_no_disk_failure(self, cell: Cell) -> None:
        admitted = await cell.create()
        snapshot_id = admitted.snapshot.id
        await cell.node.begin(admitted.job.id)
        await cell.node.finish(admitted.job.id, DONE)
        await cell.store.delete(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
        await cell.raw("HSET", "node:n1", "heartbeat_ms", 1)
        await cell.raw("ZADD", "jobs:waiting", 1, await cell.holder())
        assert await Chores(cell.redis, waiting_seconds=60).fail_stale_jobs()

        record = (await cell.node.known(SERVER, [snapshot_id])).on_disk[snapshot_id]
        assert record is not None
        assert record.failed_deletes == 0


async def _now_ms(cell: Cell) -> float:
    seconds, microseconds = await cell.redis.time()
    return float(seconds * 1000 + microseconds / 1000)


async def _due_ms(cell: Cell, snapshot_id: SnapshotId) -> float:
    return float(await cell.redis.zscore("node:n1:deleting", str(snapshot_id)) or 0)
