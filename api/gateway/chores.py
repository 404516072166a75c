"""Chores for the whole cell. Every gateway runs them; each is one script, so nothing is done twice."""

import asyncio
from collections.abc import Callable

import structlog

from api.gateway.scheduler import Scheduler
from worker.program.alive import Turns
from worker.program.loop import every
from worker.store.chores.chores import Chores
from worker.store.errors import StoreUnavailable

ROUND_SECONDS = 30.0

log = structlog.stdlib.get_logger()


class CellChores:
    def __init__(self, *, chores: Chores, turns: Turns, unreadable: Callable[[], None] = lambda: None) -> None:
        self._chores = chores
        self._scheduler = Scheduler(chores=chores, unreadable=unreadable, turned=turns.counted("scheduler"))
        self._turned = turns.counted("chores")

    async def keep_doing(self) -> None:
        """Run until cancelled. A failed round is retried in the next one."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._scheduler.keep_running())
            expected: dict[type[Exception], str] = {StoreUnavailable: "chores.store_unavailable"}
            group.create_task(every(ROUND_SECONDS, self.round, name="chores", expected=expected, turned=self._turned))

    async def round(self) -> None:
        """Fail the jobs of silent nodes, and remove old failed snapshots. Raises StoreUnavailable."""
        await self._chores.fail_stale_jobs()
        await self._chores.forget_failed()
