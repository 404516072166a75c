"""An admission starts its job for a gateway that waits for it, if the node may start it. Nothing is lost if the
gateway, the node or Redis is lost right then."""

import asyncio
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import RedisServer, needs
from tests.gateway import GatewayProgram, gateway
from tests.integration.conftest import SERVER, Cell, node_store
from tests.queueing import until_told
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.program.background import in_background
from worker.store.access.credentials import Credentials
from worker.store.customers.customer_store import Admitted, CustomerStore
from worker.store.errors import StoreUnavailable
from worker.store.model import Job, JobId, JobState, ServerId
from worker.store.nodes.claims import CredentialEnded
from worker.store.nodes.node_store import NodeStore
from worker.store.operators.operator_store import OperatorStore
from worker.store.redis_client import RedisSettings, connect

ANOTHER = ServerId(12346)
LONG_SECONDS = 60.0
WAITS, WAKE = "node:n1:waits", "arq:queue:n1:wake"
Given = tuple[JobId | Job, ...]


async def noted(cell: Cell) -> None:
    """Return when a gateway waits."""

    async def is_noted() -> bool:
        return bool(await cell.raw("EXISTS", WAITS))

    await until_told(is_noted)


async def blocked(cell: Cell) -> None:
    """Return when a gateway waits, with or without a note."""

    async def is_blocked() -> bool:
        return bool((await cell.redis.info("clients"))["blocked_clients"])

    await until_told(is_blocked)


@asynccontextmanager
async def waiting(
    cell: Cell, node: NodeStore | None = None, *, free: int = 4, running: Sequence[JobId] = ()
) -> AsyncIterator[asyncio.Task[Given]]:
    """A `take` that waits."""
    node = node or cell.node
    taking = asyncio.create_task(node.take(running=running, free=free, seconds=LONG_SECONDS, begin=True))
    await noted(cell)
    try:
        yield taking
    finally:
        taking.cancel()
        await asyncio.wait({taking})


@asynccontextmanager
async def deaf(cell: Cell) -> AsyncIterator[NodeStore]:
    """The node, whose gateway does not hear of what is given to it: as one that is killed before it does."""
    socket = cell.redis.connection_pool.connection_kwargs["path"]
    elsewhere = connect(RedisSettings(url=f"unix://{socket}?db=1"), command_seconds=2 * LONG_SECONDS)
    node = NodeStore(cell.redis, node="n1", machine="m1", who="pid 1 on m1", waiting=elsewhere)
    assert await node.take_lease(seconds=60) is None
    try:
        yield node
    finally:
        await elsewhere.aclose(close_connection_pool=True)


async def is_queued(cell: Cell, admitted: Admitted) -> bool:
    return (await cell.job(admitted)).state is JobState.QUEUED


async def given(cell: Cell, node: NodeStore | None = None, *, running: Sequence[JobId] = ()) -> Given:
    return await (node or cell.node).take(running=running, free=4, seconds=0, begin=True)


# --- what is given ---


async def test_a_waiting_gateway_is_given_the_started_job(cell: Cell) -> None:
    async with waiting(cell) as taking:
        admitted = await cell.create()
        (job,) = await taking
        assert isinstance(job, Job)
        assert (job.id, job.state, job.attempts) == (admitted.job.id, JobState.IN_PROGRESS, 1)
        assert job.started_at is not None
    assert not await cell.raw("EXISTS", WAITS, WAKE)
    assert await given(cell, running=[job.id]) == ()
    assert await given(cell) == (job.id,)  # as every job that has started and is not over


async def test_the_admission_answers_and_tells_of_the_queued_job_first(cell: Cell) -> None:
    async with waiting(cell) as taking:
        admitted = await cell.create()
        await taking
    assert admitted.job.id
    assert [told[b"state"] for _, told in await cell.redis.xrange("events")] == [b"queued", b"in_progress"]


async def test_each_wait_gets_one_job(cell: Cell) -> None:
    """More slots may have been free when the wait began; the next `take` says how many are."""
    await cell.have([SERVER, ANOTHER])
    async with waiting(cell) as taking:
        first, second = await cell.create(), await cell.create(server=ANOTHER)
        (job,) = await taking
    assert isinstance(job, Job)
    assert job.id == first.job.id
    assert await is_queued(cell, second)
    (job,) = await given(cell, running=[job.id])
    assert isinstance(job, Job)
    assert job.id == second.job.id


