"""Chores for the whole cell. Every gateway runs them; each is one script, so nothing is done twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import structlog
from redis.asyncio import Redis

from worker.store import errors, records
from worker.store.bounds import Bounds
from worker.store.calls import Scripts
from worker.store.model import (
    NODE_SILENT_SECONDS,
    WAITING_SECONDS,
    WINDOW_MISSED,
    Failure,
    JobId,
    JobKind,
    JobState,
    ScheduleId,
    ServerId,
    SnapshotStatus,
)
from worker.store.outcome import DELETE_RETRY_SECONDS, STARTS_TOO_LATE, Outcome
from worker.store.schedules.timing import IN_UTC, BadCron, cron_of, next_run, open_since, snapshot_name, zone_of

FAILED_SNAPSHOT_KEPT_SECONDS = 7 * 86_400  # public contract: a failed create stays listed for 7 days
# A run that was refused for a temporary reason (server busy, node silent) is retried until the next one is due.
SCHEDULE_RETRY_SECONDS = 300.0
BATCH = 100  # records per script call, to bound how long it blocks Redis
PLANNED_AT_ONCE = 500  # runs per script call, which reads at most 2,000 servers

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
class DueWindow:
    """A schedule whose window has begun. `starts_at`: the start of the window that is open now; None: no window is
    open, and it was missed."""

    id: ScheduleId
    due_ms: int
    starts_at: datetime | None
    next_run_at: datetime


@dataclass(frozen=True, kw_only=True)
class DueRun:
    """The run of one server within the window of a schedule."""

    id: ScheduleId
    server_id: ServerId
    due_ms: int
    snapshot_name: str


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

    async def fail_late_jobs(self) -> int:
        """Fail the queued jobs that had to start before now, which frees their servers; returns their number."""
        ask = {"limit": BATCH, "result": STARTS_TOO_LATE.for_script()}
        failed = tuple(job_id.decode() for job_id in await self._call("chores/fail_late_jobs", ask))
        for job_id in failed:
            log.warning("job.failed", job_id=job_id, code=WINDOW_MISSED)
        return len(failed)

    async def due_schedules(self, *, skip: int = 0) -> tuple[DueSchedule | DueWindow | UnreadableSchedule, ...]:
        """The due schedules of any node by Redis's clock, oldest first: at most BATCH, after the first `skip`."""
        now_ms, *rows = await self._call("chores/due_schedules", {"skip": skip, "limit": BATCH})
        return tuple(_due(row, records.moment(now_ms)) for row in rows)

    async def run_schedule(self, schedule: DueSchedule) -> JobId:
        """Admit the create that is due, and record the next run; returns the job. Raises RunRefused."""
        next_ms = int(records.milliseconds(schedule.next_run_at))
        return await self._create_scheduled(schedule, next_ms=next_ms)

    async def plan_runs(self, window: DueWindow) -> int | None:
        """Plan a run for each server that the schedule covers, spread over its window; returns their number, or None if
        the window was missed. May raise RecordUnreadable."""
        ask = {
            "id": window.id,
            "due_ms": window.due_ms,
            "starts_ms": int(records.milliseconds(window.starts_at)) if window.starts_at else "",
            "next_ms": int(records.milliseconds(window.next_run_at)),
            "limit": PLANNED_AT_ONCE,
        }
        runs, is_last = 0, False
        while not is_last:
            verdict, is_last, planned = await self._call("chores/plan_runs", ask)
            runs += planned
        return None if verdict == b"missed" else runs

    async def due_runs(self, *, skip: int = 0) -> tuple[DueRun | UnreadableSchedule, ...]:
        """The runs within windows that are due, earliest first: at most BATCH, after the first `skip`."""
        rows = await self._call("chores/due_runs", {"skip": skip, "limit": BATCH})
        return tuple(map(_due_run, rows))

    async def run_in_window(self, run: DueRun) -> JobId:
        """Admit the create of one server, or postpone it within the window; returns the job. Raises RunRefused."""
        return await self._create_scheduled(run, server=str(run.server_id))

    async def _create_scheduled(self, run: DueSchedule | DueRun, **more: int | str) -> JobId:
        job_id = JobId(uuid4().hex)
        about = {"id": run.id, "due_ms": run.due_ms, "retry_ms": round(SCHEDULE_RETRY_SECONDS * 1000), **more}
        ask = {
            "kind": JobKind.CREATE,
            "schedule": about,
            "name": run.snapshot_name,
            "description": "",
            "request_id": "",
            "job_id": job_id,
            "silent_ms": self._silent_ms,
        }
        verdict, answer, *_ = await self._admit(ask)
        if verdict == b"refused":
            raise RunRefused(answer.decode())
        return job_id


def _due(row: Sequence[bytes], now: datetime) -> DueSchedule | DueWindow | UnreadableSchedule:
    schedule_id, due_ms, name, when, spread, zone, window_ms = (field.decode(errors="replace") for field in row)
    try:
        cron, clocks = cron_of(when, int(spread)), zone_of(zone or IN_UTC)
        next_at = next_run(cron, now, clocks)
        if not window_ms:
            due_at = datetime.fromtimestamp(int(due_ms) / 1000, UTC)
            run = snapshot_name(name, due_at)
            return DueSchedule(id=ScheduleId(schedule_id), due_ms=int(due_ms), snapshot_name=run, next_run_at=next_at)
        starts_at = open_since(cron, now, timedelta(milliseconds=records.whole(window_ms)), clocks)
        return DueWindow(id=ScheduleId(schedule_id), due_ms=int(due_ms), starts_at=starts_at, next_run_at=next_at)
    except (BadCron, ValueError, OverflowError, OSError) as error:
        reason = f"when={when!r}, server={spread!r}, time_zone={zone!r}, window_ms={window_ms!r}: {error}"
        return UnreadableSchedule(id=ScheduleId(schedule_id), reason=reason)


def _due_run(row: Sequence[bytes]) -> DueRun | UnreadableSchedule:
    schedule_id, server_id, due_ms, name, starts_ms = (field.decode(errors="replace") for field in row)
    try:
        return DueRun(
            id=ScheduleId(schedule_id),
            server_id=ServerId(int(server_id)),
            due_ms=int(due_ms),
            snapshot_name=snapshot_name(name, records.moment(starts_ms)),
        )
    except (ValueError, OverflowError, OSError) as error:
        return UnreadableSchedule(id=ScheduleId(schedule_id), reason=f"window_start_ms={starts_ms!r}: {error}")
