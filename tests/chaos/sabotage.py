"""A worker with one part taken out, to show that the campaign notices."""

import sys
from pathlib import Path
from typing import Any

from drivers.kvm.hypervisor import KvmHypervisor
from worker import main
from worker.jobs.model import Step
from worker.journal import Journal
from worker.procedures.restore import RESTORE
from worker.procedures.work import Next, Work


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


if __name__ == "__main__":
    {"repair": no_repair, "safety": no_safety, "journal": no_journal}[sys.argv.pop(1)]()
    main.main()
