"""`python -m tests.chaos.stage FOLDER SABOTAGE run`: the worker, which stops where `tests.chaos.halts` requests it.

SABOTAGE removes one part of it, to show that the campaign detects this; none: it is complete.
"""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from drivers.kvm.hypervisor import KvmHypervisor
from tests.backups.disks import bitmaps
from tests.chaos.halts import Halts, Moment
from worker import main
from worker.journal import Journal
from worker.procedures import PROCEDURES
from worker.procedures.restore import RESTORE
from worker.procedures.work import Next, Work
from worker.store.model import Step

Take = Callable[[Work], Awaitable[Next]]


def heed(halts: Halts) -> None:
    for steps in {id(procedure): procedure.steps for procedure in PROCEDURES.values()}.values():
        heeding: Any = steps
        heeding |= {step: _heeding(step, take, halts) for step, take in steps.items()}


def _heeding(step: Step, take: Take, halts: Halts) -> Take:
    async def stand_still() -> None:
        halts.stand_still()
        while halts.reached() is not None:  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)

    async def heeding(work: Work) -> Next:
        halt = halts.asked()
        if halt is None or (halt.kind, halt.step) != (work.task.kind, step):
            return await take(work)
        if halt.child:
            halts.arm_child(halt)
            return await take(work)
        if halt.moment is Moment.BEFORE:
            await stand_still()
            return await take(work)
        taking = asyncio.ensure_future(take(work))
        await asyncio.wait({taking}, timeout=halt.seconds if halt.moment is Moment.DURING else None)
        await stand_still()
        return await taking

    return heeding


def no_repair() -> None:
    async def repair(_hypervisor: KvmHypervisor, _server_id: int) -> tuple[str, ...]:
        return ()

    sabotaged: Any = KvmHypervisor
    sabotaged.repair = repair


def no_safety() -> None:
    async def safeguard(work: Work) -> Next:
        return Next(step=Step.REVERTING, facts=work.facts)

    steps: Any = RESTORE.steps
    steps[Step.SAFEGUARDING] = safeguard


def no_journal() -> None:
    class Forgetful(Journal):
        def __init__(self, path: Path) -> None:
            path.unlink(missing_ok=True)
            super().__init__(path)

    sabotaged: Any = main
    sabotaged.Journal = Forgetful


def keep_bitmaps() -> None:
    """After a revert, leave empty and valid bitmaps with the same names, which an incremental backup would trust."""
    sabotaged: Any = KvmHypervisor
    take, revert = sabotaged.take_snapshot, sabotaged.revert
    noted: dict[str, tuple[str, ...]] = {}

    async def take_snapshot(self: Any, server_id: int, *rest: Any, **named: Any) -> Any:
        for disk in (await self._hardware(server_id)).disks:
            noted[disk.path] = tuple(bitmaps(Path(disk.path)))
        return await take(self, server_id, *rest, **named)

    async def reverted(self: Any, server_id: int, *rest: Any, **named: Any) -> None:
        await revert(self, server_id, *rest, **named)
        for disk in (await self._hardware(server_id)).disks:
            for bitmap in noted.get(disk.path, ()):
                command = ["qemu-img", "bitmap", "--add", "-f", "qcow2", disk.path, bitmap]
                subprocess.run(command, check=True)  # noqa: ASYNC221 - no longer than the kernel needs

    sabotaged.take_snapshot, sabotaged.revert = take_snapshot, reverted


SABOTAGES: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "repair": no_repair,
    "safety": no_safety,
    "journal": no_journal,
    "bitmaps": keep_bitmaps,
}

if __name__ == "__main__":
    place, sabotage = Path(sys.argv.pop(1)), sys.argv.pop(1)
    SABOTAGES[sabotage]()
    heed(Halts(place))
    main.main()
