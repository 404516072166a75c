"""The examples of the API's document: the public contract's own, and one for each refusal."""

from datetime import UTC, datetime

from api import bodies
from api.problems import FieldError, Problem, broke, invalid
from api.requests import CreateBody, EditBody, ScheduleBody, ScheduleEditBody
from api.webhooks import Delivery, DeliveryList, Webhook, WebhookBody, WebhookEditBody, WebhookList, WebhookWithSecret
from worker.store import errors
from worker.store.model import (
    SNAPSHOTS_PER_SERVER,
    JobKind,
    JobState,
    NoteCode,
    ServerId,
    ServerState,
    SnapshotStatus,
    Step,
)
from worker.store.webhooks.webhooks import JobEvent

JOB_ID = "0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b"
SCHEDULE_ID = "5c1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e"
WEBHOOK_ID = "1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e5c"
REQUEST_ID = "4f6c1d2e8b9a4c3d9e7f0a1b2c3d4e5f"

_SERVER = bodies.ServerName(id=12345, name="web-server-01")
_ASKED = datetime(2025, 1, 16, 16, 15, tzinfo=UTC)

CREATE = CreateBody(
    server_id=ServerId(12345), name="before-update-snapshot", description="Snapshot before system update"
)
SNAPSHOT = bodies.Snapshot(
    id=801,
    server=_SERVER,
    name="pre-migration-snapshot",
    status=SnapshotStatus.COMPLETED,
    size_mb=5120,
    created_at=datetime(2025, 1, 15, 18, 30, tzinfo=UTC),
    description="Before major migration",
)
CONTENTS = bodies.Contents(
    disks=(bodies.HeldDisk(target="vda", size_mb=25600), bodies.HeldDisk(target="vdb", size_mb=102400)),
    left_out=(bodies.LeftOut(target="sda", reason="it is a cdrom"),),
    firmware="uefi",
    nvram=True,
    tpm=False,
)
DETAILS = bodies.SnapshotDetails(
    **dict(SNAPSHOT),
    labels={"env": "production"},
    protected=True,
    expires_at=None,
    schedule_id=None,
    contents=CONTENTS,
)
EDIT = EditBody(labels={"env": "production"}, protected=True)
_WEEKLY = bodies.Snapshot(
    id=798,
    server=_SERVER,
    name="weekly-snapshot-2025-01-08",
    status=SnapshotStatus.COMPLETED,
    size_mb=4856,
    created_at=datetime(2025, 1, 8, 12, tzinfo=UTC),
    description="Weekly snapshot",
)
SNAPSHOTS = bodies.SnapshotList(count=2, results=(SNAPSHOT, _WEEKLY))
CREATED = bodies.SnapshotCreated(
    id=802,
    server=_SERVER,
    name="before-update-snapshot",
    status=SnapshotStatus.IN_PROGRESS,
    size_mb=None,
    created_at=_ASKED,
    description="Snapshot before system update",
    message=bodies.CREATE_MESSAGE,
)
RESTORING = bodies.RestoreStarted(
    status="success",
    message=bodies.RESTORE_MESSAGE,
    snapshot=bodies.RestoredSnapshot(id=SNAPSHOT.id, name=SNAPSHOT.name, created_at=SNAPSHOT.created_at),
    server=bodies.RestoredServer(id=_SERVER.id, name=_SERVER.name, status=ServerState.RESTORING),
)
NIGHTLY = ScheduleBody(server_id=ServerId(12345), name="nightly", when="0 3 * * *", keep=3)
LESS = ScheduleEditBody(keep=2)
SCHEDULE = bodies.Schedule(
    id=SCHEDULE_ID,
    server=_SERVER,
    name=NIGHTLY.name,
    when=NIGHTLY.when,
    keep=NIGHTLY.keep,
    expire_after_hours=None,
    enabled=True,
    created_at=_ASKED,
    next_run_at=datetime(2025, 1, 18, 3, tzinfo=UTC),
    last_run=bodies.ScheduleRun(at=datetime(2025, 1, 17, 3, tzinfo=UTC), job_id=JOB_ID, error=None),
)
SCHEDULES = bodies.ScheduleList(count=1, results=(SCHEDULE,))
WEBHOOK_ASKED = WebhookBody(url="https://hooks.example.com/snapshots", events=(JobEvent.COMPLETED, JobEvent.FAILED))
WEBHOOK_OFF = WebhookEditBody(enabled=False)
WEBHOOK = Webhook(
    id=WEBHOOK_ID,
    url=WEBHOOK_ASKED.url,
    description="",
    events=WEBHOOK_ASKED.events,
    enabled=True,
    disabled_reason=None,
    failing_since=None,
    created_at=_ASKED,
)
WEBHOOK_SECRET = WebhookWithSecret(**dict(WEBHOOK), secret="whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")  # noqa: S106 - the specification's own example
WEBHOOKS = WebhookList(count=1, results=(WEBHOOK,))
DELIVERY = Delivery(
    id="9d6b1a0f8e7d6c5b0b5e5c1d8f3a4c2e",
    event=JobEvent.COMPLETED,
    attempts=2,
    status_code=204,
    error=None,
    created_at=_ASKED,
    next_attempt_at=None,
    delivered_at=_ASKED.replace(second=5),
)
TEST_WAITS = Delivery(
    id=DELIVERY.id,
    event="webhook.test",
    attempts=0,
    status_code=None,
    error=None,
    created_at=_ASKED,
    next_attempt_at=_ASKED,
    delivered_at=None,
)
DELIVERIES = DeliveryList(count=1, results=(DELIVERY,))
HEALTH = bodies.Health(status="ok")


