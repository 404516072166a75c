"""Keeps libvirt from looking at a QEMU that is about to end: libvirt then stops the domain 0.2 s earlier.

libvirt learns that a QEMU has ended when QEMU closes its end of the monitor's connection. QEMU does so shortly before
its process ends. libvirt finds the process still there, sleeps for 200 ms and looks again (virProcessKillPainfully),
while the server is off. So this holds a copy of QEMU's end until the process is gone; nothing is read from it or
written to it. libvirt then finds no process and stops the domain at once.

The disks are as safe as without: nobody touches them before libvirt says that the domain is off. If a QEMU cannot be
found or its connection cannot be copied (no permission, another PID namespace), libvirt does as it always did. If this
process dies, the kernel closes the copy.
"""

import asyncio
import ctypes
import errno
import itertools
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from drivers import safe_files

END_SECONDS = 2.0  # limit for a QEMU to end after SIGTERM; after that, libvirt ends it by its own rules
REAP_SECONDS = 1.0  # limit for an ended process to be reaped; the first process of some containers takes longer
REAPED_POLL_SECONDS = 0.001
_PIDFD_GETFD = 438  # the number of the system call, the same on all architectures
_PID_BYTES = 32
_MONITOR = "/monitor.sock"
_CREDENTIALS = struct.Struct("3i")  # of the process at the other end of a socket


class QemuProcess:
    """The QEMU of a running domain, with a copy of its end of the monitor's connection. Call `close`."""

    def __init__(self, process: int, monitor: socket.socket) -> None:
        self._process = process  # a pidfd: it never refers to another process
        self._monitor = monitor

    @classmethod
    def found(cls, pid_file: Path, uuid: str) -> Self | None:
        """The QEMU of the domain with this UUID; None if it, or its connection, cannot be had. Blocks."""
        with suppress(OSError, ValueError, OverflowError):
            with safe_files.regular(pid_file) as file:
                pid = int(os.pread(file, _PID_BYTES, 0))
            process = os.pidfd_open(pid)
            try:
                monitor = _monitor(pid, process) if _uuid(pid) == uuid else None
                if monitor is not None and not _is_gone(process):  # otherwise another process may have had its number
                    found, process = cls(process, monitor), -1
                    return found
                if monitor is not None:
                    monitor.close()
            finally:
                if process >= 0:
                    os.close(process)
        return None

    def close(self) -> None:
        self._monitor.close()
        os.close(self._process)

    @contextmanager
    def told_when_gone(self) -> Iterator[None]:
        """Within the block, which runs on the event loop, libvirt is told of QEMU's end when its process is gone."""
        loop, looking = asyncio.get_running_loop(), list[asyncio.TimerHandle]()

        def exited() -> None:
            loop.remove_reader(self._process)
            look(loop.time() + REAP_SECONDS)

        def look(deadline: float) -> None:
            if _is_gone(self._process) or loop.time() > deadline:
                self._monitor.close()
            else:
                looking[:] = [loop.call_later(REAPED_POLL_SECONDS, look, deadline)]

        loop.add_reader(self._process, exited)
        try:
            yield
        finally:
            loop.remove_reader(self._process)
            for timer in looking:
                timer.cancel()

    def end(self) -> bool:
        """Ask QEMU to end, as libvirt does (SIGTERM), and wait until its process is gone. Blocks.

        Returns False if it may not be asked, or does not end within END_SECONDS. A process that is not reaped within
        REAP_SECONDS has ended, too.
        """
        try:
            signal.pidfd_send_signal(self._process, signal.SIGTERM)
        except OSError:  # without CAP_KILL
            return False
        poll = select.poll()
        poll.register(self._process, select.POLLIN)
        if not poll.poll(1000 * END_SECONDS):
            return False
        deadline = time.monotonic() + REAP_SECONDS
        while not _is_gone(self._process) and time.monotonic() < deadline:
            time.sleep(REAPED_POLL_SECONDS)
        return True


def _uuid(pid: int) -> str | None:
    """The UUID in the command line of a QEMU that libvirt has started."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next((uuid.decode() for option, uuid in itertools.pairwise(words) if option == b"-uuid"), None)


def _monitor(pid: int, process: int) -> socket.socket | None:
    """A copy of QEMU's end of libvirt's connection to its monitor. Raises OSError."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if not os.readlink(link).startswith("socket:"):
                continue
            descriptor = _copied(process, int(link.name))
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EBADF}:  # QEMU has closed it meanwhile
                continue
            raise
        try:
            copy = socket.socket(fileno=descriptor)
        except OSError:  # QEMU has used the number again, maybe for a disk: the copy would keep its locks
            os.close(descriptor)
            continue
        if _is_monitor(copy):
            return copy
        copy.close()
    return None


def _is_monitor(copy: socket.socket) -> bool:
    """By its name and its other end, because QEMU, which a guest may control, chooses the names of its sockets."""
    try:
        if copy.family != socket.AF_UNIX or copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        credentials = copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _pid, user, _group = _CREDENTIALS.unpack(credentials)
        return user in {0, os.geteuid()} and str(copy.getsockname()).endswith(_MONITOR)
    except OSError:
        return False


def _copied(process: int, descriptor: int) -> int:
    """A copy of a descriptor of that process. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    copy = int(libc.syscall(_PIDFD_GETFD, process, descriptor, 0))
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return copy


def _is_gone(process: int) -> bool:
    """Whether the process has ended and was reaped: until then, libvirt finds it."""
    try:
        signal.pidfd_send_signal(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # without CAP_KILL: it is there
        return False
    return False
