"""The records that both programs share, and the table of a job's states."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NewType

AccountId = NewType("AccountId", int)
ServerId = NewType("ServerId", int)
SnapshotId = NewType("SnapshotId", int)
JobId = NewType("JobId", str)
ScheduleId = NewType("ScheduleId", str)
WebhookId = NewType("WebhookId", str)
DeliveryId = NewType("DeliveryId", str)

SNAPSHOTS_PER_SERVER = 5  # the public contract's limit
NAME_MAX = 64  # characters of a snapshot's name
DESCRIPTION_MAX = 1000  # characters of a snapshot's description


class JobKind(StrEnum):
    CREATE = "create"
    RESTORE = "restore"
    DELETE = "delete"
    CHECK_CREATE = "check_create"  # a dry run: would a create be refused? Nothing is changed, no server held
    CHECK_RESTORE = "check_restore"
    UNDO = "undo"  # a restore of what a restore has overwritten

    @property
    def only_looks(self) -> bool:
        return self in {JobKind.CHECK_CREATE, JobKind.CHECK_RESTORE}


class JobState(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return not MAY_FOLLOW[self]


MAY_FOLLOW: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.IN_PROGRESS, JobState.FAILED}),
    JobState.IN_PROGRESS: frozenset({JobState.COMPLETED, JobState.FAILED}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
}


class SnapshotStatus(StrEnum):
    """The contract's words, and `deleting`, which no customer sees: gone for them, its space not yet freed."""

    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    DELETING = "deleting"


class ServerState(StrEnum):
    ACTIVE = "active"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    SNAPSHOTTING = "snapshotting"
    RESTORING = "restoring"


class Step(StrEnum):
    """How far a job has got. Written to the node's journal before the step's first effect."""

    PREFLIGHT = "preflight"
    STOPPING = "stopping"
    SNAPSHOTTING = "snapshotting"
    CHECKING = "checking"  # the disks are whole, or mended: before the first change
    SAFEGUARDING = "safeguarding"  # the safety snapshot, before a restore overwrites
    CLEARING = "clearing"  # dirty bitmaps and checkpoints of incremental backups, which a revert makes worthless
    REVERTING = "reverting"
    ADAPTING = "adapting"  # after a revert: disks as large as they were before it, a new generation id
    UNDOING = "undoing"  # a revert that failed: every disk back to the safety snapshot
    CLEANING = "cleaning"  # what a failed step left on the disks
    DELETING = "deleting"
    STARTING = "starting"
    MEASURING = "measuring"


# The steps of each kind in the order in which they come, those of the way back included.
_OVERWRITING = (
    *(Step.PREFLIGHT, Step.STOPPING, Step.CHECKING, Step.SAFEGUARDING, Step.CLEARING, Step.REVERTING, Step.ADAPTING),
    *(Step.UNDOING, Step.CLEANING, Step.STARTING),
)
STEPS: dict[JobKind, tuple[Step, ...]] = {
    JobKind.CREATE: (
        *(Step.PREFLIGHT, Step.STOPPING, Step.CHECKING, Step.SNAPSHOTTING),
        *(Step.CLEANING, Step.STARTING, Step.MEASURING),
    ),
    JobKind.RESTORE: _OVERWRITING,
    JobKind.UNDO: _OVERWRITING,
    JobKind.DELETE: (Step.DELETING,),
    JobKind.CHECK_CREATE: (Step.PREFLIGHT,),
    JobKind.CHECK_RESTORE: (Step.PREFLIGHT,),
}


@dataclass(frozen=True, kw_only=True)
class Server:
    id: ServerId
    name: str
    account_id: AccountId
    node: str
    state: ServerState
    job_id: JobId | None  # the job that holds the server
    job_kind: JobKind | None


@dataclass(frozen=True, kw_only=True)
class ServerView:
    """A server with what its owner asks next."""

    server: Server
    counted: int  # snapshots that take one of its slots
    reachable: bool  # its node answers


