"""Redis with a replica and a Sentinel, from the files in deploy/redis: the programs survive the primary's death, and
no impostor named by a Sentinel learns their password."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from tests.conftest import needs
from tests.queueing import until_told
from tests.sentinel import READY_SECONDS, Cell, Machine, certificate, password_of
from worker.store.access.audit import Audit
from worker.store.access.credentials import Credentials
from worker.store.access.sessions import SessionLifetime, Sessions
from worker.store.access.tokens import Limits, Permission, Tokens
from worker.store.errors import OutcomeUnknown, StoreUnavailable
from worker.store.redis_client import RedisSettings, connect
from worker.store.script_connection import RunsScripts, Script
from worker.store.trouble import CutOff, NotCopied

CHANGE = Script("redis.call('SET', 'changed', ARGV[1]) return 1", changes=True)
READ = Script("return redis.call('GET', 'changed')")


@pytest.fixture
async def cell(tmp_path: Path) -> AsyncIterator[Cell]:
    needs("redis-server")
    needs("openssl")
    cell = Cell(tmp_path, [Machine.here(), Machine.here()])
    try:
        cell.start()
        yield cell
    finally:
        cell.stop()


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
    await cell.ready()
    for account in (None, "client", "peer"):
        async with cell.client(cell.machines[0].sentinel, account, account and password_of(account)) as stranger:
            for order in ORDERS:
                with pytest.raises((AuthenticationError, NoPermissionError)):
                    await stranger.execute_command(*order.split())  # type: ignore[no-untyped-call] # redis-py's gap
    async with Redis(port=cell.machines[0].sentinel) as plain:
        with pytest.raises((RedisError, OSError)):
            await plain.ping()


async def test_the_password_is_sent_to_no_address_but_one_that_proves_itself(cell: Cell, tmp_path: Path) -> None:
    """A Sentinel was told to name a machine whose certificate, of the same authority, is for another name."""
    await cell.ready()
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
    async with server, cell.operator_of_sentinel() as sentinel:
        for order in ("REMOVE vps-snapshots", f"MONITOR vps-snapshots 127.0.0.1 {port} 1"):
            await sentinel.execute_command("SENTINEL", *order.split())  # type: ignore[no-untyped-call] # redis-py's gap
        only = {"sentinels": cell.settings.sentinels[:1], "connect_seconds": 60, "command_seconds": 60}
        redis = connect(cell.settings.model_copy(update={"tls_ca_file": both, **only}))
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
    await cell.ready()
    redis = connect(cell.settings)
    try:
        await redis.set("before", "1")
        async with cell.operator(1) as replica:
            await until_told(partial(replica.exists, "before"))
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
    async with cell.operator(1) as promoted:
        assert await promoted.acl_log() == []


async def test_a_change_that_no_replica_has_is_not_answered_and_reads_are(cell: Cell) -> None:
    await cell.ready()
    redis = connect(cell.settings_of("api", wait_for_replicas=1))
    try:
        assert isinstance(redis, RunsScripts)
        assert await redis.run_script(CHANGE, b"1") == 1
        cell.processes[1].send_signal(signal.SIGSTOP)
        asked = [asyncio.create_task(redis.run_script(CHANGE, b"2")) for _ in range(3)]  # they share one WAIT
        assert await redis.run_script(READ, b"") in (b"1", b"2")
        assert {type(answer) for answer in await asyncio.gather(*asked, return_exceptions=True)} == {NotCopied}
        cell.processes[1].send_signal(signal.SIGCONT)
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with suppress(RedisError, OSError):
                    assert await redis.run_script(CHANGE, b"3") == 1
                    break
                await asyncio.sleep(0.1)
    finally:
        await redis.aclose(close_connection_pool=True)
    async with cell.operator(1) as replica:
        assert await replica.get("changed") == "3"


async def test_calls_to_a_frozen_primary_fail_before_the_limit(cell: Cell) -> None:
    await cell.ready()
    settings = cell.settings_of("api", wait_for_replicas=1)
    redis = connect(settings.model_copy(update={"command_seconds": 10.0 * READY_SECONDS}))
    try:
        assert isinstance(redis, RunsScripts)
        await redis.run_script(CHANGE, b"1")  # the connection is open
        cell.processes[0].send_signal(signal.SIGSTOP)
        with pytest.raises(CutOff):
            await asyncio.wait_for(redis.run_script(CHANGE, b"2"), READY_SECONDS)
        cell.processes[0].send_signal(signal.SIGCONT)
        async with asyncio.timeout(READY_SECONDS):
            while True:
                with suppress(RedisError, OSError):
                    assert await redis.run_script(CHANGE, b"3") == 1
                    break
                await asyncio.sleep(0.1)
    finally:
        await redis.aclose(close_connection_pool=True)


def _state(epoch: int, *, flags: str = "master") -> dict[str, str]:
    known = {"name": "vps-snapshots", "ip": "192.0.2.1", "port": "6379", "flags": flags, "config-epoch": str(epoch)}
    return known | {"num-other-sentinels": "2", "quorum": "2"}


@asynccontextmanager
async def _sentinel(state: dict[str, str], *, names: list[str]) -> AsyncIterator[str]:
    """A Sentinel that answers with that state of the primary and names that address and port. It also acts as a
    Redis for connections."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while count := int((await reader.readuntil(b"\r\n"))[1:]):
                command = []
                for _ in range(count):
                    length = int((await reader.readuntil(b"\r\n"))[1:])
                    command.append((await reader.readexactly(length + 2))[:-2].decode().upper())
                if "MASTERS" in command:
                    words = [word for pair in state.items() for word in pair]
                    writer.write(b"*1\r\n" + _array(words))
                elif "GET-MASTER-ADDR-BY-NAME" in command:
                    writer.write(_array(names))
                else:
                    writer.write(b"+PONG\r\n" if "PING" in command else b"+OK\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _array(words: list[str]) -> bytes:
    parts = (f"${len(word)}\r\n{word}\r\n" for word in words)
    return f"*{len(words)}\r\n{''.join(parts)}".encode()


async def test_a_primary_is_found_while_its_replicas_do_not_follow_it_yet() -> None:
    """Until they do, the Sentinel that leads the failover has the former address in its state."""
    leads = _sentinel(_state(2, flags="master,s_down,o_down,failover_in_progress"), names=["192.0.2.2", "6379"])
    late = _sentinel(_state(1, flags="master,s_down"), names=["192.0.2.1", "6379"])
    async with leads as first, late as second:
        redis = connect(RedisSettings(sentinels=[first, second]))
        try:
            assert await redis.connection_pool.get_master_address() == ("192.0.2.2", 6379)  # type: ignore[attr-defined]
        finally:
            await redis.aclose(close_connection_pool=True)


async def test_a_connection_to_a_hanging_primary_moves_to_its_successor() -> None:
    is_asked = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_asked.set()
        await is_left.wait()
        writer.close()

    is_left = asyncio.Event()
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    names = ["127.0.0.1", str(server.sockets[0].getsockname()[1])]
    state = _state(1) | {"ip": names[0], "port": names[1]}
    async with server, _sentinel(state, names=names) as sentinel:
        hours = {"connect_seconds": 3600.0, "command_seconds": 3600.0}
        redis = connect(RedisSettings(sentinels=[sentinel], **hours))  # type: ignore[arg-type]
        try:
            pinged = asyncio.ensure_future(redis.ping())
            async with asyncio.timeout(READY_SECONDS):
                await is_asked.wait()
                names[1] = sentinel.rpartition(":")[2]
                assert await pinged
        finally:
            is_left.set()
            await redis.aclose(close_connection_pool=True)


async def test_a_failover_does_not_bring_back_a_revoked_token(cell: Cell) -> None:
    """The revocation is answered when a replica has it, also if it is repeated, and so is its audit entry."""
    await cell.ready()
    redis = connect(cell.settings_of("api", wait_for_replicas=1))
    lifetime = SessionLifetime(at_most=timedelta(hours=1), idle=timedelta(hours=1))
    tokens, credentials = Tokens(redis), Credentials(redis)
    sessions = Sessions(redis, lifetime=lifetime, limits=Limits(calls=100, failed_logins=100))
    try:
        token = await tokens.create(name="t", account_id=None, permissions=frozenset({Permission.OPERATOR}))
        session = await sessions.open(token.secret)
        await credentials.create("n1")
        cell.processes[1].send_signal(signal.SIGSTOP)
        for _ in range(2):
            revoked = (tokens.revoke(token.token.id), credentials.revoke("n1"), sessions.close(session.id))
            answers = await asyncio.gather(*revoked, return_exceptions=True)
            assert [type(answer) for answer in answers] == [OutcomeUnknown] * 3
            with pytest.raises(StoreUnavailable):
                await Audit(redis).write({"path": "token revoke"})
        cell.processes[1].send_signal(signal.SIGCONT)
    finally:
        await redis.aclose(close_connection_pool=True)
