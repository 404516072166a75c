"""A front end of several processes: what they share, and what remains when one of them dies."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, TCPConnector
from prometheus_client.parser import text_string_to_metric_families

from deploy.demo.service import free_port
from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.integration.test_api_program import Program, at_socket
from tests.queueing import until_told
from worker.store.access.tokens import Permission, Tokens

PROCESSES = 3
SNAPSHOTS, EVENTS = "/api/v1/snapshots/", "/api/v1/events/"
READ_WRITE = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})


@dataclass(kw_only=True)
class Several:
    """`vps-snapshots-api` with several processes. Each call uses a new connection."""

    program: Program
    parent: asyncio.subprocess.Process
    port: int
    token: str

    @asynccontextmanager
    async def call(self, path: str, method: str = "GET", **options: Any) -> AsyncIterator[ClientResponse]:
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with (
            ClientSession(connector=TCPConnector(force_close=True)) as client,
            client.request(method, url, headers=headers, **options) as response,
        ):
            yield response

    async def status(self, path: str) -> int:
        async with self.call(path) as response:
            return response.status

    async def summed(self, name: str) -> Counter[str]:
        """The sum of the samples of that name, by process."""
        found: Counter[str] = Counter()
        async with self.call("/metrics") as response:
            for family in text_string_to_metric_families(await response.text()):
                for sample in family.samples:
                    if sample.name == name:
                        found[sample.labels["process"]] += round(sample.value)
        return found

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text().split()
        ]


@pytest.fixture
def program(redis_server: RedisServer, cell: Cell) -> Program:
    return Program(redis_url=f"unix://{redis_server.socket}")


@asynccontextmanager
async def several(program: Program, cell: Cell, **settings: str) -> AsyncIterator[Several]:
    token = await Tokens(cell.redis).create(name="a", account_id=ACCOUNT, permissions=READ_WRITE)
    port = free_port()
    async with program.serving(processes=str(PROCESSES), port=str(port), **settings) as parent:
        for _ in range(PROCESSES - 1):
            program.lines.append({"event": "started"})
            await program.line(parent, "api.listening")
        yield Several(program=program, parent=parent, port=port, token=token.secret)


async def test_all_answer_and_prometheus_reads_all_from_any(program: Program, cell: Cell) -> None:
    async with several(program, cell) as front_end:
        for _ in range(60):
            assert await front_end.status(SNAPSHOTS) == 200
        answered = await front_end.summed("vps_snapshots_http_request_duration_seconds_count")
        assert sorted(answered) == ["0", "1", "2"]
        assert answered.total() == 60
        assert sorted(await front_end.summed("vps_snapshots_cell_view_timestamp_seconds")) == ["0"]
        assert await program.stop(front_end.parent) == 0


async def test_one_that_dies_is_started_again_and_no_call_is_refused_meanwhile(program: Program, cell: Cell) -> None:
    async with several(program, cell) as front_end:
        children = front_end.children()
        os.kill(children[0], signal.SIGKILL)
        assert [await front_end.status("/healthz") for _ in range(30)] == [200] * 30
        ended = await program.line(front_end.parent, "api.process_ended")
        assert ended["code"] == -signal.SIGKILL
        again = await program.line(front_end.parent, "api.listening")
        assert again["process"] == ended["process"]
        assert len(set(front_end.children()) & set(children)) == PROCESSES - 1
        assert len(await front_end.summed("vps_snapshots_event_streams_open")) == PROCESSES


async def test_a_limit_is_one_of_all_of_them(program: Program, cell: Cell) -> None:
    async with several(program, cell, calls_per_minute="12", streams_per_account="4") as front_end:
        async with AsyncExitStack() as streams:
            opened = [(await streams.enter_async_context(front_end.call(EVENTS))).status for _ in range(6)]
            assert opened == [200] * 4 + [429] * 2
        statuses = Counter([await front_end.status(SNAPSHOTS) for _ in range(10)])
        assert statuses == {200: 6, 429: 4}


async def test_an_event_reaches_a_stream_whichever_process_has_it(program: Program, cell: Cell) -> None:
    async with several(program, cell) as front_end, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(front_end.call(EVENTS)) for _ in range(6)]
        for stream in streams:
            assert (await stream.content.readline()).startswith(b"retry")
        async with front_end.call(SNAPSHOTS, "POST", json={"server_id": SERVER, "name": "a"}) as response:
            assert response.status == 201
        for stream in streams:
            async with asyncio.timeout(60):
                while not (await stream.content.readline()).startswith(b"event: job"):
                    pass


async def test_while_it_drains_new_connections_are_refused(program: Program, cell: Cell) -> None:
    async with several(program, cell, body_seconds="300", request_seconds="300", drain_seconds="300") as front_end:
        head = f"POST {SNAPSHOTS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {front_end.token}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", front_end.port)
        writer.write(head.encode())
        assert await asyncio.wait_for(reader.readline(), 60) == b"HTTP/1.1 100 Continue\r\n"
        front_end.parent.send_signal(signal.SIGTERM)
        await until_told(lambda: _refuses(front_end.port))
        writer.close()
        assert await front_end.parent.wait() == 0


async def _refuses(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_settings_that_cannot_be_used_end_all_of_them(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    refused = await asyncio.to_thread(program.run, processes="2", port="0", tracing__endpoint="http://127.0.0.1:9")
    assert refused.returncode == 2
    assert "tracing, from the environment (OTEL_*)" in refused.stderr
    assert "Traceback" not in refused.stderr


BOTH_ENDED = """
import os, signal, socket
from api import processes

def start(index):
    pid = os.fork()
    if not pid:
        os._exit(processes.MISCONFIGURED)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid

with processes._signals_blocked():
    processes._Parent(start, [[socket.socket()], [socket.socket()]], drain_seconds=3600).run()
"""


def test_two_that_ended_before_the_parent_looked_are_both_noticed() -> None:
    """Their two signals arrive as one."""
    assert subprocess.run([sys.executable, "-c", BOTH_ENDED], timeout=60, check=False).returncode == 2


async def test_without_its_parent_none_is_left(program: Program, cell: Cell) -> None:
    async with several(program, cell) as front_end:
        children = front_end.children()
        front_end.parent.kill()
        await front_end.parent.wait()
        await until_told(lambda: _are_gone(children))


async def _are_gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)


async def test_they_share_a_unix_socket(program: Program, redis_server: RedisServer) -> None:
    path = redis_server.folder / "several.sock"
    for _ in range(2):  # the second one finds what the killed first one left
        async with program.serving(processes="2", unix_socket=str(path)) as parent:
            async with at_socket(path) as client, client.get("/healthz") as response:
                assert response.status == 200
            parent.kill()
            await parent.wait()


async def test_two_front_ends_do_not_share_a_port(program: Program, cell: Cell) -> None:
    async with several(program, cell) as front_end:
        refused = await asyncio.to_thread(program.refuses, processes="2", port=str(front_end.port))
        assert f"can't listen on 127.0.0.1:{front_end.port}" in refused
