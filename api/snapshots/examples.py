"""Examples of snapshots, for the document: the public contract's own."""

from datetime import UTC, datetime

from api.jobs.examples import ASKED, CONTENTS, LEFT_OUT, SERVER_NAME, SNAPSHOT_NAME, job
from api.snapshots.bodies import (
    CREATE_MESSAGE,
    RESTORE_MESSAGE,
    CreateBody,
    EditBody,
    RestoredServer,
    RestoredSnapshot,
    RestoreStarted,
    Snapshot,
    SnapshotCreated,
    SnapshotDetails,
    SnapshotList,
)
from worker.store.model import JobKind, JobState, ServerId, ServerState, SnapshotStatus

CREATE = CreateBody(
    server_id=ServerId(12345), name="before-update-snapshot", description="Snapshot before system update"
)
EDIT = EditBody(labels={"env": "production"}, protected=True)
SNAPSHOT = Snapshot(
    **dict(SNAPSHOT_NAME),
    server=SERVER_NAME,
    status=SnapshotStatus.COMPLETED,
    size_mb=5120,
    created_at=datetime(2025, 1, 15, 18, 30, tzinfo=UTC),
    description="Before major migration",
)
DETAILS = SnapshotDetails(
    **dict(SNAPSHOT), labels={"env": "production"}, protected=True, expires_at=None, schedule_id=None, contents=CONTENTS
)
_WEEKLY = Snapshot(
    id=798,
    server=SERVER_NAME,
    name="weekly-snapshot-2025-01-08",
    status=SnapshotStatus.COMPLETED,
    size_mb=4856,
    created_at=datetime(2025, 1, 8, 12, tzinfo=UTC),
    description="Weekly snapshot",
)
SNAPSHOTS = SnapshotList(count=2, results=(SNAPSHOT, _WEEKLY))
CREATED = SnapshotCreated(
    id=802,
    server=SERVER_NAME,
    name="before-update-snapshot",
    status=SnapshotStatus.IN_PROGRESS,
    size_mb=None,
    created_at=ASKED,
    description="Snapshot before system update",
    message=CREATE_MESSAGE,
)
RESTORING = RestoreStarted(
    status="success",
    message=RESTORE_MESSAGE,
    snapshot=RestoredSnapshot(**dict(SNAPSHOT_NAME), created_at=SNAPSHOT.created_at),
    server=RestoredServer(**dict(SERVER_NAME), status=ServerState.RESTORING),
)
_NO_DOWNTIME = {"downtime_seconds": None}
CHECKED = job(JobKind.CHECK_CREATE, JobState.COMPLETED, notes=(LEFT_OUT,)).model_copy(update=_NO_DOWNTIME)
CHECKED_RESTORE = job(JobKind.CHECK_RESTORE, JobState.COMPLETED).model_copy(update=_NO_DOWNTIME)
CHECK_WAITS = job(JobKind.CHECK_CREATE, JobState.QUEUED)
CHECK_RESTORE_WAITS = job(JobKind.CHECK_RESTORE, JobState.QUEUED)
