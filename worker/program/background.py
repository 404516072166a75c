"""Background work that runs as long as the application."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

import structlog

STOP_AGAIN_SECONDS = 0.2

log = structlog.stdlib.get_logger()


@asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` alongside the block, and cancel it at the end of the block. If the work fails, the process is asked to
    stop, and the error is raised at the end of the block: a program that lacks a part must be restarted."""
    task = asyncio.create_task(work)
    task.add_done_callback(_stop_if_failed)
    try:
        yield
    finally:
        while not task.done():
            # Repeat a lost cancellation: asyncio.wait_for, which redis-py uses to send, swallows some before Python
            # 3.12.
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_AGAIN_SECONDS)
        with suppress(asyncio.CancelledError):
            await task


def _stop_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("background.failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
