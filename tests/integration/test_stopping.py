"""The worker's program is told to stop, and does, whatever it is in the midst of."""

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import RedisServer, needs

STOPS_WITHIN_SECONDS = 20.0  # far above what it takes, so that a busy machine fails nothing; a hang would be for ever


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        yield server
        server.kill()


async def _started_worker(server: RedisServer) -> asyncio.subprocess.Process:
    settings = {
        "REDIS__URL": f"unix://{server.socket}",
        "DRIVER": "fake",
        "STATE_DIR": str(server.folder / "node"),
        "NODE": "n1",
    }
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


# Spread over its first moments: it connects, takes its lease, reports its servers, and starts to listen to its queue.
@pytest.mark.parametrize("milliseconds", [*range(16), 24, 40])
async def test_a_worker_that_has_only_just_started_stops(server: RedisServer, milliseconds: int) -> None:
    server.start()
    process = await _started_worker(server)
    await asyncio.sleep(milliseconds / 1000)
    process.send_signal(signal.SIGTERM)
    await _stops_well(process)


async def test_a_worker_that_never_met_redis_stops(server: RedisServer) -> None:
    process = await _started_worker(server)
    process.send_signal(signal.SIGTERM)
    await _stops_well(process)


async def test_a_worker_whose_redis_went_away_stops(server: RedisServer) -> None:
    server.start()
    process = await _started_worker(server)
    await asyncio.sleep(0.3)  # it has its lease, and waits for work
    server.kill()
    process.send_signal(signal.SIGTERM)
    await _stops_well(process)
