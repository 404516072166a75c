"""Redis with a replica and a Sentinel, from the files in deploy/redis: our programs get over the primary's death, and
no stranger at a Sentinel learns their password."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from tests.conftest import needs
from tests.sentinel import READY_SECONDS, Cell, Machine, certificate, password_of
from worker.store.redis_client import RedisSettings, connect
from worker.store.script_connection import RunsScripts, Script
from worker.store.trouble import NotCopied

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
    """A Sentinel was ordered to name a machine whose certificate, of the same authority, is for another name."""
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
        async with cell.operator(0) as primary:
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
