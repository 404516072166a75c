"""Runs due schedules and retires expired snapshots, for the servers of any node."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import structlog

from worker.program.loop import every, guarded
from worker.store.calls import script_broke
from worker.store.chores.chores import (
    BATCH,
    Chores,
    DueRun,
    DueSchedule,
    DueWindow,
    RunRefused,
    UnreadableSchedule,
)
from worker.store.errors import RecordUnreadable, StoreUnavailable
from worker.store.model import ScheduleId

ROUND_SECONDS = 15.0
NOT_DUE = "schedule_not_due"  # another gateway has run it, or the customer has changed it
NOT_COVERED = "not_covered"  # the schedule was disabled, or does not cover the server any more

Due: TypeAlias = DueSchedule | DueWindow | DueRun | UnreadableSchedule

log = structlog.stdlib.get_logger()


class Find(Protocol):
    async def __call__(self, *, skip: int) -> Sequence[Due]: ...


class Scheduler:
    """Every gateway has a scheduler. The first one that finds a schedule due runs it, so that no run depends on one
    gateway.

    `unreadable` is called once per process for each due schedule that this release cannot read. `turned` is called
    before each round and each run, because a round has no limit of runs.
    """

    def __init__(
        self,
        *,
        chores: Chores,
        unreadable: Callable[[], None] = lambda: None,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self._chores = chores
        self._unreadable = unreadable
        self._turned = turned
        self._left_out: set[ScheduleId] = set()

    async def keep_running(self) -> None:
        """Run until cancelled. A failed round is retried in the next one."""
        # After an outage, let the nodes reconnect first: before then, a run would be refused.
        self._turned()
        await asyncio.sleep(ROUND_SECONDS)
        expected: dict[type[Exception], str] = {StoreUnavailable: "scheduler.store_unavailable"}
        await every(ROUND_SECONDS, self.round, name="scheduler", expected=expected, turned=self._turned)

    async def round(self) -> None:
        """Raises StoreUnavailable."""
        if expired := await self._chores.expire():
            log.info("snapshots.expired", snapshots=expired)
        await self._run_all(self._chores.due_schedules)
        await self._run_all(self._chores.due_runs)
        await self._chores.fail_late_jobs()

    async def _run_all(self, find: Find) -> None:
        still_due = 0
        is_full = True
        while is_full:
            # A skipped schedule stays due, for a gateway that can read it, and must not block the schedules behind it.
            due = await find(skip=still_due)
            for one in due:
                self._turned()
                is_done = False
                with guarded("schedule", StoreUnavailable, schedule_id=one.id):
                    is_done = await self._ran(one)
                still_due += not is_done
            is_full = len(due) == BATCH

    async def _ran(self, due: Due) -> bool:
        """Whether the store has decided on this run or window and recorded the time of the next one."""
        if isinstance(due, UnreadableSchedule):
            self._leave_out(due.id, due.reason)
            return False
        server = {"server_id": due.server_id} if isinstance(due, DueRun) else {}
        try:
            if isinstance(due, DueWindow):
                await self._plan(due)
                return True
            ran = self._chores.run_in_window(due) if isinstance(due, DueRun) else self._chores.run_schedule(due)
            job_id = await ran
        except RunRefused as refused:
            if refused.code == NOT_DUE:
                return False
            if refused.code != NOT_COVERED:
                log.warning("schedule.refused", schedule_id=due.id, code=refused.code, **server)
        except RecordUnreadable as error:
            self._leave_out(due.id, str(error.__cause__))
            return False
        except StoreUnavailable as error:
            if not script_broke(error.__cause__):
                raise
            self._leave_out(due.id, str(error.__cause__))
            return False
        else:
            log.info("schedule.ran", schedule_id=due.id, job_id=job_id, **server)
        return True

    async def _plan(self, window: DueWindow) -> None:
        runs = await self._chores.plan_runs(window)
        if runs is None:
            log.warning("schedule.window_missed", schedule_id=window.id)
        else:
            log.info("schedule.planned", schedule_id=window.id, runs=runs)

    def _leave_out(self, schedule_id: ScheduleId, reason: str) -> None:
        if schedule_id not in self._left_out:
            self._left_out.add(schedule_id)
            log.error("schedule.unreadable", schedule_id=schedule_id, reason=reason)
            self._unreadable()
