"""Two nodes on one machine: two private libvirtds with shared storage, a worker for each, and one cell in Redis."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt
from redis.asyncio import Redis

from deploy.lab.domain import UEFI_VARIABLES, Device, disk, domain_xml
from deploy.lab.lab import make_disk
from drivers.kvm.hypervisor import KvmHypervisor
from tests.conftest import RedisServer
from tests.contract.kvm_bench import read_text, write_text
from tests.libvirtd import Daemon
from tests.worker_process import WorkerProcess, worker_process
from worker.store.customers.customer_store import CustomerStore
from worker.store.errors import JobNotFound, Refused
from worker.store.model import AccountId, Job, JobId, JobState, ServerId, Snapshot, SnapshotId

ACCOUNT, SERVER, NAME = AccountId(77), ServerId(12345), "s1"
PATIENCE_SECONDS = 60.0
LIVE = ("--live", "--persistent", "--undefinesource", "--unsafe")
MIGRATION_OUT = libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT


@dataclass(kw_only=True)
class Node:
    name: str
    daemon: Daemon
    state_dir: Path
    redis: RedisServer
    worker: WorkerProcess | None = None
    said: list[str] = field(default_factory=list)  # output of its earlier workers
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start_worker(self, **settings: str) -> WorkerProcess:
        ours = {"DRIVER": "kvm", "LIBVIRT_URI": self.daemon.uri, "NODE": self.name, "FREE_FLOOR_MB": "0"}
        ours |= {"GRACE_SECONDS": "0"} | settings
        process = worker_process(self.redis.socket, self.state_dir, **ours)
        self.worker = await self._stack.enter_async_context(process)
        return self.worker

    async def worker_ends(self) -> None:
        """Kill the worker if it is running."""
        await self._stack.aclose()
        self.said += self.worker.lines if self.worker else []
        self.worker, self._stack = None, AsyncExitStack()

    def ask(self, what: str, *arguments: Any) -> Any:
        """The domain, over a separate connection."""
        connection = libvirt.open(self.daemon.uri)
        try:
            return getattr(connection.lookupByName(NAME), what)(*arguments)
        finally:
            connection.close()

    def has_it(self, *, running: bool = True) -> bool:
        try:
            state, _reason = self.ask("state")
        except libvirt.libvirtError:
            return False
        return bool(state == libvirt.VIR_DOMAIN_RUNNING) or not running

    def qemu(self) -> int | None:
        """The server's process, also while it is being received."""
        with suppress(OSError, ValueError):
            pid = int((self.daemon.folder / "run" / "qemu" / f"{NAME}.pid").read_text())
            if "(qemu" in Path(f"/proc/{pid}/stat").read_text():  # not another program that has reused the PID
                return pid
        return None

    async def gets_it(self) -> int:
        """Return the server's process when the node has received it or is receiving it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (pid := self.qemu()) is None:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.005)
        return pid

    def is_sending(self) -> bool:
        try:
            job: dict[str, Any] = self.ask("jobStats", 0)
        except libvirt.libvirtError:
            return False
        return bool(job.get("operation") == MIGRATION_OUT)


@dataclass(kw_only=True)
class Two:
    first: Node
    second: Node
    folder: Path
    redis: Redis
    _virsh: list["subprocess.Popen[str]"] = field(default_factory=list)

    def close(self) -> None:
        for process in self._virsh:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()

    @property
    def store(self) -> CustomerStore:
        return CustomerStore(self.redis)

    @property
    def path(self) -> Path:
        return self.folder / "d" / "vda.qcow2"

    @property
    def nvram(self) -> Path:
        return self.folder / "d" / "variables"

    async def define(self, *more: Path, uefi: bool = False) -> None:
        """Define a server on the first node, off, with A on its disk; `more`: additional disks."""
        place = self.path.parent
        place.mkdir()
        devices = [disk(make_disk(path)) for path in (self.path, *more)]
        write_text(self.path, "A")
        if uefi:
            shutil.copyfile(UEFI_VARIABLES, self.nvram)  # as libvirt does at the first start
        self.define_without_mark(*devices[1:], nvram=self.nvram if uefi else None)
        hypervisor = await KvmHypervisor.open(self.first.daemon.uri)
        await hypervisor.adopt(NAME, server_id=SERVER, account_id=ACCOUNT)
        await hypervisor.close()

    def define_without_mark(self, *more: Device, nvram: Path | None = None) -> None:
        """Define it on the first node, also again, as a tool with its own definitions does. `more`: its other
        devices."""
        place = self.path.parent
        xml = domain_xml(NAME, [disk(self.path), *more], image=None, socket=place / "s", log=place / "l", nvram=nvram)
        connection = libvirt.open(self.first.daemon.uri)
        connection.defineXML(xml)
        connection.close()

    def migration(self, *flags: str, back: bool = False) -> "subprocess.Popen[str]":
        source, target = (self.second, self.first) if back else (self.first, self.second)
        command = ["virsh", "-c", source.daemon.uri, "migrate", *flags, NAME, target.daemon.uri]
        process = subprocess.Popen(
            [*command, f"unix://{self.folder}/m"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._virsh.append(process)
        return process

    async def migrate(self, *flags: str, back: bool = False) -> str:
        """virsh's error; empty after a success."""
        process = self.migration(*(flags or LIVE), back=back)
        _, trouble = await asyncio.to_thread(process.communicate)
        return trouble.strip()

    async def slowly(self) -> "subprocess.Popen[str]":
        """A running migration that takes some seconds."""
        process = self.migration(*LIVE, "--bandwidth", "1")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await asyncio.to_thread(self.first.is_sending):
                assert process.poll() is None, process.communicate()
        return process

    async def field(self, kind: str, of: int, *names: str) -> list[str]:
        """A field in Redis; "": missing."""
        command: Any = self.redis.execute_command
        return [(value or b"").decode() for value in await command("HMGET", f"{kind}:{of}", *names)]

    async def until_on(self, node: Node) -> None:
        async def is_there() -> bool:
            with suppress(Refused):
                await self.store.server(account_id=ACCOUNT, server_id=SERVER)
                found = await self.field("server", SERVER, "node", "missing", "unpublished")
                return found == [node.name, "", ""]
            return False

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await is_there():  # noqa: ASYNC110 - what another process does
                await asyncio.sleep(0.02)

    async def over(self, job_id: JobId) -> Job:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                job = await self.store.job(account_id=ACCOUNT, job_id=job_id)
                if job.state in {JobState.COMPLETED, JobState.FAILED}:
                    return job
                await asyncio.sleep(0.02)

    async def created(self, name: str) -> Snapshot:
        admitted = await self.store.create(
            account_id=ACCOUNT,
            server_id=SERVER,
            name=name,
            description="as <written>\r\non two lines 🎉",
            request_id="r",
        )
        job = await self.over(admitted.job.id)
        assert job.state is JobState.COMPLETED, job.failure
        return await self.snapshot(admitted.snapshot.id)

    async def snapshot(self, snapshot_id: SnapshotId) -> Snapshot:
        return await self.store.snapshot(account_id=ACCOUNT, snapshot_id=snapshot_id)

    async def restored(self, snapshot_id: SnapshotId) -> Job:
        restore = await self.store.restore(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
        return await self.over(restore.job.id)

    async def undone(self, job_id: JobId) -> Job:
        undo = await self.store.undo(account_id=ACCOUNT, job_id=job_id, request_id="r")
        return await self.over(undo.id)

    async def deleted(self, snapshot_id: SnapshotId) -> None:
        job = await self.store.delete(account_id=ACCOUNT, snapshot_id=snapshot_id, request_id="r")
        assert job is not None
        with suppress(JobNotFound):  # the record was deleted with its snapshot
            await self.over(job.id)

    def text(self, node: Node) -> str:
        """The text on the disk; the server is turned off to read it, and on again."""
        node.ask("destroy")
        text = read_text(self.path)
        node.ask("create")
        return text

    def written(self, node: Node, text: str) -> None:
        with suppress(libvirt.libvirtError):
            node.ask("destroy")
        write_text(self.path, text)
        node.ask("create")


@asynccontextmanager
async def two_nodes(redis_server: RedisServer, redis: Redis, folder: Path | None = None) -> AsyncIterator[Two]:
    """`folder`: for all files; a temporary one by default."""
    with tempfile.TemporaryDirectory(prefix="vps-", dir="/tmp") as name:  # a short path: sockets are below it
        folder = folder or Path(name)
        nodes = [
            Node(name=name, daemon=Daemon(folder / name), state_dir=folder / f"{name}-state", redis=redis_server)
            for name in ("n1", "n2")
        ]
        two = Two(first=nodes[0], second=nodes[1], folder=folder, redis=redis)
        try:
            for node in nodes:
                node.daemon.folder.mkdir()
                await node.daemon.start()
            yield two
        finally:
            two.close()
            for node in nodes:
                await node.worker_ends()
                node.daemon.stop_for_good()
                for pid in (node.daemon.folder / "run" / "qemu").glob("*.pid"):
                    with suppress(ProcessLookupError, ValueError):
                        os.kill(int(pid.read_text()), signal.SIGKILL)