_LEFT_OUT = bodies.Note(
    code=NoteCode.LEFT_OUT, detail="The snapshot does not hold sda (it is a cdrom).", disks=("sda",)
)
_CHAIN_ENDED = bodies.Note(
    code=NoteCode.BACKUP_CHAIN_ENDED,
    detail="A restore ends the chain of incremental backups: the dirty bitmaps and checkpoints that it rests on are"
    " removed. The next backup must be a full one.",
    disks=("vda",),
)


def _job(
    kind: JobKind, state: JobState, *, error: bodies.JobError | None = None, notes: tuple[bodies.Note, ...] = ()
) -> bodies.Job:
    ended = state.is_final
    return bodies.Job(
        id=JOB_ID,
        kind=kind,
        state=state,
        step=None,
        percent=100 if state is JobState.COMPLETED else 0,
        server=bodies.ServerNow(id=_SERVER.id, name=_SERVER.name, status=ServerState.ACTIVE),
        snapshot=None if kind is JobKind.CHECK_CREATE else bodies.SnapshotName(id=SNAPSHOT.id, name=SNAPSHOT.name),
        attempts=1 if ended else 0,
        queued_at=_ASKED,
        started_at=_ASKED if ended else None,
        finished_at=_ASKED.replace(minute=16) if ended else None,
        estimated_seconds=45,
        downtime_seconds=38.5 if ended and error is None else None,
        error=error,
        disks="all",
        notes=notes,
        contents=CONTENTS if kind is JobKind.CHECK_CREATE and ended else None,
        retried_by=None,
    )


