"""The audit log: an append-only stream with an entry for each call that may change something."""

import asyncio
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from arq.connections import ArqRedis

from worker.store import records
from worker.store.calls import redis_answers

STREAM = "audit"
_MOST = 1_000_000  # entries, about 240 MB: one caller in a loop must not fill Redis
_WRITE_SECONDS = 1.0  # limit; the caller waits for it


class Audit:
    """The entries of the cell. Every call may raise StoreUnavailable."""

    def __init__(self, redis: ArqRedis, *, kept: timedelta) -> None:
        self._redis = redis
        self._kept = kept

    async def write(self, *entries: Mapping[str, str], now: datetime) -> None:
        """Add entries, and remove those that are too old."""
        oldest = records.milliseconds(now - self._kept)
        with redis_answers():
            async with asyncio.timeout(_WRITE_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                for entry in entries:
                    fields: Any = dict(entry)
                    pipe.xadd(STREAM, fields, maxlen=_MOST)
                pipe.xtrim(STREAM, minid=oldest)
                await pipe.execute()
