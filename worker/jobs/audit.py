"""Who did what: an entry for each call of a token's owner that was to change something, in an append-only stream."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from arq.connections import ArqRedis

from worker.jobs import records
from worker.jobs.store import redis_answers

STREAM = "audit"
_BATCH = 500
_MOST = 1_000_000  # entries, about 240 MB: one caller in a loop must not fill Redis
_WRITE_SECONDS = 1.0  # the caller waits for it

Entry = dict[str, str]


class Audit:
    """The entries of the cell. Every call may raise StoreUnavailable."""

    def __init__(self, redis: ArqRedis, *, kept: timedelta) -> None:
        self._redis = redis
        self._kept = kept

    async def write(self, *entries: Mapping[str, str], now: datetime) -> None:
        """Add entries; those whose time is over go on the way."""
        oldest = records.milliseconds(now - self._kept)
        with redis_answers():
            async with asyncio.timeout(_WRITE_SECONDS), self._redis.pipeline(transaction=False) as pipe:
                for entry in entries:
                    fields: Any = dict(entry)
                    pipe.xadd(STREAM, fields, maxlen=_MOST)
                pipe.xtrim(STREAM, minid=oldest)
                await pipe.execute()

    async def since(self, moment: datetime, wanted: Mapping[str, str]) -> AsyncIterator[Entry]:
        """The entries from that moment on, oldest first, whose fields are as wanted; each has its moment as `at`."""
        after = records.milliseconds(moment)
        while True:
            with redis_answers():
                found = await self._redis.xrange(STREAM, min=after, count=_BATCH)
            for entry_id, fields in found:
                entry = records.decoded(fields)
                if wanted.items() <= entry.items():
                    at = records.moment(entry_id.decode().partition("-")[0])
                    yield {"at": at.isoformat(timespec="milliseconds"), **entry}
            if len(found) < _BATCH:
                return
            after = f"({found[-1][0].decode()}"
