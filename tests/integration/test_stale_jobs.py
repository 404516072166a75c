"""A job that waits for a dead node ends, whichever process checks it, and is never started afterward."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import RedisServer
from tests.integration.conftest import ACCOUNT, Cell, node_store
from tests.integration.front_end import serving
from tests.queueing import until_told
from tests.worker_process import worker_process
from worker.store.chores.chores import Chores
from worker.store.model import Job, JobId, JobState, ServerId
from worker.store.nodes.claims import BeginRefused, ReportedServer


async def _die(cell: Cell, *job_ids: JobId) -> None:
    """Make the node silent, and its jobs queued, since 1970."""
    await cell.raw("HSET", "node:n1", "heartbeat_ms", "1", "lease_until_ms", "1")
    for job_id in job_ids:
        await cell.raw("ZADD", "jobs:waiting", "1", job_id)


async def _job(cell: Cell, job_id: JobId) -> Job:
    return await cell.store.job(account_id=ACCOUNT, job_id=job_id)


async def _has_failed(cell: Cell, job_id: JobId) -> bool:
    job = await _job(cell, job_id)
    return job.failure is not None and job.failure.code == "node_unavailable"


async def test_it_fails_and_frees_its_server(cell: Cell) -> None:
    admitted = await cell.create()
    assert await Chores(cell.redis, waiting_seconds=60).fail_stale_jobs() == ()
    await asyncio.sleep(0.1)

    assert await Chores(cell.redis, waiting_seconds=0.05).fail_stale_jobs() == (admitted.job.id,)

    assert (await _job(cell, admitted.job.id)).state is JobState.FAILED
    with pytest.raises(BeginRefused):
        await cell.node.begin(admitted.job.id)
    assert not await cell.redis.exists("arq:queue:n1")
    await cell.create("again")


async def test_a_silent_node_keeps_its_place_by_queued_jobs_until_they_fail(cell: Cell) -> None:
    await cell.create()
    assert await cell.node.take_lease(seconds=60) is None
    assert await cell.raw("ZSCORE", "nodes:by:queued", "n1") == 1
    await _die(cell, await cell.holder())

    assert len(await Chores(cell.redis).fail_stale_jobs()) == 1

    assert await cell.raw("ZSCORE", "nodes:by:queued", "n1") == 0


async def test_the_jobs_of_busy_nodes_do_not_keep_those_of_a_dead_one_waiting(cell: Cell) -> None:
    alive = node_store(cell.redis, node="n2", machine="m2")
    assert await alive.take_lease(seconds=60) is None
    servers = [ServerId(n) for n in range(1, 131)]
    await alive.report([ReportedServer(id=s, account_id=ACCOUNT, name="busy", power="on") for s in servers])
    for server in servers:
        await alive.publish(server, [], [])
        await cell.create(server=server)
    waiting = await cell.create()
    await cell.raw("HSET", "node:n1", "heartbeat_ms", "1")
    await asyncio.sleep(0.1)

    failed = [job for _ in range(2) for job in await Chores(cell.redis, waiting_seconds=0.05).fail_stale_jobs()]

    assert waiting.job.id in failed


async def test_without_any_worker_the_front_end_fails_it(cell: Cell) -> None:
    admitted = await cell.create()
    await _die(cell, admitted.job.id)
    async with serving(cell):
        await until_told(lambda: _has_failed(cell, admitted.job.id))
    await cell.raw("HSET", "node:n1", "heartbeat_ms", (await cell.redis.time())[0] * 1000)
    await cell.create("again")


async def test_a_node_that_comes_back_does_not_begin_what_has_waited_too_long(
    cell: Cell, redis_server: RedisServer, tmp_path: Path
) -> None:
    late = await cell.create("late")
    await _die(cell, late.job.id)
    async with worker_process(redis_server.socket, tmp_path):
        await until_told(lambda: _has_failed(cell, late.job.id))

        async def is_back() -> bool:
            return bool(await cell.raw("HGET", "node:n1", "heartbeat_ms") != b"1")

        await until_told(is_back)
        next_one = await cell.create("next")

        async def is_over() -> bool:
            return (await _job(cell, next_one.job.id)).state.is_final

        await until_told(is_over)
        assert (await _job(cell, late.job.id)).attempts == 0
