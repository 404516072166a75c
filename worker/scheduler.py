"""Runs what is due: the snapshots of the schedules, of whichever node's servers, and the end of those that expire."""

import asyncio
from datetime import UTC, datetime

import structlog

from worker.jobs.errors import StoreUnavailable
from worker.jobs.node_store import DueSchedule, NodeStore, RunRefused
from worker.jobs.schedules import cron_of, next_run, snapshot_name

ROUND_SECONDS = 15.0
NOT_DUE = "schedule_not_due"  # another worker was first, or the customer has changed it

log = structlog.stdlib.get_logger()


class Scheduler:
    """Every worker has one: a run is done by the first that finds it due, so that none waits for one that is away."""

    def __init__(self, *, store: NodeStore) -> None:
        self._store = store

    async def keep_running(self) -> None:
        """Run until cancelled. A round that fails is tried again with the next one."""
        while True:
            try:
                await self.round()
            except StoreUnavailable as error:
                log.warning("scheduler.store_unavailable", cause=str(error.__cause__))
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self) -> None:
        """Raises StoreUnavailable."""
        now, due = await self._store.due_schedules()
        for schedule in due:
            await self._run(schedule, now)
        if expired := await self._store.expire():
            log.info("snapshots.expired", snapshots=expired)

    async def _run(self, schedule: DueSchedule, now: datetime) -> None:
        due_at = datetime.fromtimestamp(schedule.due_ms / 1000, UTC)
        # from now on: of the runs that were missed while all was down one is made up for, not each
        next_run_at = next_run(cron_of(schedule.when, schedule.server_id), now)
        try:
            job_id = await self._store.run_schedule(
                schedule, name=snapshot_name(schedule.name, due_at), next_run_at=next_run_at
            )
        except RunRefused as refused:
            if refused.code != NOT_DUE:
                log.warning("schedule.refused", schedule_id=schedule.id, code=refused.code)
        else:
            log.info("schedule.ran", schedule_id=schedule.id, job_id=job_id)
