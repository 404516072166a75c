"""How much one node may do."""

import time


class Allowance:
    """A rate limit in units per second, with a burst of `at_once` units. Units above the limit are owed."""

    def __init__(self, *, per_second: float, at_once: float) -> None:
        self._per_second = per_second
        self._most = at_once
        self._left = at_once
        self._at = time.monotonic()

    def take(self, units: float) -> float:
        """Take the units, and return the seconds that the caller must wait until they are available."""
        self._refill()
        self._left -= units
        return max(0.0, -self._left / self._per_second)

    def may_take(self) -> bool:
        """Take one unit, if it is available now."""
        self._refill()
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def _refill(self) -> None:
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now
