"""The parts of every procedure: the task, the facts gathered so far, the policy, and the table of steps.

A procedure maps each step to a function. The function returns the next step and the facts; the runner writes both to
the journal before it continues. After a crash every step can be run again from its journal entry alone.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Self

from drivers.base import GrownDisk, Hypervisor, SnapshotSpec
from worker.store.model import (
    Contents,
    Failure,
    Job,
    JobId,
    JobKind,
    Note,
    ServerId,
    SnapshotId,
    Step,
    bounded_cause,
    snapshot_tag,
)

SAFETY_PREFIX = "vps-safety-"  # a safety snapshot's tag is this and the restore's job ID


@dataclass(frozen=True, kw_only=True)
class Task:
    """The data of a job that a procedure needs, so that it runs without Redis."""

    job_id: JobId
    kind: JobKind
    server_id: ServerId
    snapshot_id: SnapshotId
    name: str
    description: str
    created_at: datetime
    request_id: str
    undoes: JobId | None = None
    traceparent: str = ""  # continues the trace after a crash
    present_only: bool = False  # restore: revert only the disks that are present
    live: bool = False  # create: do not stop the guest
    # Undo: the disks that the restore overwrote, if not all. The others have been in use since then and are not
    # touched.
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
            live=job.live,
        )

    @property
    def tag(self) -> str:
        """The tag that the job creates, reverts to or deletes."""
        return f"{SAFETY_PREFIX}{self.undoes}" if self.undoes else snapshot_tag(self.snapshot_id)

    @property
    def safety_tag(self) -> str:
        return f"{SAFETY_PREFIX}{self.job_id}"

    @property
    def spec(self) -> SnapshotSpec:
        return SnapshotSpec(tag=self.tag, name=self.name, description=self.description, created_at=self.created_at)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The results of the steps so far; stored in the journal with the step."""

    begun_at: float = field(default_factory=time.time, compare=False)  # Unix seconds; missing in older journals
    was_running: bool = False
    domain: str | None = None  # the domain's identity, in case it loses its mark; missing in older journals
    off_since: float | None = None  # Unix seconds; when the guest was first asked or forced to stop
    on_again: float | None = None  # Unix seconds; when it was started again
    taken: bool = False  # every disk has the complete snapshot
    size_mb: int | None = None
    spare_tag: str | None = None  # a tag on the disks that is deleted some time after the job
    failure: Failure | None = None  # the first failure: the reason to roll back
    cause: str = ""  # the hypervisor's message for each failure, one per line; never shown to customers
    contents: Contents | None = None  # what the snapshot holds, or would hold
    notes: tuple[Note, ...] = ()
    targets: frozenset[str] | None = None  # restore: the disks to revert; None: all
    grown: tuple[GrownDisk, ...] = ()  # enlarged after the snapshot; the restore enlarges them again
    clears: tuple[str, ...] | None = None  # disks with dirty bitmaps; empty: only checkpoints; None: neither
    renews_generation: bool = False
    live: bool = False  # create: the guest is not stopped
    frozen: bool = False  # the job may have frozen the guest's file systems, and has not thawed them
    consistency: str | None = None  # the snapshot's, a value of `Consistency`

    def failed(self, failure: Failure, cause: str = "") -> Self:
        """A copy with this failure. An earlier failure remains the reason, and a stranded job remains stranded.
        `cause`: the step and the hypervisor's message, if any."""
        known = replace(self, cause=bounded_cause("\n".join(filter(None, (self.cause, cause)))))
        if self.failure is None:
            return replace(known, failure=failure)
        return replace(known, failure=replace(self.failure, stranded=self.failure.stranded or failure.stranded))

    def noting(self, *notes: Note) -> Self:
        """A copy with these notes; a note replaces an earlier one with the same code and disks."""
        by_key = {(note.code, note.disks): note for note in (*self.notes, *notes)}
        return replace(self, notes=tuple(by_key.values()))

    @property
    def downtime_seconds(self) -> float | None:
        if self.off_since is None or self.on_again is None:
            return None
        return max(0.0, self.on_again - self.off_since)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How long to wait, and how much space to keep free."""

    grace_seconds: float = 90.0  # time for a guest to shut down before its power is cut
    live: bool = True  # whether snapshots without a stop may be taken on this node
    freeze_seconds: float = 10.0  # time for a guest's agent to freeze its file systems; 0: never freeze
    press_again_seconds: float = 1.0  # a guest that is still booting ignores the power button, so press it again
    free_floor_bytes: int = 1 << 30  # no snapshot is taken below this: after one, a guest's writes copy clusters


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of one step."""

    task: Task
    facts: Facts
    hypervisor: Hypervisor
    policy: Policy
    # The step was run before, by a process that died or in an attempt that failed; its effects are unknown.
    interrupted: bool


@dataclass(frozen=True, kw_only=True)
class Next:
    """The result of a step: the next step, or None if the job has ended, and the facts."""

    step: Step | None
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """The steps of one kind of job.

    `if_it_fails`: the step that follows a failed one. `strands`: the steps whose failure leaves the VM in a different
    state than before the job, so that an operator must repair it.
    """

    first: Step
    steps: Mapping[Step, Callable[[Work], Awaitable[Next]]]
    if_it_fails: Mapping[Step, Callable[[Facts], Step | None]]
    strands: frozenset[Step] = frozenset()


# Steps that carry the job forward: a worker that has lost its lease must not start one. The others roll back.
FORWARD = frozenset(Step) - {
    *(Step.UNDOING, Step.THAWING, Step.RECORDING, Step.CLEANING, Step.STARTING, Step.MEASURING)
}


def over(_facts: Facts) -> Step | None:
    return None


def then(step: Step) -> Callable[[Facts], Step | None]:
    return lambda _facts: step
