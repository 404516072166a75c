"""Hypervisors in network namespaces, each with its own libvirtd, worker and guests, on shared storage."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import libvirt

from deploy.demo.processes import Child
from deploy.lab.domain import disk, domain_xml
from deploy.lab.lab import make_disk
from drivers.kvm.hypervisor import KvmHypervisor
from tests.libvirtd import Daemon
from tests.namespaces import Network
from tests.queueing import until
from worker.store.model import AccountId, ServerId

ACCOUNT = AccountId(77)
MEMORY_MIB = 16  # nothing boots
_WORKER = Path(sys.executable).parent / "vps-snapshots-worker"
# A script in front of qemu-img: the creation of a snapshot waits while the file `hold` exists.
_SHIM = """#!/bin/sh
case "$1 $2" in
"snapshot -c") if [ -e "{hold}" ]; then echo "$$" >"{held}"; while [ -e "{hold}" ]; do sleep 0.02; done; fi ;;
esac
exec {real} "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A server. It is running unless a job has stopped it."""

    id: int
    folder: Path

    @property
    def name(self) -> str:
        return f"s{self.id}"

    @property
    def disk(self) -> Path:
        return self.folder / f"{self.name}.qcow2"

    def xml(self) -> str:
        socket, log = (self.folder / f"{self.name}.{kind}" for kind in ("sock", "log"))
        return domain_xml(self.name, [disk(self.disk)], image=None, socket=socket, log=log, memory_mib=MEMORY_MIB)