async def test_a_wake_up_that_was_not_waited_for_disturbs_no_later_wait(cell: Cell) -> None:
    """Otherwise the gateway would look at the queue while the next job is given to its wait, and get the ID alone."""
    await cell.have([SERVER, ANOTHER])
    await cell.create()
    assert await cell.raw("EXISTS", WAKE)
    (first,) = await given(cell)
    assert isinstance(first, Job)
    assert not await cell.raw("EXISTS", WAKE)


async def test_a_job_does_not_overtake_those_that_are_queued(cell: Cell) -> None:
    await cell.have([SERVER, ANOTHER])
    operator = OperatorStore(cell.redis, cell.store)
    async with waiting(cell) as taking:
        await operator.pause("n1", reason="maintenance", by="op")
        first = await cell.create()
        await until_told(lambda: _is_gone(cell, WAITS))
        await cell.raw("HDEL", "node:n1", "paused_ms")  # as at the end of a pause that nobody has noticed yet
        second = await cell.create(server=ANOTHER)
        # both at once; in any order, because they may have been admitted in the same millisecond
        assert {one.id for one in await taking if isinstance(one, Job)} == {first.job.id, second.job.id}


async def _is_gone(cell: Cell, key: str) -> bool:
    return not await cell.raw("EXISTS", key)


@pytest.mark.parametrize("free", [1, 4])
async def test_two_waits_of_a_node_start_a_job_once(cell: Cell, free: int) -> None:
    again = NodeStore(cell.redis, node="n1", machine="m1", who="x", owner=cell.node._owner)
    async with waiting(cell, free=free) as first:
        noted_first = await cell.raw("GET", WAITS)
        second = asyncio.create_task(again.take(running=[], free=free, seconds=LONG_SECONDS, begin=True))

        async def is_replaced() -> bool:
            return bool(await cell.raw("GET", WAITS) != noted_first)

        await until_told(is_replaced)
        admitted = await cell.create()
        (job,) = await second
        assert isinstance(job, Job)
        assert not first.done()
    assert (await cell.job(admitted)).attempts == 1


# --- what is not given ---


async def test_a_paused_node_is_given_nothing_until_it_is_resumed(cell: Cell) -> None:
    operator = OperatorStore(cell.redis, cell.store)
    async with waiting(cell) as taking:
        await operator.pause("n1", reason="maintenance", by="op")
        admitted = await cell.create()
        assert await is_queued(cell, admitted)
        await until_told(lambda: _is_gone(cell, WAITS))
        await operator.resume("n1")
        (job,) = await taking
    assert isinstance(job, Job)
    assert job.id == admitted.job.id


async def test_a_worker_that_has_lost_its_lease_is_given_nothing(cell: Cell) -> None:
    async with waiting(cell) as taking:
        successor = node_store(cell.redis)
        assert await successor.take_lease(seconds=60) is None
        admitted = await cell.create()
        assert await is_queued(cell, admitted)
        await until_told(lambda: _is_gone(cell, WAKE))  # it has looked, in vain
        assert not taking.done()
        (job,) = await given(cell, successor)
        assert isinstance(job, Job)


async def test_a_node_whose_credential_has_ended_is_given_nothing(cell: Cell) -> None:
    credentials = Credentials(cell.redis)
    credential = await credentials.find((await credentials.create("n1")).secret)
    assert credential is not None
    node = NodeStore(cell.redis, node="n1", machine="m1", who="x", credential=credential.key)
    assert await node.take_lease(seconds=60) is None
    async with waiting(cell, node) as taking:
        await credentials.revoke("n1")
        assert await is_queued(cell, await cell.create())
        with pytest.raises(CredentialEnded):
            await taking


@pytest.mark.parametrize("gone", ["stopped", "cancelled"])
async def test_a_wait_that_has_ended_is_given_nothing(cell: Cell, gone: str) -> None:
    async with waiting(cell) as taking:
        if gone == "stopped":
            await cell.node.stop_taking()
            assert await taking == ()
        else:
            taking.cancel()
            await asyncio.wait({taking})
        assert not await cell.raw("EXISTS", WAITS)
        assert await is_queued(cell, await cell.create())


