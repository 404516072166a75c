"""The worker's program stops when requested, whatever it is doing."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.conftest import RedisServer, needs
from tests.gateway import Reached, gateway
from tests.integration.conftest import node_store
from tests.queueing import client, until, until_told
from tests.worker_process import worker_process
from worker.lease import NodeLock
from worker.store.redis_client import RedisSettings, connect

STOPS_WITHIN_SECONDS = 60.0  # far more than it needs, so that a busy machine fails nothing; a hang would be forever


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        yield server
        server.kill()


@pytest.fixture
async def reached(server: RedisServer) -> AsyncIterator[Reached]:
    """A gateway for the worker, with or without Redis."""
    async with gateway(server.socket) as reached:
        yield reached


async def _started_worker(server: RedisServer, reached: Reached) -> asyncio.subprocess.Process:
    settings = {"DRIVER": "fake", "STATE_DIR": str(server.folder / "node"), "NODE": "n1"} | reached.environment
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker.main", "run"),
        env=os.environ | {f"VPS_SNAPSHOTS_{name}": value for name, value in settings.items()},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async for line in process.stderr:
        if b"worker.started" in line:
            return process
    raise RuntimeError(f"the worker ended with {await process.wait()}")


async def _stops_well(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(STOPS_WITHIN_SECONDS):
            _, rest = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, rest.decode()


# Spread over its first moments: it connects, takes its lease, reports its servers, and starts to poll its queue.
@pytest.mark.parametrize("milliseconds", [*range(16), 24, 40])
async def test_a_worker_that_has_only_just_started_stops(
    server: RedisServer, reached: Reached, milliseconds: int
) -> None:
    server.start()
    process = await _started_worker(server, reached)
    await asyncio.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGTERM)
    await _stops_well(process)


async def test_a_worker_that_never_met_redis_stops(server: RedisServer, reached: Reached) -> None:
    process = await _started_worker(server, reached)
    process.send_signal(signal.SIGTERM)
    await _stops_well(process)


async def test_a_worker_whose_redis_went_away_stops(server: RedisServer, reached: Reached) -> None:
    server.start()
    process = await _started_worker(server, reached)
    async with client(server.socket) as redis:
        await until_told(partial(redis.exists, "node:n1:waits"))  # it has its lease and waits for jobs
    server.kill()
    process.send_signal(signal.SIGTERM)
    await _stops_well(process)


@pytest.mark.parametrize("milliseconds", range(50, 2000, 300))
async def test_a_worker_that_is_still_starting_stops(server: RedisServer, milliseconds: int) -> None:
    """From the interpreter's start on; before the program handles signals, SIGTERM simply kills it."""
    server.start()
    async with worker_process(server.socket, server.folder / "node") as worker:
        await asyncio.sleep(milliseconds / 1000)
        worker.signal(signal.SIGTERM)
        async with asyncio.timeout(STOPS_WITHIN_SECONDS):
            assert await worker.process.wait() in {0, -signal.SIGTERM}


@pytest.mark.parametrize("connected", [False, True])
async def test_no_cancellation_of_a_command_is_lost(server: RedisServer, connected: bool) -> None:
    """In whichever iteration of the event loop it arrives."""
    server.start()
    for turns in count():
        redis = connect(RedisSettings(url=f"unix://{server.socket}"))
        if connected:
            await redis.ping()
        answered = asyncio.Event()

        async def work(redis: Redis = redis, answered: asyncio.Event = answered) -> None:
            await redis.ping()
            answered.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        ended, _ = await asyncio.wait({task}, timeout=STOPS_WITHIN_SECONDS)
        assert ended, turns
        assert await redis.ping()
        await redis.aclose(close_connection_pool=True)
        if answered.is_set():
            return


async def test_a_part_that_fails_ends_the_worker(server: RedisServer) -> None:
    """With the reason, a code for systemd, and no remaining child processes."""
    server.start()
    redis = connect(RedisSettings(url=f"unix://{server.socket}"))
    await node_store(redis, node="n1", machine="m2").take_lease(seconds=600)
    state_dir = server.folder / "node"
    async with worker_process(server.socket, state_dir) as worker:
        async with asyncio.timeout(STOPS_WITHIN_SECONDS):
            assert await worker.process.wait() == 2
        # the part that fails keeps the lease
        await until(lambda: any("node n1 already has a worker" in line for line in worker.lines))
        assert worker.has_said("worker.started")
        assert worker.has_said("worker.stopping")
        assert not worker.has_said("worker.stopped")
    lock = NodeLock(state_dir)
    lock.take(orphan_seconds=0)
    lock.release()
    await redis.aclose(close_connection_pool=True)
