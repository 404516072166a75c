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
    """`check_seconds`: interval between checks. `on_result` is called with the result of each."""

    def __init__(self, writes: Writes, *, check_seconds: float, on_result: Callable[[str | None], None]) -> None:
        self._writes = writes
        self._check_seconds = check_seconds
        self._on_result = on_result
        # why Redis refused the last write; None: it accepted the write, or did not respond
        self.refused: str | None = None

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Check while the application runs."""
        expected: dict[type[Exception], str] = {StoreUnavailable: "store_watch.store_unavailable"}
        looking = every(self._check_seconds, self.check, name="store_watch", expected=expected)
        async with in_background(looking):
            yield

    async def check(self) -> str | None:
        """Why Redis refuses writes, one of trouble.CAUSES; None if it accepts them. Raises StoreUnavailable."""
        try:
            refused = await self._writes.refused()
        except StoreUnavailable:
            self.refused = None  # unknown
            self._on_result(None)
            raise
        if refused != self.refused:
            if refused is None:
                log.info("store.accepts_writes")
            else:
                log.warning("store.read_only", cause=refused)
        self.refused = refused
        self._on_result(refused)
        return refused
