"""What every procedure is made of: the task, the facts found so far, the policy, and the table of steps.

A procedure is a table: step -> the function that does it. The function returns the next step with the facts; the
runner writes both to the journal before it goes on. Every step may be run again after a crash, on its own entry alone.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from drivers.base import GrownDisk, Hypervisor, SnapshotSpec
from worker.store.model import Contents, Failure, Job, JobId, JobKind, Note, ServerId, SnapshotId, Step, snapshot_tag

SAFETY_PREFIX = "vps-safety-"  # of the tags of safety snapshots; the restore's job id follows


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a job asks of this node: all that a procedure needs to know, with no word from Redis."""

    job_id: JobId
    kind: JobKind
    server_id: ServerId
    snapshot_id: SnapshotId
    name: str
    description: str
    created_at: datetime
    request_id: str
    undoes: JobId | None = None
    traceparent: str = ""  # so that after a crash the trace goes on, too
    present_only: bool = False  # of a restore: the disks that are there go back, whatever else the snapshot holds
    # Of an undo: the disks that the restore overwrote, where it did not overwrite all. The others have gone on since.
    overwritten: frozenset[str] | None = None

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(
            job_id=job.id,
            kind=job.kind,
            server_id=job.server_id,
            snapshot_id=job.snapshot_id,
            name=job.snapshot_name,
            description=job.snapshot_description,
            created_at=job.snapshot_created_at,
            request_id=job.request_id,
            undoes=job.undoes,
            traceparent=job.traceparent,
            present_only=job.present_only,
        )

    @property
    def tag(self) -> str:
        """The tag that the job makes, reverts to or deletes."""
        return f"{SAFETY_PREFIX}{self.undoes}" if self.undoes else snapshot_tag(self.snapshot_id)

    @property
    def safety_tag(self) -> str:
        return f"{SAFETY_PREFIX}{self.job_id}"

    @property
    def spec(self) -> SnapshotSpec:
        return SnapshotSpec(tag=self.tag, name=self.name, description=self.description, created_at=self.created_at)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the steps so far have found out; kept in the journal beside the step."""

    begun_at: float = field(default_factory=time.time, compare=False)  # Unix seconds; older journals lack it
    was_running: bool = False
    domain: str | None = None  # the hypervisor's identity of it, should it lose its mark; older journals lack it
    off_since: float | None = None  # Unix seconds: when the guest was first asked, or made, to stop
    on_again: float | None = None  # Unix seconds: when it had been started
    taken: bool = False  # the snapshot is whole on every disk
    size_mb: int | None = None
    spare_tag: str | None = None  # a tag on the disks that is to be deleted some time after the job
    failure: Failure | None = None  # the first one: why the job goes back
    contents: Contents | None = None  # what the snapshot holds, or would
    notes: tuple[Note, ...] = ()
    targets: frozenset[str] | None = None  # of a restore: the disks that go back; None: all
    grown: tuple[GrownDisk, ...] = ()  # enlarged since the snapshot, to be as large again
    clears: tuple[str, ...] | None = None  # disks with dirty bitmaps, none where there are checkpoints alone
    renews_generation: bool = False

    def failed(self, failure: Failure) -> Self:
        """With this failure; an earlier one stays the reason, and stranded stays stranded."""
        if self.failure is None:
            return replace(self, failure=failure)
        return replace(self, failure=replace(self.failure, stranded=self.failure.stranded or failure.stranded))

    def noting(self, *notes: Note) -> Self:
        """With these notes; told again, a note takes the place of the one before."""
        told = {(note.code, note.disks): note for note in (*self.notes, *notes)}
        return replace(self, notes=tuple(told.values()))

    @property
    def downtime_seconds(self) -> float | None:
        if self.off_since is None or self.on_again is None:
            return None
        return max(0.0, self.on_again - self.off_since)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long to wait, and what to keep free. All times in seconds."""

    grace_seconds: float = 90.0  # for a guest to shut itself down before its power is cut
    press_again_seconds: float = 5.0  # a press of the power button before the guest listens is lost
    free_floor_bytes: int = 1 << 30  # a guest's writes after a snapshot copy clusters: below this no snapshot is taken


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of one step."""

    task: Task
    facts: Facts
    hypervisor: Hypervisor
    policy: Policy
    # The step was entered before, by a process that died or by a try that failed: what it has done is unknown.
    interrupted: bool


@dataclass(frozen=True, kw_only=True)
class Next:
    """Where to go from a step: the next one, or None when the job is over."""

    step: Step | None
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """The steps of one kind of job.

    `if_it_fails` says where a step's failure leads. A step in `strands` is one whose failure leaves the VM other than
    it was found: an operator must look.
    """

    first: Step
    steps: Mapping[Step, Callable[[Work], Awaitable[Next]]]
    if_it_fails: Mapping[Step, Callable[[Facts], Step | None]]
    strands: frozenset[Step] = frozenset()


# Steps that go forward: a worker that has lost its node to another must not enter one. The others bring a server back.
FORWARD = frozenset(Step) - {Step.UNDOING, Step.CLEANING, Step.STARTING, Step.MEASURING}


def over(_facts: Facts) -> Step | None:
    return None


def then(step: Step) -> Callable[[Facts], Step | None]:
    return lambda _facts: step
