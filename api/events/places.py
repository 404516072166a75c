"""Limits the open event streams, over all processes of a front end."""

import fcntl
from contextlib import suppress

from worker.store.customers.events import Audience

_ACCOUNTS = 1 << 40  # account IDs that differ by a multiple of this share their places


class Places:
    """Each stream takes a place of its account, or of the operators. `file`: a file descriptor that the processes
    share. A process takes a place by locking one byte, so the kernel frees the places of a process that dies."""

    def __init__(self, *, per_account: int, of_operators: int, file: int | None = None) -> None:
        self._per_account = per_account
        self._of_operators = of_operators
        self._file = file
        self._ours: set[int] = set()  # POSIX lets a process lock the same byte twice

    def take(self, audience: Audience) -> int | None:
        """A free place; None if there is none."""
        if audience is None:
            first, many = 0, self._of_operators
        else:
            first = self._of_operators + audience % _ACCOUNTS * self._per_account
            many = self._per_account
        free = (place for place in range(first, first + many) if place not in self._ours and self._lock(place))
        place = next(free, None)
        if place is not None:
            self._ours.add(place)
        return place

    def free(self, place: int) -> None:
        self._ours.discard(place)
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _lock(self, place: int) -> bool:
        if self._file is not None:
            with suppress(BlockingIOError, PermissionError):  # POSIX allows either error
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                return True
            return False
        return True
