"""The records that both programs share, and the table of job states."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
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

SNAPSHOTS_PER_SERVER = 5  # the public contract's limit, unless an operator sets one for the account
SNAPSHOTS_PER_SERVER_MOST = 100  # the highest limit that an operator can set
NODE_SILENT_SECONDS = 60.0  # the public contract: a node that is silent for over a minute gets no new job
RETRY_WITHIN_SECONDS = 3600.0  # how long after its failure a job can be retried without force
WAITING_SECONDS = 600.0  # how long a job waits for a silent node
NUMBER_MAX = (1 << 53) - 1  # up to here, every integer is exact in Lua and in JSON
NAME_MAX = 64  # characters of a snapshot's name
CAUSE_MAX = 2000  # characters of what the hypervisor said of a failure
CANCELLED = "cancelled"  # error code of a cancelled job
WINDOW_MISSED = "window_missed"  # error code of a job that had not started when the window of its schedule ended
DESCRIPTION_MAX = 1000  # characters of a snapshot's description


class JobKind(StrEnum):
    CREATE = "create"
    RESTORE = "restore"
    DELETE = "delete"
    CHECK_CREATE = "check_create"  # a dry run of a create: changes nothing and does not hold the server
    CHECK_RESTORE = "check_restore"
    UNDO = "undo"  # brings back the data that a restore overwrote

    @property
    def only_looks(self) -> bool:
        return self in {JobKind.CHECK_CREATE, JobKind.CHECK_RESTORE}

    @property
    def overwrites(self) -> bool:
        """Whether it replaces all data of its server."""
        return self in {JobKind.RESTORE, JobKind.UNDO}


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
    """The statuses of the API, and `deleting`: deleted for the customer, but its space is not freed yet."""

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
    """The steps of jobs. Each is recorded in the node's journal before its first effect."""

    PREFLIGHT = "preflight"
    STOPPING = "stopping"
    FREEZING = "freezing"  # freeze a running guest's file systems through its agent
    SNAPSHOTTING = "snapshotting"
    THAWING = "thawing"  # thaw them again
    RECORDING = "recording"  # record a snapshot of a running guest
    CHECKING = "checking"  # check and repair the disks before the first change
    SAFEGUARDING = "safeguarding"  # take the safety snapshot before a restore overwrites the disks
    CLEARING = "clearing"  # remove dirty bitmaps and checkpoints of incremental backups, which a revert invalidates
    REVERTING = "reverting"
    ADAPTING = "adapting"  # after a revert: enlarge disks to their previous size, renew the generation ID
    UNDOING = "undoing"  # after a failed revert: revert every disk to the safety snapshot
    CLEANING = "cleaning"  # remove what a failed step left on the disks
    DELETING = "deleting"
    STARTING = "starting"
    MEASURING = "measuring"


# The steps of each kind in order, including those of the rollback.
_OVERWRITING = (
    *(Step.PREFLIGHT, Step.STOPPING, Step.CHECKING, Step.SAFEGUARDING, Step.CLEARING, Step.REVERTING, Step.ADAPTING),
    *(Step.UNDOING, Step.CLEANING, Step.STARTING),
)
STEPS: dict[JobKind, tuple[Step, ...]] = {
    JobKind.CREATE: (
        *(Step.PREFLIGHT, Step.STOPPING, Step.CHECKING, Step.FREEZING, Step.SNAPSHOTTING, Step.THAWING),
        *(Step.RECORDING, Step.CLEANING, Step.STARTING, Step.MEASURING),
    ),
    JobKind.RESTORE: _OVERWRITING,
    JobKind.UNDO: _OVERWRITING,
    JobKind.DELETE: (Step.DELETING,),
    JobKind.CHECK_CREATE: (Step.PREFLIGHT,),
    JobKind.CHECK_RESTORE: (Step.PREFLIGHT,),
}

WITHOUT_A_STOP = frozenset({Step.FREEZING, Step.THAWING, Step.RECORDING})  # only in a `live` create


@dataclass(frozen=True, kw_only=True)
class Server:
    id: ServerId
    name: str
    account_id: AccountId
    node: str
    state: ServerState
    job_id: JobId | None  # the job that holds the server
    job_kind: JobKind | None
    consistency: str | None = None  # default of its creates, "stop" or "live"; None: the provider's default
    labels: Mapping[str, str] = field(default_factory=dict)  # set by its customer


@dataclass(frozen=True, kw_only=True)
class ServerView:
    """A server with its snapshot count and the state of its node."""

    server: Server
    counted: int  # snapshots that count toward the limit
    snapshots_max: int  # the limit of its account
    reachable: bool  # whether its node responds


