"""Tells systemd that a program is ready, stopping and alive (sd_notify(3)), and ends a program that hangs."""

import asyncio
import faulthandler
import os
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress

import structlog

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
HUNG_SECONDS = 30.0  # without a turn of the event loop; its longest blocking call, a journal write, takes far less
TOLD_EACH_SECONDS = HUNG_SECONDS / 10
TURN_SECONDS = 300.0  # without a turn of a watched loop; the limits of its calls are far shorter
SEND_SECONDS = 1.0

_SOCKET = "NOTIFY_SOCKET"

log = structlog.stdlib.get_logger()


def tell(state: str) -> None:
    """Send a message to systemd, if it started this program. If that fails, the message is dropped."""
    address = os.environ.get(_SOCKET)
    if not address:
        return
    if address[0] == "@":  # an abstract socket
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(SEND_SECONDS)
        sender.sendto(state.encode(), address)


def leave_to_parent() -> None:
    """Send no messages from now on, because systemd listens to the main process only."""
    os.environ.pop(_SOCKET, None)


class Turns:
    """When each watched loop must have completed its turn. `limit_seconds`: how long a turn may take."""

    def __init__(self, limit_seconds: float = TURN_SECONDS, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limit_seconds = limit_seconds
        self._now = now
        self._due: dict[str, float] = {}

    def counted(self, name: str, *, more_seconds: float = 0.0) -> Callable[[], None]:
        """A function that the loop calls at each turn. The loop is watched from the first call on. `more_seconds`: how
        much longer than the limit a turn of this loop may take."""

        def turned() -> None:
            self._due[name] = self._now() + self._limit_seconds + more_seconds

        return turned

    def hung(self) -> Collection[str]:
        return [name for name, due in self._due.items() if self._now() > due]


async def prove_alive(turns: Turns | None = None, *, hung_seconds: float = HUNG_SECONDS) -> None:
    """Run until cancelled: a watchdog for the event loop and the loops of `turns`.

    If the event loop hangs for `hung_seconds`, so that not even timeouts fire, the process prints its stack and exits.
    It also exits if another loop hangs and makes no progress for `hung_seconds` more.
    """
    told = False
    faulthandler.dump_traceback_later(hung_seconds, exit=True)
    try:
        while True:
            hung = turns.hung() if turns else ()
            if not hung:
                faulthandler.dump_traceback_later(hung_seconds, exit=True)
                tell(ALIVE)
            elif not told:
                log.critical("loop.hung", loops=sorted(hung))
            told = bool(hung)
            await asyncio.sleep(hung_seconds / 10)
    finally:
        faulthandler.cancel_dump_traceback_later()
