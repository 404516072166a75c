"""Rounds of backups alone, jobs alone, and both at the same time, with processes killed at random."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from tests.acceptance.cell import AcceptanceCell
from tests.backups import disks
from tests.backups.chains import Chain, Point, Truth
from tests.backups.tool import Run, Tool
from tests.chaos import model
from tests.chaos.asking import Asking
from tests.chaos.campaign import Campaign
from tests.chaos.model import Expected
from tests.chaos.summary import Summary
from worker.store.model import Step

# what is killed in a round; usually nothing
TARGETS = ("nothing", "nothing", "nothing", "worker", "worker", "worker", "qemu-img", "qemu")
REVERTING = {"restore", "undo"}
UPKEEP_ROUNDS = 5
BESIDE_SECONDS = 1.5  # a backup beside a job starts at most this long before or after it


@dataclass(kw_only=True)
class Tally:
    """The results of a campaign; `chaos` has the kills and the jobs."""

    chaos: Summary
    backups: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)  # the tool's messages when it refused or failed
    refused: Counter[str] = field(default_factory=Counter)  # codes of jobs that failed
    compared: int = 0  # restores that were compared with the expected content

    @property
    def violations(self) -> list[str]:
        return self.chaos.violations

    def text(self) -> str:
        rows = [
            f"backups: {_counted(self.backups)}",
            f"restored and compared: {self.compared}",
            *(f"  told {count}: {words}" for words, count in self.told.most_common()),
        ]
        if self.refused:
            rows.append(f"jobs that failed: {_counted(self.refused)}")
        return "\n".join([*rows, self.chaos.text()])


class Backups:
    """`played` has the cell's jobs, kills and expected state; this class adds the backups."""

    def __init__(
        self,
        played: Campaign,
        cell: AcceptanceCell,
        servers: list[Expected],
        *,
        tool: Tool,
        say: Callable[[str], None],
    ) -> None:
        self.tally = Tally(chaos=played.summary)
        self._played = played
        self._cell = cell
        self._servers = servers
        self._chance: random.Random = played.chance
        self._asking = Asking(cell, played.chance)
        self._tool = tool
        self._say = say
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, not printed
        self._connection: Any = libvirt.open(cell.lab.uri)
        self._chains: dict[int, Chain] = {}
        self._folders = 0
        self._seen = 0  # the newest journal row that was counted

    async def run(self, rounds: int) -> Tally:
        """Run that many rounds, or until a check fails."""
        for number in range(1, rounds + 1):
            await self._round(number)
            if number % UPKEEP_ROUNDS == 0:
                await self._played.upkeep()
            if self.tally.violations:
                break
        self._connection.close()
        await self._played.end()
        return self.tally

    async def _round(self, number: int) -> None:
        expected = self._chance.choice(self._servers)
        said = []
        if not expected.runs_by_nature and self._chance.random() < 0.4:
            said.append(await self._switch(expected))
        if self._chance.random() < 0.7:
            await asyncio.to_thread(disks.change, self._connection, expected, self._chance)
        if self._chance.random() < 0.7:
            said.append(await self._backup(expected))
        if self._chance.random() < 0.7:
            said.append(await self._job(expected))
        self._say(f"round {number:4} server {expected.server.id} {'; '.join(said) or 'nothing'}")

    async def _switch(self, expected: Expected) -> str:
        """Turn the server on or off, as its owner would. Returns what was done."""
        if expected.running:
            await self._cell.lab.cut_power(expected.server.name)
        else:
            await self._cell.lab.start(expected.server.name)
        expected.running = not expected.running
        return f"turned {'on' if expected.running else 'off'}"

    async def _backup(self, expected: Expected) -> str:
        """Run a backup while nothing else is running."""
        level, chain = await self._planned(expected)
        run = await self._tool.backup(expected.server.name, level, chain.folder)
        if level == "full" and not run.ok:
            # as an operator would after the tool's message
            self._count(run, level, beside=False)
            await asyncio.to_thread(disks.forget_checkpoints, self._domain(expected))
            run = await self._tool.backup(expected.server.name, level, self._afresh(chain))
        truths = (await asyncio.to_thread(disks.truth, expected),)
        return await self._take(expected, level, chain, run, truths, beside=False)

    async def _job(self, expected: Expected) -> str:
        operation = self._asking.possible(expected)
        target = self._chance.choice(TARGETS)
        step = self._chance.choice(list(Step)) if self._chance.random() < 0.5 else None
        beside = self._chance.random() < 0.35
        level, chain = await self._planned(expected) if beside else ("", None)
        backing_up: asyncio.Task[Run] | None = None
        before: Truth = {}

        async def act() -> str:
            nonlocal backing_up, before
            before = disks.truth(expected)  # blocks the event loop, and so the start of the job's call
            if chain is not None:
                backing_up = asyncio.create_task(self._somewhat_later(expected, level, chain))
                await asyncio.sleep(self._chance.random() * BESIDE_SECONDS * self._chance.choice((0, 1)))
            if target == "nothing":
                return "nothing"
            return await self._played._kill_by_chance(target, expected, step)

        ended = self.tally.chaos.operations.copy()
        # "worker" if nothing is killed, so that nothing is restarted before it has ended
        mortal = "worker" if target == "nothing" else target
        await self._played.play(expected, operation, mortal, act, may_fail=beside)
        outcome = " ".join(self.tally.chaos.operations - ended)
        self._learn_refusals()
        if operation in REVERTING and "completed" in outcome and not beside:
            self.tally.violations.extend(self._left_behind(expected))
        said = f"{outcome}, dies: {target}"
        if backing_up is not None and chain is not None:
            run = await backing_up
            truths = (before, await asyncio.to_thread(disks.truth, expected))
            said += f", beside it {await self._take(expected, level, chain, run, truths, beside=True)}"
        if (target != "nothing" or operation in REVERTING) and (known := self._chains.get(expected.server.id)):
            known.excused = True
        return said

    def _learn_refusals(self) -> None:
        for end in model.ends(self._cell.folder / "node" / "journal.sqlite", after=self._seen):
            self._seen = end.row
            if end.state == "failed":
                self.tally.refused[f"{end.kind} {end.code}"] += 1

    async def _somewhat_later(self, expected: Expected, level: str, chain: Chain) -> Run:
        await asyncio.sleep(self._chance.random() * BESIDE_SECONDS * self._chance.choice((0, 1)))
        return await self._tool.backup(expected.server.name, level, chain.folder)

    async def _planned(self, expected: Expected) -> tuple[str, Chain]:
        """The level of the server's next backup, and the chain that it belongs to."""
        chain = self._chains.get(expected.server.id)
        follows = chain is not None and not chain.over and self._chance.random() < 0.8
        if chain is not None and follows and (expected.running or chain.takes_offline):
            return "inc", chain
        if not expected.running:
            return "copy", Chain(domain=expected.server.name, folder=self._new_folder())
        if chain is not None and not self.tally.violations:
            await asyncio.to_thread(chain.remove)
        chain = self._chains[expected.server.id] = Chain(domain=expected.server.name, folder=self._new_folder())
        return "full", chain

    async def _take(
        self, expected: Expected, level: str, chain: Chain, run: Run, truths: tuple[Truth, ...], *, beside: bool
    ) -> str:
        """Compare what was saved. After a failed run, the chain is over."""
        said = self._count(run, level, beside=beside)
        if not run.ok:
            if not (beside or chain.excused):
                self._violated(expected, f"{level} backup refused, and nothing had happened: {run.words}")
            chain.over = True
        elif level == "inc" and run.offline and not chain.takes_offline:
            # the job beside it had turned the server off: see Chain.takes_offline
            self.tally.backups["written over by the tool itself"] += 1
            chain.over = True
        else:
            point = await asyncio.to_thread(chain.add, run, truths)
            await self._compare(expected, point)
        return said

    def _count(self, run: Run, level: str, *, beside: bool) -> str:
        how = f"{level}{' of files' if run.offline else ''} {'ok' if run.ok else 'refused'}"
        self.tally.backups[f"{how}{', beside a job' if beside else ''}"] += 1
        if not run.ok:
            self.tally.told[run.words[:200]] += 1
        return how

    async def _compare(self, expected: Expected, point: Point) -> None:
        self.tally.compared += 1
        if not await point.is_right(self._tool):
            self._violated(expected, f"a backup that went well is wrong: {point.copy.name}")

    def _left_behind(self, expected: Expected) -> list[str]:
        """After a restore, check that no bitmap or checkpoint is left from which an incremental backup could start."""
        name = expected.server.name
        records = [path.stem for path in (self._cell.lab.folder / "lib/qemu/checkpoint" / name).glob("*.xml")]
        found = [f"{name}: a restore has left libvirt's checkpoints {records}"] if records else []
        left = {disk.name: kept for disk in expected.server.disks if (kept := disks.bitmaps(disk))}
        return [*found, *(f"{name}: a restore has left bitmaps on {disk}: {kept}" for disk, kept in left.items())]

    def _violated(self, expected: Expected, what: str) -> None:
        self.tally.violations.append(f"server {expected.server.id}: {what}")

    def _domain(self, expected: Expected) -> Any:
        return self._connection.lookupByName(expected.server.name)

    def _afresh(self, chain: Chain) -> Path:
        chain.folder = self._new_folder()
        return chain.folder

    def _new_folder(self) -> Path:
        self._folders += 1
        return self._tool.folder / f"chain-{self._folders}"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
