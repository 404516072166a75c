"""Sends webhook deliveries as the Standard Webhooks specification defines. Every front end has a sender."""

import asyncio
import hashlib
import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from random import SystemRandom

import structlog
from aiohttp import ClientConnectorDNSError, ClientConnectorError, ClientError, ClientSession, ClientSSLError, web
from aiohttp.abc import AbstractResolver

from api.measures.metrics import Metrics
from api.webhooks import bodies, ssrf
from worker.program.background import in_background
from worker.program.loop import Outage, guarded
from worker.store.errors import StoreUnavailable
from worker.store.model import DeliveryId
from worker.store.webhooks.deliveries import Claim, Deliveries, DueDelivery, Result
from worker.store.webhooks.webhooks import SECRET_PREFIX

# The wait after each failed attempt, from the specification's example. After the tenth attempt, a delivery is given up.
RETRIES = (
    *(timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30)),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)),
)
JITTER = 0.2  # each wait is extended by up to this share, to spread the retries
PATIENCE_SECONDS = 5 * 86_400.0  # an endpoint is disabled when all its deliveries fail for this long
AT_ONCE = 8  # concurrent deliveries to one endpoint
LEASE_ATTEMPTS = 4  # a claim lasts this many times the limit of an attempt; after that its sender is presumed dead
SUCCESS = range(200, 300)
PROMPT_SECONDS = 1.0  # after this time, a webhook with a slow receiver frees its place for another
SLOW_PER_PLACE = 4  # how many slow ones are served for each place
WAIT_SECONDS = 2  # how late a retry may start
AGAIN_SECONDS = 3.0  # after an error

log = structlog.stdlib.get_logger()
_chance = SystemRandom()


