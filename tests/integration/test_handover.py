"""A front end restarts under load while its socket stays open, as systemd keeps it. The test acts as systemd."""

import asyncio
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, Cell
from tests.integration.test_api_program import PROGRAM, Program
from worker.store.access.tokens import Permission, Tokens

CLIENTS = 4  # of each kind
ANSWERS = 40  # of each generation
# Places the socket where systemd does, then executes the program: LISTEN_PID is its own.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Load:
    """Clients that call continuously and never retry. `failed`: requests that were refused, reset or dropped."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"GET /api/v1/snapshots/ HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n"
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self._came = asyncio.Event()

    async def call(self, kind: str) -> None:
        """`kept`: one connection, until the server announces that it closes it. `new`: one for each request."""
        while True:
            try:
                await self._use_connection(kind)
            except Exception as error:
                self.failed.append(f"{kind}: {error!r}")
                self._came.set()
                raise

    async def _use_connection(self, kind: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            is_last = False
            while not is_last:
                is_last = await self._ask(reader, writer, keep=kind == "kept")
                self.answered[kind] += 1
                self._came.set()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keep: bool) -> bool:
        """Whether the connection will be closed."""
        writer.write(f"{self._head}Connection: {'keep-alive' if keep else 'close'}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert " 200 " in head.partition("\r\n")[0], head
        length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
        await reader.readexactly(int(length.split()[1]))
        return "\r\nconnection: close" in head

    async def more(self) -> None:
        """Wait until each kind of client has got that many more answers."""
        wanted = {kind: self.answered[kind] + ANSWERS for kind in ("kept", "new")}
        async with asyncio.timeout(60):
            while any(self.answered[kind] < count for kind, count in wanted.items()):
                assert self.failed == []
                self._came.clear()
                await self._came.wait()


@pytest.fixture
def program(redis_server: RedisServer, cell: Cell, listener: socket.socket) -> Program:
    number = listener.fileno()
    command = [sys.executable, "-c", ACTIVATE, str(number), *PROGRAM]
    return Program(redis_url=f"unix://{redis_server.socket}", command=command, pass_fds=[number])


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as one:
        one.set_inheritable(True)
        yield one


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", receiver.getsockname())
        yield receiver


@asynccontextmanager
async def load(listener: socket.socket, cell: Cell) -> AsyncIterator[Load]:
    reading = frozenset({Permission.SNAPSHOTS_READ})
    token = await Tokens(cell.redis).create(name="a", account_id=ACCOUNT, permissions=reading)
    made = Load(listener.getsockname()[1], token.secret)
    tasks = [asyncio.create_task(made.call(kind)) for kind in ("kept", "new") for _ in range(CLIENTS)]
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_restart_drops_no_request(
    program: Program, cell: Cell, listener: socket.socket, notified: socket.socket, processes: str
) -> None:
    settings = {"processes": processes, "calls_per_minute": "1000000"}
    async with load(listener, cell) as clients:
        for _ in range(3):
            async with program.serving(**settings) as process:
                await until_said(notified, b"READY=1")
                log = asyncio.create_task(program.line(process, "api.stopping"))  # a full pipe would block the program
                await clients.more()
                process.terminate()
                await log
                await program.rest(process)
                assert await process.wait() == 0
                await until_said(notified, b"STOPPING=1")
    assert clients.failed == []
    assert min(clients.answered.values()) >= 3 * ANSWERS


async def until_said(receiver: socket.socket, wanted: bytes) -> None:
    while await asyncio.to_thread(receiver.recv, 100) != wanted:
        pass
