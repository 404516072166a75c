"""The deliveries of webhooks, for the senders.

A sender claims a webhook and makes the deliveries that are due. If a claim is not settled in time, another sender may
claim the webhook: a delivery may then be sent twice, but none is lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from worker.store import errors, records
from worker.store.calls import Scripts, redis_answers, shown_job
from worker.store.model import DeliveryId, Job, WebhookId

WAKE_KEY = "webhooks:wake"


@dataclass(frozen=True, kw_only=True)
class DueDelivery:
    """A delivery that is due. `attempts`: number of earlier attempts. `job`: the job at the time of the event; None for
    a test."""

    id: DeliveryId
    event: str
    created_at: datetime
    attempts: int
    job: Job | None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claimed webhook. Each of the `secrets` signs the deliveries."""

    token: str
    webhook_id: WebhookId
    url: str
    secrets: tuple[str, ...]
    deliveries: tuple[DueDelivery, ...]
    given_up: tuple[DeliveryId, ...] = ()  # given up because their records are unreadable


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of an attempt. `retry_in` None: it was the last attempt. `error`: an error code."""

    status: int | None
    error: str | None
    retry_in: timedelta | None = None

    @property
    def delivered(self) -> bool:
        return self.error is None

    def for_script(self) -> dict[str, Any]:
        retry_ms = "" if self.retry_in is None else str(round(self.retry_in.total_seconds() * 1000))
        return {
            "status": "" if self.status is None else str(self.status),
            "error": self.error or "",
            "delivered": self.delivered,
            "retry_ms": retry_ms,
        }


_UNREADABLE = Result(status=None, error=errors.RecordUnreadable.code)


class Deliveries(Scripts):
    """Pending deliveries, for the senders. Every call may raise StoreUnavailable."""

    async def claim(self, *, lease_seconds: float, most: int) -> Claim | None:
        """Claim the webhook that has waited longest, with up to `most` due deliveries; None: nothing is due."""
        token = uuid4().hex
        ask = {"token": token, "lease_ms": round(lease_seconds * 1000), "limit": most}
        found = await self._call("webhooks/claim_deliveries", ask)
        if found is None:
            return None
        webhook_id, url, secrets, deliveries = found
        due = await self._many(_due, deliveries, kind="delivery")
        return Claim(
            token=token,
            webhook_id=WebhookId(webhook_id.decode()),
            url=records.text(url),
            secrets=tuple(records.text(secret) for secret in secrets),
            deliveries=due,
            given_up=tuple(row[0].decode() for row in deliveries if row[0].decode() not in {one.id for one in due}),
        )

    async def settle(
        self, claim: Claim, results: Mapping[DeliveryId, Result], *, patience_seconds: float
    ) -> str | None:
        """End the claim; deliveries without a result are due at once. Returns the reason if this disabled the webhook:
        `gone`, or `failing` (nothing was delivered for `patience_seconds`)."""
        all_results = {**results, **dict.fromkeys(claim.given_up, _UNREADABLE)}
        ask = {
            "id": claim.webhook_id,
            "token": claim.token,
            "patience_ms": round(patience_seconds * 1000),
            "results": [{"id": delivery_id, **result.for_script()} for delivery_id, result in all_results.items()],
        }
        why: bytes = await self._call("webhooks/settle_deliveries", ask)
        return why.decode() or None

    async def wait(self, *, seconds: int) -> None:
        """Return when a delivery may be due, or after `seconds`."""
        with redis_answers():
            await self._redis.blpop([WAKE_KEY], timeout=seconds)  # type: ignore[misc]  # typed for the blocking client too


def _due(found: list[Any]) -> DueDelivery:
    delivery_id, event, created_ms, attempts, *job = found
    return DueDelivery(
        id=DeliveryId(delivery_id.decode()),
        event=event.decode(),
        created_at=records.moment(created_ms.decode()),
        attempts=records.whole(attempts),
        job=shown_job(job[0]) if job else None,
    )