async def test_the_end_of_a_wait_does_not_end_that_of_another_connection(cell: Cell) -> None:
    again = NodeStore(cell.redis, node="n1", machine="m1", who="x", owner=cell.node._owner)
    async with waiting(cell) as first:
        noted_first = await cell.raw("GET", WAITS)
        second = asyncio.create_task(again.take(running=[], free=1, seconds=LONG_SECONDS, begin=True))

        async def is_replaced() -> bool:
            return bool(await cell.raw("GET", WAITS) != noted_first)

        await until_told(is_replaced)
        await cell.node.stop_taking()
        assert await first == ()
        await cell.create()
        (job,) = await second
    assert isinstance(job, Job)


async def test_where_changes_wait_for_replicas_the_start_waits_for_them_too(cell: Cell) -> None:
    node = NodeStore(cell.redis, node="n1", machine="m1", who="x", owner=cell.node._owner, starts_at_admission=False)
    taking = asyncio.create_task(node.take(running=[], free=1, seconds=LONG_SECONDS, begin=True))
    await blocked(cell)
    assert not await cell.raw("EXISTS", WAITS)
    await cell.create()
    (job,) = await taking
    assert isinstance(job, Job)


async def test_a_wait_that_cannot_be_read_delays_nothing(cell: Cell) -> None:
    texts = ("{", "5", "null", '{"id": {}, "owner": "x"}', '{"id": "x", "owner": "x", "credential": {}}')
    for n, damage in enumerate((("RPUSH", WAITS, "x"), *(("SET", WAITS, text) for text in texts))):
        async with waiting(cell) as taking:
            await cell.raw("DEL", WAITS)
            await cell.raw(*damage)
            admitted = await cell.create(f"mine-{n}")
            (job,) = await taking
            assert isinstance(job, Job)
            assert (job.id, job.attempts) == (admitted.job.id, 1)
            await cell.raw("DEL", WAITS, "arq:queue:n1")
            await cell.raw("HDEL", f"server:{SERVER}", "job")
            await cell.raw("DEL", f"server:{SERVER}:counted")  # its server may have as many as it likes


async def test_a_given_record_that_cannot_be_read_ends_no_wait(cell: Cell) -> None:
    async with waiting(cell) as taking:
        wait = json.loads(await cell.raw("GET", WAITS))["id"]
        await cell.raw("DEL", WAITS)
        await cell.raw("LPUSH", f"node:n1:given:{wait}", b"\xff{")
        await noted(cell)  # it has looked at the queue and waits again
        await cell.create()
        (job,) = await taking
    assert isinstance(job, Job)


async def test_a_full_redis_only_loses_the_speed(cell: Cell) -> None:
    admitted = await cell.create()
    await cell.fill(1.1)
    (job,) = await given(cell)
    assert isinstance(job, Job)
    taking = asyncio.create_task(cell.node.take(running=[job.id], free=1, seconds=LONG_SECONDS, begin=True))
    await blocked(cell)
    assert not await cell.raw("EXISTS", WAITS)
    await cell.node.stop_taking()
    assert await taking == ()
    await cell.empty()
    assert (await cell.job(admitted)).attempts == 1


async def test_an_idle_wait_writes_nothing_to_the_disk(cell: Cell) -> None:
    async def size() -> int:
        return int((await cell.redis.info("persistence"))["aof_current_size"])

    await cell.node.take(running=[], free=1, seconds=0.1, begin=True)
    before = await size()
    for _ in range(3):  # the end of each wait is over before the next begins
        await cell.node.take(running=[], free=1, seconds=0.1, begin=True)
    assert await size() == before


# --- what is lost ---


async def test_a_job_that_no_gateway_has_heard_of_is_given_again(cell: Cell) -> None:
    async with deaf(cell) as node, waiting(cell, node) as taking:
        admitted = await cell.create()
        job = await cell.job(admitted)
        assert (job.state, job.attempts) == (JobState.IN_PROGRESS, 1)
        assert not taking.done()
        # the node asks another gateway
        assert await given(cell, node) == (job.id,)
        assert (await node.begin(job.id)).attempts == 2
        (left,) = [key async for key in cell.redis.scan_iter("node:n1:given:*")]
        assert await cell.redis.pttl(left) > 0


