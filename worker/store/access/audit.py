"""The audit log: an append-only stream with an entry for each call that may change something."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from arq.connections import ArqRedis

from worker.store import records
from worker.store.calls import redis_answers

STREAM = "audit"
_MOST = 1_000_000  # entries, about 240 MB: one caller in a loop must not fill Redis
_WRITE_SECONDS = 1.0  # limit; the caller waits for it


class Audit:
    """The entries of the cell. `kept`: how long; None: this process removes none, for it
    does not know the time of the cell, `now`. Every call may raise StoreUnavailable."""

    def __init__(
        self, redis: ArqRedis, *, kept: timedelta | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._redis = redis
        self._kept = kept
        self._now = now

    async def write(self, *entries: Mapping[str, str]) -> None:
        """Add entries, and remove those that are too old."""
        with redis_answers():
            async with asyncio.timeout(_WRITE_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                for entry in entries:
                    fields: Any = dict(entry)
                    pipe.xadd(STREAM, fields, maxlen=_MOST)
                if self._kept is not None:
                    pipe.xtrim(STREAM, minid=records.milliseconds(self._now() - self._kept))
                await pipe.execute()
