"""Notices that the machine's wall clock was set."""

import time

STEP_SECONDS = 10.0  # smaller steps are ignored


class WallClock:
    def __init__(self) -> None:
        self._offset = _offset()

    def stepped_by(self) -> float:
        """By how many seconds the clock was set since the last call; negative: back."""
        before, self._offset = self._offset, _offset()
        return self._offset - before


def _offset() -> float:
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
