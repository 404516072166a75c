"""One time limit for all calls, with one timer: asyncio.timeout sets and cancels a timer for each."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

Found = TypeVar("Found")


class TimeLimit:
    """Ends a call that takes longer than `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # When each running call ends, on the clock of the event loop. The first one ends first, as all have one limit.
        self._ends: dict[asyncio.Task[Any], float] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None  # while calls run

    async def within(self, call: Awaitable[Found]) -> Found:
        """Await the call in the current task. Raises TimeoutError if it was ended."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("not within a task")
        before = task.cancelling()
        self._ends[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)
        try:
            return await call
        except asyncio.CancelledError as error:
            if task in self._ended and task.cancelling() <= before + 1:  # nobody else has cancelled it
                raise TimeoutError from error
            raise
        finally:
            del self._ends[task]
            if task in self._ended:
                self._ended.remove(task)
                task.uncancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for task, end in self._ends.items():
            if end > loop.time():
                self._timer = loop.call_at(end, self._look, loop)
                break
            if task not in self._ended:
                self._ended.add(task)
                task.cancel()
