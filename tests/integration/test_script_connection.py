"""The connection that all scripts of a process share: each gets its own answer, whatever happens to the others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.conftest import RedisServer
from tests.queueing import until, until_told
from worker.store.redis_client import RedisSettings, connect
from worker.store.script_connection import RunsScripts, Script
from worker.store.trouble import CutOff, NotCopied, TooSlow

ECHO = Script("return ARGV[1]")
WRITE = Script("redis.call('LPUSH', 'written', ARGV[1]) return redis.call('LLEN', 'written')")
CHANGE = Script("return 1", changes=True)
BROKEN = Script("return redis.call('NO SUCH COMMAND')")
SECONDS = 0.3
MANY = 4  # scripts at once


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[RunsScripts]:
    client = connect(settings)
    assert isinstance(client, RunsScripts)
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
async def scripts(redis: Redis, redis_server: RedisServer) -> AsyncIterator[RunsScripts]:
    async with connected(RedisSettings(url=f"unix://{redis_server.socket}")) as client:
        yield client


@pytest.fixture
async def hasty_scripts(redis: Redis, redis_server: RedisServer) -> AsyncIterator[RunsScripts]:
    """Waits for an answer only `SECONDS`."""
    settings = RedisSettings(url=f"unix://{redis_server.socket}", command_seconds=SECONDS)
    async with connected(settings) as client:
        yield client


async def test_each_gets_its_own_answer_over_one_connection(scripts: RunsScripts, redis: Redis) -> None:
    await redis.script_flush()
    before = len(await redis.client_list())
    texts = [b"%d" % n for n in range(500)]
    assert await asyncio.gather(*(scripts.run_script(ECHO, text) for text in texts)) == texts
    assert len(await redis.client_list()) == before + 1


async def test_an_error_is_of_the_script_that_broke_alone(scripts: RunsScripts) -> None:
    asked = [scripts.run_script(BROKEN if n % 7 == 3 else ECHO, b"x") for n in range(50)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, ResponseError) for answer in answers] == [n % 7 == 3 for n in range(50)]


async def test_a_cancelled_wait_does_not_block_other_answers(scripts: RunsScripts) -> None:
    asked = [asyncio.create_task(scripts.run_script(ECHO, b"%d" % n)) for n in range(40)]
    await asyncio.sleep(0)
    for task in asked[::3]:
        task.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    left = [answer for n, answer in enumerate(answers) if n % 3]
    assert left == [b"%d" % n for n in range(40) if n % 3]


def in_use(scripts: RunsScripts) -> set[Any]:
    assert isinstance(scripts, Redis)
    return set(scripts.connection_pool._in_use_connections)


async def test_all_waiting_calls_fail_and_the_next_is_answered(scripts: RunsScripts, redis: Redis) -> None:
    await scripts.run_script(WRITE, b"x")
    await redis.client_pause(60_000, all=False)  # scripts that may write wait
    asked = [asyncio.create_task(scripts.run_script(WRITE, b"x")) for _ in range(MANY)]

    async def has_all() -> bool:
        clients: list[dict[str, str]] = await redis.client_list()
        return any(client["cmd"] == "evalsha" and "b" in client["flags"] for client in clients)

    await until_told(has_all)
    await redis.client_kill_filter(_type="normal", skipme=True)
    await redis.client_unpause()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {CutOff}
    assert isinstance(await scripts.run_script(WRITE, b"x"), int)


async def test_a_late_answer_is_given_up_with_all_behind_it(hasty_scripts: RunsScripts, redis: Redis) -> None:
    await hasty_scripts.run_script(ECHO, b"x")
    await redis.client_pause(int(SECONDS * 4000))
    began = asyncio.get_running_loop().time()
    asked = [hasty_scripts.run_script(ECHO, b"x") for _ in range(MANY)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(answer) for answer in answers} == {TooSlow}
    assert asyncio.get_running_loop().time() - began >= SECONDS
    await redis.client_unpause()
    assert await hasty_scripts.run_script(ECHO, b"y") == b"y"


async def test_a_connection_that_was_cut_while_idle_costs_nothing(scripts: RunsScripts, redis: Redis) -> None:
    await scripts.run_script(WRITE, b"x")
    before = in_use(scripts)
    await redis.client_kill_filter(_type="normal", skipme=True)
    await until(lambda: not any(connection.is_connected for connection in before))
    assert await scripts.run_script(WRITE, b"x") == 2


async def test_the_connection_is_left_for_another(scripts: RunsScripts) -> None:
    await scripts.run_script(ECHO, b"x")
    before = in_use(scripts)
    await scripts.reconnect()
    await until(lambda: not any(connection.is_connected for connection in before))
    assert await scripts.run_script(ECHO, b"z") == b"z"


@asynccontextmanager
async def standing_in(answer: Callable[[int], bytes], *, waited: bytes = b":1\r\n") -> AsyncIterator[RedisSettings]:
    """A server in Redis's place. `answer`: to a script on its n-th connection. `waited`: its answer to WAIT."""
    opened = 0
    served = set[asyncio.Task[None] | None]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        served.add(asyncio.current_task())
        answers = {b"EVALSHA": answer(opened), b"PING": b"+PONG\r\n", b"WAIT": waited}
        while head := await reader.readline():  # *<number of arguments>
            arguments = []
            for _ in range(int(head[1:])):
                size = int((await reader.readline())[1:])
                arguments.append((await reader.readexactly(size + 2))[:-2])
            writer.write(answers.get(arguments[0], b"+OK\r\n"))
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield RedisSettings(url=f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", wait_for_replicas=1)
        await asyncio.wait(filter(None, served))  # until the clients have closed their connections


async def test_a_connection_that_answers_with_loading_is_left() -> None:
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    server = standing_in(lambda n: loading if n == 1 else b":%d\r\n" % n)
    async with server as settings, connected(settings) as scripts:
        with pytest.raises(BusyLoadingError):
            await scripts.run_script(ECHO, b"x")
        assert await scripts.run_script(ECHO, b"x") == 2


@pytest.mark.parametrize(
    "refusal",
    [
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "LOADING Redis is loading the dataset in memory",
        "NOAUTH Authentication required.",
    ],
)
async def test_a_change_whose_wait_for_replicas_fails_may_have_been_made(refusal: str) -> None:
    waited = f"-{refusal}\r\n".encode()
    async with standing_in(lambda _: b":1\r\n", waited=waited) as settings, connected(settings) as scripts:
        with pytest.raises(NotCopied):
            await scripts.run_script(CHANGE, b"x")


async def test_reads_leave_a_former_primary_when_changes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = standing_in(lambda _: b":1\r\n"), standing_in(lambda _: b":2\r\n")
    async with servers[0] as former, servers[1] as primary, connected(former) as scripts:
        assert isinstance(scripts, Redis)
        assert await scripts.run_script(ECHO, b"x") == 1
        (of_reads,) = in_use(scripts)
        pool = scripts.connection_pool
        port = int(primary.url.rpartition(":")[2])
        monkeypatch.setattr(pool, "connection_kwargs", {**pool.connection_kwargs, "port": port})
        assert await scripts.run_script(CHANGE, b"x") == 2  # its connection is opened to the new primary
        await until(lambda: not of_reads.is_connected)


async def test_a_connection_that_is_slow_to_open_holds_callers_up_only_once(
    hasty_scripts: RunsScripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(hasty_scripts, Redis)
    monkeypatch.setattr(hasty_scripts.connection_pool, "get_connection", asyncio.Event().wait)
    first, *others = (asyncio.create_task(hasty_scripts.run_script(ECHO, b"x")) for _ in range(MANY))
    answers = await asyncio.gather(*others, return_exceptions=True)
    assert {type(answer) for answer in answers} == {RedisTimeoutError}
    first.cancel()
