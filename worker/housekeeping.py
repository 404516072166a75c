"""Periodic cleanup of a node: frozen guests, failed deletes, old journal entries, expired safety snapshots, space."""

import time

import structlog

from worker.journal import Journal, JournalFailed
from worker.program.loop import every, guarded
from worker.program.wall_clock import STEP_SECONDS, WallClock
from worker.runner import Runner
from worker.store.errors import StoreUnavailable
from worker.store.nodes.port import NodePort

ROUND_SECONDS = 30.0

log = structlog.stdlib.get_logger()


class Housekeeping:
    def __init__(self, *, store: NodePort, journal: Journal, runner: Runner) -> None:
        self._store = store
        self._journal = journal
        self._runner = runner
        self._last_round = time.monotonic()
        self._wall_clock = WallClock()

    async def keep_house(self) -> None:
        """Run until cancelled. A failed round is retried in the next one."""
        await every(ROUND_SECONDS, self.round, name="housekeeping")

    def _seconds_since_last_round(self) -> float:
        now = time.monotonic()
        seconds, self._last_round = now - self._last_round, now
        return min(seconds, 2 * ROUND_SECONDS)  # does not count time during which the process was suspended

    def _look_at_the_clock(self) -> None:
        seconds = self._wall_clock.stepped_by()
        if abs(seconds) >= STEP_SECONDS:
            log.warning("clock.stepped", clock="process", by_seconds=round(seconds, 1))

    async def round(self) -> None:
        self._look_at_the_clock()
        chores = (
            self._runner.thaw_left,  # comes first, because a frozen guest hangs
            *(self._retry_deletes, self._tidy_journal, self._runner.safety.drop_due, self._runner.safety.make_room),
        )
        for chore in chores:  # a failed chore must not stop the others
            try:
                with guarded("housekeeping", StoreUnavailable, JournalFailed, chore=chore.__name__):
                    await chore()
            except StoreUnavailable as error:
                log.warning("housekeeping.store_unavailable", cause=str(error.__cause__))
            except JournalFailed as error:  # it is full, or fails
                log.warning("housekeeping.journal_failed", cause=str(error))

    async def _retry_deletes(self) -> None:
        if deletes := await self._store.retry_deletes():
            log.warning("delete.queued_again", jobs=deletes)

    async def _tidy_journal(self) -> None:
        self._journal.forget_old()
        self._journal.age_safety_tags(self._seconds_since_last_round())
