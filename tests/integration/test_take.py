"""Jobs that a gateway starts as it hands them out: started once, whatever is lost, and always by a live worker."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.asyncio.server import ServerConnection, unix_serve

from tests.conftest import RedisServer
from tests.gateway import Reached, gateway, secret_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.queueing import until, until_told
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.program.background import in_background
from worker.store.errors import JobNotCancellable
from worker.store.model import Job, JobId, JobState, ServerId
from worker.store.nodes.claims import LeaseLost
from worker.store.nodes.node_store import NodeStore
from worker.store.nodes.protocol import CALLS, TAKE_SECONDS
from worker.store.operators.operator_store import OperatorStore
from worker.store.redis_client import RedisSettings, connect

ANOTHER = ServerId(12346)
TAKE = {"running": [], "free": 4, "seconds": 5}
BEGIN = TAKE | {"begin": True}
BOUND_SECONDS = 20


@pytest.fixture
async def reached(cell: Cell, redis_server: RedisServer) -> AsyncIterator[Reached]:
    async with gateway(redis_server.socket) as reached:
        yield reached


class Speaker:
    """A node that sends arbitrary messages."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def say(self, call_id: int, call: str, **ask: Any) -> None:
        await self.connection.send(json.dumps({"id": call_id, "call": call, "ask": ask}))

    async def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.connection.recv())
        return answer


@asynccontextmanager
async def speaker(reached: Reached, *, protocol: int = 2, owner: str = "a" * 32) -> AsyncIterator[Speaker]:
    headers = {"Authorization": f"Bearer {reached.secret}"}
    path = reached.address.urls[0].removeprefix("unix://")
    async with unix_connect(path, "ws://gateway/node", additional_headers=headers, compression=None) as connection:
        one = Speaker(connection)
        await one.say(0, "hello", protocols=[protocol], node="n1", owner=owner, machine="m1", who="pid 1 on m1")
        assert (await one.hear())["answer"]["protocol"] == protocol
        await one.say(0, "take_lease", seconds=60)
        assert (await one.hear())["answer"] is None
        yield one


def begun(given: Sequence[JobId | Job]) -> list[JobId]:
    return [job.id for job in given if isinstance(job, Job)]


async def is_begun(cell: Cell, job_id: JobId) -> bool:
    return (await cell.store.job(account_id=ACCOUNT, job_id=job_id)).state is JobState.IN_PROGRESS


# --- what is handed out ---


async def test_a_job_is_handed_out_started_and_started_once(cell: Cell) -> None:
    admitted = await cell.create()
    (given,) = await cell.node.take(running=[], free=1, seconds=0, begin=True)
    assert isinstance(given, Job)
    assert (given.id, given.state, given.attempts) == (admitted.job.id, JobState.IN_PROGRESS, 1)
    assert given.started_at is not None
    assert await cell.node.take(running=[given.id], free=1, seconds=0, begin=True) == ()
    # the answer was lost, or the node crashed: its journal knows whether it has the job
    assert await cell.node.take(running=[], free=1, seconds=0, begin=True) == (given.id,)
    assert (await cell.job(admitted)).attempts == 1
    assert (await cell.node.begin(given.id)).attempts == 2


async def test_a_node_that_does_not_request_it_starts_nothing(cell: Cell) -> None:
    admitted = await cell.create()
    assert await cell.node.take(running=[], free=1, seconds=0) == (admitted.job.id,)
    assert (await cell.job(admitted)).state is JobState.QUEUED


async def test_no_more_jobs_are_started_than_there_are_slots(cell: Cell) -> None:
    await cell.have([SERVER, ANOTHER])
    queued = [await cell.create(), await cell.create(server=ANOTHER)]  # in one millisecond, if Redis is quick
    (one,) = begun(await cell.node.take(running=[], free=1, seconds=0, begin=True))
    left = [(await cell.job(admitted)).state for admitted in queued if admitted.job.id != one]
    assert left == [JobState.QUEUED]


async def test_an_unreadable_job_does_not_block_others(cell: Cell) -> None:
    await cell.have([SERVER, ANOTHER])
    bad, good = await cell.create(), await cell.create(server=ANOTHER)
    await cell.raw("HSET", f"job:{bad.job.id}", "kind", "of_a_later_release")
    assert begun(await cell.node.take(running=[], free=4, seconds=0, begin=True)) == [good.job.id]
    assert await cell.raw("ZCARD", "unreadable") == 1
    await cell.raw("HSET", f"job:{bad.job.id}", "kind", "create")
    assert begun(await cell.node.take(running=[good.job.id], free=4, seconds=0, begin=True)) == [bad.job.id]


