"""Whether Redis accepts writes: for probes, metrics and the dashboard's banner."""

from collections.abc import AsyncIterator, Callable

import structlog
from aiohttp import web

from worker.program.background import in_background
from worker.program.loop import every
from worker.store.access.writes import Writes
from worker.store.errors import StoreUnavailable

log = structlog.stdlib.get_logger()


class StoreWatch:
    """`look_seconds`: interval between checks. `told` is called with the result of each."""

    def __init__(self, writes: Writes, *, look_seconds: float, told: Callable[[str | None], None]) -> None:
        self._writes = writes
        self._look_seconds = look_seconds
        self._told = told
        # why Redis refused the last write; None: it accepted the write, or did not respond
        self.refused: str | None = None

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Check while the application runs."""
        expected: dict[type[Exception], str] = {StoreUnavailable: "store_watch.store_unavailable"}
        looking = every(self._look_seconds, self.look, name="store_watch", expected=expected)
        async with in_background(looking):
            yield

    async def look(self) -> str | None:
        """Why Redis refuses writes, one of trouble.CAUSES; None if it accepts them. Raises StoreUnavailable."""
        try:
            refused = await self._writes.refused()
        except StoreUnavailable:
            self.refused = None  # unknown
            self._told(None)
            raise
        if refused != self.refused:
            if refused is None:
                log.info("store.accepts_writes")
            else:
                log.warning("store.read_only", cause=refused)
        self.refused = refused
        self._told(refused)
        return refused
