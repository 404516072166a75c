"""Whether Redis accepts writes."""

from worker.store.calls import Scripts
from worker.store.trouble import REPLICA


class Writes(Scripts):
    """Tries them."""

    async def refused(self) -> str | None:
        """Why Redis refuses writes, one of trouble.CAUSES; None if it accepts them. Raises StoreUnavailable."""
        why: bytes = await self._call("access/try_write", {})
        if why == REPLICA.encode():
            # The name or the Sentinels may lead to another Redis by now: they are asked when a connection is opened.
            await self._runs.reconnect()
        return why.decode() or None
