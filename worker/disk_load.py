"""Fewer jobs at a time while the node's disks are busy.

The signal is the kernel's pressure of I/O (PSI): the share of the last ten seconds in which some task on the node
waited for a disk.
"""

import re
from collections.abc import Callable
from pathlib import Path

import structlog

from worker.program.loop import every

LOOK_SECONDS = 10.0  # the span of `avg10`, so that each reading reflects the previous change
LEAST = 1  # so that every job eventually starts
_SOME = re.compile(r"^some avg10=([0-9.]+) ", re.MULTILINE)

log = structlog.stdlib.get_logger()


class DiskLoad:
    """How many jobs may run at a time, at most `most`. Each look allows one job fewer while the pressure is above
    `busy_percent`, and one more while it is below half of that. In between the number stays, so that it does not
    oscillate with the pressure that the jobs themselves cause.

    `changed` is called after each change."""

    def __init__(
        self, *, most: int, busy_percent: float, pressure: Path, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._most = most
        self._busy_percent = busy_percent
        self._pressure = pressure
        self._changed = changed
        self._allowed = most
        self._is_told = False

    @property
    def allowed(self) -> int:
        return self._allowed

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    async def keep_looking(self) -> None:
        """Run until cancelled; returns at once if the setting is off."""
        if self._busy_percent:
            await every(LOOK_SECONDS, self.look, name="disks")

    async def look(self) -> None:
        """Read the pressure and adjust the number by one. If the pressure is unknown, all jobs are allowed."""
        percent, allowed = self._read(), self._allowed
        if percent is None:
            allowed = self._most
        elif percent > self._busy_percent:
            allowed = max(LEAST, allowed - 1)
        elif percent < self._busy_percent / 2:
            allowed = min(self._most, allowed + 1)
        if allowed != self._allowed:
            self._allowed = allowed
            log.info("disks.jobs_allowed", jobs=allowed, of=self._most, pressure_percent=percent)
            self._changed()

    def _read(self) -> float | None:
        """The pressure in percent; None: unknown, which is logged once."""
        reason = "it has no line `some`"
        try:
            if found := _SOME.search(self._pressure.read_text()):
                return float(found[1])
        except OSError as error:
            reason = error.strerror or str(error)
        if not self._is_told:
            log.warning("disks.pressure_unknown", path=str(self._pressure), reason=reason)
        self._is_told = True
        return None
