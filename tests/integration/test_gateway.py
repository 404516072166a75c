"""The gateway: which nodes it admits, for how long, how much a node may send, and what is lost when a part dies."""

import asyncio
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.gateway.answers import ANSWERS
from api.gateway.certificate import ends_at
from api.gateway.main import running
from api.gateway.metrics import Metrics
from api.gateway.server import Connection
from api.gateway.session import OPEN_CALLS, Session
from api.gateway.settings import GatewaySettings
from deploy.demo.processes import Child
from drivers.fake_faults import Effect, Rule, write_rules
from tests.conftest import RedisServer, needs
from tests.gateway import GatewayProgram, Reached, gateway, make_certificate, secret_of
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.queueing import until, until_told
from worker.gateway_address import GatewayAddress
from worker.gateway_client import GatewayClient
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Limits, Permission, Presented, Tokens
from worker.store.customers.customer_store import CustomerStore
from worker.store.errors import CredentialExists, StoreUnavailable
from worker.store.model import AccountId, Failure, Job, JobState, ServerId, SnapshotStatus, Step
from worker.store.nodes.claims import BeginRefused, LeaseLost, ReportedServer
from worker.store.nodes.port import NodePort
from worker.store.nodes.protocol import FRAME_BYTES
from worker.store.outcome import Outcome
from worker.store.redis_client import RedisSettings

HELLO = {"protocols": [1], "node": "n1", "owner": "a" * 32, "machine": "m1", "who": "pid 1 on m1"}
DONE = Outcome(state=JobState.COMPLETED, size_mb=5, snapshot_status=SnapshotStatus.COMPLETED)


@pytest.fixture
async def reached(cell: Cell, redis_server: RedisServer) -> AsyncIterator[Reached]:
    async with gateway(redis_server.socket) as reached:
        yield reached


@asynccontextmanager
async def raw(reached: Reached, *, secret: str | None = None, **options: Any) -> AsyncIterator[ClientConnection]:
    """A connection for arbitrary messages."""
    headers = {"Authorization": f"Bearer {reached.secret if secret is None else secret}"}
    path = reached.address.urls[0].removeprefix("unix://")
    async with unix_connect(path, "ws://gateway/node", additional_headers=headers, compression=None, **options) as one:
        yield one


async def ask(connection: ClientConnection, call: str, **fields: Any) -> dict[str, Any]:
    await connection.send(json.dumps({"id": 1, "call": call, "ask": fields}))
    answer: dict[str, Any] = json.loads(await connection.recv())
    return answer


@asynccontextmanager
async def greeted(reached: Reached, **hello: Any) -> AsyncIterator[ClientConnection]:
    async with raw(reached) as connection:
        assert await ask(connection, "hello", **(HELLO | hello)) == {"id": 1, "answer": {"protocol": 1, "node": "n1"}}
        yield connection


def refused(reached: Reached, reason: str) -> float:
    name = "vps_snapshots_gateway_claims_refused_total"
    return reached.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0


async def everything(redis: Redis, *, but: tuple[str, ...] = ()) -> dict[bytes, bytes | None]:
    """All data in Redis."""
    keys = sorted([key async for key in redis.scan_iter()])
    return {key: await redis.dump(key) for key in keys if not key.decode().startswith(but)}


# --- admission ---


@pytest.mark.parametrize("secret", ["", "vps_" + "x" * 43, "vpsnode_" + "y" * 43, "vpsnode_short", "é", "x" * 5000])
async def test_nobody_is_let_in_without_a_credential(reached: Reached, secret: str) -> None:
    with pytest.raises(InvalidStatus) as told:
        async with raw(reached, secret=secret.encode().decode("latin-1")):
            pass
    assert told.value.response.status_code == 401


async def test_a_token_of_the_api_is_no_credential_and_a_credential_no_token(cell: Cell, reached: Reached) -> None:
    token = await Tokens(cell.redis).create(name="t", account_id=ACCOUNT, permissions=frozenset(Permission))
    with pytest.raises(InvalidStatus):
        async with raw(reached, secret=token.secret):
            pass
    found = await Tokens(cell.redis).authenticate(
        Presented(secret=reached.secret, address="a"), Limits(calls=5, failed_logins=5)
    )
    assert found.token is None


async def test_two_credentials_in_one_request_are_refused(reached: Reached) -> None:
    headers = [("Authorization", f"Bearer {reached.secret}")] * 2
    path = reached.address.urls[0].removeprefix("unix://")
    with pytest.raises(InvalidStatus) as told:
        async with unix_connect(path, "ws://gateway/node", additional_headers=headers):
            pass
    assert told.value.response.status_code == 401


