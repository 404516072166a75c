"""Work that goes on beside the requests, for as long as the application runs."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

STOP_AGAIN_SECONDS = 0.2


@asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run `work` beside the block, and cancel it at the end of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        while not task.done():
            # Again if it was lost: asyncio.wait_for, with which redis-py sends, swallows some before Python 3.12.
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_AGAIN_SECONDS)
        with suppress(asyncio.CancelledError):
            await task
