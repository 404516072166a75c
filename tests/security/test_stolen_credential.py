"""A thief with a node's credential, before a gateway and a Redis that are set up by the shipped files."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, unix_connect

from api.gateway.main import running as gateway_running
from api.gateway.metrics import Metrics
from api.gateway.settings import GatewaySettings
from tests.conftest import needs
from tests.integration.conftest import ACCOUNT, SERVER, Cell, node_store
from tests.integration.front_end import DONE
from tests.integration.test_deployed import DeployedRedis, running
from tests.integration.test_gateway import HELLO, ask
from tests.security.conftest import ITS_ACCOUNT, ITS_SERVER, kept
from tests.security.test_accounts import USERS
from worker.store.access.credentials import Credentials
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import JobId, ServerId, SnapshotId
from worker.store.nodes.node_store import Placement
from worker.store.nodes.protocol import CALLS, PATH
from worker.store.operators.operator_store import OperatorStore
from worker.store.redis_client import RedisSettings, connect

WORDS = "only-for-the-eyes-of-77"
MOMENT = "2026-01-01T00:00:00Z"
# with Redis 8, redis-py has only the base class of its error for it; redis-py 8 sends HELLO first
REFUSED = "invalid username-password|Authentication required|HELLO must be called"


@dataclass(kw_only=True)
class Stolen:
    """`cell`: the honest node `n1` and its customer, as the accounts that we ship. `thief`: a connection of `n2`."""

    deployed: DeployedRedis
    operator: Redis
    cell: Cell
    thief: ClientConnection
    secret: str
    snapshot: SnapshotId
    ended: JobId
    waiting: JobId

    async def theirs(self) -> dict[bytes, Any]:
        """All that is not the thief's own."""
        own = (b"node:n2", b"nodes", b"refused_claim", b"clock", b"events", f"server:{ITS_SERVER}".encode())
        found = Cell(redis=self.operator, store=self.cell.store, node=self.cell.node)
        keys = [key async for key in self.operator.scan_iter(count=1000)]
        return {key: await kept(found, key) for key in keys if not key.startswith(own) and not key.endswith(b":told")}


@pytest.fixture(scope="module")
def deployed() -> Iterator[DeployedRedis]:
    needs("redis-server")
    with tempfile.TemporaryDirectory(prefix="vps-redis-") as folder, running(Path(folder)) as redis:
        yield redis


def settings_of(deployed: DeployedRedis, account: str) -> RedisSettings:
    return RedisSettings.model_validate(
        {"url": f"unix://{deployed.socket}", "username": account, "password": f"{account.upper()}-PASSWORD"}
    )


@asynccontextmanager
async def client(deployed: DeployedRedis, account: str) -> AsyncIterator[Redis]:
    redis = connect(settings_of(deployed, account))
    try:
        yield redis
    finally:
        await redis.aclose(close_connection_pool=True)


@pytest.fixture
async def stolen(deployed: DeployedRedis) -> AsyncIterator[Stolen]:
    socket = deployed.socket.with_name("gateway.sock")
    settings = GatewaySettings(
        unix_socket=socket, redis=settings_of(deployed, "gateway"), placement=Placement.DECLARED, calls_at_once=10_000
    )
    async with (
        client(deployed, "operator") as operator,
        client(deployed, "gateway") as gateway,
        client(deployed, "api") as api,
        gateway_running(settings, Metrics()),
    ):
        await operator.flushall()
        secrets = {node: (await Credentials(gateway).create(node)).secret for node in ("n1", "n2")}
        operators = OperatorStore(api, CustomerStore(api))
        await operators.place(SERVER, node="n1", account_id=ACCOUNT)
        await operators.place(ITS_SERVER, node="n2", account_id=ITS_ACCOUNT)
        cell = Cell(redis=api, store=CustomerStore(api), node=node_store(gateway))
        await cell.node.take_lease(seconds=60)
        await cell.have()
        made = await cell.create(WORDS, description=WORDS)
        await cell.node.begin(made.job.id)
        await cell.node.finish(made.job.id, DONE)
        waiting = (await cell.create(f"{WORDS}-2")).job.id
        headers = {"Authorization": f"Bearer {secrets['n2']}"}
        async with unix_connect(str(socket), f"ws://gateway{PATH}", additional_headers=headers) as thief:
            await ask(thief, "hello", **(HELLO | {"protocols": [4], "node": "n2"}))
            await ask(thief, "take_lease", seconds=60)
            await ask(thief, "report", servers=[reported(ITS_SERVER)], about=None)
            yield Stolen(
                deployed=deployed,
                operator=operator,
                cell=cell,
                thief=thief,
                secret=secrets["n2"],
                snapshot=made.snapshot.id,
                ended=made.job.id,
                waiting=waiting,
            )


