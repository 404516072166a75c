"""Redis with a replica and a Sentinel, from the files in deploy/redis: our programs get over the primary's death."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deploy.demo.service import free_port
from tests.conftest import needs
from worker.store.redis_client import RedisSettings, connect

FILES = Path(__file__).parents[2] / "deploy" / "redis"
READY_SECONDS = 60


def with_lines(name: str, lines: Mapping[str, str]) -> str:
    """A file of production with what is each machine's own, and what stands there as an example, put in."""
    text = (FILES / name).read_text()
    for begins, line in lines.items():
        text, found = re.subn(rf"(?m)^(?:#   )?{begins} .*$", line, text, count=1)
        assert found == 1, begins
    return text


def password_of(account: str) -> str:
    """As the file has it before an operator sets one."""
    return f"{account.upper()}-PASSWORD"


class Cell:
    def __init__(self, folder: Path) -> None:
        self.ports = (free_port(), free_port())
        self.sentinel = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._folder = folder

    def start(self) -> None:
        accounts = FILES / "users.acl"
        for place, port in enumerate(self.ports):
            folder = self._folder / str(port)
            folder.mkdir()
            lines = {"dir": f"dir {folder}", "port": f"port {port}", "bind": "bind 127.0.0.1"}
            lines |= {"aclfile": f"aclfile {accounts}", "masteruser": "masteruser replica"}
            lines |= {"masterauth": "masterauth REPLICA-PASSWORD"}
            if place:
                lines |= {"replicaof": f"replicaof 127.0.0.1 {self.ports[0]}"}
            self._start(folder / "redis.conf", with_lines("redis.conf", lines))
        monitor = f"sentinel monitor vps-snapshots 127.0.0.1 {self.ports[0]} 1"
        lines = {"port": f"port {self.sentinel}", "dir": f"dir {self._folder}", "sentinel monitor": monitor}
        lines |= {"sentinel down-after-milliseconds": "sentinel down-after-milliseconds vps-snapshots 1000"}
        self._start(self._folder / "sentinel.conf", with_lines("sentinel.conf", lines), "--sentinel")

    def _start(self, file: Path, text: str, *more: str) -> None:
        file.write_text(text)
        self.processes.append(subprocess.Popen(["redis-server", str(file), *more], stdout=subprocess.DEVNULL))

    def operator(self, port: int) -> Redis:
        return Redis(port=port, username="operator", password=password_of("operator"), decode_responses=True)

    async def knows_its_replica(self) -> bool:
        async with Redis(port=self.sentinel, decode_responses=True) as sentinel:
            (found,) = (await sentinel.sentinel_masters()).values()  # type: ignore[no-untyped-call] # redis-py's gap
        async with self.operator(self.ports[1]) as replica:
            return bool(found["num-slaves"] == 1 and (await replica.info())["master_link_status"] == "up")


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    needs("redis-server")
    cell = Cell(tmp_path)
    try:
        cell.start()
        yield cell
    finally:
        for process in cell.processes:
            process.kill()
            process.wait()


async def test_the_accounts_that_we_ship_are_enough_for_a_failover(cell: Cell) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while True:
            with suppress(RedisError, OSError):
                if await cell.knows_its_replica():
                    break
            await asyncio.sleep(0.1)
    sentinels = [f"127.0.0.1:{cell.sentinel}"]
    redis = connect(RedisSettings(sentinels=sentinels, username="api", password=SecretStr(password_of("api"))))
    try:
        await redis.set("before", "1")
        async with cell.operator(cell.ports[0]) as primary:
            await primary.wait(1, READY_SECONDS * 1000)
        cell.processes[0].kill()
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with suppress(RedisError, OSError):
                    await redis.set("after", "1")
                    break
                await asyncio.sleep(0.1)
        assert await redis.mget("before", "after") == [b"1", b"1"]
    finally:
        await redis.aclose(close_connection_pool=True)
    async with cell.operator(cell.ports[1]) as promoted:
        assert await promoted.acl_log() == []
