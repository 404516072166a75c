"""A cell in which each program can have another release: two front ends, two gateways, two nodes with the simulated
hypervisor, and a Redis with production's accounts."""

import asyncio
import json
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.demo.client import Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port
from drivers.base import Power
from drivers.fake_faults import Effect, Rule, write_rules
from drivers.fake_state import FakeDisk, FakeServer, StateFile
from tests.conftest import RedisServer
from tests.queueing import client, until_told
from tests.sentinel import password_of
from tests.upgrades.releases import Release
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Permission, Tokens
from worker.store.model import AccountId

ACCOUNT = AccountId(77)
NODES = ("n1", "n2")
SERVERS = 3  # per node
FIRST = {"n1": 12_001, "n2": 12_101}  # its first server
HELD = Effect.SNAPSHOT_DISK
BRIEF_SECONDS = 0.2
BRIEF = (Effect.PRESS, HELD, Effect.REVERT_DISK, Effect.START, Effect.DELETE_TAG)
HANGS_SECONDS = 3600.0


@dataclass(kw_only=True)
class Cell:
    folder: Path  # a short path: sockets are below it
    redis: RedisServer
    runs: dict[str, Release] = field(default_factory=dict)  # program and number or node -> release
    children: dict[str, Child] = field(default_factory=dict)
    ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))  # of the front ends
    customer_token: str = ""
    operator_token: str = ""

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def customer(self, place: int = 0) -> Client:
        return Client(self.urls[place], self.customer_token)

    def operator(self, place: int = 0) -> Client:
        return Client(self.urls[place], self.operator_token)

    async def begin(self, release: Release) -> None:
        """Run all programs with that release."""
        self.allow(release)
        await self._make_tokens()
        await asyncio.gather(*(self.start_front_end(place, release) for place in range(len(self.ports))))
        if release.has_gateway:
            await self.start_gateways(release)
            await self.let_nodes_in()
        for node in NODES:
            self.work_slowly(node)
        await asyncio.gather(*(self.start_node(node, release) for node in NODES))

    def allow(self, *releases: Release, beside: Release | None = None) -> None:
        """Create the Redis accounts of these releases; if several have an account, the last one counts. `beside`:
        the front ends also get, key by key, the permissions of that release."""
        accounts = {name: rules for release in releases for name, rules in release.accounts.items()}
        if beside is not None:
            accounts["api"] = [*accounts["api"], *(rule for rule in beside.accounts["api"] if rule.startswith("("))]
        for name, rules in accounts.items():
            self._redis("ACL", "SETUSER", name, "reset", *rules)

    def forbid(self, account: str) -> None:
        """Delete the account in Redis and close its connections."""
        self._redis("ACL", "DELUSER", account)

    # --- programs ---

    async def start_front_end(self, place: int, release: Release) -> None:
        settings = self._at_redis("api") | {
            "PORT": str(self.ports[place]),
            "CALLS_PER_MINUTE": "1000000",
        }
        await self._start(f"api-{place}", release, "serve", **settings)
        await until_told(Client(self.urls[place], "").is_up)

    async def start_gateways(self, release: Release) -> None:
        await asyncio.gather(*(self.start_gateway(place, release) for place in range(len(self.ports))))

    async def start_gateway(self, place: int, release: Release) -> None:
        socket = self._socket(place)
        settings = self._at_redis("gateway") | {"UNIX_SOCKET": str(socket)}
        await self._start(f"gateway-{place}", release, "serve", **settings)
        await until_told(lambda: _listens(socket))

    async def let_nodes_in(self) -> None:
        async with client(self.redis.socket) as redis:
            for node in NODES:
                file = self.folder / f"{node}.credential"
                file.touch(mode=0o600)
                file.write_text((await Credentials(redis).create(node)).secret)

    async def start_node(self, node: str, release: Release) -> None:
        """Return when jobs for its servers are admitted."""
        settings = {
            "NODE": node,
            "DRIVER": "fake",
            "FAKE_SERVERS": "0",
            "STATE_DIR": str(self.folder / node),
            "DRAIN_SECONDS": "0",  # jobs are interrupted: the next process must continue them
            "MAX_JOBS": str(2 * SERVERS),
        }
        if release.has_gateway:
            settings |= {"GATEWAY__URLS": json.dumps([f"unix://{self._socket(place)}" for place in range(2)])}
            settings |= {"GATEWAY__CREDENTIAL_FILE": str(self.folder / f"{node}.credential")}
        else:
            settings |= self._at_redis("worker")
        said = self.log_size(node)
        await self._start(f"worker-{node}", release, "run", **settings)

        async def is_up() -> bool:
            started = any(line.get("event") == "worker.started" for line in self.log_of(node, since=said))
            about = (await self.operator().call("GET", f"/api/v1/ops/nodes/{node}/")).body
            server = (await self.operator().call("GET", f"/api/v1/ops/servers/{FIRST[node]}/")).body
            return started and bool(about.get("alive")) and "id" in server

        await until_told(is_up)

    async def end_node(self, node: str, number: signal.Signals) -> None:
        """Kill it with its child processes, as on a machine that fails."""
        child = self.children[f"worker-{node}"]
        if number is signal.SIGKILL:
            child.kill()
            await child.ended()
        else:
            await child.stop()

    def log_size(self, node: str) -> int:
        file = self.folder / f"worker-{node}.log"
        return file.stat().st_size if file.exists() else 0

    async def stop(self) -> None:
        for child in self.children.values():
            child.kill()
            await child.ended()

    # --- nodes ---

    def work_slowly(self, node: str, *, hang: tuple[int, ...] = ()) -> None:
        """Delay each effect, so that an upgrade interrupts running jobs. `hang`: servers whose disks are not
        snapshotted until the next call of this method."""
        brief = [Rule(effect=effect, seconds=BRIEF_SECONDS) for effect in BRIEF]
        hanging = [Rule(effect=HELD, server_id=server, seconds=HANGS_SECONDS) for server in hang]
        write_rules(self.folder / node / "faults.json", [*brief, *hanging])

    def make_servers(self) -> None:
        for node, first in FIRST.items():
            (self.folder / node).mkdir()
            state = StateFile(self.folder / node / "fake.json")
            for n in range(SERVERS):
                number = first + n
                disks = {target: FakeDisk(content="A") for target in ("vda", "vdb")}
                made = FakeServer(
                    name=f"web-{number}", server_id=number, account_id=ACCOUNT, power=Power.ON, disks=disks
                )
                state.write(made)

    def servers(self) -> dict[int, FakeServer]:
        known = [StateFile(self.folder / node / "fake.json").read().values() for node in NODES]
        return {server.server_id or 0: server for servers in known for server in servers}

    def completed(self) -> Counter[str]:
        """How often each job was completed, according to the nodes' logs."""
        lines = [line for node in NODES for line in self.log_of(node)]
        return Counter(line["job_id"] for line in lines if line.get("event") == "job.completed")

    def log_of(self, node: str, *, since: int = 0) -> Iterator[dict[str, Any]]:
        return self._log(f"worker-{node}", since=since)

    def errors(self) -> list[dict[str, Any]]:
        """Errors that any program has logged, with the `program`."""
        levels = {"error", "critical"}
        lines = ({**line, "program": name} for name in self.children for line in self._log(name))
        return [line for line in lines if line.get("level") in levels]

    def _log(self, name: str, *, since: int = 0) -> Iterator[dict[str, Any]]:
        file = self.folder / f"{name}.log"
        if not file.exists():
            return
        for line in file.read_bytes()[since:].decode(errors="replace").splitlines():
            if line.startswith("{"):
                yield json.loads(line)
            elif line.startswith("Traceback"):
                yield {"level": "error", "event": line}

    # --- parts ---

    def _socket(self, place: int) -> Path:
        return self.folder / f"gateway-{place}.sock"

    def _at_redis(self, account: str) -> dict[str, str]:
        return {
            "REDIS__URL": f"unix://{self.redis.socket}",
            "REDIS__USERNAME": account,
            "REDIS__PASSWORD": password_of(account),
            "AUDIT_KEEPER": "false",  # the keeper has its own account
        }

    def _redis(self, *words: str) -> None:
        command = ("redis-cli", "-s", str(self.redis.socket), *words)
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        assert said in {"OK", "1"}, (words, said)

    async def _start(self, name: str, release: Release, *arguments: str, **settings: str) -> None:
        ours = {f"VPS_SNAPSHOTS_{key}": value for key, value in settings.items()} | release.environment
        command, log = release.command(name.partition("-")[0], *arguments), self.folder / f"{name}.log"
        self.children[name] = await Child.start(name, command, settings=ours, log=log)
        self.runs[name] = release

    async def _make_tokens(self) -> None:
        every, operator = {Permission.SNAPSHOTS_READ, Permission.SNAPSHOTS_WRITE}, {Permission.OPERATOR}
        async with client(self.redis.socket) as redis:
            made = await Tokens(redis).create(name="c", account_id=ACCOUNT, permissions=frozenset(every))
            self.customer_token = made.secret
            made = await Tokens(redis).create(name="o", account_id=None, permissions=frozenset(operator))
            self.operator_token = made.secret


async def _listens(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def running(folder: Path, release: Release) -> AsyncIterator[Cell]:
    """`folder`: a short path, because sockets are below it."""
    (folder / "redis").mkdir()
    redis = RedisServer(folder / "redis")
    redis.start()
    cell = Cell(folder=folder, redis=redis)
    cell.make_servers()
    try:
        await cell.begin(release)
        yield cell
    finally:
        await cell.stop()
        redis.kill()