@dataclass(kw_only=True)
class Host:
    """`folder`: a short path: sockets are below it. `gateway`: settings with which its worker connects to a gateway."""

    name: str
    place: int
    network: Network
    folder: Path
    gateway: Mapping[str, str]
    version: str = field(default_factory=lambda: version("vps-snapshots"))  # version that its worker reports
    is_on: bool = False
    is_cut: bool = False
    hangs: bool = False
    worker: Child | None = None
    daemon: Daemon = field(init=False)
    _watching: "asyncio.Task[None] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.daemon = Daemon(self.folder / "l", inside=self.network.inside(self.place))
        self.state_dir.mkdir(parents=True)
        (self.folder / "bin").mkdir()
        shim = self.folder / "bin" / "qemu-img"
        shim.write_text(_SHIM.format(hold=self._hold, held=self._held, real=shutil.which("qemu-img")))
        shim.chmod(0o755)

    @property
    def state_dir(self) -> Path:
        return self.folder / "node"

    @property
    def journal(self) -> Path:
        return self.state_dir / "journal.sqlite"

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    @property
    def is_heard(self) -> bool:
        """Whether its worker is running and can reach the gateways."""
        return self.worker is not None and not self.is_cut and not self.hangs

    # --- the machine ---

    async def boot(self) -> None:
        """Start its libvirtd, without guests and worker."""
        shutil.rmtree(self.daemon.folder / "run", ignore_errors=True)  # in memory on a real host
        await self.daemon.start()
        self.is_on = True

    async def die(self) -> None:
        """Simulate a power failure: nothing is running or reachable."""
        self.cut()
        await self.worker_dies()
        self.daemon.stop_for_good()
        self.is_on = False

    def cut(self) -> None:
        if not self.is_cut:
            self.network.cut(self.place)
            self.is_cut = True

    def join(self) -> None:
        if self.is_cut:
            self.network.join(self.place)
            self.is_cut = False

    def close(self) -> None:
        if self.is_on:
            self.daemon.stop_for_good()

    # --- its worker ---

    async def start_worker(self) -> None:
        """Start the worker and return at once."""
        ours = {"DRIVER": "kvm", "LIBVIRT_URI": self.daemon.uri, "NODE": self.name, "STATE_DIR": str(self.state_dir)}
        ours |= {"FREE_FLOOR_MB": "0", "GRACE_SECONDS": "0", "START_SECONDS": "5", "MAX_JOBS": "1"}
        settings = {f"VPS_SNAPSHOTS_{name}": text for name, text in ours.items()} | dict(self.gateway)
        settings |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(self._release())}
        command: list[str | Path] = [*self.network.inside(self.place), _WORKER, "run"]
        self.worker = await Child.start(self.name, command, settings=settings, log=self.log)
        self._watching = asyncio.create_task(self._start_again(self.worker))

    async def _start_again(self, worker: Child) -> None:
        """Restart a worker that its watchdog ended after it hung, as systemd does."""
        await worker.ended()
        if self.worker is worker:
            await self.start_worker()

    async def stop_worker(self) -> None:
        """Stop the worker as systemd does: it finishes its jobs."""
        worker, self.worker = self.worker, None
        if worker is not None:
            await worker.stop()

    def hang(self) -> None:
        """Freeze the worker, which continues later as if no time had passed. Guests are not affected."""
        assert self.worker is not None
        os.kill(self.worker.pid, signal.SIGSTOP)
        self.hangs = True

    def go_on(self) -> None:
        assert self.worker is not None
        os.kill(self.worker.pid, signal.SIGCONT)
        self.hangs = False

    async def worker_dies(self) -> None:
        """Kill the worker with the qemu-img processes that it started."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.kill()
            await worker.ended()
        with suppress(OSError, ValueError):
            os.kill(int(self._held.read_text()), signal.SIGKILL)
        self.let_go()

    def _release(self) -> Path:
        """A folder with package metadata that makes the worker report that version."""
        folder = self.folder / f"release-{self.version}"
        about = folder / f"vps_snapshots-{self.version}.dist-info" / "METADATA"
        about.parent.mkdir(parents=True, exist_ok=True)
        about.write_text(f"Metadata-Version: 2.1\nName: vps-snapshots\nVersion: {self.version}\n")
        return folder

    # --- its jobs ---

    @property
    def _hold(self) -> Path:
        return self.folder / "hold"

    @property
    def _held(self) -> Path:
        return self.folder / "held"

    def hold(self) -> None:
        """Make the next snapshot wait, and its job with it."""
        self._held.unlink(missing_ok=True)
        self._hold.touch()

    def let_go(self) -> None:
        self._hold.unlink(missing_ok=True)

    async def is_holding(self) -> None:
        """Return when a job is waiting with its guest off."""
        await until(self._held.exists)

    # --- its guests, as libvirt has them ---

    def domains(self) -> dict[str, str]:
        """The state of each guest that is defined or running here: on, off, or paused while it is being received."""
        words = {libvirt.VIR_DOMAIN_RUNNING: "on", libvirt.VIR_DOMAIN_PAUSED: "paused"}
        if not self.is_on:
            return {}
        with _connection(self.daemon.uri) as connection:
            found = {}
            for domain in connection.listAllDomains():
                with suppress(libvirt.libvirtError):  # it was removed meanwhile
                    found[domain.name()] = words.get(domain.state()[0], "off")
            return found

    async def add(self, guest: Guest) -> None:
        """Define the guest with an empty disk and start it."""
        make_disk(guest.disk, "16M")
        self.ask_libvirt("defineXML", guest.xml())
        hypervisor = await KvmHypervisor.open(self.daemon.uri)
        await hypervisor.adopt(guest.name, server_id=ServerId(guest.id), account_id=ACCOUNT)
        await hypervisor.close()
        self.ask(guest, "create")

    def take_over(self, guest: Guest, dead: "Host") -> None:
        """Define and start the guest of a dead host here, as an orchestrator that keeps all definitions does."""
        self.ask_libvirt("defineXML", (dead.daemon.folder / "etc" / "qemu" / f"{guest.name}.xml").read_text())
        self.ask(guest, "create")

    def ask(self, guest: Guest, what: str, *arguments: Any) -> Any:
        with _connection(self.daemon.uri) as connection:
            return getattr(connection.lookupByName(guest.name), what)(*arguments)

    def ask_libvirt(self, what: str, *arguments: Any) -> None:
        with _connection(self.daemon.uri) as connection:
            getattr(connection, what)(*arguments)

    def migration_to(self, guest: Guest, target: "Host") -> Sequence[str | Path]:
        """The command of a live migration."""
        flags = ("--live", "--persistent", "--undefinesource", "--unsafe")
        places = (target.daemon.uri, f"unix://{target.folder}/m")
        return ["virsh", "-c", self.daemon.uri, "migrate", *flags, guest.name, *places]


@contextmanager
def _connection(uri: str) -> Iterator[Any]:
    connection = libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()