async def test_a_job_whose_server_has_left_is_ended_and_not_given(cell: Cell) -> None:
    admitted = await cell.create()
    await cell.raw("HSET", f"server:{SERVER}", "node", "n2")
    assert await cell.node.take(running=[], free=1, seconds=0, begin=True) == ()
    assert (await cell.job(admitted)).state is JobState.FAILED


async def test_a_paused_node_is_given_nothing(cell: Cell) -> None:
    admitted = await cell.create()
    await OperatorStore(cell.redis, cell.store).pause("n1", reason="maintenance", by="op")
    assert await cell.node.take(running=[], free=1, seconds=0, begin=True) == ()
    assert (await cell.job(admitted)).state is JobState.QUEUED


async def test_a_cancelled_job_is_not_started_and_a_started_one_not_cancelled(cell: Cell) -> None:
    cancelled = await cell.create()
    await cell.store.cancel(account_id=ACCOUNT, job_id=cancelled.job.id)
    assert await cell.node.take(running=[], free=1, seconds=0, begin=True) == ()
    begun = await cell.create("again")
    (given,) = await cell.node.take(running=[], free=1, seconds=0, begin=True)
    with pytest.raises(JobNotCancellable):
        await cell.store.cancel(account_id=ACCOUNT, job_id=begun.job.id)
    assert isinstance(given, Job)


async def test_a_worker_without_the_lease_gets_no_jobs(cell: Cell) -> None:
    late, successor = cell.node, node_store(cell.redis)
    assert await successor.take_lease(seconds=60) is None
    admitted = await cell.create()
    assert await late.take(running=[], free=1, seconds=0, begin=True) == ()
    assert (await cell.job(admitted)).state is JobState.QUEUED
    (given,) = await successor.take(running=[], free=1, seconds=0, begin=True)
    assert isinstance(given, Job)
    with pytest.raises(LeaseLost):
        await late.begin(given.id)


# --- what is lost ---


async def test_an_answer_that_is_lost_delays_the_job_and_loses_it_not(cell: Cell, reached: Reached) -> None:
    async with speaker(reached) as node:
        await node.say(1, "take", **BEGIN)
        job_id = (await cell.create()).job.id
        await until_told(lambda: is_begun(cell, job_id))
        node.connection.transport.abort()  # it has not read the answer
    async with reached.client() as again:
        assert await again.take_lease(seconds=60) is None
        assert await again.take(running=[], free=4, seconds=5) == (job_id,)
        assert (await again.begin(job_id)).attempts == 2


