"""Exactly one worker for a node: a lock file on the node itself, and a lease in the store for all to see."""

import asyncio
import fcntl
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import structlog

from worker.store.errors import StoreUnavailable
from worker.store.nodes.node_store import LeaseHeld, NodeStore

LEASE_SECONDS = 15.0  # an owner that was silent for so long may be replaced from another machine
HEARTBEAT_SECONDS = 5.0  # three of them to a lease: two may be lost
ORPHAN_SECONDS = 30.0  # for a child of a killed worker to end; it is killed as well, if a little later
RETRY_SECONDS = 0.5  # between two tries while the store does not answer
ASKED_SECONDS = 5.0  # for the store to say who holds the lease

log = structlog.stdlib.get_logger()


class NodeTaken(Exception):
    """Another worker has this node; the text says who. Nothing was changed."""


def who_am_i() -> str:
    """This process in words for a person."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


def machine_id(state_folder: Path) -> str:
    """The same for every worker that could hold the lock file in this folder, and for no other."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = socket.gethostname()
    return f"{machine}:{state_folder.resolve()}"


class NodeLock:
    """The lock file of a node's state folder. The kernel frees it when the process and its children have ended, however
    they end: a `qemu-img` that outlives a killed worker keeps the next one out until it is off the disks."""

    def __init__(self, state_folder: Path) -> None:
        self._path = state_folder / "worker.lock"
        self._file: TextIO | None = None

    def take(self, *, orphan_seconds: float = ORPHAN_SECONDS) -> None:
        """Waits for what a dead worker has left. Raises NodeTaken, naming the holder, or OSError."""
        file = self._path.open("a+")

        def holder() -> str:
            file.seek(0)
            return file.read().strip()

        try:
            _take(file.fileno(), str(self._path), holder, orphan_seconds)
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        with suppress(OSError):  # on a full disk the lock is as good, and what is owed must go on
            os.write(file.fileno(), who_am_i().encode())
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class HypervisorLock:
    """The fence around one hypervisor: a lock on a folder that is the same for all who use it, whatever their settings.

    Two workers of one libvirt would stop each other's guests, whatever their state folders. Given back as NodeLock is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def take(self, *, orphan_seconds: float = ORPHAN_SECONDS) -> None:
        """Waits for what a dead worker has left. Raises NodeTaken, naming the holder, or OSError."""
        file = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _take(file, f"the hypervisor at {self._folder}", lambda: _lock_holder(file), orphan_seconds)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _take(file: int, what: str, holder: Callable[[], str], orphan_seconds: float) -> None:
    deadline = time.monotonic() + orphan_seconds
    while not _locked(file):
        held_by = holder() or "an unknown process"
        if _is_alive(held_by) or time.monotonic() > deadline:
            raise NodeTaken(f"{what} is held by {held_by}: this node has a worker already")
        time.sleep(0.02)
    os.set_inheritable(file, True)  # by qemu-img: our successor waits for its end


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_holder(file: int) -> str:
    """The process that took the lock on a file in which nothing can be written, as the kernel lists it; '': unknown."""
    status = os.fstat(file)
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
            if "FLOCK" in fields and place in fields and int(fields[fields.index(place) - 1]) > 0:
                return f"pid {fields[fields.index(place) - 1]}"
    return ""


def _is_alive(holder: str) -> bool:
    """Whether the process is known to run; one that has ended and was not waited for has no program. One that is not
    known may have let go of the lock since we tried."""
    pid = holder.removeprefix("pid ").split()[0]
    return pid.isdecimal() and Path(f"/proc/{pid}/exe").exists()


class Lease:
    """Keeps the node's lease in the store. While it is not ours, no new job may begin; what has begun goes on.

    `before`: is done before our heart beats for the first time; may raise StoreUnavailable.
    """

    def __init__(
        self,
        store: NodeStore,
        *,
        before: Callable[[], Awaitable[object]],
        gained: Callable[[], Awaitable[None]],
        lost: Callable[[], None],
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._store = store
        self._before = before
        self._heartbeat_seconds = heartbeat_seconds
        self._gained = gained
        self._lost = lost
        self._held = False
        self._sure_until = -math.inf  # by the clock that goes on while we are stopped, and while the machine sleeps

    @property
    def held(self) -> bool:
        return self._held

    async def still_ours(self) -> bool:
        """Whether no other worker has taken the lease. A process that was stopped does not notice how long it was.

        A store that does not answer says nothing of another: then it is ours as before.
        """
        if _now() < self._sure_until:
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
        """Take the lease, waiting for the store for as long as it is away. Raises NodeTaken, naming the holder."""
        while True:
            try:
                await self._before()
                holder = await self._renewed()
            except StoreUnavailable as error:
                log.warning("lease.store_unavailable", cause=str(error.__cause__))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if holder is not None:
                raise NodeTaken(_held_by(self._store.node, holder))
            await self._turn(held=True)
            return

    async def keep(self) -> None:
        """Run until cancelled: beat the heart, and notice when the lease is lost or ours again."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds if self._held else RETRY_SECONDS)
            try:
                holder = await self._renewed()
            except StoreUnavailable as error:
                # The lease may run out, but as long as the store is away nobody else can take it either.
                log.warning("lease.not_renewed", cause=str(error.__cause__))
                self._held = False
                continue
            if holder is not None and self._held:
                log.error("lease.lost", detail=_held_by(self._store.node, holder))
            await self._turn(held=holder is None)

    async def give_back(self) -> None:
        """At the end: the next worker need not wait. A store that is away finds the lease run out."""
        if self._held:
            try:
                await self._store.take_lease(seconds=0)
            except StoreUnavailable:
                log.info("lease.not_given_back")

    async def _renewed(self) -> LeaseHeld | None:
        asked_at = _now()
        holder = await self._store.take_lease(seconds=LEASE_SECONDS)
        self._sure_until = asked_at + LEASE_SECONDS if holder is None else -math.inf
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
    return f"node {node} has a worker already: {holder.who}; its lease runs for {holder.seconds_left:.0f} s yet"
