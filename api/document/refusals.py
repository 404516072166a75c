"""An example of each problem, for the OpenAPI document."""

from datetime import timedelta

from api.http.problems import FieldError, Problem, internal_error, invalid, rate_limited, unauthenticated
from api.http.reading import too_large
from api.jobs.examples import JOB_ID
from api.schedules.examples import SCHEDULE_ID
from api.webhooks.examples import DELIVERY
from worker.store import errors
from worker.store.model import SNAPSHOTS_PER_SERVER
from worker.store.schedules.schedules import SCHEDULES_PER_SERVER
from worker.store.webhooks.webhooks import WEBHOOKS_PER_ACCOUNT

REQUESTED_MS = "1737044100000"
REFUSALS: tuple[errors.Refused, ...] = (
    errors.AccountNotFound.of(id=77),
    errors.ServerNotFound.of(id=12345),
    errors.SnapshotNotFound.of(id=801),
    errors.JobNotFound.of(id=JOB_ID),
    errors.ScheduleNotFound.of(id=SCHEDULE_ID),
    errors.ScheduleLimitReached.of(of="server", limit=SCHEDULES_PER_SERVER, kind="schedules"),
    errors.WebhookNotFound.of(),
    errors.WebhookLimitReached.of(limit=WEBHOOKS_PER_ACCOUNT),
    errors.WebhookNotReady.of("disabled"),
    errors.WebhookDisabled.of(),
    errors.DeliveryNotFound.of(id=DELIVERY.id),
    errors.DeliveryNotRedeliverable.of("delivered"),
    errors.RedeliveredRecently.of(),
    errors.RecordUnreadable.of(kind="schedule"),
    errors.ServerBusy.of(JOB_ID, "create", REQUESTED_MS, "802"),
    errors.SnapshotLimitReached.of(str(SNAPSHOTS_PER_SERVER)),
    errors.NameTaken.of("801", REQUESTED_MS),
    errors.SnapshotNotReady.of("in_progress", id=801),
    errors.UndoUnavailable.of(),
    errors.NodeNotFound.of(id="node-17"),
    errors.ServerOnLiveNode.of("node-17"),
    errors.TokenNotFound.of(id="0a1b2c3d4e5f"),
    errors.CredentialNotFound.of(id="node-17"),
    errors.CredentialExists.of(id="node-17"),
    errors.JobNotRetryable.of("completed"),
    errors.RetryNeedsForce.of("later", JOB_ID),
    errors.JobNotStranded.of(),
    errors.NodeBootUnknown.of(),
    errors.ServerNotStranded.of(),
    errors.SnapshotProtected.of(id=801),
    errors.JobNotCancellable.of("in_progress"),
    errors.IdempotencyKeyReused.of(),
    errors.ServerNotReady.of(),
    errors.TooManyStreams.of(),
    errors.TooManyDryRuns.of("50"),
    errors.TokenLimitReached.of("100"),
    errors.NodeUnavailable.of(),
    errors.StoreNearlyFull.of(),
    errors.StoreUnavailable.of(),
    errors.StoreReadOnly.of(),
    errors.OutcomeUnknown.of(),
)
INVALID = invalid(FieldError(field="name", detail="Required."))
CALLERS = (
    unauthenticated(""),
    unauthenticated("a wrong one"),
    Problem(403, "permission_denied", "The token lacks the permission snapshots:write."),
    Problem(403, "account_mismatch", "X-Account-Id names another account than the token's."),
)
LIMITED = rate_limited("with this token", timedelta(seconds=1))
UNMATCHED = Problem(412, "precondition_failed", "If-Match is not supported. Nothing was changed.")
LATE = Problem(408, "request_timeout", "The body did not arrive within 10 seconds.")
TOO_LARGE = too_large()
INTERNAL = internal_error()
