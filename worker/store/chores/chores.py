"""Chores for the whole cell. Every gateway runs them; each is one script, so nothing is done twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import structlog
from redis.asyncio import Redis

from worker.store import errors, records
from worker.store.arq_queue import queue_parameters
from worker.store.bounds import Bounds
from worker.store.calls import Scripts
from worker.store.model import (
    NODE_SILENT_SECONDS,
    WAITING_SECONDS,
    Failure,
    JobId,
    JobKind,
    JobState,
    ScheduleId,
    ServerId,
    SnapshotStatus,
)
from worker.store.outcome import DELETE_RETRY_SECONDS, Outcome
from worker.store.schedules.schedules import BadCron, cron_of, next_run, snapshot_name

FAILED_SNAPSHOT_KEPT_SECONDS = 7 * 86_400  # public contract: a failed create stays listed for 7 days
# A run that was refused for a temporary reason (server busy, node silent) is retried until the next one is due.
SCHEDULE_RETRY_SECONDS = 300.0
BATCH = 100  # records per script call, to bound how long it blocks Redis

log = structlog.stdlib.get_logger()


class RunRefused(Exception):
    """A run was not admitted. `code`: the error code of the refusal, or `schedule_not_due` if another gateway was
    first."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class DueSchedule:
    """A run that is due. `next_run_at` is in the future: of several missed runs, only one is caught up."""

    id: ScheduleId
    due_ms: int
    snapshot_name: str
    next_run_at: datetime


@dataclass(frozen=True, kw_only=True)
class UnreadableSchedule:
    """A due schedule that this version cannot read: it is damaged, or a newer version wrote it."""

    id: ScheduleId
    reason: str


class Chores(Scripts):
    """Every call may raise StoreUnavailable. `node_silent_seconds`: how old a node's last heartbeat may be for a
    scheduled run of its servers. `waiting_seconds`: how long a job may wait for a silent node; `on_stale_job` is called
    for each job that has waited longer."""

    def __init__(
        self,
        redis: Redis,
        *,
        node_silent_seconds: float = NODE_SILENT_SECONDS,
        waiting_seconds: float = WAITING_SECONDS,
        on_stale_job: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(redis)
        self._silent_ms = round(node_silent_seconds * 1000)
        self._waiting_seconds = waiting_seconds
        self._on_stale_job = on_stale_job

    async def fail_stale_jobs(self) -> tuple[JobId, ...]:
        """Fail the queued jobs of any node that has been silent for too long, which frees their servers; returns
        them."""
        seconds, code = self._waiting_seconds, errors.NodeUnavailable.code
        detail = f"The server's node was silent for {seconds:.0f} seconds; the job was not started."
        failure = Failure(code=code, detail=detail)
        outcome = Outcome(state=JobState.FAILED, failure=failure, snapshot_status=SnapshotStatus.FAILED)
        ask = {"silent_ms": round(seconds * 1000), "limit": BATCH, "result": outcome.for_script()}
        failed = tuple(JobId(job_id.decode()) for job_id in await self._call("chores/fail_stale_jobs", ask))
        for job_id in failed:
            log.warning("job.failed", job_id=job_id, code=code, waited_seconds=seconds)
            self._on_stale_job()
        return failed

    async def forget_failed(self) -> int:
        """Delete the records of snapshots that failed more than 7 days ago; returns their number."""
        ask = {"kept_ms": FAILED_SNAPSHOT_KEPT_SECONDS * 1000, "limit": BATCH}
        forgotten: int = await self._call("chores/forget_failed", ask)
        return forgotten

    async def keep_bounds(self, bounds: Bounds) -> None:
        """Store the bounds of accounts for all scripts, and delete the dry runs that ended an hour ago."""
        ask = {"bounds": bounds.model_dump(), "limit": BATCH}
        while await self._call("chores/keep_bounds", ask) == BATCH:
            pass

    async def expire(self) -> int:
        """Retire the expired snapshots of any node; returns their number."""
        ask = {"again_ms": round(DELETE_RETRY_SECONDS * 1000), "limit": BATCH}
        retired: int = await self._call("chores/expire", ask)
        return retired

    async def due_schedules(self, *, skip: int = 0) -> tuple[DueSchedule | UnreadableSchedule, ...]:
        """The due schedules of any node by Redis's clock, oldest first: at most BATCH, after the first `skip`."""
        now_ms, *rows = await self._call("chores/due_schedules", {"skip": skip, "limit": BATCH})
        return tuple(_due(row, records.moment(now_ms)) for row in rows)

    async def run_schedule(self, schedule: DueSchedule) -> JobId:
        """Admit the create that is due, and record the next run; returns the job. Raises RunRefused."""
        job_id = JobId(uuid4().hex)
        run = {
            "id": schedule.id,
            "due_ms": schedule.due_ms,
            "next_ms": int(records.milliseconds(schedule.next_run_at)),
            "retry_ms": round(SCHEDULE_RETRY_SECONDS * 1000),
        }
        ask = {
            "kind": JobKind.CREATE,
            "schedule": run,
            "name": schedule.snapshot_name,
            "description": "",
            "request_id": "",
            "job_id": job_id,
            "silent_ms": self._silent_ms,
            "queue": queue_parameters(),
        }
        verdict, answer, *_ = await self._admit(ask)
        if verdict == b"refused":
            raise RunRefused(answer.decode())
        return job_id


def _due(row: Sequence[bytes | None], now: datetime) -> DueSchedule | UnreadableSchedule:
    schedule_id, due_ms, name, when, server_id = ((field or b"").decode(errors="replace") for field in row)
    try:
        due_at = datetime.fromtimestamp(int(due_ms) / 1000, UTC)
        return DueSchedule(
            id=ScheduleId(schedule_id),
            due_ms=int(due_ms),
            snapshot_name=snapshot_name(name, due_at),
            next_run_at=next_run(cron_of(when, ServerId(int(server_id))), now),
        )
    except (BadCron, ValueError, OverflowError, OSError) as error:
        return UnreadableSchedule(id=ScheduleId(schedule_id), reason=f"when={when!r}, server={server_id!r}: {error}")
