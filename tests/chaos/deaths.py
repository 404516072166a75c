"""Kills the parts of a cell and starts them again."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.demo.processes import Child
from deploy.lab.lab import LabFailed
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import model
from tests.chaos.model import Expected, UnderWay
from tests.libvirtd import Daemon
from worker.start_guard import TEARING

LOST, OLDER = "redis's data", "redis's newer data"  # Redis comes back without data, or with an older copy
UNTOUCHED = UnderWay(step="no job", was_running=False)
STARTED_STEPS = {"starting", "recording", "measuring"}  # in these steps, the job does not start a QEMU again that dies


@dataclass(kw_only=True)
class Deaths:
    """The cell's processes that can be killed; `daemon`: its libvirtd, if it has one."""

    cell: AcceptanceCell
    servers: Sequence[Expected]
    daemon: Daemon | None
    booted_torn: list[int] = field(default_factory=list, init=False)  # servers whose boot nothing prevented
    _copy: Path | None = field(default=None, init=False)

    @property
    def targets(self) -> tuple[str, ...]:
        often = ("worker", "worker", "qemu-img", "qemu-img", "qemu", "redis", "api", "gateway", "everything")
        return (*often, *often, LOST, OLDER, *(["libvirtd"] * 4 if self.daemon else []))

    def qemu_imgs(self) -> list[int]:
        """The qemu-img processes of the worker."""
        worker = self._worker.pid
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children = [int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()]
            return [pid for pid in children if b"qemu-img" in _command(pid)]
        return []

    async def kill(self, target: str, expected: Expected, children: Sequence[int] = ()) -> int:
        """Kill the target. Returns the number of killed processes. `children`: the qemu-img processes to kill."""
        pids = self._pids(target, expected, children)
        on = [other for other in self.servers if self.cell.is_on(other.server)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed = len(pids)
        if target in {"redis", LOST, OLDER, "everything"}:
            await asyncio.to_thread(self.cell.redis.kill)
            killed += 1
        if self.daemon and target in {"libvirtd", "everything"}:
            await asyncio.to_thread(self.daemon.kill)
            killed += 1
        for child in (self._worker, self._api, self._gateway):
            if child.pid in pids:
                await child.ended()
        self._note_consequences(target, expected, on)
        return killed

    def _note_consequences(self, target: str, expected: Expected, on: Sequence[Expected]) -> None:
        """What the kill may have done to disks. `on`: the servers that were running."""
        for other in self.servers:  # the worker may be deleting the safety tag of any server
            other.change_was_killed |= target in {"worker", "qemu-img", "everything"}
            # a libvirtd that is started again ends a QEMU that was being started
            other.may_drop_bitmaps |= target in {"worker", "qemu-img", "qemu", "libvirtd", "everything"}
        for other in on:
            other.qemu_was_killed |= target == "everything" or (target == "qemu" and other is expected)

    async def start_again(self, target: str) -> float:
        """Start everything that was killed, with the data of Redis that the target implies, without waiting for the
        worker.

        Returns the time, of the monotonic clock, from which the worker had everything that it needs.
        """
        redis, worker_ended, api_ended = self.cell.redis, await _has_ended(self._worker), await _has_ended(self._api)
        if target == LOST:
            redis.lose_data()
        if target == OLDER and self._copy is not None:
            redis.lose_data()
            shutil.copytree(self._copy, redis.folder, dirs_exist_ok=True)
        if self.daemon and self.daemon.pid is None:
            await self.daemon.start()
        if redis.process is None:
            await asyncio.to_thread(redis.start)
        if target == "everything" and self.daemon:
            await self._boot()
        ready = time.monotonic()
        if await _has_ended(self._gateway):
            await self.cell.start_gateway()
        if worker_ended:
            await self.cell.spawn_worker()
        if api_ended:
            await self.cell.start_api()
        if target in {LOST, OLDER}:  # the token was lost with the data
            await self.cell.enroll()
        return ready

    async def _boot(self) -> None:
        """Start the VMs before the worker, as a host may do."""
        under_way = model.under_way(self.cell.folder / "node" / "journal.sqlite")
        for expected in self.servers:
            if expected.runs_by_nature or expected.server.id in under_way:
                with contextlib.suppress(LabFailed):
                    await self.cell.lab.start(expected.server.name)
                    expected.was_started = True
                    if under_way.get(expected.server.id, UNTOUCHED).step in TEARING:
                        self.booted_torn.append(expected.server.id)

    async def rebuild(self) -> None:
        """Do what an operator does after Redis was restored from an older copy."""
        await self.cell.program("vps-snapshots-worker", "rebuild")
        await self.cell.is_published()

    def keep_a_copy(self) -> None:
        """Save a copy of Redis's current data."""
        self._copy = self._copy or Path(f"{self.cell.redis.folder}-copy")
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self.cell.redis.folder, self._copy, ignore=lambda _, names: [n for n in names if "sock" in n])

    def _pids(self, target: str, expected: Expected, children: Sequence[int]) -> list[int]:
        programs = {"worker": self._worker, "api": self._api, "gateway": self._gateway}
        if target in programs:
            return [programs[target].pid]
        if target == "qemu-img":
            return list(children) or self.qemu_imgs()
        if target == "qemu":
            return [pid for pid in [self._qemu(expected)] if pid]
        if target == "everything":
            qemus = [pid for other in self.servers if (pid := self._qemu(other))]
            return [*(program.pid for program in programs.values()), *self.qemu_imgs(), *qemus]
        return []

    def _qemu(self, expected: Expected) -> int | None:
        if not self.cell.is_on(expected.server):
            return None
        return int((self.cell.lab.folder / "run" / "qemu" / f"{expected.server.name}.pid").read_text())

    @property
    def _worker(self) -> Child:
        assert self.cell.worker is not None
        return self.cell.worker

    @property
    def _gateway(self) -> Child:
        assert self.cell.gateway.process is not None
        return self.cell.gateway.process

    @property
    def _api(self) -> Child:
        assert self.cell.api is not None
        return self.cell.api


def _command(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


async def _has_ended(child: Child) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):  # a killed process has already been reaped
            await child.ended()
            return True
    return False
