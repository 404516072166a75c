"""Runs a job without the runner: its procedure, step by step, on a server of any driver."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from drivers.base import DriverError, Hypervisor, SnapshotSpec
from worker.journal import Journal
from worker.procedures import PROCEDURES
from worker.procedures.work import Facts, Next, Policy, Task, Work
from worker.store.model import JobId, JobKind, NoteCode, ServerId, SnapshotId, Step

SERVER = ServerId(1)
SPEC = SnapshotSpec(tag="vps-801", name="x", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))
NEW_TAG = "vps-802"  # of a create
POLICY = Policy(grace_seconds=0.01, press_again_seconds=0.001)
AGAIN_SECONDS = 0.3
BEFORE_THE_FIRST_CHANGE = {Step.PREFLIGHT, Step.STOPPING, Step.CHECKING}


@dataclass(kw_only=True)
class End:
    """How a job went."""

    steps: list[Step] = field(default_factory=list)
    failed_in: Step | None = None
    code: str | None = None
    detail: str = ""
    stranded: bool = False
    facts: Facts = field(default_factory=Facts)

    @property
    def told(self) -> set[NoteCode]:
        return {note.code for note in self.facts.notes}


async def nothing(_step: Step) -> None:
    pass


async def walk(
    kind: JobKind,
    hypervisor: Hypervisor,
    *,
    present_only: bool = False,
    live: bool = False,
    tries: int = 1,
    policy: Policy = POLICY,
    before_each: Callable[[Step], Awaitable[None]] = nothing,
    journal: Journal | None = None,
) -> End:
    """A restore is of SPEC, a create makes NEW_TAG. `tries`: attempts of a step whose error may pass or would strand.
    `journal`: records each step before its first effect, as the runner does."""
    task = Task(
        job_id=JobId("j1"),
        kind=kind,
        server_id=SERVER,
        snapshot_id=SnapshotId(802 if kind in {JobKind.CREATE, JobKind.CHECK_CREATE} else 801),
        name="y",
        description="",
        created_at=SPEC.created_at,
        request_id="r1",
        present_only=present_only,
        live=live,
    )
    procedure, end = PROCEDURES[kind], End()
    step: Step | None = procedure.first
    if journal is not None:
        journal.begin(task, procedure.first)
    while step is not None:
        await before_each(step)
        end.steps.append(step)
        work = Work(task=task, facts=end.facts, hypervisor=hypervisor, policy=policy, interrupted=False)
        strands = step in procedure.strands
        try:
            after = await _take(procedure.steps[step], work, tries=tries, strands=strands)
        except DriverError as error:
            end.failed_in, end.code = end.failed_in or step, end.code or error.code
            end.detail, end.stranded = end.detail or str(error), end.stranded or strands
            step = procedure.if_it_fails[step](end.facts)
        else:
            step, end.facts = after.step, after.facts
        if journal is not None and step is not None:
            journal.enter(task.job_id, step, end.facts)
    await hypervisor.let_go(SERVER)
    return end


async def _take(take: Callable[[Work], Awaitable[Next]], work: Work, *, tries: int, strands: bool) -> Next:
    while True:
        tries -= 1
        try:
            return await take(work)
        except DriverError as error:
            if not tries or not (strands or error.retryable):
                raise
        await asyncio.sleep(AGAIN_SECONDS)
        work = replace(work, interrupted=True)
