"""The sockets that a front end listens on."""

import errno
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from api.settings import ApiSettings

_FIRST = 3  # the number of the first descriptor that systemd passes


def bind(settings: ApiSettings) -> list[list[socket.socket]]:
    """The listening sockets of each process: those that systemd passes, otherwise those of the settings. Raises
    OSError.

    Each process has its own sockets for a host and a port, and the kernel spreads new connections evenly. The processes
    share a Unix socket: there the kernel has no such option.
    """
    if given := _given():
        return _dealt([_with_timeout(one, settings) for one in given], settings.processes)
    if settings.unix_socket is not None:
        return [[_at_path(settings.unix_socket)]] * settings.processes
    found = _addresses(settings)
    shared = settings.processes > 1
    if shared and settings.port:  # shared ports can be bound twice: another front end would get half of the connections
        for family, address in found:
            socket.create_server(address, family=family).close()
    first = [_at_address(family, address, settings, shared=shared) for family, address in found]
    others = [
        [_at_address(one.family, one.getsockname(), settings, shared=shared) for one in first]
        for _ in range(settings.processes - 1)
    ]
    return [first, *others]


def _given() -> list[socket.socket]:
    """The sockets that systemd passes to this process (sd_listen_fds(3)). Only the first call returns them."""
    is_ours = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = int(os.environ.pop("LISTEN_FDS", "0")) if is_ours else 0
    given = [socket.socket(fileno=number) for number in range(_FIRST, _FIRST + count)]
    for one in given:
        one.set_inheritable(False)
        one.setblocking(False)
    return given


def _dealt(given: Iterable[socket.socket], processes: int) -> list[list[socket.socket]]:
    """The sockets of each process. If several have the same address (SO_REUSEPORT), each belongs to one process:
    connections of a socket that no process accepts from would wait forever. If there are fewer sockets than processes,
    they are shared."""
    by_address: dict[object, list[socket.socket]] = {}
    for one in given:
        by_address.setdefault(one.getsockname(), []).append(one)
    of_all = list(by_address.values())
    return [
        [one for same in of_all for one in same[index::processes] or [same[index % len(same)]]]
        for index in range(processes)
    ]


def _addresses(settings: ApiSettings) -> list[tuple[int, Any]]:
    """The addresses of the host, each with its family, such as ::1 and 127.0.0.1 for localhost. Leaves out families
    that the kernel lacks, unless there are no others."""
    answers = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found: list[tuple[int, Any]] = [(family, address) for family, _, _, _, address in answers]
    return [each for each in found if _knows(each[0])] or found


def _knows(family: int) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno != errno.EAFNOSUPPORT
    return True


def _at_address(family: int, address: Any, settings: ApiSettings, *, shared: bool) -> socket.socket:
    return _with_timeout(socket.create_server(address, family=family, reuse_port=shared), settings)


def _with_timeout(listener: socket.socket, settings: ApiSettings) -> socket.socket:
    if listener.family != socket.AF_UNIX:  # accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(settings.stalled_seconds * 1000))
    return listener


def _at_path(path: Path) -> socket.socket:
    if path.is_socket():  # left by a process that was killed
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener
