"""The parent process of a front end with several processes, which only report here that they are running."""

import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import pytest

from api import processes
from api.http import listeners
from api.processes import MISCONFIGURED, Process
from api.settings import ApiSettings

PATIENCE_SECONDS = 60.0


class FrontEnd:
    """A front end of two processes. `serve`: the work of each; it can send its index to the test."""

    def __init__(
        self, folder: Path, serve: Callable[[Process], None], *, before: Callable[[], Any] = lambda: None
    ) -> None:
        self._said, told = os.pipe()

        def tell(process: Process) -> None:
            os.write(told, bytes([process.index]))
            serve(process)

        self.pid = os.fork()
        if not self.pid:
            self._run(folder, tell, before)

    def _run(self, folder: Path, serve: Callable[[Process], None], before: Callable[[], Any]) -> NoReturn:
        code = 1
        try:
            before()
            processes.run(ApiSettings(unix_socket=folder / "socket", processes=2), serve)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)

    def started(self, count: int) -> list[int]:
        """The indexes of the next processes that start."""
        found: list[int] = []
        while len(found) < count:
            assert select.select([self._said], [], [], PATIENCE_SECONDS)[0], found
            found += os.read(self._said, 1)
        return sorted(found)

    def children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def ended(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def wait(process: Process) -> None:
    """Wait until SIGTERM, which kills it, or until its parent ends."""
    assert process.shared is not None
    select.select([process.shared.parent], [], [])


@contextmanager
def running(front_end: FrontEnd) -> Iterator[FrontEnd]:
    try:
        yield front_end
    finally:
        os.kill(front_end.pid, signal.SIGTERM)
        assert front_end.ended() == 0


def test_a_process_that_the_kernel_does_not_fork_is_started_later(tmp_path: Path) -> None:
    answers = iter([None, OSError(errno.ENOMEM, "Cannot allocate memory"), None])
    fork = os.fork

    def sometimes() -> int:
        if error := next(answers):
            raise error
        return fork()

    def become_scarce() -> None:
        mock.patch.object(os, "fork", sometimes).start()

    with running(FrontEnd(tmp_path, wait, before=become_scarce)) as front_end:
        assert front_end.started(2) == [0, 1]


def test_an_orphan_that_ends_is_nobody(tmp_path: Path) -> None:
    """In a container, the kernel gives orphans to process 1."""

    def have_another_child() -> None:
        if not os.fork():
            os._exit(0)

    with running(FrontEnd(tmp_path, wait, before=have_another_child)) as front_end:
        front_end.started(2)
        os.kill(front_end.children()[-1], signal.SIGKILL)
        assert front_end.started(1) == [1]


def test_with_settings_that_cannot_be_used_all_end(tmp_path: Path) -> None:
    def refuse(process: Process) -> None:
        if process.index == 1:
            raise SystemExit(MISCONFIGURED)
        wait(process)

    assert FrontEnd(tmp_path, refuse).ended() == MISCONFIGURED


def test_an_address_of_a_family_that_the_kernel_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ::1 of localhost on a machine without IPv6."""
    here = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(12, socket.SOCK_STREAM, 6, "", ("x", 0)), here])
    (sockets,) = listeners.bind(ApiSettings(port=0))
    try:
        assert [each.family for each in sockets] == [socket.AF_INET]
    finally:
        for each in sockets:
            each.close()
