"""Connections to Redis: settings with clear errors, sockets, Sentinels, TLS, and no command sent twice."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from tests.conftest import RedisServer, needs, needs_root
from tests.lossy import lossy_way
from tests.queueing import until_told
from tests.trouble import cannot_save
from worker.gateway_address import GatewayAddress
from worker.store.redis_client import RedisSettings, connect
from worker.store.trouble import AnswerLost, CutOff, TooSlow

BOUND_SECONDS = 20


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[Redis]:
    redis = connect(settings)
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"url": "localhost:6379"}, "url"),
        ({"url": "http://localhost"}, "url"),
        ({"url": "redis://localhost:sixthousand"}, "url"),
        ({"url": "redis://localhost:70000"}, "url"),
        ({"url": "redis://localhost/customers"}, "url"),
        ({"url": "redis://localhost?socket_timeout=600"}, "url"),  # there are settings for these
        ({"url": "redis://localhost?decode_responses=yes"}, "url"),
        ({"url": "redis://localhost?no_such_option=1"}, "url"),
        ({"url": "unix://"}, "url"),
        ({"url": "unix://run/redis.sock"}, "url"),
        ({"sentinels": ["10.0.0.1"]}, "sentinels"),
        ({"sentinels": ["10.0.0.1:x"]}, "sentinels"),
        ({"sentinels": ["10.0.0.1:0"]}, "sentinels"),
        ({"sentinels": ["10.0.0.1:70000"]}, "sentinels"),
        ({"connect_seconds": 0}, "connect_seconds"),
        ({"command_seconds": "inf"}, "command_seconds"),
        ({"max_connections": 1}, "max_connections"),
        ({"url": "rediss://localhost", "tls_ca_file": "/nowhere/ca.crt"}, "tls_ca_file"),
        ({"url": "rediss://localhost", "tls_cert_file": __file__}, "tls_key_file"),
        ({"url": "redis://localhost", "tls_ca_file": __file__}, "tls_ca_file"),
        ({"pasword": "x"}, "pasword"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_the_key_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RedisSettings(**settings)
    (problem,) = refused.value.errors()
    assert named in ".".join(map(str, problem["loc"])) or named in problem["msg"]


@pytest.fixture
def private() -> Iterator[Path]:
    """A file that exists and that only root can read, as a copied certificate where root's umask is 077. This process
    has no more rights than a program in its unit."""
    needs_root()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        file = Path(folder, "ca.crt")
        file.touch(mode=0o600)
        os.seteuid(65534)
        try:
            yield file
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("key", ["tls_ca_file", "tls_cert_file", "tls_key_file"])
def test_a_certificate_that_the_program_cannot_read_is_refused_at_the_start(private: Path, key: str) -> None:
    files = (
        {key: private} if key == "tls_ca_file" else {"tls_cert_file": __file__, "tls_key_file": __file__, key: private}
    )
    with pytest.raises(ValidationError) as refused:
        RedisSettings.model_validate({"url": "rediss://localhost", **files})
    (problem,) = refused.value.errors()
    assert problem["loc"] == (key,)
    assert problem["msg"] == f"Value error, the user of this program can't read {private}: Permission denied"


def test_a_certificate_of_the_gateways_that_the_worker_cannot_read_is_refused_at_the_start(private: Path) -> None:
    with pytest.raises(ValidationError, match="tls_ca_file"):
        GatewayAddress(tls_ca_file=private)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://h:6380", "rediss://h/2", "redis://[::1]:6379/0", "unix:///run/redis@a/s?db=3"]
)
def test_addresses_that_can_work_are_taken(url: str) -> None:
    assert RedisSettings(url=url).url == url


def test_the_password_is_not_shown() -> None:
    settings = RedisSettings.model_validate({"password": "hunter2"})
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.mark.parametrize("url", ["redis://api:hunter2@localhost", "redis://:hunter2/@localhost", "unix://:hunter2@/s"])
def test_a_password_in_the_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValidationError, match="password") as refused:
        RedisSettings(url=url)
    assert "hunter2" not in str(refused.value)


# --- one Redis ---


async def test_a_socket_is_reached_and_answers_in_bytes(redis_server: RedisServer, redis: Redis) -> None:
    async with connected(RedisSettings(url=f"unix://{redis_server.socket}?db=0")) as client:
        await client.set("a", "1")
        assert await redis.get("a") == await client.get("a") == b"1"


async def test_a_user_and_password_are_given(redis_server: RedisServer, redis: Redis) -> None:
    await redis.execute_command("ACL", "SETUSER", "api", "on", ">s3cret", "~*", "+@all")  # type: ignore[no-untyped-call]
    settings = {"url": f"unix://{redis_server.socket}", "username": "api"}
    try:
        async with connected(RedisSettings.model_validate({**settings, "password": "s3cret"})) as client:
            assert await client.acl_whoami() == "api"
        async with connected(RedisSettings.model_validate({**settings, "password": "wrong"})) as client:
            with pytest.raises(RedisError):
                await client.ping()
    finally:
        await redis.execute_command("ACL", "DELUSER", "api")  # type: ignore[no-untyped-call]


async def alone(client: Redis) -> None:
    await client.incr("counted")


async def in_transaction(client: Redis) -> None:
    async with client.pipeline(transaction=True) as pipe:
        pipe.incr("counted")
        await pipe.execute()


@pytest.mark.parametrize("ask", [alone, in_transaction])
async def test_a_command_whose_answer_was_lost_is_not_sent_twice(
    redis_server: RedisServer, redis: Redis, ask: Callable[[Redis], Awaitable[None]]
) -> None:
    async with (
        lossy_way(redis_server.socket) as way,
        connected(RedisSettings(url=f"unix://{way.socket}")) as client,
    ):
        await client.ping()
        way.lose("INCR")
        with pytest.raises(CutOff):
            await ask(client)
        assert await redis.get("counted") == b"1"
        assert await client.incr("counted") == 2  # the next command uses a new connection


async def test_an_answer_that_comes_too_late_is_lost(redis_server: RedisServer, redis: Redis) -> None:
    async with connected(RedisSettings(url=f"unix://{redis_server.socket}", command_seconds=0.2)) as client:
        await client.ping()
        await redis.execute_command("CLIENT", "PAUSE", "2000", "WRITE")  # type: ignore[no-untyped-call]
        with pytest.raises(TooSlow):
            await client.incr("counted")
        await redis.execute_command("CLIENT", "UNPAUSE")  # type: ignore[no-untyped-call]


async def test_a_command_that_was_not_sent_is_not_reported_as_lost(tmp_path: Path) -> None:
    async with connected(RedisSettings(url=f"unix://{tmp_path}/none.sock")) as client:
        with pytest.raises(RedisConnectionError) as refused:
            await client.incr("counted")
    assert not isinstance(refused.value, AnswerLost)


async def test_the_connections_own_commands_do_not_count(redis_server: RedisServer, redis: Redis) -> None:
    async with (
        lossy_way(redis_server.socket) as way,
        connected(RedisSettings(url=f"unix://{way.socket}")) as client,
    ):
        way.lose("SETINFO")
        with pytest.raises(RedisConnectionError) as cut:
            await client.incr("counted")
        assert way.lost == 1
        assert not isinstance(cut.value, AnswerLost)
        await client.incr("counted")
        (idle,) = client.connection_pool._available_connections
        idle.next_health_check = 0
        way.lose("PING")
        with pytest.raises(RedisConnectionError) as cut:
            await client.incr("counted")
        assert not isinstance(cut.value, AnswerLost)
    assert await redis.get("counted") == b"1"


async def test_a_connection_that_was_idle_reads_from_a_redis_that_can_not_save(
    redis_server: RedisServer, redis: Redis
) -> None:
    async with connected(RedisSettings(url=f"unix://{redis_server.socket}")) as client:
        await client.set("kept", "1")
        async with cannot_save(redis, redis_server):
            (idle,) = client.connection_pool._available_connections
            idle.next_health_check = 0  # it is checked with a PING, which Redis refuses
            assert await client.get("kept") == b"1"


async def test_a_redis_that_hangs_is_given_up(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="vps-hangs-") as folder:
        path = f"{folder}/redis.sock"
        server = await asyncio.start_unix_server(silent, path)
        async with connected(RedisSettings(url=f"unix://{path}", command_seconds=0.1)) as client:
            with pytest.raises(RedisError):
                async with asyncio.timeout(BOUND_SECONDS):
                    await client.ping()
        server.close()
        await server.wait_closed()


async def test_more_callers_than_connections_wait_for_one(redis_server: RedisServer, redis: Redis) -> None:
    settings = RedisSettings(url=f"unix://{redis_server.socket}", max_connections=4)
    async with connected(settings) as client:
        answers = await asyncio.gather(*(client.incr("n") for _ in range(100)))
        assert sorted(answers) == list(range(1, 101))
        clients = await redis.client_list()
        assert len(clients) <= 4 + 2  # the test's own clients


# --- TLS ---


@pytest.fixture(scope="module")
def tls() -> Iterator[tuple[int, Path]]:
    """The port of a Redis with TLS as `localhost`, and the folder with its authority."""
    needs("redis-server")
    needs("openssl")
    with tempfile.TemporaryDirectory(prefix="vps-tls-") as name:
        folder = Path(name)
        make_certificate(folder)
        port = free_port()
        arguments = ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", name, "--save", ""]
        files = ["--tls-cert-file", f"{name}/ca.pem", "--tls-key-file", f"{name}/key.pem", "--tls-auth-clients", "no"]
        process = subprocess.Popen(["redis-server", *arguments, *files], stdout=subprocess.DEVNULL)
        yield port, folder
        process.kill()
        process.wait()


def make_certificate(folder: Path) -> None:
    """A certificate of `localhost`, which is its own authority: ca.pem and key.pem."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    out = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem")]
    subprocess.run([*make, *subject, *out], check=True, capture_output=True, timeout=BOUND_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def comes_to_answer(client: Redis) -> None:
    async def answers() -> bool:
        try:
            return bool(await client.ping())
        except RedisError:
            return False

    await until_told(answers)


async def test_tls_is_spoken_with_the_authority_that_was_named(tls: tuple[int, Path]) -> None:
    port, folder = tls
    settings = RedisSettings(url=f"rediss://localhost:{port}", tls_ca_file=folder / "ca.pem")
    async with connected(settings) as client:
        await comes_to_answer(client)


@pytest.mark.parametrize(("host", "with_authority"), [("127.0.0.1", True), ("localhost", False)])
async def test_another_host_or_an_unknown_authority_is_refused(
    tls: tuple[int, Path], host: str, with_authority: bool
) -> None:
    port, folder = tls
    authority = folder / "ca.pem"
    async with connected(RedisSettings(url=f"rediss://localhost:{port}", tls_ca_file=authority)) as client:
        await comes_to_answer(client)
    settings = RedisSettings(url=f"rediss://{host}:{port}", tls_ca_file=authority if with_authority else None)
    async with connected(settings) as client:
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await client.ping()


async def test_the_hosts_name_is_not_checked_if_disabled(tls: tuple[int, Path]) -> None:
    port, folder = tls
    settings = RedisSettings(url=f"rediss://127.0.0.1:{port}", tls_ca_file=folder / "ca.pem", tls_check_hostname=False)
    async with connected(settings) as client:
        await comes_to_answer(client)


async def test_with_a_named_authority_those_of_the_system_are_not_trusted(
    tls: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, folder = tls
    make_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
    async with connected(RedisSettings(url=f"rediss://localhost:{port}")) as client:
        await comes_to_answer(client)
    async with connected(RedisSettings(url=f"rediss://localhost:{port}", tls_ca_file=tmp_path / "ca.pem")) as client:
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await client.ping()


async def test_connections_share_a_tls_context_until_a_file_changes(
    tls: tuple[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, folder = tls
    make_certificate(tmp_path)
    authority, made = tmp_path / "ca.pem", []
    default = ssl.create_default_context

    def noted(**options: Any) -> ssl.SSLContext:
        made.append(options)
        return default(**options)

    async with connected(RedisSettings(url=f"rediss://localhost:{port}", tls_ca_file=authority)) as client:
        with pytest.raises(RedisConnectionError, match="certificate verify failed"):
            await client.ping()
        monkeypatch.setattr(ssl, "create_default_context", noted)
        shutil.copy(folder / "ca.pem", tmp_path / "renewed.pem")
        (tmp_path / "renewed.pem").replace(authority)
        await comes_to_answer(client)
        await asyncio.gather(*(client.ping() for _ in range(5)))
    assert made == [{"cafile": authority}]


# --- Sentinel ---


@pytest.fixture
def sentinel() -> Iterator[tuple[int, str]]:
    """The port of a Sentinel, and the name of the primary that it watches."""
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-sentinel-") as folder:
        port, master = free_port(), free_port()
        config = Path(folder) / "sentinel.conf"
        config.write_text(f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor cell-a 127.0.0.1 {master} 1\n")
        programs = [
            ["redis-server", "--port", str(master), "--bind", "127.0.0.1", "--dir", folder, "--save", ""],
            ["redis-server", str(config), "--sentinel"],
        ]
        processes = [subprocess.Popen(program, stdout=subprocess.DEVNULL) for program in programs]
        yield port, "cell-a"
        for process in processes:
            process.kill()
            process.wait()


async def test_the_master_that_a_sentinel_names_is_reached_behind_one_that_is_dead(sentinel: tuple[int, str]) -> None:
    port, master = sentinel
    settings = RedisSettings(
        url="redis://ignored/3",
        sentinels=[f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}"],
        sentinel_master=master,
    )
    async with connected(settings) as client:
        await comes_to_answer(client)
        assert "role:master" in str(await client.info("replication")).replace("'", "").replace(": ", ":")
        assert (await client.client_info())["db"] == 3


async def test_a_master_that_was_demoted_refuses_and_has_not_lost_the_command(sentinel: tuple[int, str]) -> None:
    port, master = sentinel
    async with connected(RedisSettings(sentinels=[f"127.0.0.1:{port}"], sentinel_master=master)) as client:
        await comes_to_answer(client)
        await client.replicaof("127.0.0.1", 1)
        with pytest.raises(ReadOnlyError):
            await client.set("a", "1")


async def test_a_master_that_no_sentinel_knows_is_trouble_with_redis(sentinel: tuple[int, str]) -> None:
    port, _ = sentinel
    settings = RedisSettings(sentinels=[f"127.0.0.1:{port}"], sentinel_master="cell-b")
    async with connected(settings) as client:
        with pytest.raises(RedisConnectionError):
            await client.ping()


# --- connections that are replaced while commands go on ---


async def test_no_command_gets_a_connection_that_is_being_closed(redis_server: RedisServer) -> None:
    async with connected(RedisSettings(url=f"unix://{redis_server.socket}")) as redis:
        for _ in range(50):
            await asyncio.gather(*(redis.ping() for _ in range(4)))  # leaves open connections in the pool
            _, *answers = await asyncio.gather(redis.reconnect(), *(redis.ping() for _ in range(4)))  # type: ignore[attr-defined] # of our client
            assert answers == [True] * 4