async def test_other_paths_are_404_and_health_needs_no_credential(reached: Reached) -> None:
    path = reached.address.urls[0].removeprefix("unix://")
    with pytest.raises(InvalidStatus) as told:
        async with unix_connect(path, "ws://gateway/", additional_headers={}):
            pass
    assert told.value.response.status_code == 404
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_handshake_that_is_broken_off_leaves_nothing(reached: Reached) -> None:
    request = (
        f"GET /node HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {reached.secret}\r\n\r\n"  # it asks for no upgrade
    )
    for _ in range(3):
        reader, writer = await asyncio.open_unix_connection(reached.address.urls[0].removeprefix("unix://"))
        writer.write(request.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 426 ")
        writer.close()

    async def none_is_left() -> bool:
        gc.collect()
        return not any(isinstance(one, Connection) for one in gc.get_objects())

    await until_told(none_is_left)


async def test_a_node_is_the_one_of_its_credential(reached: Reached) -> None:
    async with raw(reached) as connection:
        answer = await ask(connection, "hello", **(HELLO | {"node": "n2"}))
        assert answer["error"] == "wrong_node"
        assert "credential belongs to node n1" in answer["detail"]
        assert (await ask(connection, "republish"))["error"] == "no_hello"
    assert refused(reached, "wrong_node") == 1


async def test_a_newer_node_is_told_which_protocols_the_gateway_speaks(reached: Reached) -> None:
    async with raw(reached) as connection:
        answer = await ask(connection, "hello", **(HELLO | {"protocols": [7], "of_a_later_release": True}))
        assert answer == {
            "id": 1,
            "error": "protocol",
            "detail": "this gateway speaks protocol 1, 2, 3, 4, 5, the node (7,)",
        }
        answer = await ask(connection, "hello", **(HELLO | {"protocols": [7, 2, 1], "of_a_later_release": True}))
        assert answer["answer"]["protocol"] == 2


async def test_a_file_that_others_can_read_is_no_credential(reached: Reached) -> None:
    reached.address.credential_file.chmod(0o640)
    async with reached.client() as client:
        await asyncio.sleep(0.05)
        with pytest.raises(StoreUnavailable) as told:
            await client.republish()
    assert "can be read by others" in str(told.value.__cause__)


async def test_a_missing_or_refused_credential_is_named_with_its_file(reached: Reached) -> None:
    file = reached.address.credential_file
    for text, why in [
        (None, f"{file} does not exist: create a credential with"),
        ("", f"{file} is empty: create a credential with"),
        ("vpsnode_" + "y" * 43, f"HTTP 401: the gateway refused the credential in {file}: it is wrong, revoked or"),
    ]:
        file.unlink(missing_ok=True)
        if text is not None:
            file.touch(mode=0o600)
            file.write_text(text)
        with capture_logs() as lines:
            async with reached.client() as client:
                await asyncio.sleep(0.3)
                with pytest.raises(StoreUnavailable) as told:
                    await client.republish()
        assert why in str(told.value.__cause__)
        assert [why in line["cause"] for line in lines if line["event"] == "gateway.not_reached"] == [True]
    assert {line["address"] for line in lines if line["event"] == "gateway.turned_away"} == {"unix"}


# --- the life of a credential ---


async def gone(connection: ClientConnection) -> None:
    """Wait until the other side has closed the connection."""
    async with asyncio.timeout(60):
        await connection.wait_closed()


async def test_a_revoked_node_is_cut_and_stays_out(cell: Cell, redis_server: RedisServer) -> None:
    credentials = Credentials(cell.redis)
    async with gateway(redis_server.socket, node="other") as reached:
        secret = (await credentials.create("n1")).secret
        async with raw(reached, secret=secret) as connection, raw(reached) as other:
            await ask(connection, "hello", **HELLO)
            assert await credentials.revoke("n1") == 1
            await gone(connection)
            with pytest.raises(InvalidStatus):
                async with raw(reached, secret=secret):
                    pass
            assert (await ask(other, "hello", **(HELLO | {"node": "other"})))["answer"]
        assert await credentials.all("n1") == []


async def test_nothing_is_done_for_a_credential_that_ended_a_moment_ago(
    cell: Cell, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example after Redis has lost its data: the first node to claim a server gets it."""
    monkeypatch.setattr("api.gateway.server.CREDENTIAL_CHECK_SECONDS", 3600)
    claims: dict[str, dict[str, Any]] = {
        "take_lease": {"seconds": 60},
        "report": {"servers": [{"id": 1, "account_id": 7, "name": "x", "power": "on"}], "about": None},
        "take": {"running": [], "free": 1, "seconds": 0, "begin": True},
        "retry_deletes": {},
        "republish": {},
    }
    async with gateway(redis_server.socket, node="other") as reached:
        for call, claim in claims.items():
            await Credentials(cell.redis).revoke("n1")
            secret = (await Credentials(cell.redis).create("n1")).secret
            async with raw(reached, secret=secret) as connection:
                await ask(connection, "hello", **HELLO)
                await cell.redis.flushdb()
                with pytest.raises(ConnectionClosed):
                    await ask(connection, call, **claim)
            # the gateway's own node may have its credential back
            known = ("clock", "credential:", "nodes:credentials", "node:other:credentials")
            assert await everything(cell.redis, but=known) == {}, call


async def test_a_credential_ends_by_itself(cell: Cell, reached: Reached) -> None:
    credentials = Credentials(cell.redis)
    secret = (await credentials.create("n2", lifetime=timedelta(minutes=10))).secret
    (one,) = await credentials.all("n2")
    assert 0 < await cell.redis.pttl(one.key) <= 600_000
    async with raw(reached, secret=secret) as connection:
        await cell.redis.pexpire(one.key, 1)
        await gone(connection)
    assert await credentials.all("n2") == []


async def test_a_rotated_credential_is_valid_beside_the_new_one_for_a_while(cell: Cell, reached: Reached) -> None:
    credentials = Credentials(cell.redis)
    old = (await credentials.create("n2")).secret
    with pytest.raises(CredentialExists):
        await credentials.create("n2")
    new = (await credentials.rotate("n2", overlap=timedelta(minutes=10))).secret
    (ending,) = [one for one in await credentials.all("n2") if one.ends_at is not None]
    assert len(await credentials.all("n2")) == 2
    async with raw(reached, secret=old) as before, raw(reached, secret=new) as after:
        await cell.redis.pexpire(ending.key, 1)
        await gone(before)
        assert (await ask(after, "hello", **(HELLO | {"node": "n2"})))["answer"]
    assert [(one.node, one.ends_at) for one in await credentials.all()] == [("n1", None), ("n2", None)]


async def test_a_rotation_never_makes_a_credential_last_longer(cell: Cell) -> None:
    credentials = Credentials(cell.redis)
    await credentials.create("n2", lifetime=timedelta(minutes=5))
    await credentials.rotate("n2", overlap=timedelta(hours=1))
    (first,) = [one for one in await credentials.all("n2") if one.ends_at is not None]
    assert 0 < await cell.redis.pttl(first.key) <= 300_000


async def test_redis_holds_no_secret(cell: Cell, reached: Reached) -> None:
    secret = (await Credentials(cell.redis).create("n2")).secret
    held = await everything(cell.redis)
    assert not any(secret.encode() in key + (value or b"") for key, value in held.items())


async def test_a_credential_is_restored_after_redis_has_lost_it(cell: Cell) -> None:
    credentials = Credentials(cell.redis)
    secret = (await credentials.create("n2")).secret
    await cell.redis.flushdb()
    assert await credentials.find(secret) is None
    await credentials.restore("n2", secret)
    found = await credentials.find(secret)
    assert found is not None
    assert found.node == "n2"
    await credentials.restore("n2", secret)
    assert await credentials.find(secret) == found
    with pytest.raises(ValueError, match="another node"):
        await credentials.restore("n3", secret)


async def test_a_credential_is_restored_beside_one_from_before_its_rotation(cell: Cell) -> None:
    credentials = Credentials(cell.redis)
    former = (await credentials.create("n2")).secret
    await credentials.restore("n2", secret_of("n2"))  # Redis was reset to a copy from before the rotation
    found = await credentials.find(secret_of("n2"))
    assert found is not None
    assert found.ends_at is None
    ending = await credentials.find(former)
    assert ending is not None
    assert ending.ends_at is not None
    await credentials.restore("n2", secret_of("n2"))
    assert await credentials.find(secret_of("n2")) == found


# --- the calls ---


async def test_a_job_runs_from_take_to_conclude(cell: Cell, reached: Reached) -> None:
    async with reached.client() as node:
        assert await node.take_lease(seconds=15) is None
        taking = asyncio.create_task(node.take(running=[], free=4, seconds=5))
        admitted = await cell.create()
        (job,) = await taking
        assert isinstance(job, Job)  # the gateway has started it
        assert (job.server_id, job.snapshot_name, job.state) == (SERVER, "before-update", JobState.IN_PROGRESS)
        assert await node.take(running=[admitted.job.id], free=3, seconds=0) == ()
        assert await node.take(running=[], free=4, seconds=0) == (admitted.job.id,)  # the node has crashed
        await node.progress(admitted.job.id, Step.SNAPSHOTTING)
        assert await node.finish(admitted.job.id, DONE, power="on") == "published"
        assert await node.take(running=[], free=4, seconds=0) == ()
        assert await node.finish(admitted.job.id, DONE) == "job_over"
        known = await node.known(SERVER, [job.snapshot_id])
        assert known.listed == {job.snapshot_id: SnapshotStatus.COMPLETED}
        assert known.on_disk[job.snapshot_id] is not None
        with pytest.raises(BeginRefused, match="job_over"):
            await node.begin(admitted.job.id)
        assert await node.republish() == 1
    assert not [key async for key in cell.redis.scan_iter("arq:*") if not key.endswith(b":wake")]


async def test_a_long_text_does_not_block_an_outcome(cell: Cell, reached: Reached) -> None:
    async with reached.client() as node:
        await node.take_lease(seconds=15)
        job_id = (await cell.create()).job.id
        await node.begin(job_id)
        failure = Failure(code="step_failed", detail="x" * 100_000 + "\udcff")
        outcome = Outcome(state=JobState.FAILED, failure=failure, snapshot_status=SnapshotStatus.FAILED)
        assert await node.finish(job_id, outcome) == "published"
        job = await cell.store.job(account_id=ACCOUNT, job_id=job_id)
        assert job.failure is not None
        assert job.failure.detail == "x" * 1000


async def test_a_worker_without_the_lease_changes_nothing(cell: Cell, reached: Reached) -> None:
    async with reached.client() as node:
        await node.take_lease(seconds=15)
        job_id = (await cell.create()).job.id
        await node_store(cell.redis).take_lease(seconds=15)
        before = await everything(cell.redis)
        with pytest.raises(LeaseLost):
            await node.begin(job_id)
        with pytest.raises(LeaseLost):
            await node.finish(job_id, DONE)
        with pytest.raises(LeaseLost):
            await node.report([ReportedServer(id=SERVER, account_id=ACCOUNT, name="x", power="on")])
        assert await everything(cell.redis) == before


async def test_a_record_that_cannot_be_read_is_the_trouble_of_its_call_alone(cell: Cell, reached: Reached) -> None:
    async with reached.client() as node:
        await node.take_lease(seconds=15)
        job_id = (await cell.create()).job.id
        await cell.raw("HSET", f"job:{job_id}", "kind", "of_a_later_release")
        with pytest.raises(BeginRefused, match="record_unreadable"):
            await node.begin(job_id)
        assert await node.republish() == 1


# --- what a hostile node can do ---


BAD_FRAMES = {
    "no JSON": "{",
    "nothing": "",
    "a list": "[]",
    "no id": '{"call":"begin","ask":{}}',
    "id of a wrong type": '{"id":true,"call":"begin","ask":{}}',
    "a huge id": '{"id":99999999999999999999999999,"call":"begin","ask":{}}',
    "one field more": '{"id":1,"call":"begin","ask":{},"node":"n2"}',
    "deep": '{"id":1,"call":"begin","ask":' + "[" * 100_000,
    "not a number": '{"id":1,"call":"take_lease","ask":{"seconds":NaN}}',
    "bytes": b'{"id":1,"call":"republish","ask":{}}',
}


@pytest.mark.parametrize("frame", BAD_FRAMES.values(), ids=BAD_FRAMES)
async def test_an_unknown_call_ends_the_connection(reached: Reached, frame: str | bytes) -> None:
    async with greeted(reached) as connection:
        await connection.send(frame)
        await gone(connection)
        assert connection.close_code == 1008
    assert refused(reached, "bad_frame") == 1


BAD_ASKS = {
    "unknown call": ("steal", {}),
    "another node": ("take_lease", {"seconds": 1, "node": "n2"}),
    "a long lease": ("take_lease", {"seconds": 1e9}),
    "a job that is no id": ("begin", {"job_id": "../../job"}),
    "an id in another form": ("lose", {"server_id": "1", "snapshot_id": 5}),
    "an id beyond 63 bits": ("lose", {"server_id": 2**63, "snapshot_id": 5}),
    "an id of a fraction": ("lose", {"server_id": 1.5, "snapshot_id": 5}),
    "no power": ("report", {"servers": [{"id": 1, "account_id": 1, "name": "x", "power": "exploded"}], "about": None}),
    "a state of no end": ("finish", {"job_id": "a" * 32, "outcome": {"state": "queued"}, "report": {}, "power": ""}),
    "a code that is a key": (
        "finish",
        {
            "job_id": "a" * 32,
            "outcome": {"state": "failed", "failure": {"code": "x:y", "detail": ""}},
            "report": {},
            "power": "",
        },
    ),
    "limits of its own": (
        "finish",
        {"job_id": "a" * 32, "outcome": {"state": "failed", "kept_ms": 1}, "report": {}, "power": ""},
    ),
    "all slots of the world": ("take", {"running": [], "free": 10_000, "seconds": 0}),
    "too many ids": ("take", {"running": ["a" * 32] * 1001, "free": 1, "seconds": 0}),
    "a long text": ("tell_findings", {"server_id": 1, "findings": [{"finding": "a", "tag": "x" * 129, "at": "1"}]}),
    "a long list": ("known", {"server_id": 1, "on_disk": list(range(1, 502))}),
    "no object": ("republish", []),
}


@pytest.mark.parametrize("call", BAD_ASKS)
async def test_an_invalid_message_is_refused_and_changes_nothing(cell: Cell, reached: Reached, call: str) -> None:
    name, fields = BAD_ASKS[call]
    async with greeted(reached) as connection:
        before = await everything(cell.redis)
        await connection.send(json.dumps({"id": 1, "call": name, "ask": fields}))
        answer = json.loads(await connection.recv())
        assert answer["error"] in {"bad_ask", "unknown_call"}
        assert await everything(cell.redis) == before
    assert refused(reached, answer["error"]) == 1


async def test_hello_is_sent_once(reached: Reached) -> None:
    async with greeted(reached) as connection:
        assert (await ask(connection, "hello", **(HELLO | {"owner": "b" * 32})))["error"] == "two_hellos"


async def test_one_take_at_a_time_waits_on_a_connection(reached: Reached) -> None:
    async with greeted(reached) as connection:
        for number in (1, 2):
            take = {"running": [], "free": 1, "seconds": 5}
            await connection.send(json.dumps({"id": number, "call": "take", "ask": take}))
        assert json.loads(await connection.recv())["error"] == "two_takes"


async def test_a_frame_that_is_too_long_ends_the_connection(reached: Reached) -> None:
    with suppress(AttributeError):  # of a transport that was closed during the write
        async with greeted(reached) as connection:
            await connection.send("x" * (FRAME_BYTES + 1))
            await gone(connection)
    assert connection.close_code == 1009


async def test_a_node_that_calls_too_often_waits_and_delays_nobody(cell: Cell, redis_server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        limits: dict[str, Any] = {"calls_per_second": 50, "calls_at_once": 10}
        reached = await stack.enter_async_context(gateway(redis_server.socket, **limits))
        secret = (await Credentials(cell.redis).create("n2")).secret
        flood = await stack.enter_async_context(greeted(reached))
        other = await stack.enter_async_context(raw(reached, secret=secret))
        assert (await ask(other, "hello", **(HELLO | {"node": "n2"})))["answer"]
        began = time.monotonic()
        for number in range(60):
            await flood.send(json.dumps({"id": number, "call": "lease_holder", "ask": {}}))
        assert "answer" in await ask(other, "lease_holder")
        for _ in range(60):
            await flood.recv()
        assert time.monotonic() - began > 0.9  # (60 - 10) / 50 a second


async def test_a_second_connection_of_a_node_gives_it_no_second_allowance(redis_server: RedisServer) -> None:
    async with gateway(redis_server.socket, calls_per_second=20, calls_at_once=20) as reached:
        began = time.monotonic()
        for _ in range(2):
            async with greeted(reached) as connection:
                for _ in range(19):
                    await ask(connection, "lease_holder")
        assert time.monotonic() - began > 0.9


async def test_a_call_with_many_items_counts_as_many(redis_server: RedisServer) -> None:
    servers = [{"id": n + 1, "account_id": 5, "name": "x", "power": "on"} for n in range(380)]
    async with gateway(redis_server.socket, calls_per_second=20, calls_at_once=20) as reached:
        began = time.monotonic()
        async with greeted(reached) as connection:
            for _ in range(2):
                await ask(connection, "report", servers=servers, about=None)
        assert time.monotonic() - began > 0.9


@pytest.mark.parametrize(
    "fields",
    [
        {f"k{n}": 1 for n in range(60_000)},  # what takes the gateway long also counts where it is invalid
        {"servers": [], "about": None, "x" * 900_000: 1},  # or long
    ],
    ids=["many", "long"],
)
async def test_a_large_message_counts_as_many_calls(redis_server: RedisServer, fields: dict[str, Any]) -> None:
    async with gateway(redis_server.socket, calls_per_second=100, calls_at_once=20) as reached:
        began = time.monotonic()
        async with greeted(reached) as connection:
            answers = [await ask(connection, "report", **fields) for _ in range(2)]
        assert time.monotonic() - began > 0.9
    assert [answer["error"] for answer in answers] == ["bad_ask"] * 2
    assert len(answers[0]["detail"]) <= 1000


def open_connections(reached: Reached) -> float | None:
    return reached.metrics.registry.get_sample_value("vps_snapshots_gateway_connections")


async def test_a_call_that_waits_while_its_node_is_cut_does_nothing(cell: Cell, redis_server: RedisServer) -> None:
    async with gateway(redis_server.socket, node="n3", calls_per_second=1, calls_at_once=3) as reached:
        secret = (await Credentials(cell.redis).create("n1")).secret
        async with raw(reached, secret=secret) as connection:
            assert "answer" in await ask(connection, "hello", **HELLO)
            await connection.send(json.dumps({"id": 2, "call": "republish", "ask": {}}))  # would have to wait long
            await Credentials(cell.redis).revoke("n1")
            await gone(connection)
        await until(lambda: open_connections(reached) == 0)  # with all its calls
    assert not await cell.raw("HEXISTS", f"server:{SERVER}", "unpublished")


async def test_a_node_that_owes_calls_opens_no_more_connections(cell: Cell, redis_server: RedisServer) -> None:
    """Otherwise, its connections that wait would reach the limit for all nodes, and it would owe ever more."""
    async with gateway(redis_server.socket, calls_per_second=1, calls_at_once=3) as reached:
        async with greeted(reached) as connection:
            await connection.send(json.dumps({"id": 2, "call": "republish", "ask": {}}))
        await until(lambda: open_connections(reached) == 0)
        with pytest.raises(InvalidStatus, match="429"):
            async with raw(reached):
                pass
        secret = (await Credentials(cell.redis).create("n2")).secret
        async with raw(reached, secret=secret) as other:
            assert "answer" in await ask(other, "hello", **(HELLO | {"node": "n2"}))


async def test_a_node_has_few_connections_and_the_oldest_is_cut(reached: Reached) -> None:
    async with AsyncExitStack() as stack:
        first, *others = [await stack.enter_async_context(greeted(reached)) for _ in range(5)]
        await gone(first)
        for connection in others:
            assert (await ask(connection, "republish"))["answer"] >= 0


@pytest.mark.parametrize("flood", ["ping", "pong"])
async def test_a_flood_of_pings_ends_the_connection(reached: Reached, flood: str) -> None:
    async with greeted(reached) as connection:
        with suppress(ConnectionClosed):
            for _ in range(1000):
                await getattr(connection, flood)()
        await gone(connection)


async def test_a_node_that_connects_again_and_again_is_turned_away(reached: Reached) -> None:
    async def is_turned_away() -> bool:
        try:
            async with raw(reached):
                return False
        except InvalidStatus as told:
            return told.response.status_code == 429

    await until_told(is_turned_away)


async def test_a_node_that_reads_no_answers_is_not_read(
    cell: Cell, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Session] = []

    def listed(*arguments: Any, **named: Any) -> Session:
        sessions.append(Session(*arguments, **named))
        return sessions[-1]

    monkeypatch.setattr("api.gateway.server.Session", listed)
    monkeypatch.setattr("api.gateway.server.SILENT_SECONDS", 600)
    much: dict[str, Any] = dict.fromkeys(("calls_per_second", "calls_at_once", "bytes_per_second"), 1_000_000_000)
    async with (
        gateway(redis_server.socket, **much) as reached,
        greeted(reached, who="other") as other,
        greeted(reached, who="slow") as slow,
    ):
        slow.transport.pause_reading()

        async def send() -> None:
            while True:  # the answers contain the name of the field
                await slow.send(json.dumps({"id": 1, "call": "hello", "ask": {"x" * 1000: 1}}))

        sending = asyncio.create_task(send())
        await until(lambda: any(one._connection.paused for one in sessions))  # no more fits into the socket
        (session,) = (one for one in sessions if one._connection.paused)
        await until(lambda: len(session._calls) >= OPEN_CALLS)
        for _ in range(20):
            assert "answer" in await ask(other, "republish")
            assert len(session._calls) == OPEN_CALLS
        sending.cancel()
        slow.transport.abort()


WORDS = [
    *"0123456789",
    "n1",
    "n2",
    "a" * 32,
    "b" * 32,
    "completed",
    "failed",
    "create",
    "on",
    "off",
    "",
    "\0",
    "\ud800",
]
FIELDS = (
    *("job_id", "server_id", "snapshot_id", "outcome", "report", "power", "servers", "about", "snapshots", "begun"),
    *("on_disk", "size_mb", "findings", "running", "free", "seconds", "begin", "step", "id", "account_id", "name"),
    "state",
)
CALLS = (
    *("take_lease", "lease_holder", "take", "begin", "progress", "finish", "report", "publish", "known", "lose"),
    *("regain", "tell_findings", "republish", "retry_deletes", "hello", "nonsense", "stop_taking"),
)


def nonsense(chance: random.Random, ids: list[str], depth: int = 0) -> Any:
    kind = chance.randrange(9 if depth < 4 else 6)
    if kind == 6:
        return [nonsense(chance, ids, depth + 1) for _ in range(chance.randrange(4))]
    if kind > 6:
        return {chance.choice(FIELDS): nonsense(chance, ids, depth + 1) for _ in range(chance.randrange(6))}
    return (
        *(chance.choice(WORDS), chance.choice(ids), chance.randrange(-5, 2**66), SERVER, None),
        chance.choice([True, 1.5, -1, 0, 1, 4, 5]),
    )[kind]


@pytest.mark.parametrize("seed", range(5))
async def test_random_claims_of_a_node_change_nothing_of_another(
    cell: Cell, redis_server: RedisServer, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311
    async with gateway(redis_server.socket, node="n2", calls_per_second=10_000) as reached:
        job_id = (await cell.create()).job.id
        ids = [job_id, "a" * 32, "b" * 32]
        before = await everything(
            cell.redis, but=("node:n2", "nodes", "credential", "arq:queue:n2", "refused_claim", "clock")
        )
        asked = 0
        while asked < 300:
            async with raw(reached) as connection:
                try:
                    await ask(connection, "hello", **(HELLO | {"node": "n2"}))
                    await ask(connection, "take_lease", seconds=15)
                    for _ in range(50):
                        asked += 1
                        fields = nonsense(chance, ids) if chance.random() < 0.3 else _likely(chance, ids)
                        call = {"id": asked, "call": chance.choice(CALLS), "ask": fields}
                        await connection.send(json.dumps(call))
                        async with asyncio.timeout(60):
                            await connection.recv()
                except ConnectionClosed:
                    continue
        after = await everything(
            cell.redis, but=("node:n2", "nodes", "credential", "arq:queue:n2", "refused_claim", "clock")
        )
        assert after == before


def _likely(chance: random.Random, ids: list[str]) -> dict[str, Any]:
    """An argument that often fits a call and names another account's object."""
    outcome = {"state": chance.choice(["completed", "failed"]), "snapshot_status": "completed", "size_mb": 1}
    whole = {
        "job_id": chance.choice(ids),
        "server_id": SERVER,
        "snapshot_id": chance.randrange(1, 2**63),
        "outcome": outcome,
        "report": {},
        "power": "off",
        "on_disk": [1, 2],
        "size_mb": 4,
        "findings": [],
        "running": [],
        "free": 1,
        "seconds": 0,
        "begin": True,
        "step": "stopping",
    }
    fitting = chance.choice(
        [
            ("job_id",),
            ("job_id", "outcome", "report", "power"),
            ("job_id", "step", "report"),
            ("server_id", "snapshot_id"),
            ("server_id", "snapshot_id", "size_mb"),
            ("server_id", "on_disk"),
            ("running", "free", "seconds"),
            ("running", "free", "seconds", "begin"),
            (),
        ]
    )
    return {field: whole[field] for field in fitting}


# --- when a part is down ---


async def test_a_node_goes_to_the_other_gateway_when_one_dies(cell: Cell, redis_server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        second = await stack.enter_async_context(gateway(redis_server.socket))
        dying = AsyncExitStack()
        first = await dying.enter_async_context(gateway(redis_server.socket))
        urls = (*first.address.urls, *second.address.urls)
        address = second.address.model_copy(update={"urls": urls})
        node = GatewayClient(address, node="n1", machine="m1", who="pid 1 on m1")
        keeping = asyncio.create_task(node.keep_connected())
        stack.callback(keeping.cancel)
        assert await _once(node.take_lease, seconds=15) is None
        job_id = (await cell.create()).job.id
        await node.begin(job_id)
        await dying.aclose()
        assert await _once(node.finish, job_id, DONE) in {"published", "job_over"}
        taking = asyncio.create_task(_once(node.take, running=[], free=1, seconds=5))
        again = (await cell.create("again")).job.id
        assert [job.id for job in await taking] == [again]


async def _once(call: Any, *arguments: Any, **named: Any) -> Any:
    """The answer of a call, once the store is available."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call(*arguments, **named)
            except StoreUnavailable:
                await asyncio.sleep(0.05)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


async def test_trouble_of_redis_is_trouble_of_the_call_and_passes(server: RedisServer) -> None:
    async with gateway(server.socket) as reached, reached.client() as node:
        assert await _once(node.take_lease, seconds=15) is None
        server.kill()
        with pytest.raises(StoreUnavailable):
            await node.take_lease(seconds=15)
        await asyncio.to_thread(server.start)
        assert await _once(node.take_lease, seconds=15) is None


async def test_calls_of_a_node_without_a_gateway_are_answered_at_once(tmp_path: Path) -> None:
    file = tmp_path / "credential"
    file.touch(mode=0o600)
    file.write_text(secret_of("n1"))
    address = GatewayAddress(urls=(f"unix://{tmp_path}/nobody.sock",), credential_file=file)
    node = GatewayClient(address, node="n1", machine="m1", who="x")
    keeping = asyncio.create_task(node.keep_connected())
    await asyncio.sleep(0.1)
    async with asyncio.timeout(20):  # each would take 5 s if it waited for a connection
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await node.take_lease(seconds=15)
    keeping.cancel()


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    needs("openssl")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "gateway.crt", folder / "gateway.key"
    make_certificate(certificate, key)
    return certificate, key


async def test_a_node_reaches_a_gateway_by_tls_and_only_the_right_one(
    cell: Cell, redis_server: RedisServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "credential"
    file.touch(mode=0o600)
    file.write_text((await Credentials(cell.redis).create("n1")).secret)
    settings = GatewaySettings(
        port=0,
        tls_cert_file=certificate[0],
        tls_key_file=certificate[1],
        redis=RedisSettings(url=f"unix://{redis_server.socket}"),
    )
    metrics = Metrics()
    async with running(settings, metrics) as listening:
        port = listening.rpartition(":")[2]
        ends = metrics.registry.get_sample_value("vps_snapshots_gateway_certificate_end_timestamp_seconds")
        assert ends == ends_at(certificate[0].read_text())
        for host, authority, works in (
            ("localhost", certificate[0], True),
            ("127.0.0.1", certificate[0], False),  # a name that is not in the certificate
            ("localhost", None, False),  # an authority that the machine does not trust
        ):
            address = GatewayAddress(urls=(f"wss://{host}:{port}",), credential_file=file, tls_ca_file=authority)
            node = GatewayClient(address, node="n1", machine="m1", who="x")
            keeping = asyncio.create_task(node.keep_connected())
            await asyncio.sleep(0)
            if works:
                assert await _once(node.take_lease, seconds=15) is None
            else:
                with pytest.raises(StoreUnavailable) as told:
                    await node.take_lease(seconds=15)
                assert "CERTIFICATE_VERIFY_FAILED" in str(told.value.__cause__)
            keeping.cancel()


async def test_a_connection_that_begins_no_tls_handshake_ends(
    redis_server: RedisServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.gateway.server.HANDSHAKE_SECONDS", 0.1)
    settings = GatewaySettings(
        port=0,
        tls_cert_file=certificate[0],
        tls_key_file=certificate[1],
        redis=RedisSettings(url=f"unix://{redis_server.socket}"),
    )
    async with running(settings, Metrics()) as listening, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(listening.rpartition(":")[2]))
        assert await reader.read() == b""
        writer.close()


# --- the whole worker ---


async def test_jobs_finish_without_a_gateway_and_are_reported_later(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    needs("setpriv")
    program = GatewayProgram(redis_server.socket)
    await program.let_in("n1")
    await program.start(tmp_path / "gateway.log")
    settings = program.settings_of("n1") | {
        "VPS_SNAPSHOTS_NODE": "n1",
        "VPS_SNAPSHOTS_DRIVER": "fake",
        "VPS_SNAPSHOTS_FAKE_SERVERS": "1",
        "VPS_SNAPSHOTS_STATE_DIR": str(tmp_path / "node"),
    }
    node = tmp_path / "node"
    node.mkdir()
    write_rules(node / "faults.json", [Rule(effect=Effect.SNAPSHOT_DISK, waits=True)])
    command = (Path(sys.executable).parent / "vps-snapshots-worker", "run")
    worker = await Child.start("worker", command, settings=settings, log=tmp_path / "worker.log")
    store, account, server = CustomerStore(redis), AccountId(77), ServerId(12345)

    async def job() -> Job:
        return await store.job(account_id=account, job_id=admitted.job.id)

    async def is_ready() -> bool:
        return bool(await redis.exists("server:12345")) and not await redis.hexists("server:12345", "unpublished")  # type: ignore[misc]

    try:
        await until_told(is_ready)
        admitted = await store.create(account_id=account, server_id=server, name="n", description="", request_id="r")

        async def takes() -> bool:
            return (await job()).step is Step.SNAPSHOTTING

        await until_told(takes)
        assert program.process is not None
        program.process.kill()
        await program.process.ended()
        (node / "faults.json").unlink()
        await until(lambda: '"job.completed"' in (tmp_path / "worker.log").read_text())
        assert (await job()).state is JobState.IN_PROGRESS
        await program.start(tmp_path / "gateway.log")

        async def is_told() -> bool:
            return (await job()).state is JobState.COMPLETED

        await until_told(is_told)
        assert (await job()).attempts == 1
    finally:
        await worker.stop()
        await program.stop()


@pytest.mark.parametrize("name", ["take", "take_lease", "republish"])
async def test_a_bug_of_the_gateway_is_unavailability_for_a_worker_and_does_not_end_it(
    reached: Reached, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def break_down(*_words: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setitem(cast("dict[str, Any]", ANSWERS), name, break_down)
    calls: dict[str, Callable[[NodePort], Awaitable[object]]] = {
        "take": lambda node: node.take(running=[], free=1, seconds=0.1),
        "take_lease": lambda node: node.take_lease(seconds=15),
        "republish": lambda node: node.republish(),
    }
    async with reached.client() as node:
        with pytest.raises(StoreUnavailable):
            await calls[name](node)