@dataclass(frozen=True, kw_only=True)
class HeldDisk:
    """A disk at the time of a snapshot."""

    target: str
    path: str  # path on the node; never shown to customers
    virtual_bytes: int
    stamp: str = ""
    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A disk or device that a snapshot does not hold, and why."""

    target: str
    reason: str


class Consistency(StrEnum):
    """The state of the guest's data in a snapshot: how the guest was stopped, or what it did during the snapshot."""

    CLEAN_SHUTDOWN = "clean_shutdown"  # it shut down when requested
    FORCED_OFF = "forced_off"  # its power was cut: its last writes may be missing
    ALREADY_OFF = "already_off"  # it was off before the job
    AGENT_FROZEN = "agent_frozen"  # it ran; its agent had flushed and frozen all file systems
    CRASH_CONSISTENT = "crash_consistent"  # it ran: as after a power failure of all disks at this moment


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a snapshot holds: the same fields as `drivers.base.Contents`, which the node records with the disks."""

    disks: tuple[HeldDisk, ...]
    left_out: tuple[LeftOut, ...] = ()
    firmware: str = "bios"  # or "uefi"
    nvram: bool = False
    tpm: bool = False
    consistency: str | None = None  # a value of `Consistency`, possibly of a later version; None: unknown


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
    protected: bool  # deletes are refused
    expires_at: datetime | None  # when it is deleted, unless it is protected
    schedule_id: ScheduleId | None  # the schedule that created it
    contents: Contents | None = None  # None: unknown, as in an older record


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job failed: a stable code, a text for the customer, and whether the server is stranded."""

    code: str
    detail: str
    stranded: bool = False


class NoteCode(StrEnum):
    """What a job did, or would do, in addition to the request."""

    BACKUP_CHAIN_ENDED = (
        "backup_chain_ended"  # bitmaps and checkpoints were removed: the next backup must be a full backup
    )
    DISK_KEPT_SIZE = "disk_kept_size"  # a disk was enlarged after the snapshot and keeps its size
    DISK_REPAIRED = "disk_repaired"  # a disk was damaged before the job
    NOT_RESTORED = "not_restored"  # only the present disks were restored
    LEFT_OUT = "left_out"  # the snapshot does not hold this disk or device
    GENERATION_ID_CHANGED = "generation_id_changed"
    STATE_CHANGED = "state_changed"  # UEFI variables or TPM were written while the snapshot was taken
    RESOURCES_REDUCED = "resources_reduced"  # fewer vCPUs or less memory than before the job stopped the server


@dataclass(frozen=True, kw_only=True)
class Note:
    """What the owner of a server should know about a job."""

    code: NoteCode
    detail: str  # a sentence that is shown to the customer
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
    undoes: JobId | None = None  # for an undo: the restore (or undo) that it undoes
    server_state: ServerState | None = None  # current state of the server; None: it no longer exists
    attempts: int = 0  # how often a worker process has started it; more than 1 after a crash
    # median duration of the node's latest jobs of this kind; None before the first one
    estimated_seconds: int | None = None
    downtime_seconds: float | None = None  # how long the guest was off
    failure: Failure | None = None
    traceparent: str = ""  # the parent span, as in W3C Trace Context; "": none
    resolved_at: datetime | None = None  # when an operator marked the stranded job as resolved
    present_only: bool = False  # for a restore or undo: revert only the disks that are present
    live: bool = False  # for a create: do not stop the server
    notes: tuple[Note, ...] = ()
    contents: Contents | None = None  # for a create or its dry run: what the snapshot holds or would hold
    retried_by: JobId | None = None  # the job that retries it
    off_since: datetime | None = None  # when the job asked the running guest to stop; None: the guest is not off for it
    silent_since: datetime | None = None  # for operators, of a job in progress: the last heartbeat of its silent node

    @property
    def is_cancelled(self) -> bool:
        return self.failure is not None and self.failure.code == CANCELLED

    @property
    def needs_person(self) -> bool:
        """Whether it stranded its server and is not marked as resolved."""
        return self.failure is not None and self.failure.stranded and self.resolved_at is None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Its possible steps, in order. A `live` create of a server that is off has the steps of any create."""
        return tuple(step for step in STEPS[self.kind] if self.live or step not in WITHOUT_A_STOP)

    @property
    def percent(self) -> int:
        """Progress in whole steps; for a failed job, up to the step that failed."""
        if self.state is JobState.COMPLETED:
            return 100
        steps = self.steps
        return 100 * steps.index(self.step) // len(steps) if self.step in steps else 0


def snapshot_tag(snapshot_id: SnapshotId) -> str:
    """The name of a customer's snapshot on the disks. It is unique: qcow2 allows duplicate names."""
    return f"vps-{snapshot_id}"


def snapshot_id_of(tag: str) -> SnapshotId | None:
    """The customer's snapshot with this tag; None for any other tag, such as `vps-0001`. An ID has at most 15 digits,
    because Lua's numbers are not exact beyond that."""
    match = re.fullmatch(r"vps-([1-9][0-9]{0,14})", tag)
    return SnapshotId(int(match[1])) if match else None


def bounded_cause(text: str) -> str:
    """A cause of at most CAUSE_MAX characters, which a terminal can print: its start and, because the reason is often
    last, its end."""
    printable = "".join(one if one.isprintable() or one == "\n" else " " for one in text)
    if len(printable) <= CAUSE_MAX:
        return printable
    half = (CAUSE_MAX - 3) // 2
    return f"{printable[:half]} … {printable[-half:]}"
