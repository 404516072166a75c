"""Runs a front end as several processes that listen on one address.

The parent serves nothing. It holds the listening sockets, so that connections wait for the next process if one dies,
starts each process that died again, and ends once all have ended after SIGTERM or SIGINT.
"""

import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from api.http import listeners
from api.settings import ApiSettings

AGAIN_SECONDS = 1.0  # until a process that died is started again: one that dies at its start must not take a whole CPU
OVERDUE_SECONDS = 10.0  # beyond `drain_seconds`, until processes that have not ended are killed

_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_SIGNALS = _ENDING | {signal.SIGCHLD}

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the processes of one front end have in common.

    `folder`: where each serves its metrics to the others. `places`: a file descriptor whose locks count event streams.
    `parent`: a file descriptor that is at its end once the parent is gone.
    """

    processes: int
    folder: Path
    places: int
    parent: int


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a front end. The one with index 0 does the cell's chores. `shared`: None if it is the only one."""

    index: int = 0
    sockets: Sequence[socket.socket] = ()
    shared: Shared | None = None

    @property
    def does_chores(self) -> bool:
        return self.index == 0


def run(settings: ApiSettings, serve: Callable[[Process], None]) -> None:
    """Run `serve` in each process until SIGTERM or SIGINT. Raises OSError if it can't listen."""
    sockets = listeners.bind(settings)
    if settings.processes == 1:
        serve(Process(sockets=sockets[0]))
        return
    with tempfile.TemporaryDirectory(prefix="vps-snapshots-api-") as folder, _signals_blocked() as mask:
        reading, writing = os.pipe()
        shared = Shared(
            processes=settings.processes, folder=Path(folder), places=os.memfd_create("streams"), parent=reading
        )

        def start(index: int) -> int:
            if pid := os.fork():
                return pid
            os.close(writing)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            _serve_and_exit(serve, Process(index=index, sockets=sockets[index], shared=shared))

        gc.freeze()  # a collection would write to the memory that the processes share, and so copy it
        _Parent(start, settings.processes, drain_seconds=settings.drain_seconds).run()


@contextmanager
def _signals_blocked() -> Iterator[set[int]]:
    """They wait until the parent asks for the next one. Yields the mask from before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve_and_exit(serve: Callable[[Process], None], process: Process) -> NoReturn:
    code = 1
    try:
        serve(process)
        code = 0
    except BaseException:
        log.exception("api.process_broke", process=process.index)
    finally:
        os._exit(code)  # or the child would do what is for the parent to do at its end


class _Parent:
    """`start` starts the process of an index, and returns its PID."""

    def __init__(self, start: Callable[[int], int], processes: int, *, drain_seconds: float) -> None:
        self._start = start
        self._running: dict[int, int] = {}  # index by PID
        self._due = dict.fromkeys(range(processes), 0.0)  # index: when it starts, on the monotonic clock
        self._drain_seconds = drain_seconds

    def run(self) -> None:
        while True:
            self._start_due()
            if _next_signal(until=min(self._due.values(), default=None)) in _ENDING:
                break
            for index, code in self._ended():
                log.error("api.process_ended", process=index, code=code)
                self._due[index] = time.monotonic() + AGAIN_SECONDS
        log.info("api.stopping")
        self._end()

    def _start_due(self) -> None:
        for index, at in tuple(self._due.items()):
            if at <= time.monotonic():
                self._running[self._start(index)] = index
                del self._due[index]

    def _end(self) -> None:
        """Let the processes finish their requests; kill those that do not end."""
        self._send(signal.SIGTERM)
        overdue = time.monotonic() + self._drain_seconds + OVERDUE_SECONDS
        while self._running:
            if time.monotonic() > overdue:
                self._send(signal.SIGKILL)
            _next_signal(until=max(overdue, time.monotonic() + AGAIN_SECONDS))
            for index, code in self._ended():
                if code:
                    log.error("api.process_ended", process=index, code=code)

    def _send(self, signum: signal.Signals) -> None:
        for pid in self._running:  # not waited for yet, so each PID is still its own
            os.kill(pid, signum)

    def _ended(self) -> Iterator[tuple[int, int]]:
        """Index and exit code of each process that has ended; minus the signal that killed it."""
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            yield self._running.pop(pid), os.waitstatus_to_exitcode(status)


def _next_signal(*, until: float | None) -> int | None:
    """The next one; None if none has come by then, on the monotonic clock."""
    if until is None:
        return signal.sigwait(_SIGNALS)
    found = signal.sigtimedwait(_SIGNALS, max(0.0, until - time.monotonic()))
    return found.si_signo if found else None
