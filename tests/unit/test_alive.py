"""Notifications to systemd, and how a hanging program ends."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api import processes
from api.http import listeners
from api.settings import ApiSettings
from worker.program import alive
from worker.program.alive import Turns, prove_alive

HANGS = """
import asyncio, time
from worker.program.alive import prove_alive

async def hang():
    task = asyncio.create_task(prove_alive(hung_seconds=0.2))
    await asyncio.sleep(0)
    time.sleep(60)

asyncio.run(hang())
"""


LOOP_HANGS = """
import asyncio
from worker.program.alive import Turns, prove_alive

turns = Turns(0.1)
turns.counted("jobs")()
turns.counted("heartbeats", more_seconds=3600)()
asyncio.run(prove_alive(turns, hung_seconds=0.5))
"""


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the socket."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@vps-snapshots-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield receiver


def is_silent(receiver: socket.socket) -> bool:
    receiver.setblocking(False)
    try:
        return not receiver.recv(100)
    except BlockingIOError:
        return True


def test_systemd_is_notified(told: socket.socket) -> None:
    alive.tell(alive.READY)
    assert told.recv(100) == b"READY=1"


def test_without_systemd_nobody_is_notified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    alive.tell(alive.READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    alive.tell(alive.READY)


def test_a_program_one_of_whose_loops_hangs_says_which_and_ends() -> None:
    done = subprocess.run([sys.executable, "-c", LOOP_HANGS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.count("loop.hung") == 1
    assert "['jobs']" in done.stdout


async def test_the_watchdog_is_notified_while_all_loops_make_progress(told: socket.socket) -> None:
    now = [0.0]
    turns = Turns(300, now=lambda: now[0])
    heartbeats, jobs = turns.counted("heartbeats"), turns.counted("jobs")
    heartbeats()
    jobs()
    now[0] = 250
    heartbeats()
    proving = asyncio.create_task(prove_alive(turns, hung_seconds=60))
    assert await asyncio.to_thread(told.recv, 100) == b"WATCHDOG=1"
    proving.cancel()

    now[0] = 301
    assert turns.hung() == ["jobs"]
    proving = asyncio.create_task(prove_alive(turns, hung_seconds=60))
    for _ in range(3):
        await asyncio.sleep(0)
    assert is_silent(told)
    proving.cancel()


def test_a_program_whose_event_loop_hangs_says_where_and_ends() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "in hang" in done.stderr


def test_the_parent_of_several_processes_notifies_for_them(told: socket.socket, tmp_path: Path) -> None:
    settings = ApiSettings(unix_socket=tmp_path / "socket", processes=2)
    pid = os.fork()
    if not pid:
        try:
            processes.run(settings, lambda _: signal.pause())
        finally:
            os._exit(0)
    assert [told.recv(100), told.recv(100)] == [b"READY=1", b"WATCHDOG=1"]
    os.kill(pid, signal.SIGTERM)
    said = b""
    while said != b"STOPPING=1":  # its child processes send nothing: systemd would refuse it
        said = told.recv(100)
        assert said in {b"WATCHDOG=1", b"STOPPING=1"}
    os.waitpid(pid, 0)


@pytest.mark.parametrize(("count", "processes", "own"), [(1, 3, [1, 1, 1]), (3, 3, [1, 1, 1]), (3, 2, [2, 1])])
def test_each_socket_from_systemd_is_accepted_from(count: int, processes: int, own: list[int]) -> None:
    first = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    others = [socket.create_server(first.getsockname(), reuse_port=True) for _ in range(count - 1)]
    dealt = listeners._dealt([first, *others], processes)
    assert [len(each) for each in dealt] == own
    assert {one for each in dealt for one in each} == {first, *others}
    for one in (first, *others):
        one.close()
