"""Webhooks, as types: what callers send and get, and the messages that their receivers get."""

from collections.abc import Iterable
from typing import Annotated, Literal

from aiohttp import web
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from api import bodies
from api.bodies import Moment, Open
from api.http.reading import NOT_NULL, Description
from api.webhooks.ssrf import URL_MAX
from worker.store import errors
from worker.store.calls import Page
from worker.store.model import WebhookId
from worker.store.webhooks import webhooks as records
from worker.store.webhooks.deliveries import DueDelivery
from worker.store.webhooks.webhooks import JobEvent, WebhookChange

TERMINAL = (JobEvent.COMPLETED, JobEvent.FAILED)

WebhookIdInPath = Annotated[
    WebhookId,
    StringConstraints(pattern=r"^[0-9a-f]{32}$"),
    Field(description="the `id` of a webhook", examples=["1d8f3a4c2e9d6b1a0f8e7d6c5b0b5e5c"]),
]
_WEBHOOK_ID: TypeAdapter[WebhookId] = TypeAdapter(WebhookIdInPath)


def webhook_id(request: web.Request) -> WebhookId:
    """Raises WebhookNotFound for what is no id."""
    try:
        return _WEBHOOK_ID.validate_python(request.match_info["webhook_id"])
    except ValidationError:
        raise errors.WebhookNotFound("There is no such webhook.") from None


def _once(events: tuple[JobEvent, ...]) -> tuple[JobEvent, ...]:
    if not events or len(set(events)) < len(events):
        raise PydanticCustomError("not_a_choice", "There should be one event at least, and each once")
    return events


Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://[\x21-\x7e]+$", max_length=URL_MAX),
    Field(description="https, to a public address, port 443 or from 1024 on; no user, no fragment"),
]
# not strict: what comes from the check for null is no JSON any more
Events = Annotated[
    tuple[Annotated[JobEvent, Field(strict=False)], ...],
    Field(strict=False, json_schema_extra={"minItems": 1, "uniqueItems": True}, description="of which it is told"),
    AfterValidator(_once),
]


class WebhookBody(BaseModel):
    """Where to tell of the account's jobs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Url
    description: Description = ""
    events: Events = TERMINAL
    enabled: bool = True

    @property
    def wish(self) -> WebhookChange:
        return WebhookChange(url=self.url, description=self.description, events=self.events, enabled=self.enabled)


class WebhookEditBody(BaseModel):
    """What is to change of a webhook; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: Annotated[Url | None, *NOT_NULL] = None
    description: Annotated[Description | None, *NOT_NULL] = None
    events: Annotated[Events | None, *NOT_NULL] = None
    enabled: Annotated[bool | None, *NOT_NULL] = None

    @property
    def wish(self) -> WebhookChange:
        return WebhookChange(url=self.url, description=self.description, events=self.events, enabled=self.enabled)


class Webhook(Open):
    """Where the account is told of its jobs."""

    id: str
    url: str
    description: str
    events: tuple[JobEvent, ...]
    enabled: bool
    disabled_reason: Annotated[
        Literal["gone", "failing"] | None,
        Field(description="why it was disabled by us: it answered 410, or nothing was delivered for 5 days"),
    ]
    failing_since: Annotated[Moment | None, Field(description="each attempt since then has failed")]
    created_at: Moment


class WebhookWithSecret(Webhook):
    """A webhook with its new secret, shown this once."""

    secret: Annotated[str, Field(description="`whsec_` and base64; it signs what is sent")]


class WebhookList(Open):
    """All webhooks of the account, newest first."""

    count: int
    results: tuple[Webhook, ...]


class Delivery(Open):
    """An event on its way to a webhook."""

    id: Annotated[str, Field(description="the header `webhook-id` of each attempt")]
    event: str
    attempts: int
    status_code: Annotated[int | None, Field(description="of the last attempt; null: there was no answer")]
    error: Annotated[
        str | None,
        Field(
            description=(
                "of the last attempt: `bad_status`, `timeout`, `connection_failed`, `tls_failed`, `name_not_found`,"
                " `address_refused`; more may be added"
            )
        ),
    ]
    created_at: Moment
    next_attempt_at: Annotated[
        Moment | None, Field(description="null: delivered or given up; a disabled webhook's waits for that to end")
    ]
    delivered_at: Moment | None


class DeliveryList(Open):
    """One page of the list, newest first."""

    count: Annotated[int, Field(description="the total over all pages")]
    results: tuple[Delivery, ...]


class TestData(Open):
    """What a test event tells."""

    webhook_id: str


class Message(Open):
    """What a receiver gets."""

    type: str
    timestamp: Moment
    data: bodies.Job | TestData


def webhook(record: records.Webhook) -> Webhook:
    return Webhook.model_validate(record, from_attributes=True)


def with_secret(new: records.Secret) -> WebhookWithSecret:
    return WebhookWithSecret(**dict(webhook(new.webhook)), secret=new.secret)


def webhooks(found: Iterable[records.Webhook]) -> WebhookList:
    results = tuple(map(webhook, found))
    return WebhookList(count=len(results), results=results)


def delivery(record: records.Delivery) -> Delivery:
    return Delivery(
        id=record.id,
        event=record.event,
        attempts=record.attempts,
        status_code=record.status,
        error=record.error,
        created_at=record.created_at,
        next_attempt_at=record.next_attempt_at,
        delivered_at=record.delivered_at,
    )


def deliveries(page: Page[records.Delivery]) -> DeliveryList:
    return DeliveryList(count=page.count, results=tuple(map(delivery, page.results)))


def message(webhook_id: WebhookId, due: DueDelivery) -> Message:
    """The same at each attempt: the job as it was at the event."""
    data = TestData(webhook_id=webhook_id) if due.job is None else bodies.job(due.job)
    return Message(type=due.event, timestamp=due.created_at, data=data)
