"""A whole cell on this machine with real guests: Redis, a node with an embedded libvirt, its worker, a front end."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from deploy.demo.client import Answer, Client
from deploy.demo.processes import Child
from deploy.demo.service import free_port
from deploy.lab.console import Console, Ready
from deploy.lab.domain import Device
from deploy.lab.lab import Lab
from tests.conftest import RedisServer
from tests.gateway import GatewayProgram

PROGRAMS = Path(sys.executable).parent
ACCOUNT = 77
GRACE_SECONDS = 8  # a test guest that listens needs 2 s


@dataclass(kw_only=True)
class Server:
    """A domain of the node and the state that the tests expect of it."""

    id: int
    name: str
    disks: Sequence[Path]  # the disks that a snapshot holds
    console: Console
    booted: Ready | None = None

    async def ready(self) -> Ready:
        """Return the next boot that the tests have not seen yet."""
        self.booted = await self.console.ready(after=self.booted.end if self.booted else 0)
        return self.booted


@dataclass(kw_only=True)
class AcceptanceCell:
    """Add servers before the worker starts: only one process at a time can use an embedded libvirt."""

    folder: Path
    redis: RedisServer
    lab: Lab
    overrides: dict[str, str] = field(default_factory=dict)  # settings of the programs that replace the defaults
    worker_command: Sequence[str | Path] = (PROGRAMS / "vps-snapshots-worker", "run")
    port: int = field(default_factory=free_port)
    servers: dict[int, Server] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)  # servers that had a job since the last check
    gateway: GatewayProgram = field(init=False)
    worker: Child | None = None
    api: Child | None = None
    client: Client | None = None

    def __post_init__(self) -> None:
        self.gateway = GatewayProgram(self.redis.socket)

    async def add(
        self,
        server_id: int,
        devices: Sequence[Device],
        *,
        running: bool = True,
        deaf: bool = False,
        uefi: bool = False,
        tpm: bool = False,
        guest: bool = True,
        agent: bool = False,
    ) -> Server:
        name = f"s{server_id}"
        xml = self.lab.domain_xml(name, devices, deaf=deaf, uefi=uefi, tpm=tpm, guest=guest, agent=agent)
        await self.lab.define(xml)
        arguments = ("adopt", name, "--server-id", str(server_id), "--account", str(ACCOUNT))
        await self.program("vps-snapshots-worker", *arguments)
        disks = [device.path for device in devices if device.path and device.format == "qcow2" and not device.readonly]
        server = Server(id=server_id, name=name, disks=disks, console=self.lab.console(name))
        self.servers[server_id] = server
        if running:
            await self.lab.start(name)
        return server

    async def start(self) -> None:
        await self.start_gateway()
        await self.start_api()
        await self.enroll()
        await self.start_worker()

    async def enroll(self) -> None:
        """Create the tests' token and the node's credential."""
        await self.gateway.let_in("n1")
        token = ("token", "create", "--name", "t", "--account", str(ACCOUNT))
        permissions = ("--permission", "snapshots:read", "--permission", "snapshots:write")
        secret = await self.program("vps-snapshots-api", *token, *permissions)
        self.client = Client(f"http://127.0.0.1:{self.port}", secret.strip())

    async def start_gateway(self) -> None:
        await self.gateway.start(self.folder / "gateway.log")

    async def start_api(self) -> None:
        """Return when the front end answers."""
        command = (PROGRAMS / "vps-snapshots-api", "serve")
        self.api = await Child.start("api", command, settings=self.settings, log=self.folder / "api.log")
        await eventually(Client(f"http://127.0.0.1:{self.port}", "").is_up)

    async def start_worker(self) -> None:
        """Return when a job for any of the servers would be admitted."""
        await self.spawn_worker()
        await self.is_published()

    async def spawn_worker(self) -> None:
        """Return at once, without waiting until the worker is ready."""
        self.worker = await Child.start(
            "worker",
            self.worker_command,
            settings=self.settings,
            log=self.worker_log,
        )

    async def is_published(self) -> None:
        """Wait until the node has reported all servers and their snapshots."""
        redis = self.redis.client()
        try:
            for server_id in self.servers:
                await eventually(partial(_is_known, redis, server_id))
        finally:
            await redis.aclose(close_connection_pool=True)

    async def stop(self) -> None:
        for child in (self.worker, self.api):
            if child is not None:
                await child.stop()
        await self.gateway.stop()
        await self.lab.remove_all()
        self.redis.kill()

    @property
    def worker_log(self) -> Path:
        return self.folder / "worker.log"

    @property
    def settings(self) -> dict[str, str]:
        return {
            "VPS_SNAPSHOTS_REDIS__URL": f"unix://{self.redis.socket}",
            "VPS_SNAPSHOTS_NODE": "n1",
            "VPS_SNAPSHOTS_LIBVIRT_URI": self.lab.uri,
            "VPS_SNAPSHOTS_STATE_DIR": str(self.folder / "node"),
            "VPS_SNAPSHOTS_GRACE_SECONDS": str(GRACE_SECONDS),
            "VPS_SNAPSHOTS_MAX_JOBS": "2",
            "VPS_SNAPSHOTS_PORT": str(self.port),
            "VPS_SNAPSHOTS_CALLS_PER_MINUTE": "1000000",
            "LIBVIRT_LOG_OUTPUTS": "4:stderr",
            **self.gateway.settings_of("n1"),
            **self.overrides,
        }

    async def program(self, name: str, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(PROGRAMS / name),
            *arguments,
            env={**os.environ, **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, trouble = await process.communicate()
        assert process.returncode == 0, trouble.decode()
        return output.decode()

    async def call(
        self, method: str, path: str, body: dict[str, object] | None = None
    ) -> tuple[int, dict[str, object]]:
        assert self.client is not None
        answer = await self.client.call(method, path, body)
        return answer.status, answer.body or {}

    async def create(self, server: Server, name: str, **more: object) -> tuple[int, dict[str, object]]:
        """Return the snapshot's ID and the ended job. `more`: fields of the request."""
        answer = await self.begin_create(server, name, **more)
        assert self.client is not None
        job = await self.client.follow(answer.headers["Operation-Location"], timeout_seconds=90)
        return answer.body["id"], job

    async def begin_create(self, server: Server, name: str, **more: object) -> Answer:
        assert self.client is not None
        self.changed.add(server.id)
        answer = await self.client.call("POST", "/api/v1/snapshots/", {"server_id": server.id, "name": name, **more})
        assert answer.status == 201, answer.body
        return answer

    async def freezes(self, server: Server) -> bool:
        """Whether the guest's agent answers: it starts a moment after the guest."""
        body = {"server_id": server.id, "name": "dry", "consistency": "live"}
        _, checked = await self.call("POST", "/api/v1/snapshots/?dry_run=true", body)
        return checked.get("consistency") == "agent_frozen"

    async def restore(self, snapshot_id: int) -> dict[str, object]:
        """Return the ended job."""
        assert self.client is not None
        answer = await self.client.call("POST", f"/api/v1/snapshots/{snapshot_id}/restore/")
        assert answer.status == 200, answer.body
        return await self.client.follow(answer.headers["Operation-Location"], timeout_seconds=90)

    async def delete(self, server: Server, snapshot_id: int) -> None:
        """Return when no disk has the tag and the node has finished the job."""
        status, body = await self.call("DELETE", f"/api/v1/snapshots/{snapshot_id}/")
        assert status == 204, body

        async def gone() -> bool:
            _, shown = await self.call("GET", f"/api/v1/servers/{server.id}/")
            return shown["job"] is None and not any(f"vps-{snapshot_id}" in tags(disk) for disk in server.disks)

        await eventually(gone)

    async def check_disks(self) -> None:
        """Run `qemu-img check` for every server that has changed, also while its guest is running."""
        for server in [self.servers[server_id] for server_id in sorted(self.changed)]:
            if self.is_on(server):
                await server.console.write("checked")  # the guest syncs, so QEMU has written everything to the images
            for path in filter(Path.exists, server.disks):
                await eventually(partial(_is_sound_by_now, path))
        self.changed.clear()

    def is_on(self, server: Server) -> bool:
        return self.lab.is_on(server.name)

    def pid(self, server: Server) -> str:
        """The PID of the server's QEMU process."""
        return (self.lab.folder / "run" / "qemu" / f"{server.name}.pid").read_text()


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition is true. Raises TimeoutError after a minute."""
    async with asyncio.timeout(60):
        while not await is_so():  # noqa: ASYNC110 - another process decides, and tells nobody
            await asyncio.sleep(0.05)


async def _is_known(redis: Redis, server_id: int) -> bool:
    """Whether the node has reported the server and the snapshots on its disks."""
    known: dict[bytes, bytes] = await redis.hgetall(f"server:{server_id}")  # type: ignore[misc] # redis-py: sync or async
    return bool(known) and b"unpublished" not in known


def tags(disk: Path) -> list[str]:
    """The tags of a disk, also while a guest is using it."""
    listed = subprocess.run(
        ["qemu-img", "snapshot", "-U", "-l", str(disk)], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[1] for line in listed.splitlines()[2:]]


def is_sound(path: Path, *, under_guest: bool = False) -> bool:
    shared = ["-U"] if under_guest else []
    return subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", *shared, str(path)], check=False).returncode == 0


async def _is_sound_by_now(path: Path) -> bool:
    return is_sound(path, under_guest=True)  # the guest may just have written
