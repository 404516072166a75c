"""A caller's trace context is passed on through every outcome of the job, even without an exporter."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from api.gateway.scheduler import Scheduler
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from worker.program import tracing
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import RetryRule
from worker.store.model import Failure, Job, JobId, JobKind, JobState, SnapshotId, SnapshotStatus
from worker.store.outcome import Outcome
from worker.store.schedules.schedules import Schedules, ScheduleSpec

FIRST, SECOND = (f"00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01" for span in ("00f067aa0ba902b7", "53995c3f42cd8ad8"))
DONE = Outcome(state=JobState.COMPLETED, snapshot_status=SnapshotStatus.COMPLETED, size_mb=1)
BROKEN = Outcome(state=JobState.FAILED, failure=Failure(code="disk_failed", detail="vdb"))


async def do(cell: Cell, job_id: JobId, outcome: Outcome = DONE) -> Job:
    """The job as the node receives it."""
    job = await cell.node.begin(job_id)
    can_be_undone = job.kind in {JobKind.RESTORE, JobKind.UNDO} and outcome is DONE
    await cell.node.finish(job_id, replace(outcome, undoable_seconds=60 if can_be_undone else None))
    return job


async def made(cell: Cell) -> SnapshotId:
    admitted = await cell.create()
    assert (await do(cell, admitted.job.id)).traceparent == ""
    return admitted.snapshot.id


async def test_a_create_a_restore_its_undo_and_a_second_try_each_carry_the_trace_of_their_request(cell: Cell) -> None:
    with tracing.span("a request", {}, parent={"traceparent": FIRST}):
        create = await cell.create()
    assert (await do(cell, create.job.id)).traceparent == FIRST
    with tracing.span("a request", {}, parent={"traceparent": SECOND}):
        restore = await cell.store.restore(account_id=ACCOUNT, snapshot_id=create.snapshot.id, request_id="r")
    assert (await do(cell, restore.job.id)).traceparent == SECOND
    with tracing.span("a request", {}, parent={"traceparent": FIRST}):
        undo = await cell.store.undo(account_id=ACCOUNT, job_id=restore.job.id, request_id="r")
    assert (await do(cell, undo.id, BROKEN)).traceparent == FIRST
    with tracing.span("a request", {}, parent={"traceparent": SECOND}):
        again = await cell.store.again(undo, request_id="r", rule=RetryRule(force=True))
    assert (await do(cell, again.id)).traceparent == SECOND


async def test_a_delete_that_the_node_tries_again_stays_in_its_trace(cell: Cell) -> None:
    snapshot_id = await made(cell)
    with tracing.span("a request", {}, parent={"traceparent": FIRST}):
        await cell.store.delete(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
    first = await cell.holder()
    assert (await do(cell, first, BROKEN)).traceparent == FIRST
    await cell.redis.zadd("node:n1:deleting", {str(snapshot_id): 0})
    assert await cell.node.retry_deletes() == 1
    assert (await do(cell, await cell.holder())).traceparent == FIRST


async def test_a_run_of_a_schedule_carries_the_trace_of_its_round(cell: Cell) -> None:
    spec = ScheduleSpec(name="nightly", when="daily", keep=2, expire_after=None, enabled=True)
    schedule = await Schedules(cell.redis).create(account_id=ACCOUNT, server_id=SERVER, spec=spec, idempotency=None)
    await cell.redis.zadd("schedules:due", {schedule.id: datetime.now(UTC).timestamp() * 1000 // 1})
    with tracing.span("a round", {}, parent={"traceparent": FIRST}):
        await Scheduler(chores=Chores(cell.redis)).round()
    assert (await do(cell, await cell.holder())).traceparent == FIRST


@pytest.mark.parametrize(
    "text", ["", "00-short-01", FIRST.replace("00-", "ff-", 1), f"00-{'0' * 32}-00f067aa0ba902b7-01"]
)
async def test_an_invalid_traceparent_is_ignored(cell: Cell, text: str) -> None:
    with tracing.span("a request", {}, parent={"traceparent": text}):
        created = await cell.create()
    assert (await do(cell, created.job.id)).traceparent == ""
