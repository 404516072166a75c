"""Fails the jobs that wait for a dead node: where all nodes are dead, no worker is left to do it."""

import asyncio
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from worker.program.background import in_background
from worker.store.chores.stale_jobs import StaleJobReaper
from worker.store.errors import StoreUnavailable

ROUND_SECONDS = 30.0

log = structlog.stdlib.get_logger()


class Sweeper:
    def __init__(self, waiting: StaleJobReaper, *, round_seconds: float = ROUND_SECONDS) -> None:
        self._waiting = waiting
        self._round_seconds = round_seconds

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Sweep while the application runs."""
        async with in_background(self._keep_sweeping()):
            yield

    async def _keep_sweeping(self) -> None:
        while True:
            try:
                await self._waiting.fail()
            except StoreUnavailable as error:
                log.warning("sweeper.store_unavailable", cause=str(error.__cause__))
            except Exception:  # it must go on for all the others
                log.exception("sweeper.broke")
            await asyncio.sleep(self._round_seconds)
