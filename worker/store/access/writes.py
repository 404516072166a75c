"""Whether Redis accepts writes."""

from worker.store.calls import Scripts
from worker.store.trouble import REPLICA


class Writes(Scripts):
    """Tries a write."""

    async def refused(self) -> str | None:
        """Why Redis refuses writes, one of trouble.CAUSES; None if it accepts them. Raises StoreUnavailable."""
        why: bytes = await self._call("access/try_write", {})
        if why == REPLICA.encode():
            # The host name or the Sentinels may point to another Redis by now: they are queried when a connection is
            # opened.
            await self._runs.reconnect()
        return why.decode() or None
