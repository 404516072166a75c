"""Ensures exactly one worker per node: a lock file on the node, and a lease in the store."""

import asyncio
import fcntl
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog

from worker.program.loop import guarded
from worker.store.errors import StoreUnavailable
from worker.store.nodes.claims import LeaseHeld
from worker.store.nodes.port import NodePort

LEASE_SECONDS = 15.0  # after this long without a heartbeat, a worker on another machine may take the lease
HEARTBEAT_SECONDS = 5.0  # three per lease, so that two may be lost
ORPHAN_SECONDS = 30.0  # limit for the children of a killed worker to exit; the kernel kills them soon after it
RETRY_SECONDS = 0.5  # interval between attempts while the store is unreachable
ASKED_SECONDS = 5.0  # limit for asking the store who holds the lease

log = structlog.stdlib.get_logger()


class NodeTaken(Exception):
    """Another worker holds this node; the text names it. Nothing was changed."""


def who_am_i() -> str:
    """A readable name of this process: "pid 123 on HOST"."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


def machine_id(state_folder: Path) -> str:
    """Identifies this machine and state folder: equal exactly for workers that compete for the same lock file."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    return f"{machine}:{state_folder.resolve()}"


def boot_id() -> str:
    """The kernel's boot ID; "" if it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class HypervisorLock:
    """A lock on a folder that is the same for all workers of one hypervisor, whatever their settings.

    Two workers with different state folders on one libvirt would stop each other's guests.

    The kernel releases a lock when the process and all its children have exited, for whatever reason. A `qemu-img` that
    outlives a killed worker therefore keeps the next worker out until it no longer writes to the disks.
    """

    _flags = os.O_RDONLY | os.O_DIRECTORY

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = f"the hypervisor at {path}"
        self._file: int | None = None

    def take(self, *, orphan_seconds: float = ORPHAN_SECONDS) -> None:
        """Waits up to `orphan_seconds` for the children of a dead worker. Raises NodeTaken, naming the holder, or
        OSError."""
        file = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600)
        try:
            self._wait(file, orphan_seconds)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _wait(self, file: int, orphan_seconds: float) -> None:
        deadline = time.monotonic() + orphan_seconds
        while not _locked(file):
            held_by = self._holder(file) or "an unknown process"
            if _is_alive(held_by) or time.monotonic() > deadline:
                raise NodeTaken(f"{self._name} is held by {held_by}: this node already has a worker")
            time.sleep(0.02)
        os.set_inheritable(file, True)  # inherited by qemu-img, so that the next worker waits until it has exited

    def _holder(self, file: int) -> str:
        """The process that holds the lock, as "pid N"; "" if unknown."""
        return _lock_holder(file)


class NodeLock(HypervisorLock):
    """The lock file in a node's state folder. It contains the name of its holder."""

    _flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW

    def __init__(self, state_folder: Path) -> None:
        super().__init__(state_folder / "worker.lock")
        self._name = str(self._path)

    def _wait(self, file: int, orphan_seconds: float) -> None:
        super()._wait(file, orphan_seconds)
        os.ftruncate(file, 0)
        # on a full disk, the lock works without a name in its file, and unfinished jobs must continue
        with suppress(OSError):
            os.write(file, who_am_i().encode())

    def _holder(self, file: int) -> str:
        return os.pread(file, 4096, 0).decode(errors="replace").strip()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_holder(file: int) -> str:
    """The holder of the lock on a folder, from the kernel's list, as "pid N"; "" if unknown."""
    status = os.fstat(file)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
            if "FLOCK" in fields and place in fields and int(fields[fields.index(place) - 1]) > 0:
                return f"pid {fields[fields.index(place) - 1]}"
    return ""


def _is_alive(holder: str) -> bool:
    """Whether the process still runs. False for a zombie, and for an unknown holder: it may have released the lock
    since the attempt."""
    pid = holder.removeprefix("pid ").split()[0]
    return pid.isdecimal() and Path(f"/proc/{pid}/exe").exists()


