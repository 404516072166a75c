"""Redis with a replica and a Sentinel, from the files in deploy/redis: our programs get over the primary's death, and
no stranger at a Sentinel learns their password."""

import asyncio
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

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


def certificate(folder: Path, name: str, of: str) -> None:
    """NAME.pem and NAME.key in the folder; it is its own authority."""
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={of}"]
    out = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    subprocess.run(["openssl", *made, *names, *out], check=True, capture_output=True, timeout=READY_SECONDS)


def password_of(account: str) -> str:
    """As the file has it before an operator sets one."""
    return f"{account.upper()}-PASSWORD"


class Cell:
    def __init__(self, folder: Path) -> None:
        self.ports = (free_port(), free_port())
        self.sentinels = (free_port(), free_port())
        self.processes: list[subprocess.Popen[bytes]] = []
        self._folder = folder

    def start(self) -> None:
        accounts = FILES / "users.acl"
        certificate(self._folder, "redis", "IP:127.0.0.1")
        tls = {"tls-cert-file": f"tls-cert-file {self._folder}/redis.pem"}
        tls |= {"tls-key-file": f"tls-key-file {self._folder}/redis.key"}
        tls |= {"tls-ca-cert-file": f"tls-ca-cert-file {self.authority}"}
        for place, port in enumerate(self.ports):
            folder = self._folder / str(port)
            folder.mkdir()
            lines = {"dir": f"dir {folder}", "port": "port 0", "bind": "bind 127.0.0.1"} | tls
            lines |= {"tls-port": f"tls-port {port}", "tls-replication": "tls-replication yes"}
            lines |= {"tls-auth-clients": "tls-auth-clients no"}
            lines |= {"aclfile": f"aclfile {accounts}", "masteruser": "masteruser replica"}
            lines |= {"masterauth": "masterauth REPLICA-PASSWORD"}
            if place:
                lines |= {"replicaof": f"replicaof 127.0.0.1 {self.ports[0]}"}
            self._start(folder / "redis.conf", with_lines("redis.conf", lines))
        monitor = f"sentinel monitor vps-snapshots 127.0.0.1 {self.ports[0]} 2"
        lines = {"sentinel monitor": monitor} | tls
        lines |= {"sentinel down-after-milliseconds": "sentinel down-after-milliseconds vps-snapshots 1000"}
        for port in self.sentinels:
            lines |= {"tls-port": f"tls-port {port}", "dir": f"dir {self._folder}"}
            self._start(self._folder / f"sentinel-{port}.conf", with_lines("sentinel.conf", lines), "--sentinel")

    def _start(self, file: Path, text: str, *more: str) -> None:
        file.write_text(text)
        self.processes.append(subprocess.Popen(["redis-server", str(file), *more], stdout=subprocess.DEVNULL))

    def operator(self, port: int) -> Redis:
        """Of a Redis or of the Sentinel."""
        return self.client(port, "operator", password_of("operator"))

    def client(self, port: int, username: str | None = None, password: str | None = None) -> Redis:
        return Redis(
            host="127.0.0.1",
            port=port,
            username=username,
            password=password,
            decode_responses=True,
            ssl=True,
            ssl_ca_certs=str(self.authority),
        )

    @property
    def sentinel(self) -> int:
        return self.sentinels[0]

    @property
    def authority(self) -> Path:
        return self._folder / "redis.pem"

    @property
    def settings(self) -> RedisSettings:
        return RedisSettings(
            url="rediss://127.0.0.1",
            sentinels=[f"127.0.0.1:{port}" for port in self.sentinels],
            username="api",
            password=SecretStr(password_of("api")),
            sentinel_username="client",
            sentinel_password=SecretStr(password_of("client")),
            tls_ca_file=self.authority,
        )

    async def knows_its_replica(self) -> bool:
        async with self.operator(self.sentinel) as sentinel:
            (found,) = (await sentinel.sentinel_masters()).values()  # type: ignore[no-untyped-call] # redis-py's gap
        async with self.operator(self.ports[1]) as replica:
            return bool(
                found["num-other-sentinels"] == found["num-slaves"] == 1
                and (await replica.info())["master_link_status"] == "up"
            )


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    needs("redis-server")
    needs("openssl")
    cell = Cell(tmp_path)
    try:
        cell.start()
        yield cell
    finally:
        for process in cell.processes:
            process.kill()
            process.wait()


async def ready(cell: Cell) -> None:
    async with asyncio.timeout(READY_SECONDS):
        while True:
            with suppress(RedisError, OSError):
                if await cell.knows_its_replica():
                    return
            await asyncio.sleep(0.1)


ORDERS = [
    "SENTINEL REMOVE vps-snapshots",
    "SENTINEL MONITOR vps-snapshots 192.0.2.1 6379 1",
    "SENTINEL SET vps-snapshots quorum 2",
    "SENTINEL RESET *",
    "SENTINEL FAILOVER vps-snapshots",
    "SENTINEL CONFIG GET *",
    "ACL LIST",
    "SHUTDOWN",
]


async def test_nobody_but_an_operator_gives_a_sentinel_orders(cell: Cell) -> None:
    await ready(cell)
    for account in (None, "client", "peer"):
        async with cell.client(cell.sentinel, account, account and password_of(account)) as stranger:
            for order in ORDERS:
                with pytest.raises((AuthenticationError, NoPermissionError)):
                    await stranger.execute_command(*order.split())  # type: ignore[no-untyped-call] # redis-py's gap
    async with Redis(port=cell.sentinel) as plain:
        with pytest.raises((RedisError, OSError)):
            await plain.ping()


async def test_the_password_is_sent_to_no_address_but_one_that_proves_itself(cell: Cell, tmp_path: Path) -> None:
    """A Sentinel was ordered to name a machine whose certificate, of the same authority, is for another name."""
    await ready(cell)
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            heard.append(await reader.read(4096))
        writer.close()

    certificate(tmp_path, "another", "DNS:another.example")
    both = tmp_path / "both.pem"
    both.write_text(cell.authority.read_text() + (tmp_path / "another.pem").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "another.pem", tmp_path / "another.key")
    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    port = str(server.sockets[0].getsockname()[1])
    async with server, cell.operator(cell.sentinel) as sentinel:
        for order in ("REMOVE vps-snapshots", f"MONITOR vps-snapshots 127.0.0.1 {port} 1"):
            await sentinel.execute_command("SENTINEL", *order.split())  # type: ignore[no-untyped-call] # redis-py's gap
        redis = connect(cell.settings.model_copy(update={"tls_ca_file": both}))
        with pytest.raises(RedisError, match="certificate verify failed"):
            await redis.ping()
        await redis.aclose(close_connection_pool=True)

    assert not [text for text in heard if password_of("api").encode() in text]


@pytest.mark.parametrize("url", ["redis://127.0.0.1", "rediss://127.0.0.1"])
def test_a_password_without_a_check_of_the_primary_is_refused(url: str) -> None:
    given: dict[str, Any] = {"sentinels": ["127.0.0.1:26379"], "password": "secret", "url": url}
    if url.startswith("rediss"):
        given["tls_check_hostname"] = False

    with pytest.raises(ValidationError, match="sentinels_are_trusted"):
        RedisSettings(**given)
    assert RedisSettings(**given, sentinels_are_trusted=True).sentinels


async def test_the_accounts_that_we_ship_are_enough_for_a_failover(cell: Cell) -> None:
    await ready(cell)
    redis = connect(cell.settings)
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
