"""Shared fixtures: a real Redis for the tests, in a temporary folder, on a socket."""

import asyncio
import gc
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError
from xdist.remote import Producer

from tests import redis_program
from tests.logs import log_plainly
from tests.side_by_side import SideBySide, longest_first
from worker.store.redis_client import RedisSettings, connect

redis_program.choose()
TESTS = Path(__file__).parent
MEMORY, ROOM_BYTES = Path("/dev/shm"), 2 << 30
START_SECONDS = 120  # far more than Redis needs, for a busy machine


def pytest_configure() -> None:
    log_plainly()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> SideBySide:
    return SideBySide(config, log)


def pytest_report_header() -> str:
    """The versions that the tests use, for `make matrix`."""
    found = {
        "server": redis_program.version(),
        "redis-py": metadata.version("redis"),
        "Python": platform.python_version(),
        "libvirt": _version_of_libvirt(),
    }
    return "versions: " + "; ".join(f"{name}={version}" for name, version in found.items())


def _version_of_libvirt() -> str:
    if find_spec("libvirt") is None:
        return "none"
    number = import_module("libvirt").getVersion()
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the name of its folder: `-m "unit or contract"`."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])
    if hasattr(config, "workerinput"):  # one of several processes
        longest_first(items)


def pytest_unconfigure() -> None:
    """Ends without collecting what thousands of tests have left in memory, which takes four processes 10 s."""
    gc.disable()
    gc.freeze()


def lacking(what: str) -> NoReturn:
    """Skip on a developer's machine; in CI, a missing program is a failure."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and in CI nothing may be skipped")
    pytest.skip(what, allow_module_level=True)


def needs_module(name: str) -> Any:
    """The module. Can also be used at the top of a test file, before imports that need it."""
    if find_spec(name) is None:
        lacking(f"the module {name} is not installed")
    return import_module(name)


def needs(program: str) -> None:
    if shutil.which(program) is None:
        lacking(f"{program} is not installed")


def needs_root() -> None:
    if os.getuid():
        lacking("a libvirtd of one's own needs root")


class RedisServer:
    """A redis-server process on a Unix socket, with production's durability; it can be killed and restarted."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self.socket = folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        durability = ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        self.process = subprocess.Popen(
            ["redis-server", *arguments, *durability],
            env=self._environment,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(RedisError), SyncRedis(unix_socket_path=str(self.socket)) as client:
                client.ping()
                return
            time.sleep(0.02)
        raise RuntimeError(f"redis-server did not answer within {START_SECONDS} s")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def lose_data(self) -> None:
        """Delete all data. Only while the server is down."""
        for name in self.folder.iterdir():
            if name.is_dir():
                shutil.rmtree(name)
            else:
                name.unlink()

    def client(self) -> Redis:
        return connect(RedisSettings(url=f"unix://{self.socket}"))


def in_memory() -> Path | None:
    """An in-memory folder, if there is one with room. Data that must only survive a kill needs no disk, and tests
    that wait for a disk take twice as long."""
    if not MEMORY.is_dir():
        return None
    about = os.statvfs(MEMORY)
    return MEMORY if about.f_bavail * about.f_frsize >= ROOM_BYTES else None


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    needs("redis-server")
    # not below pytest's own folder: a socket's path is limited to 107 characters
    with tempfile.TemporaryDirectory(prefix="vps-redis-", dir=in_memory()) as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = redis_server.client()
    await client.flushdb()
    yield client
    await client.aclose()
    await client.connection_pool.disconnect()
    await asyncio.sleep(0)  # let the transports close before the loop does
