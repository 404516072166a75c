"""An example of each problem, for the document."""

from datetime import timedelta

from api.http.problems import FieldError, Problem, broke, invalid, rate_limited
from api.jobs.examples import JOB_ID
from api.schedules.examples import SCHEDULE_ID
from worker.store import errors
from worker.store.model import SNAPSHOTS_PER_SERVER

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
INVALID = invalid(FieldError(field="name", detail="Required."))
CALLERS = (
    Problem(401, "token_missing", "Send an access token: Authorization: Bearer TOKEN."),
    Problem(401, "token_invalid", "The access token is unknown, revoked or expired."),
    Problem(403, "permission_denied", "The token lacks the permission snapshots:write."),
    Problem(403, "account_mismatch", "X-Account-Id names another account than the token's."),
)
LIMITED = rate_limited("with this token", timedelta(seconds=1))
LATE = Problem(408, "request_timeout", "The body did not arrive within 10 seconds.")
INTERNAL = broke()
