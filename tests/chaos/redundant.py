"""A redundant cell: three machines with Redis and Sentinel, two front ends behind HAProxy, a gateway, and a node
with the simulated hypervisor."""

import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.client import Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port
from drivers.fake_state import StateFile
from tests.gateway import secret_of
from tests.namespaces import Network, network
from tests.queueing import until_told
from tests.sentinel import Cell, Machine
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Permission, Tokens
from worker.store.redis_client import connect

NODE, MACHINES, SERVERS = "n1", 3, 6
DOWN_MS = 2000  # a quarter of the shipped value would treat a busy machine as dead
PROXY = Path(__file__).parents[2] / "deploy" / "examples" / "haproxy.cfg"
_PROGRAMS = Path(sys.executable).parent


@dataclass(kw_only=True)
class Redundant:
    folder: Path
    redis: Cell
    network: Network
    wait_for_replicas: int
    ports: list[int] = field(default_factory=lambda: [free_port(), free_port()])  # of the front ends
    front_ends: list[Child] = field(default_factory=list)
    others: list[Child] = field(default_factory=list)
    token: str = ""
    operator_token: str = ""
    url: str = ""
    nodes: Sequence[str] = (NODE,)  # that may connect
    of_cell: Mapping[str, str] = field(
        default_factory=dict
    )  # settings of front ends and gateways, without their prefix

    @property
    def client(self) -> Client:
        return Client(self.url, self.token)

    @property
    def operator(self) -> Client:
        return Client(self.url, self.operator_token)

    async def start(self) -> None:
        self.redis.start()
        await self.redis.ready()
        await self._let_in()
        for place in range(len(self.ports)):
            self.front_ends.append(await self.front_end(place))
        await self._start_nodes()
        await self._start_proxy()
        await until_told(self._is_published)

    async def stop(self) -> None:
        for child in (*self.others, *self.front_ends):
            child.kill()
            await child.ended()
        self.redis.stop()

    async def front_end(self, place: int) -> Child:
        """A new front-end process."""
        settings = self._settings("api") | {
            "VPS_SNAPSHOTS_HOST": "127.0.0.1",
            "VPS_SNAPSHOTS_PORT": str(self.ports[place]),
            "VPS_SNAPSHOTS_CALLS_PER_MINUTE": "1000000",
            "VPS_SNAPSHOTS_AUDIT_KEEPER": "false",
        }
        command = (_PROGRAMS / "vps-snapshots-api", "serve")
        child = await Child.start(
            f"front end {place}", command, settings=settings, log=self.folder / f"front-end-{place}.log"
        )
        await until_told(Client(f"http://127.0.0.1:{self.ports[place]}", "").is_up)
        return child

    def completed(self) -> Counter[str]:
        """How often each job was completed, according to the node's log."""
        found: Counter[str] = Counter()
        for event in self.log_of_node():
            if event.get("event") == "job.completed":
                found[event["job_id"]] += 1
        return found

    def log_of_node(self) -> Iterator[dict[str, Any]]:
        for line in (self.folder / "worker.log").read_text().splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def tags(self) -> dict[int, set[str]]:
        """The tags on the disks of each server."""
        known = StateFile(self.folder / "node" / "fake.json").read().values()
        return {server.server_id or 0: {tag for disk in server.disks.values() for tag in disk.tags} for server in known}

    def _settings(self, account: str) -> dict[str, str]:
        made = self.redis.settings_of(account, wait_for_replicas=self.wait_for_replicas)
        given = made.model_dump(exclude_unset=True)
        texts = {f"REDIS__{key.upper()}": _as_text(value) for key, value in given.items()}
        return {f"VPS_SNAPSHOTS_{name}": text for name, text in (texts | dict(self.of_cell)).items()}

    async def _let_in(self) -> None:
        redis = connect(self.redis.settings_of("gateway"))
        for node in self.nodes:
            await Credentials(redis).restore(node, secret_of(node))
        await redis.aclose(close_connection_pool=True)
        redis = connect(self.redis.settings)
        tokens = Tokens(redis)
        every = frozenset({Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE})
        self.token = (await tokens.create(name="customers", account_id=_account(), permissions=every)).secret
        operator = frozenset({Permission.OPERATOR})
        self.operator_token = (await tokens.create(name="o", account_id=None, permissions=operator)).secret
        await redis.aclose(close_connection_pool=True)

    async def _start_nodes(self) -> None:
        socket, credential = self.folder / "gateway.sock", self.folder / "credential"
        credential.touch(mode=0o600)
        credential.write_text(secret_of(NODE))
        gateway = self._settings("gateway") | {"VPS_SNAPSHOTS_UNIX_SOCKET": str(socket)}
        self.others.append(await self._program("gateway", "vps-snapshots-gateway", "serve", settings=gateway))
        worker = {
            "VPS_SNAPSHOTS_NODE": NODE,
            "VPS_SNAPSHOTS_DRIVER": "fake",
            "VPS_SNAPSHOTS_FAKE_SERVERS": str(SERVERS),
            "VPS_SNAPSHOTS_STATE_DIR": str(self.folder / "node"),
            "VPS_SNAPSHOTS_GATEWAY__URLS": json.dumps([f"unix://{socket}"]),
            "VPS_SNAPSHOTS_GATEWAY__CREDENTIAL_FILE": str(credential),
        }
        self.others.append(await self._program("worker", "vps-snapshots-worker", "run", settings=worker))

    async def _start_proxy(self) -> None:
        port = free_port()
        text = PROXY.read_text().replace("127.0.0.1:8079", f"127.0.0.1:{port}")
        for written, ours in zip((8080, 8081), self.ports, strict=True):
            text, found = re.subn(rf"127\.0\.0\.1:{written}\b", f"127.0.0.1:{ours}", text)
            assert found == 1
        file = self.folder / "haproxy.cfg"
        file.write_text(text)
        log = self.folder / "haproxy.log"
        self.others.append(await Child.start("HAProxy", ["haproxy", "-db", "-f", file], settings={}, log=log))
        self.url = f"http://127.0.0.1:{port}"
        await until_told(self.client.is_up)

    def times_up_again(self, place: int) -> int:
        """How often HAProxy has taken this front end back."""
        name = ("first", "second")[place]
        return (self.folder / "haproxy.log").read_text().count(f"Server front-ends/{name} is UP")

    async def _program(self, name: str, program: str, *arguments: str, settings: dict[str, str]) -> Child:
        command: list[str | Path] = [_PROGRAMS / program, *arguments]
        return await Child.start(name, command, settings=settings, log=self.folder / f"{name}.log")

    async def _is_published(self) -> bool:
        answer = await self.operator.call("GET", "/api/v1/ops/servers/")
        return answer.status == 200 and len(answer.body["results"]) == SERVERS


def _account() -> Any:
    return 77


def _as_text(value: Any) -> str:
    if hasattr(value, "get_secret_value"):
        return str(value.get_secret_value())
    return json.dumps(value) if isinstance(value, list) else str(value)


@asynccontextmanager
async def redundant(folder: Path, *, wait_for_replicas: int, min_replicas: int) -> AsyncIterator[Redundant]:
    """`folder`: a short path, because sockets are below it."""
    with network(MACHINES) as made:
        machines = [
            Machine(host=host, port=6379, sentinel=26379, inside=made.inside(place))
            for place, host in enumerate(made.hosts)
        ]
        more = [f"min-replicas-to-write {min_replicas}", "min-replicas-max-lag 10"] if min_replicas else []
        redis = Cell(folder, machines, down_ms=DOWN_MS, more=more)
        cell = Redundant(folder=folder, redis=redis, network=made, wait_for_replicas=wait_for_replicas)
        try:
            await cell.start()
            yield cell
        finally:
            await cell.stop()
