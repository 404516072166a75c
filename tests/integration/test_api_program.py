"""The program as an operator starts it: a process, its settings, its signals, its command line."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from tests.conftest import RedisServer
from tests.integration import warm
from tests.integration.conftest import ACCOUNT, SERVER, Cell
from tests.lossy import lossy_way
from tests.queueing import PATIENCE_SECONDS

BOTH = ["--permission", "snapshots:read", "--permission", "snapshots:write"]
PROGRAM = [sys.executable, "-c", "from api.main import main; main()"]


@dataclass(kw_only=True)
class Program:
    """`vps-snapshots-api` with its own Redis."""

    redis_url: str
    command: Sequence[str] = tuple(PROGRAM)
    pass_fds: Sequence[int] = ()
    lines: list[dict[str, Any]] = field(default_factory=list)

    def environment(self, **settings: str) -> dict[str, str]:
        ours = {f"VPS_SNAPSHOTS_{name.upper()}": value for name, value in settings.items()}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("VPS_SNAPSHOTS_")}
        return clean | {"VPS_SNAPSHOTS_REDIS__URL": self.redis_url, "COLUMNS": "200"} | ours

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return warm.run("api.main", arguments, self.environment(**settings), program="vps-snapshots-api")

    def refuses(self, *arguments: str, **settings: str) -> str:
        """Check that it refuses to start. Returns its message."""
        return self.ends(2, *arguments, **settings)

    def ends(self, code: int, *arguments: str, **settings: str) -> str:
        """Check that it ends with that code. Returns its standard error, which is never a traceback."""
        done = self.run(*arguments, **settings)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    @asynccontextmanager
    async def serving(self, *arguments: str, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            env=self.environment(**settings),
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self.pass_fds,
        )
        self.lines.clear()
        try:
            await self.line(process, "api.listening")
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await self.rest(process)

    async def line(self, process: asyncio.subprocess.Process, event: str) -> dict[str, Any]:
        """Read the log up to the line with that event."""
        assert process.stderr
        while not self.lines or self.lines[-1]["event"] != event:
            line = await asyncio.wait_for(process.stderr.readline(), 20)
            assert line, self.lines
            self.lines.append(json.loads(line))
        return self.lines[-1]

    async def stop(self, process: asyncio.subprocess.Process) -> int:
        process.send_signal(signal.SIGTERM)
        await self.rest(process)
        return await process.wait()

    async def rest(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr
        rest = (await asyncio.wait_for(process.stderr.read(), 20)).splitlines()
        self.lines += [json.loads(line) for line in rest]
        await process.wait()


@pytest.fixture
def program(redis_server: RedisServer, cell: Cell) -> Program:
    return Program(redis_url=f"unix://{redis_server.socket}")


def at_socket(path: Path) -> ClientSession:
    return ClientSession("http://front-end", connector=UnixConnector(str(path)))


@pytest.mark.parametrize("arguments", [[], ["serve"]])
async def test_it_serves_on_a_port_until_it_is_told_to_stop(program: Program, arguments: list[str]) -> None:
    async with program.serving(*arguments, port="0") as process, ClientSession() as client:
        address = program.lines[-1]["address"]
        assert address.startswith("127.0.0.1:")
        async with client.get(f"http://{address}/readyz") as response:
            assert response.status == 200
        assert await program.stop(process) == 0

    assert [line["event"] for line in program.lines] == ["api.listening", "api.stopping"]


async def test_it_serves_on_a_socket_also_where_a_killed_process_left_one(
    program: Program, redis_server: RedisServer
) -> None:
    path = redis_server.folder / "api.sock"
    for _ in range(2):
        async with program.serving(unix_socket=str(path)) as process, at_socket(path) as client:
            async with client.get("/healthz") as response:
                assert response.status == 200
            process.kill()
            await process.wait()


async def test_a_request_that_runs_at_sigterm_is_answered(
    program: Program, redis_server: RedisServer, cell: Cell
) -> None:
    token = program.run("token", "create", "--name", "a", "--account", str(ACCOUNT), *BOTH).stdout.strip()
    path = redis_server.folder / "api.sock"
    async with (
        lossy_way(redis_server.socket) as way,
        program.serving(unix_socket=str(path), redis__url=f"unix://{way.socket}") as process,
        at_socket(path) as client,
    ):
        way.hold('"name": "a"')
        headers = {"Authorization": f"Bearer {token}"}
        create = asyncio.create_task(
            client.post("/api/v1/snapshots/", json={"server_id": SERVER, "name": "a"}, headers=headers)
        )
        await asyncio.wait_for(way.holds.wait(), PATIENCE_SECONDS)
        process.send_signal(signal.SIGTERM)
        await program.line(process, "api.stopping")
        way.pass_on()
        async with await create as response:
            assert response.status == 201
        assert await process.wait() == 0

    assert program.lines[-1]["event"] == "request.done"
    assert token not in json.dumps(program.lines)


async def test_it_starts_without_redis_and_is_ready_whenever_redis_is(
    program: Program, redis_server: RedisServer, cell: Cell
) -> None:
    path = redis_server.folder / "api.sock"

    async def ready(client: ClientSession) -> int:
        async with client.get("/healthz") as alive, client.get("/readyz") as response:
            assert alive.status == 200
            return response.status

    redis_server.kill()
    try:
        async with program.serving(unix_socket=str(path)), at_socket(path) as client:
            assert await ready(client) == 503
            redis_server.start()
            assert [await ready(client), await ready(client)] == [200, 200]
            redis_server.kill()
            assert await ready(client) == 503
            redis_server.start()
            assert await ready(client) == 200
    finally:
        if redis_server.process is None:
            redis_server.start()


async def test_a_token_is_made_used_listed_and_revoked_by_command(
    program: Program, redis_server: RedisServer, cell: Cell
) -> None:
    made = program.run("token", "create", "--name", "laptop", "--account", "77", *BOTH, "--expires-in", "30d")
    service = program.run("token", "create", "--name", "public tier", "--service", "--permission", "operator")
    secret = made.stdout.strip()
    listed = program.run("token", "list").stdout
    token_id = next(line.split()[0] for line in listed.splitlines() if "laptop" in line)

    assert made.returncode == service.returncode == 0
    assert made.stdout == f"{secret}\n"  # so that a script can use it
    assert token_id in made.stderr
    assert secret not in listed
    assert "snapshots:read,snapshots:write" in listed
    assert "service" in listed
    assert "never" in listed
    path = redis_server.folder / "api.sock"
    async with program.serving(unix_socket=str(path)), at_socket(path) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        async with client.get("/api/v1/snapshots/", headers=headers) as response:
            assert response.status == 200
        assert program.run("token", "revoke", token_id).returncode == 0
        async with client.get("/api/v1/snapshots/", headers=headers) as response:
            assert response.status == 401

    assert token_id in program.ends(1, "token", "revoke", token_id)
    await cell.raw("SET", "audit:new", "what takes no entries keeps nobody from revoking")
    other_id = next(line.split()[0] for line in listed.splitlines() if "service" in line)
    assert "may not be in the audit log" in program.ends(0, "token", "revoke", other_id)
    assert other_id not in program.run("token", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--name", "a", "--permission", "operator"], "--account"),
        (["--name", "a", "--permission", "operator", "--account", "1", "--service"], "--account"),
        (["--name", "a", "--permission", "operator", "--account", "0"], "--account"),
        (["--name", "a", "--permission", "everything", "--account", "1"], "--permission"),
        (["--name", "a", "--account", "1"], "--permission"),
        (["--permission", "operator", "--account", "1"], "--name"),
        (["--name", "", "--permission", "operator", "--account", "1"], "--name"),
        (["--name", "two\nlines", "--permission", "operator", "--account", "1"], "--name"),
        (["--name", "a", "--permission", "operator", "--account", "1", "--expires-in", "1y"], "--expires-in"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(program: Program, arguments: list[str], named: str) -> None:
    assert named in program.refuses("token", "create", *arguments)


def test_the_commands_say_so_when_redis_is_away(program: Program) -> None:
    assert "is not responding" in program.ends(1, "token", "list", redis__url="unix:///nowhere.sock")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"port": "http"}, "port"),
        ({"port": "65536"}, "port"),
        ({"host": ""}, "host"),
        ({"body_seconds": "0"}, "body_seconds"),
        ({"drain_seconds": "nan"}, "drain_seconds"),
        ({"log_level": "loud"}, "log_level"),
        ({"redis__url": "http://x"}, "redis.url"),
        ({"redis__color": "red"}, "redis.color"),
        ({"redis": "not JSON"}, '"redis"'),
    ],
)
def test_a_wrong_setting_is_named_at_start(program: Program, settings: dict[str, str], named: str) -> None:
    assert named in program.refuses(**settings)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("port = 'http'", "port:"),
        ("prot = 8080", "prot:"),
        ("[redis]\ncolor = 7", "redis.color:"),
        ("port 8080", "not TOML"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("place", [lambda path: ["--config", path], lambda path: ["serve", "--config", path]])
def test_a_wrong_settings_file_is_named_at_start(
    program: Program, tmp_path: Path, text: str | None, named: str, place: Callable[[str], list[str]]
) -> None:
    path = tmp_path / "api.toml"
    if text is not None:
        path.write_text(text)

    said = program.refuses(*place(str(path)))

    assert str(path) in said
    assert named in said


async def test_the_environment_overrides_the_file(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "api.toml"
    path.write_text("port = 1\nhost = '127.0.0.2'\n")

    async with program.serving(config=str(path), port="0"):
        host, _, port = program.lines[-1]["address"].rpartition(":")

    assert host == "127.0.0.2"
    assert int(port) > 1


def test_an_address_in_use_is_named(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"can't listen on 127.0.0.1:{port}" in program.refuses(port=str(port))


def test_help_tells_all(program: Program) -> None:
    assert {"serve", "token", "--config"} <= set(program.run("--help").stdout.split())
    serve = program.run("serve", "--help").stdout
    assert all(f"{key}:" in serve for key in ["host", "unix_socket", "drain_seconds", "redis.url", "redis.tls_ca_file"])
    assert {"create", "list", "revoke"} <= set(program.run("token", "--help").stdout.split())
    assert {"--name", "--account", "--service", "--permission", "--expires-in"} <= set(
        program.run("token", "create", "--help").stdout.split()
    )