def reported(server: ServerId, account: int = ITS_ACCOUNT) -> dict[str, Any]:
    return {"id": server, "account_id": account, "name": "x", "power": "on"}


def claims(stolen: Stolen) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each call, with what is another's in each of its fields."""
    snapshot = {"name": "x", "description": "", "created_at": MOMENT, "size_mb": 1, "status": "completed"}
    begun = {"snapshot_name": "x", "snapshot_description": "", "snapshot_created_at": MOMENT, "request_id": "r"}
    failed = {"state": "failed", "failure": {"code": "x", "detail": "", "stranded": True}, "snapshot_status": "failed"}
    for job in (stolen.ended, stolen.waiting):
        yield "begin", {"job_id": job}
        yield "progress", {"job_id": job, "step": "stopping", "report": {"log": ["x"]}}
        for outcome in (failed, {"state": "completed", "snapshot_status": "completed", "size_mb": 1}):
            yield "finish", {"job_id": job, "outcome": outcome, "report": {}, "power": "off"}
        yield "take", {"running": [job], "free": 100, "seconds": 0, "begin": True}
        for kind in ("create", "delete", "restore", "undo"):
            ids = {"id": job, "kind": kind, "snapshot_id": stolen.snapshot, "undoes": job}
            yield "publish", {"server_id": ITS_SERVER, "snapshots": [], "begun": [begun | ids]}
    for server in (SERVER, ITS_SERVER):
        of = {"server_id": server}
        yield "publish", of | {"snapshots": [snapshot | {"id": stolen.snapshot}], "begun": []}
        yield "known", of | {"on_disk": [stolen.snapshot]}
        yield "lose", of | {"snapshot_id": stolen.snapshot}
        yield "regain", of | {"snapshot_id": stolen.snapshot, "size_mb": 1}
    yield "tell_findings", {"server_id": SERVER, "findings": [{"finding": "x", "tag": "x", "at": "1"}]}
    yield "report", {"servers": [reported(ITS_SERVER), reported(SERVER)], "about": None}
    yield "report", {"servers": [reported(ITS_SERVER, ACCOUNT), reported(ServerId(999), ACCOUNT)], "about": None}
    for call in ("lease_holder", "stop_taking", "republish", "retry_deletes"):
        yield call, {}


async def test_nothing_of_others_is_read_or_changed_by_any_call(stolen: Stolen) -> None:
    asked = [*claims(stolen)]
    assert {call for call, _ in asked} == CALLS.keys() - {"hello", "take_lease"}
    before, answers = await stolen.theirs(), []
    for call, fields in asked:
        answers.append((call, await ask(stolen.thief, call, **fields)))
    assert WORDS not in str(answers)
    assert {answer["error"] for _, answer in answers if "error" in answer} == {"begin_refused", "claim_refused"}
    assert await stolen.theirs() == before
    assert await stolen.operator.zcard("refused_claims") > 5
    assert await stolen.cell.node.take(running=[], free=9, seconds=0) == (stolen.waiting,)


async def test_the_credential_opens_no_redis(stolen: Stolen) -> None:
    redis = Redis(unix_socket_path=str(stolen.deployed.socket))
    try:
        for name in (*USERS, "n2", "worker"):
            with pytest.raises(exceptions.ConnectionError, match=REFUSED):
                await redis.execute_command("AUTH", name, stolen.secret)  # type: ignore[no-untyped-call]
        with pytest.raises(exceptions.ConnectionError, match=REFUSED):
            await redis.get("x")
    finally:
        await redis.aclose(close_connection_pool=True)
        await asyncio.sleep(0)
