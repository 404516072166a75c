"""Webhooks: URLs to which an account's job events are delivered.

A delivery is queued by the script that changes the job, atomically with the change (`call_webhooks` in
`shared/deliveries.lua`); `deliveries` is for the senders.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from secrets import token_bytes
from typing import Any, Final
from uuid import uuid4

from worker.store import errors, records
from worker.store.calls import Idempotency, Page, Scripts, accepted, flag, for_script, given
from worker.store.model import AccountId, DeliveryId, WebhookId

WEBHOOKS_PER_ACCOUNT = 10
SECRET_PREFIX = "whsec_"  # noqa: S105 - the specification's mark on a secret, no secret
SECRET_BYTES = 32  # the specification: 24 to 64
OLD_SECRET_KEPT = timedelta(hours=24)
TEST: Final = "webhook.test"  # the test event; sent without a subscription
# disabled by the service: it responded with 410, or every delivery has failed for days
DISABLED = frozenset({"gone", "failing"})
PENDING_MAX = 100  # with more pending deliveries, a test is refused
# one request sends up to 1,000 deliveries, so the rate limit alone is not enough
REDELIVERY_PAUSE = timedelta(minutes=1)


class JobEvent(StrEnum):
    """What a webhook may subscribe to: each state of a job."""

    QUEUED = "job.queued"
    IN_PROGRESS = "job.in_progress"
    COMPLETED = "job.completed"
    FAILED = "job.failed"


@dataclass(frozen=True, kw_only=True)
class WebhookChange:
    """What to change of a webhook; None leaves a field unchanged."""

    url: str | None = None
    description: str | None = None
    events: Sequence[JobEvent] | None = None
    enabled: bool | None = None

    def for_script(self) -> dict[str, str]:
        events = None if self.events is None else " ".join(self.events)
        return given(url=self.url, description=self.description, events=events, enabled=flag(self.enabled))


@dataclass(frozen=True, kw_only=True)
class Webhook:
    id: WebhookId
    url: str
    description: str
    events: tuple[JobEvent, ...]
    enabled: bool
    disabled_reason: str | None  # why the service disabled it: `gone` or `failing`
    failing_since: datetime | None  # every delivery since then has failed
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Secret:
    """A webhook with its new secret, which cannot be read again."""

    webhook: Webhook
    secret: str


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """An event for a webhook. `status` and `error` are those of the last attempt."""

    id: DeliveryId
    event: str
    attempts: int
    status: int | None
    error: str | None
    created_at: datetime
    next_attempt_at: datetime | None  # None: it was delivered or given up
    delivered_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Redelivery:
    """How many deliveries are sent again, and how many cannot be because their message is gone."""

    redelivered: int
    not_kept: int


class Webhooks(Scripts):
    """An account's webhooks, for the front end. Every call may raise StoreUnavailable."""

    async def create(
        self, *, account_id: AccountId, change: WebhookChange, idempotency: Idempotency | None = None
    ) -> Secret:
        """Raises WebhookLimitReached."""
        new = {"most": WEBHOOKS_PER_ACCOUNT, "fields": change.for_script()}
        return await self._write(account_id, WebhookId(uuid4().hex), idempotency, secret=_new_secret(), **new)

    async def change(self, *, account_id: AccountId, webhook_id: WebhookId, change: WebhookChange) -> Webhook:
        """Raises WebhookNotFound or RecordUnreadable."""
        await self.one(account_id=account_id, webhook_id=webhook_id)  # an unreadable webhook must not be changed
        return (await self._write(account_id, webhook_id, None, fields=change.for_script())).webhook

    async def rotate(
        self, *, account_id: AccountId, webhook_id: WebhookId, idempotency: Idempotency | None = None
    ) -> Secret:
        """Create a new secret; the previous one also signs for a day. Raises WebhookNotFound or RecordUnreadable."""
        await self.one(account_id=account_id, webhook_id=webhook_id)  # an unreadable webhook must not be changed
        return await self._write(account_id, webhook_id, idempotency, secret=_new_secret(), fields={})

    async def drop(self, *, account_id: AccountId, webhook_id: WebhookId) -> None:
        """Delete a webhook and its pending deliveries. Raises WebhookNotFound."""
        if not await self._call("webhooks/drop_webhook", {"account": str(account_id), "id": webhook_id}):
            raise errors.WebhookNotFound.of()

    async def one(self, *, account_id: AccountId, webhook_id: WebhookId) -> Webhook:
        """Raises WebhookNotFound, also for another account's; RecordUnreadable."""
        found = await self._find("webhooks/webhook", webhook_id, account_id, errors.WebhookNotFound)
        return await self._one(_webhook, found, kind="webhook")

    async def all(self, *, account_id: AccountId) -> tuple[Webhook, ...]:
        """Newest first. Unreadable ones are left out."""
        found = await self._call("webhooks/list_webhooks", {"account": str(account_id)})
        return await self._many(_webhook, found, kind="webhook")

    async def test(
        self, *, account_id: AccountId, webhook_id: WebhookId, idempotency: Idempotency | None = None
    ) -> Delivery:
        """Send a test event. Raises WebhookNotFound or WebhookNotReady."""
        ask = {
            "account": str(account_id),
            "id": webhook_id,
            "delivery_id": uuid4().hex,
            "event": TEST,
            "most": PENDING_MAX,
            "idempotency": for_script(idempotency),
        }
        answer = await self._call("webhooks/send_test", ask)
        shown = accepted(answer, idempotency, limit=PENDING_MAX)[0]
        return await self._changed(_delivery, shown, kind="delivery")

    async def redeliver(
        self,
        *,
        account_id: AccountId,
        webhook_id: WebhookId,
        delivery_id: DeliveryId,
        idempotency: Idempotency | None = None,
    ) -> Delivery:
        """Send a failed delivery again. Raises WebhookNotFound, WebhookDisabled, DeliveryNotFound or
        DeliveryNotRedeliverable."""
        (shown,) = await self._redeliver(account_id, webhook_id, idempotency, delivery_id=delivery_id)
        return await self._changed(_delivery, shown, kind="delivery")

    async def redeliver_all(
        self, *, account_id: AccountId, webhook_id: WebhookId, idempotency: Idempotency | None = None
    ) -> Redelivery:
        """Send all failed deliveries again. Raises WebhookNotFound, WebhookDisabled or
        RedeliveredRecently."""
        sent, gone = await self._redeliver(account_id, webhook_id, idempotency)
        return Redelivery(redelivered=sent, not_kept=gone)

    async def _redeliver(
        self, account_id: AccountId, webhook_id: WebhookId, idempotency: Idempotency | None, **more: str
    ) -> list[Any]:
        ask = {
            "account": str(account_id),
            "id": webhook_id,
            "no_message": TEST,
            "pause_ms": round(REDELIVERY_PAUSE.total_seconds() * 1000),
            "idempotency": for_script(idempotency),
            **more,
        }
        answer = await self._call("webhooks/redeliver", ask)
        return accepted(answer, idempotency, id=more.get("delivery_id"))

    async def deliveries(
        self, *, account_id: AccountId, webhook_id: WebhookId, offset: int, limit: int
    ) -> Page[Delivery]:
        """The latest 1,000 deliveries of the last 7 days, newest first. Raises WebhookNotFound."""
        ask = {"account": str(account_id), "id": webhook_id, "offset": offset, "limit": limit}
        found = await self._call("webhooks/list_deliveries", ask)
        if found is None:
            raise errors.WebhookNotFound.of()
        count, *rows = found
        return Page(count=count, results=await self._many(_delivery, rows, kind="delivery"))

    async def _write(
        self, account_id: AccountId, webhook_id: WebhookId, idempotency: Idempotency | None, **more: Any
    ) -> Secret:
        ask = {
            "account": str(account_id),
            "id": webhook_id,
            "old_ms": round(OLD_SECRET_KEPT.total_seconds() * 1000),
            "idempotency": for_script(idempotency),
            **more,
        }
        answer = await self._call("webhooks/put_webhook", ask)
        shown, secret = accepted(answer, idempotency, limit=WEBHOOKS_PER_ACCOUNT)
        return Secret(webhook=await self._changed(_webhook, shown, kind="webhook"), secret=secret.decode())


