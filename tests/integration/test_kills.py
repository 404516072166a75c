"""A process is killed between two related changes, and the service recovers by itself."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from drivers.base import Power
from tests.conftest import RedisServer
from tests.gateway import GatewayProgram
from tests.integration.conftest import ACCOUNT
from tests.integration.test_worker_program import customer, redis_of_ours, state
from tests.queueing import client, until_told
from tests.worker_process import FIRST, SECOND, at_work, server_of, worker_process
from worker.store.backup.file import write
from worker.store.model import JobState
from worker.store.operators.operator_store import OperatorStore

__all__ = ["redis_of_ours", "state"]

PAUSE = timedelta(seconds=3)  # the gateway or Redis is killed and restarted within it, or later
PROGRAM = Path(sys.executable).parent / "vps-snapshots-api"
TOKENS, SNAPSHOTS = 600, 1500  # in the file: about ten scripts write them


async def test_a_worker_that_dies_right_after_the_end_of_a_job_leaves_nothing_open(
    redis_of_ours: RedisServer, state: Path
) -> None:
    """Its journal still has the job, and the node has not reported its servers since."""
    async with customer(redis_of_ours) as ours:
        async with worker_process(redis_of_ours.socket, state, GRACE_SECONDS="0") as worker:
            job_id = await ours.create(FIRST)
            ended = await ours.sees_end(job_id)
            worker.process.kill()
        told = await ours.redis.hgetall(f"job:{job_id}")  # type: ignore[misc]  # redis-py's types
        assert ended.state is JobState.COMPLETED
        assert server_of(state, FIRST).power is Power.ON
        async with worker_process(redis_of_ours.socket, state, GRACE_SECONDS="0"):
            for server in (FIRST, SECOND):
                assert (await ours.sees_end(await ours.create(server, "afterward"))).state is JobState.COMPLETED
        assert await ours.redis.hgetall(f"job:{job_id}") == told  # type: ignore[misc]  # redis-py's types
        assert await ours.redis.scard(f"server:{FIRST}:counted") == 2  # type: ignore[misc]  # redis-py's types
        assert await ours.redis.zcard("jobs:state:completed") == 3
        ends = [fields[b"job"] for _, fields in await ours.redis.xrange("events") if fields[b"state"] == b"completed"]
        assert ends.count(job_id.encode()) == 1
        assert len(server_of(state, FIRST).disks["vda"].tags) == 2


@pytest.mark.parametrize("killed", ["gateway", "redis"])
async def test_a_pause_with_an_end_ends_although_a_process_was_killed(
    redis_of_ours: RedisServer, state: Path, tmp_path: Path, killed: str
) -> None:
    program = GatewayProgram(redis_of_ours.socket)
    try:
        await program.start(tmp_path / "log")
        await program.let_in("n1")
        settings = {name.removeprefix("VPS_SNAPSHOTS_"): text for name, text in program.settings_of("n1").items()}
        async with at_work(state, settings | {"GRACE_SECONDS": "0"}), customer(redis_of_ours) as ours:
            await ours.sees_end(await ours.create(FIRST, "before"))
            until = datetime.now(UTC) + PAUSE
            await OperatorStore(ours.redis, ours.store).pause("n1", by="anna", reason="kernel", until=until)
            waiting = await ours.create(FIRST, "waiting")
            await _kill_and_start(killed, program, redis_of_ours, tmp_path / "log")
            job = await ours.sees_end(waiting)
            assert job.state is JobState.COMPLETED
            assert job.started_at is not None
            assert job.started_at >= until.replace(microsecond=until.microsecond // 1000 * 1000)
            assert not await ours.redis.hexists("node:n1", "paused_ms")  # type: ignore[misc]  # redis-py's types
            assert not await ours.redis.exists("nodes:paused")
    finally:
        await program.stop()


async def _kill_and_start(killed: str, program: GatewayProgram, server: RedisServer, log: Path) -> None:
    if killed == "redis":
        server.kill()
        await asyncio.to_thread(server.start)
        return
    assert program.process is not None
    program.process.kill()
    await program.process.ended()
    await program.start(log)


async def rows() -> AsyncIterator[dict[str, Any]]:
    """The rows of a backup of a cell of that size; tokens last."""
    for number in range(SNAPSHOTS):
        record = {"server": "1", "account": str(ACCOUNT), "status": "completed", "labels": f'{{"n": "{number}"}}'}
        yield {"kind": "snapshot", "key": f"snapshot:{number + 1}", "record": record}
    for number in range(TOKENS):
        record = {"v": "1", "id": f"{number:012x}", "name": "t", "account": str(ACCOUNT), "permissions": ""}
        record |= {"created_at": "2025-01-01T00:00:00+00:00", "expires_at": ""}
        yield {"kind": "token", "key": f"token:{number:064x}", "record": record}


@pytest.mark.parametrize("deaths", [1, 2])
async def test_a_restore_that_is_killed_is_repeated(redis_of_ours: RedisServer, tmp_path: Path, deaths: int) -> None:
    path = tmp_path / "one.backup"
    await write(path, rows(), made_ms=1, last_id="5", recipient=None, life="a life")
    async with client(redis_of_ours.socket) as redis:
        for death in range(deaths):
            while not await _killed_beyond(redis, redis_of_ours, path, keys=200 + 600 * death):
                await redis.flushdb()  # it was over before the kill
            assert not await redis.exists("backups:life")
        done = await asyncio.to_thread(_restoring(redis_of_ours, path).communicate)
        assert "Traceback" not in done[1]
        restored = await everything_restored(redis)
        await redis.flushdb()
        whole = _restoring(redis_of_ours, path)
        await asyncio.to_thread(whole.communicate)
        assert whole.returncode == 0
        assert restored == await everything_restored(redis)
        assert len(restored) > SNAPSHOTS + TOKENS


def _restoring(server: RedisServer, path: Path) -> subprocess.Popen[str]:
    settings = os.environ | {"VPS_SNAPSHOTS_REDIS__URL": f"unix://{server.socket}"}
    command = [str(PROGRAM), "restore", str(path), "--merge"]
    return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def _killed_beyond(redis: Redis, server: RedisServer, path: Path, *, keys: int) -> bool:
    """Kill it when Redis has that many keys. Returns whether it does not have all."""
    restoring = _restoring(server, path)
    try:

        async def is_under_way() -> bool:
            return bool(await redis.dbsize() > keys)

        await until_told(is_under_way)
        restoring.kill()
    finally:
        await asyncio.to_thread(restoring.communicate)
    return bool(await redis.dbsize() < SNAPSHOTS + TOKENS)


async def everything_restored(redis: Redis) -> dict[bytes, Any]:
    """Without the audit entry of the command."""
    found: dict[bytes, Any] = {}
    async for key in redis.scan_iter(count=1000):
        if not key.startswith((b"audit", b"clock")):
            found[key] = await redis.dump(key)
    return found
