"""A campaign of rounds: an operation, a kill during it, a restart of everything, and a check."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from deploy.demo.client import Answer
from tests.acceptance.cell import AcceptanceCell
from tests.chaos import model, others
from tests.chaos.asking import Asking
from tests.chaos.deaths import LOST, OLDER, STARTED_STEPS, Deaths
from tests.chaos.halts import Halt, Halts
from tests.chaos.learning import Learning
from tests.chaos.model import Expected
from tests.chaos.others import Others
from tests.chaos.summary import Summary
from worker.store.model import Step

SETTLE_SECONDS = 60.0  # a job that has not ended by then never will
HALT_SECONDS = 60.0  # until a job reaches the moment at which it is to stop
RECONCILED_SECONDS = 60.0  # until the node has compared the data of an older copy of Redis
UPKEEP_ROUNDS = 12
CHANGE_SECONDS = 0.5  # duration for a slow disk, including the wait before it
TYPICAL_SECONDS = {True: 2.5, False: 0.6}  # of a job, by whether its server is running: turning it off takes 1.3 s
REFUSALS = {"create": "-c", "restore": "-a", "undo": "-a"}  # qemu-img's option of the change that the last disk refuses


class Campaign:
    """`say` prints progress. `chance` makes all random decisions."""

    def __init__(
        self,
        cell: AcceptanceCell,
        servers: list[Expected],
        *,
        deaths: Deaths,
        halts: Halts,
        chance: random.Random,
        say: Callable[[str], None],
    ) -> None:
        self.summary = Summary()
        self.chance = chance
        self.halts = halts
        self._cell = cell
        self._servers = servers
        self.deaths = deaths
        self._asking = Asking(cell, chance)
        self._say = say
        self._rounds = 0
        self._learning = Learning(cell, servers, self.summary)
        self.after_loss: Callable[[], Awaitable[None]] = _nothing  # once everything is published again
        self.others = Others(cell, chance, by_libvirt=deaths.daemon is not None)

    async def run(self, kills: int) -> Summary:
        """Run until that many processes were killed, or a check fails."""
        while self.summary.killed < kills and not self.summary.violations:
            await self._round()
            if self._rounds % UPKEEP_ROUNDS == 0:
                await self.upkeep(rebuilds=True)
        return await self.end()

    async def end(self) -> Summary:
        """Check everything once more, including the disks of running servers."""
        await self._look(self._servers)
        assert self._cell.worker is not None
        await self._cell.worker.stop()
        safety = model.safety_tags(self._journal)
        for expected in self._servers:
            if self._cell.is_on(expected.server):
                await self._cell.lab.cut_power(expected.server.name)
            expected.running = False
            self.summary.violations += model.disk_violations(expected, set(expected.snapshots), safety)
        return self.summary

    async def _round(self) -> None:
        chance, expected = self.chance, self.chance.choice(self._servers)
        operation = self._asking.possible(expected)
        refused = operation in REFUSALS and chance.random() < 0.3
        if refused:
            self.halts.refuse(REFUSALS[operation], expected.server.disks[-1])
        target = chance.choice(self.deaths.targets) if chance.random() < 0.9 else "nothing"
        step = chance.choice(list(Step)) if chance.random() < 0.5 else None
        beside = [other for other in self._servers if other is not expected and chance.random() < 0.15][:1]
        asks = {
            other.server.id: asyncio.create_task(self._asking.ask(self._asking.possible(other), other))
            for other in beside
        }
        await self.play(
            expected,
            operation,
            target,
            lambda: self._kill_by_chance(target, expected, step),
            may_fail=refused,
            befalls=True,
            beside=beside,
            asks=asks,
        )

    async def play(
        self,
        expected: Expected,
        operation: str,
        target: str,
        kill: Callable[[], Awaitable[str]],
        *,
        may_fail: bool = False,
        befalls: bool = False,
        beside: Iterable[Expected] = (),
        asks: dict[int, "asyncio.Task[Answer | None]"] | None = None,
    ) -> None:
        """Run one operation on one server, kill a process during it, restart everything, and check.

        `may_fail`: a disk refused the change. `befalls`: something may happen to the server before. `asks`: the calls
        for other servers at the same time.
        """
        self._rounds += 1
        if not expected.running and (self.chance.random() < 0.6 or expected.stayed):
            await asyncio.to_thread(model.write, expected, self.chance.randrange(1, 256))
        if not expected.running and befalls:
            await asyncio.to_thread(self.others.befall, expected, operation)
        for other in self._servers:
            other.must_run = other.was_started = False
        asked = (asks or {}) | {expected.server.id: asyncio.create_task(self._asking.ask(operation, expected))}
        at_work = target in {"nothing", "worker"} and befalls and self.chance.random() < 0.25
        tool = asyncio.create_task(self.others.meanwhile(expected)) if at_work else None
        killed = await kill() if target != "nothing" else "nothing"
        killed += f" beside {await tool}" if tool else ""
        answers = {server_id: await ask for server_id, ask in asked.items()}
        self.halts.forget()
        restarted = await self.deaths.start_again(target)
        self.summary.violations += [f"server {torn}: booted on torn disks" for torn in self.deaths.booted_torn]
        ended = await self._have_ended([expected, *beside])
        self.summary.settle_seconds.append(time.monotonic() - restarted)
        if ended:
            await self._cell.is_published()
            if target in {LOST, OLDER}:
                await self.after_loss()
            await self._after_older_data(target, [expected, *beside])
        # a killed qemu-img counts as a refusal: the job rolls back
        outcomes = self._learning.learn(
            self._journal, answers, may_vanish=target in {LOST, OLDER}, may_fail=may_fail or target == "qemu-img"
        )
        for one in (expected, *beside):
            await asyncio.to_thread(self._after_others, one)
        self.summary.operations[f"{operation} {outcomes.get(expected.server.id, 'not done')}"] += 1
        await self._look(
            self._servers if target in {LOST, OLDER} else [expected, *beside], patient=target in {OLDER, "libvirtd"}
        )
        if self.chance.random() < 0.2:
            self.deaths.keep_a_copy()
        also = "".join(f", {other.server.id}: {outcomes.get(other.server.id, 'not done')}" for other in beside)
        outcome = outcomes.get(expected.server.id, "not done")
        took = f"{self.summary.settle_seconds[-1]:5.1f} s"
        what = f"round {self._rounds:4} server {expected.server.id} {operation:7} killed {killed:32}"
        self._say(f"{what} {took} {outcome}{also}")

    async def _kill_by_chance(self, target: str, expected: Expected, step: Step | None) -> str:
        """Kill during that step of the job, or at any moment. Returns a description of what was killed."""
        typical = TYPICAL_SECONDS[expected.running]
        if step is not None:
            await _until(lambda: self._is_at(expected, step), within_seconds=typical)
            await asyncio.sleep(self.chance.random() * CHANGE_SECONDS * self.chance.choice((0.05, 1)))
        else:
            await asyncio.sleep(self.chance.random() * typical)
        if target == "qemu-img":
            await _until(lambda: bool(self.deaths.qemu_imgs()), within_seconds=typical)
            await asyncio.sleep(self.chance.random() * CHANGE_SECONDS)  # just before, during, or after its change
        return await self.kill(target, expected)

    async def kill_at(self, halt: Halt, target: str, expected: Expected) -> str:
        """Kill exactly at that moment."""
        self.halts.ask(halt)
        await _until(lambda: self.halts.reached() is not None, within_seconds=HALT_SECONDS)
        children = self.halts.reached()
        if children is None:
            self.summary.violations.append(f"server {expected.server.id}: {halt} was not reached")
        before = self.summary.killed
        killed = await self.kill(target, expected, children or ())
        self.summary.moments_hit += self.summary.killed - before
        return killed

    async def kill(self, target: str, expected: Expected, children: Iterable[int] = ()) -> str:
        under_way = model.under_way(self._journal)
        killed = await self.deaths.kill(target, expected, tuple(children))
        if not killed:
            return "nothing"
        mine = under_way.get(expected.server.id)
        at = mine.step if mine else "no job"
        self.summary.kills[target] += 1
        self.summary.steps[at] += 1
        for other in self._servers:
            job = under_way.get(other.server.id)
            # no job starts a QEMU again that dies after its start, unless the worker died as well
            started = target == "qemu" and job is not None and job.step in STARTED_STEPS
            other.must_run = job is not None and job.was_running and not started
        return f"{target} ({at})"

    def _is_at(self, expected: Expected, step: str) -> bool:
        job = model.under_way(self._journal).get(expected.server.id)
        return job is not None and job.step == step

    async def _have_ended(self, servers: Iterable[Expected]) -> bool:
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while await self._are_busy(servers):  # noqa: ASYNC110 - other processes decide
                    await asyncio.sleep(0.02)
        except TimeoutError:
            self.summary.violations.append(f"servers {[one.server.id for one in servers]}: a job has not ended")
            return False
        return True

    async def _are_busy(self, servers: Iterable[Expected]) -> bool:
        if model.owed(self._journal):
            return True
        redis = self._cell.redis.client()
        try:
            for expected in servers:
                held: Awaitable[bool] | bool = redis.hexists(f"server:{expected.server.id}", "job")
                if bool(await held if isinstance(held, Awaitable) else held):
                    return True
            return False
        finally:
            await redis.aclose(close_connection_pool=True)

    async def _after_older_data(self, target: str, servers: Iterable[Expected]) -> None:
        """Publish again what Redis lost; if it lost everything, the nodes do so. The restore that can be undone is
        unknown then."""
        if target in {LOST, OLDER}:
            for expected in self._servers:
                expected.undoable = None
        if target == OLDER:
            await self.deaths.rebuild()
            await self._have_ended(servers)

    def _after_others(self, expected: Expected) -> None:
        """Take over what a tool did during a job, and what a kill did to bitmaps; repair what no job has repaired."""
        if expected.disturbed:
            self.summary.violations += others.look_up(expected)
            expected.running = self._cell.is_on(expected.server)
        if expected.may_drop_bitmaps:
            others.take_over_dropped(expected)
        if expected.damaged:
            others.mend(expected)

    async def _look(self, servers: Iterable[Expected], *, patient: bool = False) -> None:
        """Check the server. `patient`: the node has yet to reconcile, or to release the server once libvirt answers."""
        for expected in servers:
            deadline = time.monotonic() + (RECONCILED_SECONDS if patient else 0)
            while found := await model.violations(self._cell, expected, model.safety_tags(self._journal)):
                if time.monotonic() >= deadline:
                    break
                await asyncio.sleep(0.2)
            self.summary.violations += [f"round {self._rounds}: {violation}" for violation in found]

    @property
    def _journal(self) -> Path:
        return self._cell.folder / "node" / "journal.sqlite"

    async def while_off(self, expected: Expected, act: Callable[[], None]) -> None:
        """Turn the server off as its owner would, change its disks, and turn it on again."""
        if not expected.running:
            await asyncio.to_thread(act)
            return
        cell = self._cell
        assert cell.worker is not None
        await cell.worker.stop()
        await cell.lab.cut_power(expected.server.name)
        await asyncio.to_thread(act)
        await cell.lab.start(expected.server.name)
        await cell.start_worker()

    async def upkeep(self, *, rebuilds: bool = False) -> None:
        """Start the servers whose QEMU died, as an operator would, while no worker uses the libvirt.

        `rebuilds`: also detach, attach and move disks.
        """
        cell = self._cell
        assert cell.worker is not None
        await cell.worker.stop()
        for expected in self._servers:
            if expected.qemu_was_killed and not cell.is_on(expected.server) and expected.runs_by_nature:
                await asyncio.to_thread(model.write, expected, self.chance.randrange(1, 256))
                await cell.lab.start(expected.server.name)
                expected.running, expected.qemu_was_killed = True, False
            if rebuilds and not expected.running and expected.nvram is None and self.chance.random() < 0.5:
                await self.others.rebuild(expected)
        await cell.start_worker()


async def _nothing() -> None:
    pass


async def _until(is_so: Callable[[], bool], *, within_seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_seconds):
            while not is_so():  # noqa: ASYNC110 - files and /proc tell nobody
                await asyncio.sleep(0.002)