async def test_a_pause_keeps_no_job_that_has_begun_from_its_node(cell: Cell) -> None:
    """A drain waits for its end, and its server may be off."""
    await cell.have([SERVER, ANOTHER])
    operator = OperatorStore(cell.redis, cell.store)
    async with deaf(cell) as node, waiting(cell, node):
        admitted = await cell.create()
        await operator.pause("n1", reason="maintenance", by="op")
        queued = await cell.create(server=ANOTHER)
        assert await given(cell, node) == (admitted.job.id,)
        assert (await node.begin(admitted.job.id)).attempts == 2
        assert await is_queued(cell, queued)


async def test_the_record_for_a_gateway_that_is_gone_is_given_to_no_other(cell: Cell) -> None:
    async with deaf(cell) as node:
        async with waiting(cell, node):
            admitted = await cell.create()
        again = NodeStore(cell.redis, node="n1", machine="m1", who="x", owner=node._owner)
        async with waiting(cell, again, running=[admitted.job.id]) as taking:
            await again.stop_taking()
            assert await taking == ()


async def test_a_gateway_is_killed_while_it_waits(cell: Cell, redis_server: RedisServer, tmp_path: Path) -> None:
    program = GatewayProgram(redis_server.socket)
    await program.let_in("n1")
    await program.start(tmp_path / "gateway.log")
    settings = program.settings_of("n1")
    address = GatewayAddress(
        urls=tuple(json.loads(settings["VPS_SNAPSHOTS_GATEWAY__URLS"])),
        credential_file=Path(settings["VPS_SNAPSHOTS_GATEWAY__CREDENTIAL_FILE"]),
    )
    node = GatewayClient(address, node="n1", machine="m1", who="x")
    async with in_background(node.keep_connected()):

        async def leads() -> bool:
            with suppress(StoreUnavailable):
                return await node.take_lease(seconds=60) is None
            return False

        await until_told(leads)
        taking = asyncio.create_task(node.take(running=[], free=1, seconds=5))
        await noted(cell)
        assert program.process is not None
        program.process.kill()
        with pytest.raises(StoreUnavailable):
            await taking
    admitted = await cell.create()  # for the wait of the killed gateway, or for none, if it has ended
    async with gateway(redis_server.socket) as reached, reached.client() as again:
        await until_told(lambda: _has_lease(again))
        (job,) = await again.take(running=[], free=1, seconds=5)
        job_id = job.id if isinstance(job, Job) else job
        assert job_id == admitted.job.id
    await program.stop()


async def _has_lease(node: GatewayClient) -> bool:
    with suppress(StoreUnavailable):
        return await node.take_lease(seconds=60) is None
    return False


async def test_a_connection_that_ends_ends_its_wait(cell: Cell, redis_server: RedisServer) -> None:
    async with gateway(redis_server.socket) as reached:
        async with reached.client() as node:
            assert await node.take_lease(seconds=60) is None
            taking = asyncio.create_task(node.take(running=[], free=1, seconds=5))
            await noted(cell)
        with pytest.raises(StoreUnavailable):
            await taking
        await until_told(lambda: _is_gone(cell, WAITS))
        assert await is_queued(cell, await cell.create())


async def test_a_restarted_redis_has_the_started_job_and_no_wait() -> None:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        redis = server.client()
        cell = Cell(redis=redis, store=CustomerStore(redis), node=node_store(redis))
        assert await cell.node.take_lease(seconds=600) is None
        await cell.have()
        async with deaf(cell) as node:
            async with waiting(cell, node):
                admitted = await cell.create()
                assert server.process is not None
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()
            server.start()
            await until_told(lambda: _answers(cell))
            assert not await cell.raw("EXISTS", WAITS)
            assert [key async for key in redis.scan_iter("node:n1:given:*")] == []
            assert (await cell.job(admitted)).state is JobState.IN_PROGRESS
            assert await given(cell, node) == (admitted.job.id,)
        await redis.aclose(close_connection_pool=True)
        server.kill()


async def _answers(cell: Cell) -> bool:
    with suppress(Exception):
        return bool(await cell.redis.ping())
    return False
