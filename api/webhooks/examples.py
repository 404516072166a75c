"""Examples of webhooks, for the document."""

from api.jobs.bodies import JobError
from api.jobs.examples import ASKED, COMPLETED, job
from api.webhooks import bodies
from worker.store.model import JobKind, JobState
from worker.store.webhooks.webhooks import JobEvent

WEBHOOK_ID = "1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e5c"

CREATE = bodies.WebhookBody(url="https://hooks.example.com/snapshots", events=(JobEvent.COMPLETED, JobEvent.FAILED))
DISABLE = bodies.WebhookEditBody(enabled=False)
WEBHOOK = bodies.Webhook(
    id=WEBHOOK_ID,
    url=CREATE.url,
    description="",
    events=CREATE.events,
    enabled=True,
    disabled_reason=None,
    failing_since=None,
    created_at=ASKED,
)
DISABLED = WEBHOOK.model_copy(update={"enabled": False})
WITH_SECRET = bodies.WebhookWithSecret(**dict(WEBHOOK), secret="whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")  # noqa: S106 - the specification's own example
WEBHOOKS = bodies.WebhookList(count=1, results=(WEBHOOK,))
DELIVERY = bodies.Delivery(
    id="9d6b1a0f8e7d6c5b0b5e5c1d8f3a4c2e",
    event=JobEvent.COMPLETED,
    attempts=2,
    status_code=204,
    error=None,
    created_at=ASKED,
    next_attempt_at=None,
    delivered_at=ASKED.replace(second=5),
)
TEST_WAITS = bodies.Delivery(
    id=DELIVERY.id,
    event="webhook.test",
    attempts=0,
    status_code=None,
    error=None,
    created_at=ASKED,
    next_attempt_at=ASKED,
    delivered_at=None,
)
REDELIVERED = bodies.Delivery(
    id=DELIVERY.id,
    event=JobEvent.COMPLETED,
    attempts=0,
    status_code=503,
    error="bad_status",
    created_at=ASKED,
    next_attempt_at=ASKED,
    delivered_at=None,
)
REDELIVERY = bodies.Redelivery(redelivered=12, not_kept=0)
MESSAGES = {
    JobEvent.QUEUED: job(JobKind.CREATE, JobState.QUEUED),
    JobEvent.IN_PROGRESS: job(JobKind.CREATE, JobState.IN_PROGRESS),
    JobEvent.COMPLETED: COMPLETED,
    JobEvent.FAILED: job(
        JobKind.CREATE,
        JobState.FAILED,
        error=JobError(code="disk_failed", detail="Disk vda: Input/output error.", stranded=False),
    ),
}
DELIVERIES = bodies.DeliveryList(count=1, results=(DELIVERY,))
