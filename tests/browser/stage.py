"""The whole service as processes for a browser: Redis, nodes with simulated servers, and the front end."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from deploy.demo.client import Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port
from drivers.base import Power
from drivers.fake_faults import Rule, write_rules
from drivers.fake_state import FakeDisk, FakeServer, StateFile
from tests.conftest import RedisServer, in_memory, needs
from tests.gateway import GatewayProgram
from tests.queueing import client, until_told
from worker.store.access.tokens import NewToken, Permission, Tokens
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import AccountId, Job, JobId, JobState, ServerId
from worker.store.operators.operator_store import OperatorStore
from worker.store.operators.records import OpsJob

ACCOUNT = AccountId(77)
CUSTOMER = "a customer"  # the name of its token
GRACE_SECONDS = 5.0
PORT = "VPS_SNAPSHOTS_PORT"

_PROGRAMS = Path(sys.executable).parent
_CUSTOMER = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})


@dataclass(kw_only=True)
class StagedNode:
    """A node with its worker."""

    name: str
    folder: Path
    servers: Sequence[ServerId]
    worker: Child | None = None

    @property
    def state(self) -> StateFile:
        return StateFile(self.folder / "fake.json")

    def befall(self, *rules: Rule) -> None:
        """Replace all faults with these."""
        write_rules(self.folder / "faults.json", rules)


@dataclass(kw_only=True)
class Stage:
    """Everything works as in production: customers call over HTTP, and workers run the jobs."""

    folder: Path
    redis_server: RedisServer
    redis: Redis
    port: int = field(default_factory=free_port)
    nodes: dict[str, StagedNode] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)  # of the front end, instead of its defaults
    front_end: Child | None = None
    _customer: Client | None = None
    _gateway: GatewayProgram | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.redis)

    @property
    def operators(self) -> OperatorStore:
        return OperatorStore(self.redis, CustomerStore(self.redis))

    async def start_front_end(self) -> None:
        """Start the front end, always on the same port. Returns when it answers."""
        settings = self._shared | {PORT: str(self.port), **self.settings}
        settings |= {f"VPS_SNAPSHOTS_{of}_PER_MINUTE": "1000000" for of in ("CALLS", "FAILED_LOGINS")}
        command = (_PROGRAMS / "vps-snapshots-api", "serve")
        self.front_end = await Child.start("front end", command, settings=settings, log=self.folder / "front-end.log")
        await until_told(Client(self.url, "").is_up)

    async def stop_front_end(self) -> None:
        if self.front_end is not None:
            await self.front_end.stop()

    async def start_node(self, name: str, servers: Iterable[FakeServer]) -> StagedNode:
        """Return when jobs for its servers would be admitted."""
        adopted = {ServerId(server.server_id): server for server in servers if server.server_id}
        node = self.nodes[name] = StagedNode(name=name, folder=self.folder / name, servers=[*adopted])
        state = node.state
        for server in adopted.values():
            state.write(server)
        await self.start_worker(node)
        return node

    async def start_worker(self, node: StagedNode) -> None:
        settings = await self.gateway_of(node.name) | {
            "VPS_SNAPSHOTS_NODE": node.name,
            "VPS_SNAPSHOTS_DRIVER": "fake",
            "VPS_SNAPSHOTS_START_SECONDS": "1",
            "VPS_SNAPSHOTS_FAKE_SERVERS": "0",
            "VPS_SNAPSHOTS_STATE_DIR": str(node.folder),
            "VPS_SNAPSHOTS_GRACE_SECONDS": str(GRACE_SECONDS),
            "VPS_SNAPSHOTS_DRAIN_SECONDS": "0",  # do not wait for jobs that a test has slowed down
        }
        command, log = (_PROGRAMS / "vps-snapshots-worker", "run"), self.folder / f"{node.name}.log"
        node.worker = await Child.start(node.name, command, settings=settings, log=log)
        await until_told(lambda: self._knows(node))

    async def gateway_of(self, node: str) -> dict[str, str]:
        """The settings with which a node connects to the gateway."""
        if self._gateway is None:
            self._gateway = GatewayProgram(self.redis_server.socket)
            await self._gateway.start(self.folder / "gateway.log")
        await self._gateway.let_in(node)
        return self._gateway.settings_of(node)

    async def stop(self) -> None:
        children = (*(node.worker for node in self.nodes.values()), self.front_end)
        await asyncio.gather(*(child.stop() for child in children if child is not None))
        if self._gateway is not None:
            await self._gateway.stop()

    @property
    def _shared(self) -> dict[str, str]:
        return {"VPS_SNAPSHOTS_REDIS__URL": f"unix://{self.redis_server.socket}"}

    async def _knows(self, node: StagedNode) -> bool:
        async with self.redis.pipeline(transaction=False) as pipe:
            for server_id in node.servers:
                pipe.hmget(f"server:{server_id}", ["node", "unpublished"])
            return all(where and unpublished is None for where, unpublished in await pipe.execute())

    # users' actions

    async def new_operator(self, name: str = "Olga", *, lifetime: timedelta | None = None) -> NewToken:
        return await self.tokens.create(
            name=name, account_id=None, permissions=frozenset({Permission.OPERATOR}), lifetime=lifetime
        )

    async def customer(self) -> Client:
        if self._customer is None:
            new = await self.tokens.create(name=CUSTOMER, account_id=ACCOUNT, permissions=_CUSTOMER)
            self._customer = Client(self.url, new.secret)
        return self._customer

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> JobId:
        """Make a customer's call. Returns the job that it started."""
        answer = await (await self.customer()).call(method, path, body)
        assert answer.status in {200, 201, 204}, answer.body
        return JobId(answer.headers["Operation-Location"].split("/")[-2])

    async def create(self, server_id: int, name: str = "before-update", description: str = "") -> JobId:
        body = {"server_id": server_id, "name": name, "description": description}
        return await self.ask("POST", "/api/v1/snapshots/", body)

    async def job(self, job_id: JobId) -> OpsJob:
        return await self.operators.job(job_id)

    async def ended(self, job_id: JobId) -> Job:
        """Return the job when it has ended."""

        async def over() -> bool:
            return (await self.job(job_id)).job.state in {JobState.COMPLETED, JobState.FAILED}

        await until_told(over)
        return (await self.job(job_id)).job

    async def at_step(self, job_id: JobId, step: str) -> None:
        """Return when the job has reached that step."""

        async def there() -> bool:
            return any(taken.step == step for taken in (await self.job(job_id)).steps)

        await until_told(there)


@asynccontextmanager
async def staged(**settings: str) -> AsyncIterator[Stage]:
    """A front end without nodes. `settings`: the front end's environment variables; it uses any free port unless
    they set one."""
    port = int(settings.get(PORT) or free_port())
    needs("redis-server")
    async with AsyncExitStack() as stack:
        # not below pytest's own folder: a socket's path is limited to 107 characters
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vps-browser-", dir=in_memory())))
        (folder / "redis").mkdir()
        redis_server = RedisServer(folder / "redis")
        stack.callback(redis_server.kill)
        redis_server.start()
        redis = await stack.enter_async_context(client(redis_server.socket))
        stage = Stage(folder=folder, redis_server=redis_server, redis=redis, settings=settings, port=port)
        stack.push_async_callback(stage.stop)
        await stage.start_front_end()
        yield stage


def running(server_id: int, name: str, *, account: int = ACCOUNT) -> FakeServer:
    """A running server with two disks. It shuts down on the first request."""
    disks = {"vda": FakeDisk(), "vdb": FakeDisk()}
    return FakeServer(name=name, server_id=server_id, account_id=account, power=Power.ON, disks=disks)
