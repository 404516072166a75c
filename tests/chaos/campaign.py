"""A campaign: round after round an operation, a death in its midst, everything started again, and a look at it all."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from deploy.demo.client import Answer
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import model
from tests.chaos.model import Expected

TARGETS = ("worker", "worker", "qemu-img", "qemu-img", "qemu", "redis", "api", "everything")
OPERATIONS = ("create", "create", "restore", "restore", "restore", "delete", "undo")
SETTLE_SECONDS = 60.0  # when a job has not ended by then, nothing will end it
REVIVE_ROUNDS = 12
CHANGE_SECONDS = 0.5  # of a slow disk, with the wait before it
STEPS_OF = {
    "create": ("preflight", "stopping", "snapshotting", "starting", "measuring"),
    "restore": ("preflight", "stopping", "safeguarding", "reverting", "starting"),
    "undo": ("preflight", "stopping", "safeguarding", "reverting", "starting"),
    "delete": ("deleting",),
}
TYPICAL_SECONDS = {True: 2.5, False: 0.6}  # of a job, by whether its server runs: turning it off takes 1.3 s here


@dataclass(kw_only=True)
class Summary:
    operations: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    settle_seconds: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        times = sorted(self.settle_seconds) or [0.0]
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
        rows = [
            f"operations: {_counted(self.operations)}",
            f"kills by target: {_counted(self.kills)}; {sum(self.kills.values())} in all",
            f"kills by the step that the journal had: {_counted(self.steps)}",
            f"settled after the restart: p50 {p50:.2f} s, p99 {p99:.2f} s, longest {times[-1]:.2f} s",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*rows, *(f"  {violation}" for violation in self.violations)])


class Campaign:
    """`say` prints progress. All that is decided by chance is decided by `chance`."""

    def __init__(
        self,
        cell: AcceptanceCell,
        servers: list[Expected],
        *,
        chance: random.Random,
        refusal: Path,
        say: Callable[[str], None],
    ) -> None:
        self.summary = Summary()
        self._cell = cell
        self._servers = servers
        self._chance = chance
        self._refusal = refusal  # while this file exists, qemu-img refuses what its text says
        self._say = say
        self._names = 0
        self._rounds = 0
        self._seen = 0  # the newest row of the journal that the model has learnt of
        self._must_run = False  # the job that was under way had found its server running

    async def run(self, kills: int) -> Summary:
        """Until so many were killed, or something is not as it must be."""
        while sum(self.summary.kills.values()) < kills and not self.summary.violations:
            await self._round()
            if self._rounds % REVIVE_ROUNDS == 0:
                await self.revive()
        await self._look(self._servers)
        return self.summary

    async def run_steps(self) -> Summary:
        """Every step of every operation, on a server that is off and on one that runs, with each death in its midst."""
        off, running = self._servers[3], self._servers[4]
        for operation, steps in STEPS_OF.items():
            for step in steps:
                for target in ("worker", "qemu-img", "everything"):
                    for expected in (off, running):
                        await self._make_possible(operation, expected)
                        await self._play(expected, operation, target, step=step)
                        if self.summary.violations:
                            return self.summary
            await self.revive()
        await self._look(self._servers)
        return self.summary

    async def _round(self) -> None:
        expected = self._chance.choice(self._servers)
        operation = self._possible(expected)
        self._maybe_refuse(operation, expected)
        target = self._chance.choice(TARGETS) if self._chance.random() < 0.9 else "nothing"
        step = self._chance.choice(list(STEPS)) if self._chance.random() < 0.5 else None
        await self._play(expected, operation, target, step=step)

    async def _play(self, expected: Expected, operation: str, target: str, *, step: str | None) -> None:
        """One operation on one server, a death in it, everything started again, and a look."""
        self._rounds += 1
        if not expected.running and self._chance.random() < 0.6:
            expected.content = self._chance.randrange(1, 256)
            await asyncio.to_thread(model.write, expected.server, expected.content)
        self._must_run = False
        asked = asyncio.create_task(self._ask(operation, expected))
        told = await self._kill(target, expected, step) if target != "nothing" else "nothing"
        answer = await asked
        await self._start_again()
        restarted = time.monotonic()
        outcome = await self._settled(expected, operation, answer)
        self.summary.settle_seconds.append(time.monotonic() - restarted)
        self.summary.operations[f"{operation} {outcome}"] += 1
        self._refusal.unlink(missing_ok=True)
        await self._look([expected])
        self._say(f"round {self._rounds:4} server {expected.server.id} {operation:7} killed {told:28} {outcome}")

    async def _make_possible(self, operation: str, expected: Expected) -> None:
        if operation == "create" and len(expected.snapshots) == 5:
            await self._play(expected, "delete", "nothing", step=None)
        if operation in {"restore", "delete", "undo"} and not expected.snapshots:
            await self._play(expected, "create", "nothing", step=None)
        if operation == "undo" and expected.undoable is None:
            await self._play(expected, "restore", "nothing", step=None)

    def _possible(self, expected: Expected) -> str:
        operation = self._chance.choice(OPERATIONS)
        if operation == "undo" and expected.undoable is None:
            operation = "restore"
        if operation in {"restore", "delete"} and not expected.snapshots:
            operation = "create"
        if operation == "create" and len(expected.snapshots) == 5:
            operation = "delete"
        return operation

    def _maybe_refuse(self, operation: str, expected: Expected) -> None:
        """Now and then the last disk refuses the change itself, though nobody is killed in it."""
        actions = {"create": "-c", "restore": "-a", "undo": "-a"}
        if operation in actions and self._chance.random() < 0.2:
            self._refusal.write_text(f"{actions[operation]} {expected.server.disks[-1].name}")

    async def _ask(self, operation: str, expected: Expected) -> Answer | None:
        """None: the front end died, or could not say."""
        self._names += 1
        assert self._cell.client is not None
        call = self._cell.client.call
        snapshot = self._chance.choice(sorted(expected.snapshots)) if expected.snapshots else 0
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            if operation == "create":
                body = {"server_id": expected.server.id, "name": f"n{self._names}"}
                return await call("POST", "/api/v1/snapshots/", body)
            if operation == "restore":
                return await call("POST", f"/api/v1/snapshots/{snapshot}/restore/")
            if operation == "delete":
                return await call("DELETE", f"/api/v1/snapshots/{snapshot}/")
            assert expected.undoable is not None
            return await call("POST", f"/api/v1/restores/{expected.undoable[0]}/undo/")
        return None

    async def _kill(self, target: str, expected: Expected, step: str | None) -> str:
        """Kill the target in that step of the job, or at any moment; what was killed, in words."""
        typical = TYPICAL_SECONDS[expected.running]
        if step is not None:
            await self._reach_step(step, within_seconds=typical)
            await asyncio.sleep(self._chance.random() * CHANGE_SECONDS * self._chance.choice((0.05, 1)))
        else:
            await asyncio.sleep(self._chance.random() * typical)
        pids = await self._pids(target, expected, within_seconds=typical)
        begun = model.newest(self._journal)
        were_on = [other for other in self._servers if self._cell.is_on(other.server)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if target == "everything":
            await asyncio.to_thread(self._cell.redis.kill)
        if not pids:
            return "nothing"
        at = begun.step if begun and not begun.over else "no job"
        self.summary.kills[target] += 1
        self.summary.steps[at] += 1
        # A QEMU that dies in these steps is the new one: it had been started, and its death is no one's job to mend,
        # unless the worker died as well.
        started = target == "qemu" and begun is not None and begun.step in {"starting", "measuring"}
        self._must_run = bool(begun and not begun.over and begun.was_running and not started)
        if target in {"worker", "qemu-img", "everything"}:
            for other in self._servers:  # the worker gives up spare tags of any server
                other.change_was_killed = True
        if target in {"qemu", "everything"}:
            for other in were_on:
                other.qemu_was_killed |= target == "everything" or other is expected
        return f"{target} ({at})"

    async def _reach_step(self, step: str, *, within_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while not self._is_at(step):  # noqa: ASYNC110 - the journal tells nobody
                    await asyncio.sleep(0.002)

    def _is_at(self, step: str) -> bool:
        begun = model.newest(self._journal)
        return begun is not None and not begun.over and begun.step == step

    async def _pids(self, target: str, expected: Expected, *, within_seconds: float) -> list[int]:
        cell = self._cell
        assert cell.worker is not None
        assert cell.api is not None
        guests = [pid for other in self._servers if (pid := _qemu_pid(cell, other)) is not None]
        if target == "everything":
            return [cell.worker.pid, cell.api.pid, *_children(cell.worker.pid), *guests]
        if target == "qemu":
            pid = _qemu_pid(cell, expected)
            return [pid] if pid else []
        if target == "redis":
            process = cell.redis.process
            assert process is not None
            await asyncio.to_thread(cell.redis.kill)
            return [process.pid]
        if target == "qemu-img":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_seconds):
                    while not _children(cell.worker.pid):  # noqa: ASYNC110 - /proc tells nobody
                        await asyncio.sleep(0.001)
            await asyncio.sleep(self._chance.random() * CHANGE_SECONDS)  # right before, during, or after its change
            return _children(cell.worker.pid)
        return [cell.worker.pid if target == "worker" else cell.api.pid]

    async def _start_again(self) -> None:
        cell = self._cell
        assert cell.worker is not None
        assert cell.api is not None
        if cell.redis.process is None:
            await asyncio.to_thread(cell.redis.start)
        if await _has_ended(cell.api.ended):
            await cell.start_api()
        if await _has_ended(cell.worker.ended):
            await cell.start_worker()

    async def _settled(self, expected: Expected, operation: str, answer: Answer | None) -> str:
        """Wait for the end of all that was begun, and bring the model up to it; how it ended."""
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while await self._is_busy(expected):  # noqa: ASYNC110 - other processes decide
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.summary.violations.append(f"server {expected.server.id}: its {operation} does not end")
            return "stuck"
        ends = model.ends(self._journal, after=self._seen)
        if answer is not None and answer.status < 300 and not ends:
            self.summary.violations.append(f"server {expected.server.id}: an accepted {operation} has vanished")
        for end in ends:
            self._seen = end.row
            self._learn(expected, end)
        is_on = self._cell.is_on(expected.server)
        for other in self._servers:
            if other.qemu_was_killed and not (other is expected and self._must_run):
                other.running = self._cell.is_on(other.server)
        if ends:
            return "/".join(end.state for end in ends)
        return "unasked" if answer is None or answer.status >= 500 else f"refused, on is {is_on}"

    def _learn(self, expected: Expected, end: "model.End") -> None:
        if end.stranded:
            self.summary.violations.append(f"server {expected.server.id}: {end.kind} {end.job_id} is stranded")
        if end.kind == "delete":
            expected.snapshots.pop(end.snapshot_id, None)
        if end.state != "completed":
            return
        if end.kind == "create":
            expected.snapshots[end.snapshot_id] = expected.content
        elif end.kind in {"restore", "undo"}:
            before = expected.content
            undone = expected.undoable[1] if expected.undoable else before
            expected.content = undone if end.kind == "undo" else expected.snapshots[end.snapshot_id]
            expected.undoable = (end.job_id, before)

    async def _is_busy(self, expected: Expected) -> bool:
        if model.owed(self._journal):
            return True
        redis = self._cell.redis.client()
        try:
            held: Awaitable[bool] | bool = redis.hexists(f"server:{expected.server.id}", "job")
            return bool(await held if isinstance(held, Awaitable) else held)
        finally:
            await redis.aclose(close_connection_pool=True)

    async def _look(self, servers: list[Expected]) -> None:
        spare = model.spare_tags(self._journal)
        for expected in servers:
            found = await model.violations(self._cell, expected, spare)
            self.summary.violations += [f"round {self._rounds}: {violation}" for violation in found]

    @property
    def _journal(self) -> Path:
        return self._cell.folder / "node" / "journal.sqlite"

    async def revive(self) -> None:
        """Start the servers that have lost their QEMU, as an operator would; while no worker has the libvirt."""
        cell = self._cell
        assert cell.worker is not None
        await cell.worker.stop()
        for expected in self._servers:
            if expected.qemu_was_killed and not cell.is_on(expected.server) and expected.runs_by_nature:
                await cell.lab.start(expected.server.name)
                expected.running, expected.qemu_was_killed = True, False
        await cell.start_worker()


STEPS = (
    "preflight",
    "stopping",
    "snapshotting",
    "safeguarding",
    "reverting",
    "undoing",
    "cleaning",
    "starting",
    "measuring",
    "deleting",
)


def _qemu_pid(cell: AcceptanceCell, expected: Expected) -> int | None:
    if not cell.is_on(expected.server):
        return None
    return int((cell.lab.folder / "run" / "qemu" / f"{expected.server.name}.pid").read_text())


def _children(pid: int) -> list[int]:
    """The qemu-img processes of a worker."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in children if b"qemu-img" in _command(child)]
    return []


def _command(pid: int) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


async def _has_ended(ended: Callable[[], Awaitable[int]]) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await ended()
            return True
    return False


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common())