async def test_two_connections_of_a_node_never_get_the_same_job(cell: Cell, reached: Reached) -> None:
    async with speaker(reached) as first, speaker(reached) as second:

        async def taken(one: Speaker) -> list[Any]:
            while (answer := await one.hear())["id"] != 1:
                pass
            return list(answer["answer"])

        for one in (first, second):
            await one.say(1, "take", **BEGIN)
        job_id = (await cell.create()).job.id
        taking = {asyncio.create_task(taken(one)): one for one in (first, second)}
        _, waiting = await asyncio.wait(taking, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            await taking[task].say(2, "stop_taking")
        given = [job for task in taking for job in await task if isinstance(job, dict)]
        assert [job["id"] for job in given] == [job_id]  # the other one may have got the ID of the started job
        assert (await cell.store.job(account_id=ACCOUNT, job_id=job_id)).attempts == 1


async def test_a_node_that_stops_leaves_jobs_in_the_queue(cell: Cell, reached: Reached) -> None:
    async with speaker(reached) as node:
        await node.say(1, "take", **BEGIN)
        await node.say(2, "stop_taking")
        heard = [await node.hear(), await node.hear()]
        assert sorted(heard, key=lambda answer: int(answer["id"])) == [
            {"id": 1, "answer": []},
            {"id": 2, "answer": None},
        ]
        admitted = await cell.create()
        assert (await cell.job(admitted)).state is JobState.QUEUED
        await node.say(3, "take", **BEGIN)  # it continues
        assert [job["id"] for job in (await node.hear())["answer"]] == [admitted.job.id]


async def test_a_take_that_nobody_awaits_is_ended_at_the_gateway(cell: Cell, reached: Reached) -> None:
    def answered(call: str) -> float:
        labels = {"call": call, "result": "answered"}
        return reached.metrics.registry.get_sample_value("vps_snapshots_gateway_calls_total", labels) or 0.0

    async with reached.client() as node:
        assert await node.take_lease(seconds=60) is None
        taking = asyncio.create_task(node.take(running=[], free=4, seconds=5))
        for _ in range(2):  # the second one is queued behind the take
            await node.lease_holder()
        taking.cancel()
        await until(lambda: answered("take") == answered("stop_taking") == 1)
        admitted = await cell.create()
        assert (await cell.job(admitted)).state is JobState.QUEUED


# --- other releases ---


async def test_a_node_of_the_previous_release_starts_its_jobs_itself(cell: Cell, reached: Reached) -> None:
    async with speaker(reached, protocol=1) as node:
        await node.say(1, "take", **TAKE)
        job_id = (await cell.create()).job.id
        assert (await node.hear())["answer"] == [job_id]
        assert not await is_begun(cell, job_id)
        await node.say(2, "begin", job_id=job_id)
        assert (await node.hear())["answer"]["id"] == job_id


async def test_a_gateway_of_the_first_release_is_asked_as_it_expects(tmp_path: Path) -> None:
    """As after a downgrade of the gateways."""
    asked: list[tuple[str, set[str]]] = []
    waits: list[float] = []

    async def answer(connection: ServerConnection) -> None:
        async for frame in connection:
            one = json.loads(frame)
            asked.append((one["call"], set(one["ask"])))
            match one["call"]:
                case "hello":
                    said: Any = {"protocol": 1, "node": "n1"}
                case "take":
                    waits.append(one["ask"]["seconds"])
                    said = ["a" * 32] if one["ask"]["free"] == 1 else None  # otherwise it waits
                case _:
                    said = 0
            if said is not None:
                await connection.send(json.dumps({"id": one["id"], "answer": said}))

    file, socket = tmp_path / "credential", tmp_path / "old.sock"
    file.touch(mode=0o600)
    file.write_text(secret_of("n1"))
    address = GatewayAddress(urls=(f"unix://{socket}",), credential_file=file)
    async with unix_serve(answer, str(socket)):
        node = GatewayClient(address, node="n1", machine="m1", who="x")
        async with in_background(node.keep_connected()):
            assert await node.take(running=[], free=1, seconds=TAKE_SECONDS) == ("a" * 32,)
            taking = asyncio.create_task(node.take(running=[], free=2, seconds=0.5))
            await until(lambda: len(asked) == 3)
            taking.cancel()
            await node.stop_taking()
            assert await node.republish() == 0
    fields = {"running", "free", "seconds"}
    assert asked[1:] == [("take", fields), ("take", fields), ("republish", set())]
    assert waits == [5, 0.5]


@pytest.mark.parametrize(("protocol", "seconds"), [(1, 5), (4, 5), (5, TAKE_SECONDS), (6, TAKE_SECONDS)])
def test_a_gateway_is_asked_to_wait_as_long_as_its_release_can(protocol: int, seconds: float) -> None:
    call = CALLS["take"]
    asked = call.ask.fitting(running=[], free=1, seconds=TAKE_SECONDS, begin=True)
    assert json.loads(call.said(asked, protocol))["seconds"] == seconds


async def test_a_worker_stops_also_without_a_gateway(tmp_path: Path) -> None:
    address = GatewayAddress(urls=(f"unix://{tmp_path}/nobody.sock",), credential_file=tmp_path / "none")
    node = GatewayClient(address, node="n1", machine="m1", who="x")
    await node.stop_taking()


async def test_a_wait_for_jobs_ends_although_its_redis_hangs(cell: Cell, tmp_path: Path) -> None:
    """A former primary that is frozen or cut off would else hold up the jobs of its successor."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(silent, tmp_path / "redis.sock")
    hanging = connect(RedisSettings(url=f"unix://{tmp_path}/redis.sock"), command_seconds=3600)
    node = NodeStore(cell.redis, node="n1", machine="m1", who="pid 1 on m1", waiting=hanging)
    async with asyncio.timeout(BOUND_SECONDS):
        assert await node.take(running=[], free=1, seconds=0.1) == ()
    await hanging.aclose(close_connection_pool=True)
    server.close()
    await server.wait_closed()