class Sender:
    """`endpoints`: how many are served at a time, in addition to SLOW_PER_PLACE times as many slow ones. `seconds`:
    the limit of an attempt. `reach`: the allowed addresses. `now`: the time of the cell."""

    def __init__(
        self,
        deliveries: Deliveries,
        *,
        endpoints: int,
        seconds: float,
        reach: ssrf.Reach,
        resolver: AbstractResolver,
        metrics: Metrics,
        now: Callable[[], datetime],
        turned: Callable[[], None] = lambda: None,
    ) -> None:
        self._deliveries = deliveries
        self._places = asyncio.Semaphore(endpoints)
        self._slow, self._slow_most = 0, endpoints * SLOW_PER_PLACE
        self._seconds = seconds
        self._reach = reach
        self._resolver = resolver
        self._metrics = metrics
        self._now = now
        self._turned = turned
        self._outage = Outage()

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Send while the application runs. When it stops, unfinished deliveries are released to other senders."""
        client = ssrf.client(self._reach, resolver=self._resolver, seconds=self._seconds)
        async with client as session, in_background(self._send_all(session)):
            yield

    async def _send_all(self, client: ClientSession) -> None:
        async with asyncio.TaskGroup() as serving:
            while True:
                self._turned()
                await self._places.acquire()
                claim = await self._next()
                self._keep_place(serving.create_task(self._serve(client, claim)))

    def _keep_place(self, serving: asyncio.Task[None]) -> None:
        """Release the task's place when it ends, or after PROMPT_SECONDS, when it starts to count as slow."""
        is_slow = False

        def give_place() -> None:
            nonlocal is_slow
            if self._slow < self._slow_most:
                is_slow = True
                self._slow += 1
                self._places.release()

        def end(_: asyncio.Task[None]) -> None:
            timer.cancel()
            if is_slow:
                self._slow -= 1
            else:
                self._places.release()

        timer = asyncio.get_running_loop().call_later(PROMPT_SECONDS, give_place)
        serving.add_done_callback(end)

    async def _next(self) -> Claim:
        while True:
            self._turned()
            try:
                claim = await self._deliveries.claim(lease_seconds=LEASE_ATTEMPTS * self._seconds, most=AT_ONCE)
                self._outage.end()
                if claim is not None:
                    return claim
                await self._deliveries.wait(seconds=WAIT_SECONDS)
                continue
            except StoreUnavailable as error:
                self._outage.tell("webhooks.store_unavailable", cause=str(error.__cause__))
            except Exception:  # such as a record that this version cannot read; it blocks only its own webhook
                log.exception("webhook.broke")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _serve(self, client: ClientSession, claim: Claim) -> None:
        results: dict[DeliveryId, Result] = {}

        async def attempt(delivery: DueDelivery) -> None:
            results[delivery.id] = await self._attempt(client, claim, delivery)

        try:
            async with asyncio.TaskGroup() as attempts:
                for delivery in claim.deliveries:
                    attempts.create_task(attempt(delivery))
        finally:  # also when the process stops: other senders take over at once
            await self._settle(claim, results)

    async def _settle(self, claim: Claim, results: dict[DeliveryId, Result]) -> None:
        why = None
        try:
            with guarded("webhook", StoreUnavailable, webhook_id=claim.webhook_id):
                why = await self._deliveries.settle(claim, results, patience_seconds=PATIENCE_SECONDS)
        except StoreUnavailable as error:  # will be sent again once the claim has expired
            log.warning("webhooks.store_unavailable", cause=str(error.__cause__))
            return
        if why:
            log.warning("webhook.disabled", webhook_id=claim.webhook_id, reason=why)

    async def _attempt(self, client: ClientSession, claim: Claim, delivery: DueDelivery) -> Result:
        try:
            status, error = await self._post(client, claim, delivery)
        except Exception:  # a bug counts as a failed attempt: this delivery is retried, and the others are sent
            log.exception("webhook.broke", webhook_id=claim.webhook_id, delivery_id=delivery.id)
            status, error = None, "internal_error"
        log.info(
            "webhook.attempted",
            webhook_id=claim.webhook_id,
            delivery_id=delivery.id,
            attempt=delivery.attempts + 1,
            status=status,
            error=error,
        )
        is_over = error is None or delivery.attempts >= len(RETRIES)
        self._metrics.attempted(error, given_up=is_over and error is not None)
        if is_over:
            return Result(status=status, error=error)
        retry_in = RETRIES[delivery.attempts] * _chance.uniform(1, 1 + JITTER)
        return Result(status=status, error=error, retry_in=retry_in)

    async def _post(self, client: ClientSession, claim: Claim, delivery: DueDelivery) -> tuple[int | None, str | None]:
        """The status of the response and the error code, None if there is none."""
        if ssrf.url_error(claim.url, self._reach):  # the settings may have changed
            return None, "address_refused"
        body = json.dumps(bodies.message(claim.webhook_id, delivery).model_dump(mode="json")).encode()
        headers = signed(claim.secrets, delivery.id, body, moment=int(self._now().timestamp()))
        try:
            async with client.post(claim.url, data=body, headers=headers, allow_redirects=False) as response:
                return response.status, None if response.status in SUCCESS else "bad_status"
        except TimeoutError:
            return None, "timeout"
        except (ClientError, OSError, ValueError) as error:  # ValueError: an invalid host name
            return None, _code(error)


def signed(secrets: Sequence[str], message_id: str, body: bytes, *, moment: int) -> dict[str, str]:
    """The headers of a message, with a signature for each secret. `moment`: Unix time in seconds."""
    content = f"{message_id}.{moment}.".encode() + body
    keys = [b64decode(secret.removeprefix(SECRET_PREFIX)) for secret in secrets]
    signatures = [b64encode(hmac.digest(key, content, hashlib.sha256)).decode() for key in keys]
    return {
        "Content-Type": "application/json",
        "User-Agent": "vps-snapshots",
        "webhook-id": message_id,
        "webhook-timestamp": str(moment),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def _code(error: Exception) -> str:
    if isinstance(error, ClientConnectorError) and isinstance(error.os_error, ssrf.AddressRefused):
        return "address_refused"
    if isinstance(error, ClientSSLError):
        return "tls_failed"
    return "name_not_found" if isinstance(error, ClientConnectorDNSError) else "connection_failed"