CHECKED = _job(JobKind.CHECK_CREATE, JobState.COMPLETED, notes=(_LEFT_OUT,)).model_copy(
    update={"downtime_seconds": None}
)
CHECKED_RESTORE = _job(JobKind.CHECK_RESTORE, JobState.COMPLETED).model_copy(update={"downtime_seconds": None})
CHECK_WAITS = _job(JobKind.CHECK_CREATE, JobState.QUEUED)
CHECK_RESTORE_WAITS = _job(JobKind.CHECK_RESTORE, JobState.QUEUED)
UNDO_WAITS = _job(JobKind.UNDO, JobState.QUEUED)
JOB_COMPLETED = _job(JobKind.RESTORE, JobState.COMPLETED, notes=(_CHAIN_ENDED,))
JOB_FAILED = _job(
    JobKind.RESTORE,
    JobState.FAILED,
    error=bodies.JobError(code="not_enough_space", detail="The storage has too little free space.", stranded=False),
)
JOB_CANCELLED = _job(
    JobKind.CREATE,
    JobState.FAILED,
    error=bodies.JobError(code="cancelled", detail="The job was cancelled before its node began it.", stranded=False),
)
JOBS = bodies.JobList(count=1, results=(JOB_COMPLETED,))
EVENT = bodies.Event(
    job_id=JOB_ID,
    kind=JobKind.CREATE,
    state=JobState.IN_PROGRESS,
    step=Step.STOPPING,
    server_id=_SERVER.id,
    snapshot_id=SNAPSHOT.id,
    notes=(),
)
SERVER = bodies.Server(
    id=_SERVER.id,
    name=_SERVER.name,
    status=ServerState.RESTORING,
    snapshots=2,
    snapshots_max=SNAPSHOTS_PER_SERVER,
    job=bodies.BusyJob(id=JOB_ID, kind=JobKind.RESTORE),
    reachable=True,
)

REFUSALS: tuple[errors.Refused, ...] = (
    errors.ServerNotFound("There is no server 12345."),
    errors.SnapshotNotFound("There is no snapshot 801."),
    errors.JobNotFound(f"There is no job {JOB_ID}."),
    errors.ScheduleNotFound(f"There is no schedule {SCHEDULE_ID}."),
    errors.ScheduleLimitReached("The server has its 5 schedules; delete one first."),
    errors.WebhookNotFound("There is no such webhook."),
    errors.WebhookLimitReached("The account has its 10 webhooks; delete one first."),
    errors.WebhookNotReady("The webhook is disabled, or 100 deliveries wait for it already."),
    errors.RecordUnreadable("This version can't read the schedule: delete it, or wait until the service is upgraded."),
    errors.ServerBusy(f"The server is held by job {JOB_ID}, which has not ended yet.", job_id=JOB_ID),
    errors.SnapshotLimitReached(f"The server has its {SNAPSHOTS_PER_SERVER} snapshots; delete one first."),
    errors.NameTaken("Snapshot 801 of the server has this name."),
    errors.SnapshotNotReady("Snapshot 801 is in_progress; only a completed one can be restored."),
    errors.UndoUnavailable("What the job has overwritten is not kept any more, or a later restore came over it."),
    errors.NodeNotFound("There is no node node-17."),
    errors.TokenNotFound("There is no token 0a1b2c3d4e5f."),
    errors.JobNotRetryable("The job is completed; only a failed one can be tried again."),
    errors.JobNotStranded("The job has stranded no server, or that was resolved before."),
    errors.SnapshotProtected("Snapshot 801 is protected; lift that first."),
    errors.JobNotCancellable("The job is in_progress; only a queued create, restore or undo can be cancelled."),
    errors.IdempotencyKeyReused("This Idempotency-Key came with another request within the last 24 hours."),
    errors.ServerNotReady("The server is suspended or gone; it can be neither snapshotted nor restored."),
    errors.TooManyStreams("There are too many streams of events; close one first."),
    errors.NodeUnavailable("The hypervisor node of the server does not answer; nothing was queued."),
    errors.StoreUnavailable("The store of the service does not answer."),
)
INVALID = invalid(FieldError(field="name", detail="Field required."))
OF_THE_CALLER = (
    Problem(401, "token_missing", "Send an access token: Authorization: Bearer TOKEN."),
    Problem(401, "token_invalid", "The access token is not valid: unknown, revoked or expired."),
    Problem(403, "permission_denied", "The token lacks the permission snapshots:write."),
    Problem(403, "account_mismatch", "X-Account-Id names another account than the token's."),
)
LIMITED = Problem(
    429, "rate_limited", "There were too many calls with this token within a minute.", headers={"Retry-After": "1"}
)
LATE = Problem(408, "request_timeout", "The body did not arrive within 10 seconds.")
OURS = broke()
