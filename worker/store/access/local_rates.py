"""Rate limits while Redis refuses writes: each process counts on its own."""

import time
from collections.abc import Callable
from datetime import timedelta
from math import ceil

KEYS_MOST = 10_000  # beyond this, the least recent caller is dropped


class LocalRates:
    """Counts like the script `shared/rate.lua`, with the generic cell rate algorithm. `clock`: returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}  # when the full burst is available again, in milliseconds

    def take(self, key: str, most: int, window: timedelta) -> tuple[int, int, int]:
        """Whether one more of `most` calls within `window` is allowed (1 or 0), how many are left, and the milliseconds
        until there is one more."""
        now, window_ms = self._clock() * 1000, window.total_seconds() * 1000
        each = window_ms / most
        full_at = max(self._full_at.pop(key, 0.0), now)
        allowed = full_at + each - window_ms <= now
        if allowed:
            full_at += each
        self._full_at[key] = full_at  # moves it to the end
        if len(self._full_at) > KEYS_MOST:
            del self._full_at[next(iter(self._full_at))]
        left = int((window_ms - (full_at - now)) // each)
        return int(allowed), left, ceil(max(0.0, full_at - now - window_ms + (left + 1) * each))
