"""Work that goes on beside the requests, for as long as the application runs."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress

STOP_AGAIN_SECONDS = 0.2


@asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Beside the block; cancelled at its end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        while not task.done():
            # Again, where it was lost: Python 3.11's wait_for, in which redis-py sends, may swallow one.
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_AGAIN_SECONDS)
        with suppress(asyncio.CancelledError):
            await task
