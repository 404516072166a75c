"""Work that goes on beside the requests, for as long as the application runs."""

import asyncio
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

import structlog

STOP_AGAIN_SECONDS = 0.2

log = structlog.stdlib.get_logger()


@asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` beside the block, and cancel it at the end of the block. Should the work fail, the process is asked to
    stop, and its error is raised at the end of the block: a program that lacks a part must be started again."""
    task = asyncio.create_task(work)
    task.add_done_callback(_stop_if_failed)
    try:
        yield
    finally:
        while not task.done():
            # Again if it was lost: asyncio.wait_for, with which redis-py sends, swallows some before Python 3.12.
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_AGAIN_SECONDS)
        with suppress(asyncio.CancelledError):
            await task


def _stop_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("background.failed", exc_info=error)
        signal.raise_signal(signal.SIGTERM)
