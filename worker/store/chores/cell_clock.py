"""The time of the cell, as a front end counts it. Its own wall clock decides nothing.

The scripts read the time from `shared/clock.lua`: Redis's clock without its steps. Redis alone cannot distinguish a
step from an outage. A front end can, with its monotonic clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from redis.asyncio import Redis

from worker.program.wall_clock import STEP_SECONDS
from worker.store.calls import Scripts

COMPARE_SECONDS = 5.0
AGREE_SECONDS = 30.0  # clocks that are synchronized with NTP differ by much less
UNSURE_SECONDS = 3.0  # uncertainty of a process's measurement, because an answer may take seconds
TOLD_FROM_SECONDS = 60.0  # other events report shorter outages of Redis
DRIFT = 0.001  # plus this share of the elapsed time, several times the drift of a computer's oscillator

log = structlog.stdlib.get_logger()


@dataclass(frozen=True, kw_only=True)
class ClockErrors:
    """How far the wall clocks are ahead of the time of the cell, in seconds; negative: behind."""

    redis: float
    process: float


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    cell_ms: int
    at: float  # on CLOCK_BOOTTIME, in seconds

    @property
    def age_seconds(self) -> float:
        return _uptime() - self.at

    def counted_ms(self) -> int:
        return self.cell_ms + round(self.age_seconds * 1000)


class CellClock(Scripts):
    """`compared` is called with the errors of the wall clocks after each comparison."""

    def __init__(self, redis: Redis, *, compared: Callable[[ClockErrors], None] = lambda _: None) -> None:
        super().__init__(redis)
        self._compared = compared
        self._last: _Comparison | None = None
        self._told = ClockErrors(redis=0.0, process=0.0)

    def now(self) -> datetime:
        """The time of the cell; before the first comparison, that of this process's wall clock."""
        ms = self._last.counted_ms() if self._last else time.time() * 1000
        return datetime.fromtimestamp(ms / 1000, UTC)

    async def compare(self) -> ClockErrors:
        """Compare the time of the cell with this process's clocks. Raises StoreUnavailable."""
        last, began = self._last, _uptime()
        ask = {
            "wall_ms": round(time.time() * 1000),
            "counted_ms": last.counted_ms() if last else "",
            "unsure_ms": round((UNSURE_SECONDS + (last.age_seconds * DRIFT if last else 0)) * 1000),
            "agree_ms": round(AGREE_SECONDS * 1000),
            "each_ms": round(COMPARE_SECONDS * 1000),
        }
        cell_ms, ahead_ms, leapt_ms = await self._call("chores/compare_clocks", ask)
        self._last = _Comparison(cell_ms=cell_ms, at=(began + _uptime()) / 2)
        errors = ClockErrors(redis=-ahead_ms / 1000, process=time.time() - cell_ms / 1000)
        if leapt_ms >= TOLD_FROM_SECONDS * 1000:
            log.info("clock.caught_up", seconds=leapt_ms / 1000)
        self._tell("redis", self._told.redis, errors.redis)
        self._tell("process", self._told.process, errors.process)
        self._told = errors
        self._compared(errors)
        return errors

    def _tell(self, whose: str, before: float, error: float) -> None:
        if abs(error) >= STEP_SECONDS and abs(error - before) >= STEP_SECONDS:
            log.warning("clock.stepped", clock=whose, ahead_seconds=round(error, 1))


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
