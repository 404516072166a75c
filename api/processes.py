"""Runs a front end as several processes that listen on one address.

The parent serves nothing. It keeps the listening sockets open, so that connections wait while a process restarts. It
restarts each process that dies, and ends once all have ended after SIGTERM or SIGINT.
"""

import gc
import math
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

import structlog

from api.http import listeners
from api.settings import ApiSettings
from worker.program import alive

# delay before a process that died is restarted, so that one that dies at its start does not use a whole CPU
AGAIN_SECONDS = 1.0
OVERDUE_SECONDS = 10.0  # how long after `drain_seconds` the remaining processes are killed
MISCONFIGURED = 2  # exit code of a process with invalid settings: it is not restarted

_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _ENDING | {signal.SIGCHLD}

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the processes of one front end have in common.

    `folder`: where each process serves its metrics to the others. `places`: a file descriptor whose locks count event
    streams. `parent`: a file descriptor that reaches end-of-file once the parent is gone.
    """

    processes: int
    folder: Path
    places: int
    parent: int


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a front end. The process with index 0 does the cell's chores. `shared`: None if it is the only
    one."""

    index: int = 0
    sockets: Sequence[socket.socket] = ()
    shared: Shared | None = None

    @property
    def does_chores(self) -> bool:
        return self.index == 0


def run(settings: ApiSettings, serve: Callable[[Process], None]) -> None:
    """Run `serve` in each process until SIGTERM or SIGINT. Raises OSError if it can't listen, and SystemExit if a
    process has ended with MISCONFIGURED."""
    sockets = listeners.bind(settings)
    if settings.processes == 1:
        serve(Process(sockets=sockets[0]))
        return
    with tempfile.TemporaryDirectory(prefix="vps-snapshots-api-") as folder, _signals_blocked() as mask:
        reading, writing = os.pipe()
        shared = Shared(
            processes=settings.processes, folder=Path(folder), places=os.memfd_create("streams"), parent=reading
        )

        def serve_as(index: int) -> None:
            os.close(writing)
            _close(sockets, but=sockets[index])
            alive.leave_to_parent()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            serve(Process(index=index, sockets=sockets[index], shared=shared))

        def start(index: int) -> int:
            return os.fork() or _exit_after(serve_as, index)

        gc.freeze()  # a garbage collection would write to memory that the processes share, and so copy it
        _Parent(start, sockets, drain_seconds=settings.drain_seconds).run()


def _close(sockets: Iterable[Sequence[socket.socket]], *, but: Sequence[socket.socket] = ()) -> None:
    for listener in chain.from_iterable(sockets):
        if listener not in but:
            listener.close()


@contextmanager
def _signals_blocked() -> Iterator[set[int]]:
    """Block the signals, so that they wait until the parent asks for the next one. Yields the previous mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_after(serve: Callable[[int], None], index: int) -> NoReturn:
    code = 1
    try:
        serve(index)
        code = 0
    except SystemExit as error:  # the process has already printed the reason
        code = error.code if isinstance(error.code, int) else code
    except KeyboardInterrupt:  # during its start
        pass
    except BaseException:
        log.exception("api.process_broke", process=index)
    finally:
        os._exit(code)  # otherwise the child would run the parent's cleanup


class _Parent:
    """`start` starts the process with an index, and returns its PID. `sockets`: the sockets of each process."""

    def __init__(
        self, start: Callable[[int], int], sockets: Sequence[Sequence[socket.socket]], *, drain_seconds: float
    ) -> None:
        self._start = start
        self._sockets = sockets
        self._running: dict[int, int] = {}  # index by PID
        self._due = dict.fromkeys(range(len(sockets)), 0.0)  # when to start each index, on the monotonic clock
        self._drain_seconds = drain_seconds

    def run(self) -> None:
        """Return after SIGTERM or SIGINT. Raises SystemExit if the processes cannot work with these settings."""
        while True:
            self._start_due()
            alive.tell(alive.READY)
            if self._next_signal() in _ENDING:
                break
            for index, code in self._ended():
                log.error("api.process_ended", process=index, code=code)
                if code == MISCONFIGURED:
                    self._end()
                    sys.exit(code)
                self._due[index] = time.monotonic() + AGAIN_SECONDS
        self._end()

    def _next_signal(self) -> int | None:
        """The next signal; None once a process must be started. Meanwhile, the parent notifies systemd's watchdog."""
        while True:
            alive.tell(alive.ALIVE)
            due = min(self._due.values(), default=math.inf)
            told = time.monotonic() + alive.TOLD_EACH_SECONDS
            found = _next_signal(until=min(due, told))
            if found is not None or due <= told:
                return found

    def _start_due(self) -> None:
        for index, at in tuple(self._due.items()):
            if at > time.monotonic():
                continue
            try:
                self._running[self._start(index)] = index
                del self._due[index]
            except OSError as error:  # such as out of memory: the others continue
                log.error("api.process_not_started", process=index, reason=str(error))  # noqa: TRY400 - the reason is enough
                self._due[index] = time.monotonic() + AGAIN_SECONDS

    def _end(self) -> None:
        """Let the processes finish their requests; kill those that do not end."""
        alive.tell(alive.STOPPING)
        log.info("api.stopping")
        _close(self._sockets)  # otherwise connections would wait for a process until all have ended
        self._send(signal.SIGTERM)
        overdue = time.monotonic() + self._drain_seconds + OVERDUE_SECONDS
        while True:
            for index, code in self._ended():  # before it waits: several that end together may send only one signal
                if code:
                    log.error("api.process_ended", process=index, code=code)
            if not self._running:
                return
            if time.monotonic() > overdue:
                self._send(signal.SIGKILL)
            alive.tell(alive.ALIVE)
            _next_signal(until=max(overdue, time.monotonic() + AGAIN_SECONDS))

    def _send(self, signum: signal.Signals) -> None:
        for pid in self._running:  # not reaped yet, so each PID still belongs to its process
            os.kill(pid, signum)

    def _ended(self) -> Iterator[tuple[int, int]]:
        """Index and exit code of each process that has ended; a negative exit code is the signal that killed it."""
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            if pid in self._running:  # not an orphan: the kernel gives those to process 1 of a container
                yield self._running.pop(pid), os.waitstatus_to_exitcode(status)


def _next_signal(*, until: float) -> int | None:
    """The next signal; None if none has arrived by that time on the monotonic clock."""
    found = signal.sigtimedwait(_SIGNALS, max(0.0, until - time.monotonic()))
    return found.si_signo if found else None
