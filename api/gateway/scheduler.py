"""Runs due schedules and retires expired snapshots, for the servers of any node."""

import asyncio
from collections.abc import Callable

import structlog

from worker.program.loop import every, guarded
from worker.store.calls import script_broke
from worker.store.chores.chores import BATCH, Chores, DueSchedule, RunRefused, UnreadableSchedule
from worker.store.errors import RecordUnreadable, StoreUnavailable
from worker.store.model import ScheduleId

ROUND_SECONDS = 15.0
NOT_DUE = "schedule_not_due"  # another gateway has run it, or the customer has changed it

log = structlog.stdlib.get_logger()


class Scheduler:
    """Every gateway has a scheduler. The first one that finds a schedule due runs it, so that no run depends on one
    gateway.

    `unreadable` is called once per process for each due schedule that this release cannot read.
    """

    def __init__(self, *, chores: Chores, unreadable: Callable[[], None] = lambda: None) -> None:
        self._chores = chores
        self._unreadable = unreadable
        self._left_out: set[ScheduleId] = set()

    async def keep_running(self) -> None:
        """Run until cancelled. A failed round is retried in the next one."""
        # After an outage, let the nodes reconnect first: before then, a run would be refused.
        await asyncio.sleep(ROUND_SECONDS)
        await every(
            ROUND_SECONDS, self.round, name="scheduler", expected={StoreUnavailable: "scheduler.store_unavailable"}
        )

    async def round(self) -> None:
        """Raises StoreUnavailable."""
        if expired := await self._chores.expire():
            log.info("snapshots.expired", snapshots=expired)
        still_due = 0
        is_full = True
        while is_full:
            # A skipped schedule stays due, for a gateway that can read it, and must not block the schedules behind it.
            due = await self._chores.due_schedules(skip=still_due)
            for schedule in due:
                is_done = False
                with guarded("schedule", StoreUnavailable, schedule_id=schedule.id):
                    is_done = await self._ran(schedule)
                still_due += not is_done
            is_full = len(due) == BATCH

    async def _ran(self, schedule: DueSchedule | UnreadableSchedule) -> bool:
        """Whether the store has decided on this run and recorded the time of the next one."""
        if isinstance(schedule, UnreadableSchedule):
            self._leave_out(schedule.id, schedule.reason)
            return False
        try:
            job_id = await self._chores.run_schedule(schedule)
        except RunRefused as refused:
            if refused.code == NOT_DUE:
                return False
            log.warning("schedule.refused", schedule_id=schedule.id, code=refused.code)
        except RecordUnreadable as error:
            self._leave_out(schedule.id, str(error.__cause__))
            return False
        except StoreUnavailable as error:
            if not script_broke(error.__cause__):
                raise
            self._leave_out(schedule.id, str(error.__cause__))
            return False
        else:
            log.info("schedule.ran", schedule_id=schedule.id, job_id=job_id)
        return True

    def _leave_out(self, schedule_id: ScheduleId, reason: str) -> None:
        if schedule_id not in self._left_out:
            self._left_out.add(schedule_id)
            log.error("schedule.unreadable", schedule_id=schedule_id, reason=reason)
            self._unreadable()
