"""The bodies of webhooks, and the messages that their receivers get."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter
from pydantic_core import PydanticCustomError

from api.http.answers import Open, Timestamp, Total, from_record, more_may_come
from api.http.fields import NOT_NULL, Description, DescriptionIfAny, PathId, RequestBody, hex_id, matches
from api.jobs.bodies import Job, job_model
from api.webhooks.ssrf import URL_MAX
from worker.store import errors
from worker.store.model import DeliveryId, WebhookId
from worker.store.webhooks import webhooks as records
from worker.store.webhooks.deliveries import DueDelivery
from worker.store.webhooks.webhooks import TEST, JobEvent, WebhookChange

TERMINAL = (JobEvent.COMPLETED, JobEvent.FAILED)

EventOfJob = Annotated[JobEvent, more_may_come(JobEvent)]
WebhookIdInPath = Annotated[WebhookId, *hex_id("webhook", "1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e5c")]
WEBHOOK_ID: PathId[WebhookId] = PathId(
    name="webhook_id", adapter=TypeAdapter(WebhookIdInPath), not_found=errors.WebhookNotFound
)

DeliveryIdInPath = Annotated[DeliveryId, *hex_id("delivery", "9d6b1a0f8e7d6c5b0b5e5c1d8f3a4c2e")]
DELIVERY_ID: PathId[DeliveryId] = PathId(
    name="delivery_id", adapter=TypeAdapter(DeliveryIdInPath), not_found=errors.DeliveryNotFound
)


def _once(events: tuple[JobEvent, ...]) -> tuple[JobEvent, ...]:
    if not events or len(set(events)) < len(events):
        raise PydanticCustomError("not_a_choice", "At least one event, and each only once.")
    return events


Url = Annotated[
    str,
    StringConstraints(max_length=URL_MAX),
    matches(r"^https?://[\x21-\x7e]+$", "Must be an https URL."),
    Field(description="https, a public address, port 443 or at least 1024; no user, no fragment"),
]
# not strict: the validator passes a Python object to pydantic, not JSON
Events = Annotated[
    tuple[Annotated[JobEvent, Field(strict=False)], ...],
    Field(strict=False, json_schema_extra={"minItems": 1, "uniqueItems": True}, description="the events to send"),
    AfterValidator(_once),
]


class WebhookBody(RequestBody):
    """Where to send the events of the account's jobs."""

    url: Url
    description: DescriptionIfAny = ""
    events: Events = TERMINAL
    enabled: bool = True

    @property
    def change(self) -> WebhookChange:
        return WebhookChange(url=self.url, description=self.description, events=self.events, enabled=self.enabled)


class WebhookEditBody(RequestBody):
    """The fields to change; omitted fields keep their values."""

    url: Annotated[Url | None, *NOT_NULL] = None
    description: Annotated[Description | None, *NOT_NULL] = None
    events: Annotated[Events | None, *NOT_NULL] = None
    enabled: Annotated[bool | None, *NOT_NULL] = None

    @property
    def change(self) -> WebhookChange:
        return WebhookChange(url=self.url, description=self.description, events=self.events, enabled=self.enabled)


class Webhook(Open):
    """Where the events of the account's jobs are sent."""

    id: str
    url: str
    description: str
    events: tuple[EventOfJob, ...]
    enabled: bool
    disabled_reason: Annotated[
        str | None,
        Field(
            description=(
                "why the service disabled it: `gone`, it answered 410, or `failing`, every attempt failed for 5 days;"
                " more may be added"
            )
        ),
    ]
    failing_since: Annotated[Timestamp | None, Field(description="every attempt since then has failed")]
    created_at: Timestamp


class WebhookWithSecret(Webhook):
    """A webhook with its new secret, which is shown only once."""

    secret: Annotated[str, Field(description="`whsec_` followed by base64; it signs the messages")]


class WebhookList(Open):
    """All webhooks of the account, newest first."""

    count: int
    results: tuple[Webhook, ...]


class Delivery(Open):
    """An event that is sent to a webhook."""

    id: Annotated[str, Field(description="the header `webhook-id` of each attempt")]
    event: str
    attempts: Annotated[int, Field(description="starts at 0 again when a delivery that was given up is sent again")]
    status_code: Annotated[int | None, Field(description="HTTP status of the last attempt; null: no response")]
    error: Annotated[
        str | None,
        Field(
            description=(
                "error of the last attempt: `bad_status`, `timeout`, `connection_failed`, `tls_failed`, "
                "`name_not_found`,"
                " `address_refused`, or `too_many_waiting` (given up because too many deliveries were "
                "waiting); more may be added"
            )
        ),
    ]
    created_at: Timestamp
    next_attempt_at: Annotated[
        Timestamp | None, Field(description="null: delivered or given up; a disabled webhook gets no attempt")
    ]
    delivered_at: Timestamp | None


class DeliveryList(Open):
    """One page of the list, newest first."""

    count: Total
    results: tuple[Delivery, ...]


class Redelivery(Open):
    """How many deliveries are sent again."""

    redelivered: int
    not_kept: Annotated[
        int, Field(description="failed deliveries that cannot be sent again, because their message is no longer kept")
    ]


class TestData(Open):
    """The data of a test event."""

    webhook_id: str


class JobMessage(Open):
    """The message about a job."""

    type: Annotated[str, more_may_come(JobEvent)]
    timestamp: Annotated[Timestamp, Field(description="when the event occurred")]
    data: Annotated[Job, Field(description="the job as it was then")]


class TestMessage(Open):
    """The message of a test."""

    type: Literal["webhook.test"] = TEST
    timestamp: Timestamp
    data: TestData


def webhook(record: records.Webhook) -> Webhook:
    return from_record(Webhook, record)


def webhook_with_secret(new: records.Secret) -> WebhookWithSecret:
    return from_record(WebhookWithSecret, new.webhook, secret=new.secret)


def webhooks(found: Iterable[records.Webhook]) -> WebhookList:
    results = tuple(map(webhook, found))
    return WebhookList(count=len(results), results=results)


def delivery(record: records.Delivery) -> Delivery:
    return from_record(Delivery, record, status_code=record.status)


def redelivery(record: records.Redelivery) -> Redelivery:
    return from_record(Redelivery, record)


def message(webhook_id: WebhookId, due: DueDelivery) -> JobMessage | TestMessage:
    """The message of a delivery, with the job as it was at the event. It is the same at each attempt."""
    if due.job is None:
        return TestMessage(timestamp=due.created_at, data=TestData(webhook_id=webhook_id))
    return JobMessage(type=due.event, timestamp=due.created_at, data=job_model(due.job))