@dataclass(frozen=True, kw_only=True)
class HeldDisk:
    """A disk as it was when a snapshot was taken."""

    target: str
    path: str  # on the node: never shown to customers
    virtual_bytes: int
    stamp: str = ""
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A disk or device that a snapshot does not hold, and why."""

    target: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a snapshot holds; as `drivers.base.Contents`, which the node writes down beside the disks."""

    disks: tuple[HeldDisk, ...]
    left_out: tuple[LeftOut, ...] = ()
    firmware: str = "bios"  # or "uefi"
    nvram: bool = False
    tpm: bool = False


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    id: SnapshotId
    server_id: ServerId
    server_name: str
    account_id: AccountId
    name: str
    description: str
    status: SnapshotStatus
    size_mb: int | None
    created_at: datetime
    labels: Mapping[str, str]
    protected: bool  # its delete is refused
    expires_at: datetime | None  # deleted then, unless it is protected
    schedule_id: ScheduleId | None  # of the schedule that made it
    contents: Contents | None = None  # None: not known, of an older record


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job failed: a stable code, a text that the customer may read, and whether an operator must look."""

    code: str
    detail: str
    stranded: bool = False


class NoteCode(StrEnum):
    """What a job has done, or would do, beside what it was asked for."""

    BACKUP_CHAIN_ENDED = "backup_chain_ended"  # bitmaps and checkpoints are gone: the next backup must be a full one
    DISK_KEPT_SIZE = "disk_kept_size"  # it was enlarged since the snapshot, and is as large again
    DISK_REPAIRED = "disk_repaired"  # damage that was there before
    NOT_RESTORED = "not_restored"  # restored were the disks that are present
    LEFT_OUT = "left_out"  # of the snapshot
    GENERATION_ID_CHANGED = "generation_id_changed"
    RESOURCES_REDUCED = "resources_reduced"  # fewer vCPUs or less memory than before the job stopped the server


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that the owner of a server should know about a job."""

    code: NoteCode
    detail: str  # a sentence, for the customer's eyes
    disks: tuple[str, ...] = ()  # targets


@dataclass(frozen=True, kw_only=True)
class Job:
    id: JobId
    kind: JobKind
    state: JobState
    server_id: ServerId
    server_name: str
    account_id: AccountId
    node: str
    snapshot_id: SnapshotId
    snapshot_name: str
    snapshot_description: str
    snapshot_created_at: datetime
    request_id: str
    queued_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    step: Step | None = None
    undoes: JobId | None = None  # of an undo: the restore (or undo) that it takes back
    server_state: ServerState | None = None  # of the server now; None: it is gone
    attempts: int = 0  # times a worker process began it: more than 1 after a crash
    estimated_seconds: int | None = None  # median of the node's latest jobs of this kind; None before the first
    downtime_seconds: float | None = None  # how long the job kept the guest off
    failure: Failure | None = None
    traceparent: str = ""  # the span that it goes on from, after W3C Trace Context; "": none
    resolved_at: datetime | None = None  # when an operator noted that what it had stranded was put right
    # of a restore or an undo: the disks that are there go back, whatever else the snapshot holds
    present_only: bool = False
    notes: tuple[Note, ...] = ()
    contents: Contents | None = None  # of a create, and of a dry run of one: what the snapshot holds, or would
    retried_by: JobId | None = None  # the job that was admitted to do the same again

    @property
    def needs_person(self) -> bool:
        """Its server is not as it was found, and nobody has put it right."""
        return self.failure is not None and self.failure.stranded and self.resolved_at is None

    @property
    def percent(self) -> int:
        """How far it is on its way, in whole steps; a failed job stays where it failed."""
        if self.state is JobState.COMPLETED:
            return 100
        steps = STEPS[self.kind]
        return 100 * steps.index(self.step) // len(steps) if self.step in steps else 0


def snapshot_tag(snapshot_id: SnapshotId) -> str:
    """The name of a customer's snapshot on the disks: ours and unique, for qcow2 accepts one name twice."""
    return f"vps-{snapshot_id}"


def snapshot_id_of(tag: str) -> SnapshotId | None:
    """The customer's snapshot that has this tag; None for any other tag."""
    number = tag.removeprefix("vps-")
    return SnapshotId(int(number)) if number != tag and number.isascii() and number.isdecimal() else None
