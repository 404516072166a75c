"""Limits how many audit log entries a token may add for calls that start no job; for a service token, per account.

The log has a fixed size, so a program that calls in a loop could push out all other entries. Jobs limit
themselves: each takes seconds, and a server has one at a time.
"""

import time
from collections.abc import Callable

HOUR_SECONDS = 3600.0


class AuditBudget:
    """Counts in this process only. `most`: entries per hour; `now`: returns seconds."""

    def __init__(self, most: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._since = now()
        self._used: dict[tuple[str, str], int] = {}

    def left(self, token_id: str, account: str) -> int:
        """Count one entry. Returns how many are left, including this one: 1 means the last one, 0 too many."""
        if (now := self._now()) - self._since >= HOUR_SECONDS:
            self._since, self._used = now, {}
        used = self._used.get((token_id, account), 0)
        self._used[token_id, account] = min(used + 1, self._most)
        return self._most - used
