"""Examples of jobs, for the document."""

from datetime import UTC, datetime, timedelta

from api.http.answers import ServerName, SnapshotName
from api.http.fields import ReasonBody
from api.jobs import bodies
from worker.store.model import Consistency, JobId, JobKind, JobState, NoteCode, ServerState

JOB_ID = "0b5e7c1d8f3a4c2e9d6b1a0f8e7d6c5b"
REQUEST_ID = "4f6c1d2e8b9a4c3d9e7f0a1b2c3d4e5f"
ASKED = datetime(2025, 1, 16, 16, 15, tzinfo=UTC)
SERVER_NAME = ServerName(id=12345, name="web-server-01")
SNAPSHOT_NAME = SnapshotName(id=801, name="pre-migration-snapshot")

CONTENTS = bodies.Contents(
    disks=(bodies.HeldDisk(target="vda", size_mb=25600), bodies.HeldDisk(target="vdb", size_mb=102400)),
    left_out=(bodies.LeftOut(target="sda", reason="it is a cdrom"),),
    firmware="uefi",
    nvram=True,
    tpm=False,
)
LEFT_OUT = bodies.Note(code=NoteCode.LEFT_OUT, detail="The snapshot does not hold sda (it is a cdrom).", disks=("sda",))
_CHAIN_ENDED = bodies.Note(
    code=NoteCode.BACKUP_CHAIN_ENDED,
    detail="A restore ends the chain of incremental backups: the dirty bitmaps and checkpoints that it rests on are"
    " removed. The next backup must be a full one.",
    disks=("vda",),
)


def job(
    kind: JobKind, state: JobState, *, error: bodies.JobError | None = None, notes: tuple[bodies.Note, ...] = ()
) -> bodies.Job:
    ended = state.is_final
    return bodies.Job(
        id=JOB_ID,
        kind=kind,
        state=state,
        step=None,
        percent=100 if state is JobState.COMPLETED else 0,
        server=bodies.ServerNow(**dict(SERVER_NAME), status=ServerState.ACTIVE),
        snapshot=None if kind is JobKind.CHECK_CREATE else SNAPSHOT_NAME,
        attempts=1 if ended else 0,
        queued_at=ASKED,
        started_at=ASKED if ended else None,
        finished_at=ASKED.replace(minute=16) if ended else None,
        estimated_seconds=45,
        downtime_seconds=38.5 if ended and error is None else None,
        error=error,
        disks="all",
        notes=notes,
        contents=CONTENTS if kind is JobKind.CHECK_CREATE and ended else None,
        consistency=Consistency.CLEAN_SHUTDOWN if kind is JobKind.CHECK_CREATE and ended else None,
        retried_by=None,
    )


UNDO_WAITS = job(JobKind.UNDO, JobState.QUEUED)
COMPLETED = job(JobKind.RESTORE, JobState.COMPLETED, notes=(_CHAIN_ENDED,))
FAILED = job(
    JobKind.RESTORE,
    JobState.FAILED,
    error=bodies.JobError(code="not_enough_space", detail="The storage has too little free space.", stranded=False),
)
CANCELLED = job(
    JobKind.CREATE,
    JobState.FAILED,
    error=bodies.JobError(code="cancelled", detail="The job was cancelled before its node started it.", stranded=False),
)
JOBS = bodies.JobList(count=1, results=(COMPLETED,))


def _ops(job: bodies.Job) -> bodies.OpsJobSummary:
    return bodies.OpsJobSummary(
        **dict(job), account_id=77, node="node-17", request_id=REQUEST_ID, off_since=None, resolved_at=None
    )


OPS_COMPLETED = _ops(COMPLETED)
OPS_CANCELLED = _ops(CANCELLED)
OPS_RETRIED = _ops(UNDO_WAITS)
OPS_JOBS = bodies.OpsJobList(count=1, after=None, results=(OPS_COMPLETED,))
OPS_FAILED = bodies.OpsJob(
    retry=bodies.Retry(
        possible=True,
        needs_force=True,
        detail="The server has been running since the job failed: the restore would overwrite the data that it has"
        " written. If the job is still wanted, force the retry.",
    ),
    **dict(_ops(FAILED)),
    waiting=None,
    cause=None,
    power_found="on",
    power_now="on",
    runbook="/ops/runbook/#not_enough_space",
    resolution=None,
    steps=(bodies.StepTaken(step="preflight", started_at=ASKED, seconds=0.021, attempt=1, failed=False),),
    log=({"event": "job.failed", "level": "warning", "code": "not_enough_space"},),
)
OPS_RESOLVED = OPS_FAILED.model_copy(
    update={"resolution": bodies.Resolution(at=ASKED + timedelta(hours=1), by="alice", reason="started by hand")}
)
REASON = ReasonBody(reason="a disk of the storage is to be changed")
BULK = bodies.BulkBody(action="retry", ids=[JobId(JOB_ID)])
BULK_RESULTS = bodies.BulkResults(
    results=(
        bodies.BulkResult(id=JOB_ID, done=False, job_id=None, code="job_not_retryable", detail="The job is completed."),
    )
)
