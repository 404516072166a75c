"""When each token was last used.

Each front end keeps the times in memory and writes them once a minute in one call, so that a read does not cost a
write to the disk.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from worker.store import records
from worker.store.access.tokens import USED
from worker.store.calls import Scripts
from worker.store.errors import StoreUnavailable

NOTED_SECONDS = 60.0  # interval between writes


def _utc() -> datetime:
    return datetime.now(UTC)


class TokenUses(Scripts):
    """`now`: the time of the cell."""

    def __init__(self, redis: Redis, *, now: Callable[[], datetime] = _utc) -> None:
        super().__init__(redis)
        self._now = now
        self._used: dict[str, float] = {}  # in seconds on the monotonic clock

    def note(self, token_id: str) -> None:
        """Note that the token is used now."""
        self._used[token_id] = time.monotonic()

    async def keep(self) -> None:
        """Write the noted times. Raises StoreUnavailable; they are then written later."""
        used, self._used = self._used, {}
        if not used:
            return
        now, seconds = self._now(), time.monotonic()
        at = {token: records.milliseconds(now - timedelta(seconds=seconds - then)) for token, then in used.items()}
        try:
            await self._call("access/note_uses", {"used": at})
        except StoreUnavailable:
            self._used = used | self._used
            raise

    async def all(self) -> Mapping[str, datetime]:
        """The times by token ID. A missing token has not been used since the service records this. Raises
        StoreUnavailable."""
        with suppress(StoreUnavailable):  # while Redis refuses writes, the stored times can still be read
            await self.keep()
        nothing: dict[bytes, bytes] = {}

        async def read() -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = await self._redis.hgetall(USED)  # type: ignore[misc]  # typed for the blocking client too
            return found

        found = await self._unless_other_type(USED, read, otherwise=nothing)
        return {records.text(token): records.moment(moment) for token, moment in found.items() if moment.isdigit()}