def _new_secret() -> str:
    return SECRET_PREFIX + b64encode(token_bytes(SECRET_BYTES)).decode()


def _webhook(shown: list[Any]) -> Webhook:
    webhook_id, flat = shown
    record = records.known(records.pairs(flat))
    since = record.get("failing_since_ms")
    return Webhook(
        id=WebhookId(webhook_id.decode()),
        url=record["url"],
        description=record["description"],
        # a newer version may have more events and more reasons
        events=tuple(JobEvent(event) for event in record["events"].split() if event in {*JobEvent}),
        enabled=record["enabled"] == "1",
        disabled_reason=reason if (reason := record.get("disabled_reason")) in DISABLED else None,
        failing_since=records.moment(since) if since else None,
        created_at=records.moment(record["created_ms"]),
    )


def _delivery(shown: list[Any]) -> Delivery:
    delivery_id, flat = shown
    record = records.known(records.pairs(flat))
    next_ms, delivered_ms = record["next_ms"], record.get("delivered_ms")
    return Delivery(
        id=DeliveryId(delivery_id.decode()),
        event=record["event"],
        attempts=records.whole(record["attempts"]),
        status=records.whole(record["status"]) if record.get("status") else None,
        error=record.get("error") or None,
        created_at=records.moment(record["created_ms"]),
        next_attempt_at=records.moment(next_ms) if next_ms else None,
        delivered_at=records.moment(delivered_ms) if delivered_ms else None,
    )
