"""Reports of a node for operators only: its versions and storage, and the steps and log lines of jobs."""

from dataclasses import dataclass, replace
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from worker.store.model import Step


class Pool(BaseModel):
    """A file system that holds disks of servers."""

    model_config = ConfigDict(frozen=True)

    path: str
    free_bytes: int
    total_bytes: int


class NodeFacts(BaseModel):
    """The versions of a node's software, its storage, and its number of job slots."""

    model_config = ConfigDict(frozen=True)

    worker: str
    hypervisor: str
    emulator: str
    pools: tuple[Pool, ...]
    slots: int = 0  # how many jobs it runs at a time now; 0: not reported by an older worker
    slots_max: int = 0  # how many while its disks are not busy
    boot: str = ""  # the boot ID of its host's kernel; "": unknown

    @property
    def has_fewer_slots(self) -> bool:
        """Its disks are busy."""
        return 0 < self.slots < self.slots_max

    @property
    def free_bytes(self) -> int:
        """Free space of the pool with the least; 0 if there is none."""
        return min((pool.free_bytes for pool in self.pools), default=0)


@dataclass(frozen=True, kw_only=True)
class StepBegun:
    """The start or retry of a step; None: the end of the job. `at`: Unix seconds of the node's clock."""

    step: Step | None
    at: float
    attempt: int


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """The progress of a job since its last report."""

    steps: tuple[StepBegun, ...] = ()
    log: tuple[str, ...] = ()  # lines as JSON
    resumed: int = 0  # how often a process has resumed it

    def __add__(self, later: Self) -> Self:
        return replace(
            self, steps=self.steps + later.steps, log=self.log + later.log, resumed=self.resumed + later.resumed
        )

    def for_script(self) -> dict[str, Any]:
        steps = [{"step": s.step or "", "ms": round(s.at * 1000), "attempt": s.attempt} for s in self.steps]
        return {"steps": steps, "log": self.log, "resumed": self.resumed}


EMPTY_REPORT = JobReport()
