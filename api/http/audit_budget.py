"""How many entries a token may add to the audit log for calls that start no job; a service token, for each account.

The log has a fixed number of entries, so one program that calls in a loop could push out those of all others.
Jobs limit themselves: each takes seconds, and a server has one at a time.
"""

import time
from collections.abc import Callable

HOUR_SECONDS = 3600.0


class AuditBudget:
    """Counts by this process. `most`: entries per hour; `now`: seconds."""

    def __init__(self, most: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._since = now()
        self._used: dict[tuple[str, str], int] = {}

    def left(self, token_id: str, account: str) -> int:
        """Count one entry. Returns how many are left, with this one: 1 is the last, 0 is too many."""
        if (now := self._now()) - self._since >= HOUR_SECONDS:
            self._since, self._used = now, {}
        used = self._used.get((token_id, account), 0)
        self._used[token_id, account] = min(used + 1, self._most)
        return self._most - used
