"""Examples of snapshots, for the document: the public contract's own."""

from datetime import UTC, datetime

from api.jobs.examples import ASKED, CONTENTS, LEFT_OUT, SERVER_NAME, SNAPSHOT_NAME, job
from api.snapshots import bodies
from worker.store.model import Consistency, JobKind, JobState, ServerId, ServerState, SnapshotStatus

CREATE = bodies.CreateBody(
    server_id=ServerId(12345), name="before-update-snapshot", description="Snapshot before system update"
)
EDIT = bodies.EditBody(labels={"env": "production"}, protected=True)
SNAPSHOT = bodies.Snapshot(
    **dict(SNAPSHOT_NAME),
    server=SERVER_NAME,
    status=SnapshotStatus.COMPLETED,
    size_mb=5120,
    created_at=datetime(2025, 1, 15, 18, 30, tzinfo=UTC),
    description="Before major migration",
)
DETAILS = bodies.SnapshotDetails(
    **dict(SNAPSHOT),
    labels={"env": "production"},
    protected=True,
    expires_at=None,
    schedule_id=None,
    contents=CONTENTS,
    consistency=Consistency.CLEAN_SHUTDOWN,
)
_WEEKLY = bodies.Snapshot(
    id=798,
    server=SERVER_NAME,
    name="weekly-snapshot-2025-01-08",
    status=SnapshotStatus.COMPLETED,
    size_mb=4856,
    created_at=datetime(2025, 1, 8, 12, tzinfo=UTC),
    description="Weekly snapshot",
)
SNAPSHOTS = bodies.SnapshotList(count=2, results=(SNAPSHOT, _WEEKLY))
CREATED = bodies.SnapshotCreated(
    id=802,
    server=SERVER_NAME,
    name="before-update-snapshot",
    status=SnapshotStatus.IN_PROGRESS,
    size_mb=None,
    created_at=ASKED,
    description="Snapshot before system update",
    message=bodies.CREATE_MESSAGE,
)
RESTORING = bodies.RestoreStarted(
    status="success",
    message=bodies.RESTORE_MESSAGE,
    snapshot=bodies.RestoredSnapshot(**dict(SNAPSHOT_NAME), created_at=SNAPSHOT.created_at),
    server=bodies.RestoredServer(**dict(SERVER_NAME), status=ServerState.RESTORING),
)
_NO_DOWNTIME = {"downtime_seconds": None}
CHECKED = job(JobKind.CHECK_CREATE, JobState.COMPLETED, notes=(LEFT_OUT,)).model_copy(update=_NO_DOWNTIME)
CHECKED_RESTORE = job(JobKind.CHECK_RESTORE, JobState.COMPLETED).model_copy(update=_NO_DOWNTIME)
CHECK_WAITS = job(JobKind.CHECK_CREATE, JobState.QUEUED)
CHECK_RESTORE_WAITS = job(JobKind.CHECK_RESTORE, JobState.QUEUED)