class Lease:
    """Keeps the node's lease in the store. Without the lease no new job may start; running jobs continue.

    `gained` is awaited and `lost` called when the lease is gained or lost. `turned` is called before each heartbeat.
    """

    def __init__(
        self,
        store: NodePort,
        *,
        gained: Callable[[], Awaitable[None]],
        lost: Callable[[], None],
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._turned = turned
        self._heartbeat_seconds = heartbeat_seconds
        self._gained = gained
        self._lost = lost
        self._held = False
        self._in_trouble = False  # whether the store has been unreachable since its last answer
        self._absences = 0
        self._valid_until = -math.inf  # on CLOCK_BOOTTIME, which advances while the process or the machine is suspended

    @property
    def held(self) -> bool:
        return self._held

    @property
    def absences(self) -> int:
        """Another number whenever the lease has run out, or was renewed after that: servers may have been placed on
        other nodes meanwhile."""
        return self._absences + (_now() >= self._valid_until)

    async def still_ours(self) -> bool:
        """Whether no other worker has taken the lease, for example while this process was suspended.

        If the store is unreachable, the lease counts as still ours: no other worker can take it either.
        """
        if _now() < self._valid_until:
            return True
        try:
            async with asyncio.timeout(ASKED_SECONDS):
                holder = await self._store.lease_holder()
        except (StoreUnavailable, TimeoutError):
            return True
        if holder is not None:
            log.error("lease.lost", detail=_held_by(self._store.node, holder))
        return holder is None

    async def take_at_start(self) -> None:
        """Take the lease; wait while the store is unreachable. Raises NodeTaken, naming the holder."""
        while True:
            try:
                holder = await self._renewed()
            except StoreUnavailable as error:
                self._trouble("lease.store_unavailable", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if holder is not None:
                raise NodeTaken(_held_by(self._store.node, holder))
            await self._turn(held=True)
            return

    async def keep(self) -> None:
        """Run until cancelled: send heartbeats, and notice when the lease is lost or regained."""
        while True:
            self._turned()
            await asyncio.sleep(self._heartbeat_seconds if self._held else RETRY_SECONDS)
            with guarded("lease"):
                await self._beat()

    async def _beat(self) -> None:
        try:
            holder = await self._renewed()
        except StoreUnavailable as error:
            # The lease may expire, but while the store is unreachable no other worker can take it.
            self._trouble("lease.not_renewed", error)
            self._held = False
            return
        if holder is not None and self._held:
            log.error("lease.lost", detail=_held_by(self._store.node, holder))
        await self._turn(held=holder is None)

    def _trouble(self, event: str, error: StoreUnavailable) -> None:
        """Log the outage once; `gateway.not_reached` logs each change of its cause."""
        if not self._in_trouble:
            log.warning(event, cause=str(error.__cause__))
        self._in_trouble = True

    async def give_back(self) -> None:
        """Release the lease at exit so that the next worker need not wait. If the store is unreachable, it expires."""
        if self._held:
            try:
                await self._store.take_lease(seconds=0)
            except StoreUnavailable:
                log.info("lease.not_given_back")

    async def _renewed(self) -> LeaseHeld | None:
        asked_at = _now()
        holder = await self._store.take_lease(seconds=LEASE_SECONDS)
        self._in_trouble = False
        self._absences = self.absences + 1 if _now() >= self._valid_until else self._absences
        self._valid_until = asked_at + LEASE_SECONDS if holder is None else -math.inf
        return holder

    async def _turn(self, *, held: bool) -> None:
        if held and not self._held:
            await self._gained()
        if not held:
            self._lost()
        self._held = held


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _held_by(node: str, holder: LeaseHeld) -> str:
    return f"node {node} already has a worker: {holder.who}; its lease expires in {holder.seconds_left:.0f} s"
