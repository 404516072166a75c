"""The calls of webhooks."""

from aiohttp import web

from api.http import reading
from api.http.answers import answer, page_answer
from api.http.callers import Caller
from api.http.calls import API, Link, Phrase, Reply, Table
from api.http.fields import PageQuery
from api.http.marks import MADE
from api.http.problems import FieldError, invalid
from api.http.reading import in_path
from api.webhooks import bodies, examples, ssrf
from api.webhooks.bodies import DELIVERY_ID, WEBHOOK_ID, WebhookBody, WebhookEditBody
from worker.store import errors
from worker.store.webhooks.webhooks import Webhooks

WEBHOOKS = f"{API}webhooks/"
ONE_WEBHOOK = f"{WEBHOOKS}{{webhook_id}}/"
OWN = {"webhook_id": "$response.body#/id"}
NOT_FOUND = (errors.WebhookNotFound,)

call: Table[Caller] = Table(
    "webhooks", WEBHOOK_ID, DELIVERY_ID, about="Events of the account's jobs, sent to the account's URLs."
)


class WebhookCalls:
    """`reach`: which addresses webhooks may have."""

    def __init__(self, webhooks: Webhooks, *, reach: ssrf.Reach) -> None:
        self._webhooks = webhooks
        self._reach = reach

    @call(f"GET {WEBHOOKS}", Reply(200, {"one": examples.WEBHOOKS}, "All webhooks of the account."))
    async def list_webhooks(self, _: web.Request, caller: Caller) -> web.Response:
        """List webhooks.

        Lists the account's webhooks, newest first, without their secrets.
        """
        return answer(bodies.webhooks(await self._webhooks.all(account_id=caller.account_id)))

    @call(
        f"POST {WEBHOOKS}",
        Reply(
            201,
            {"terminal": examples.WITH_SECRET},
            "The webhook, with its secret.",
            headers=("Location",),
            links=(
                Link("show_webhook", OWN, "Show it."),
                Link("edit_webhook", OWN, "Change it."),
                Link("test_webhook", OWN, "Send a test event."),
                Link("list_deliveries", OWN, "List its deliveries."),
                Link("rotate_webhook_secret", OWN, "Rotate its secret."),
                Link("delete_webhook", OWN, "Delete it."),
            ),
        ),
        body={"terminal": examples.CREATE},
        refusals=(errors.WebhookLimitReached, errors.StoreNearlyFull),
        audit=Phrase("created {made}", "create a webhook"),
    )
    async def create_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        """Create a webhook.

        From now on, the service sends each of these events to the URL, signed according to the Standard Webhooks
        specification. The secret is shown only in this response. An account has at most 10 webhooks.
        """
        body = await reading.body(request, WebhookBody)
        self._check_url(body.url)
        new = await self._webhooks.create(
            account_id=caller.account_id, change=body.change, idempotency=reading.idempotency(request, body)
        )
        request[MADE] = f"webhook {new.webhook.id}"
        place = {"Location": f"{WEBHOOKS}{new.webhook.id}/"}
        return answer(bodies.webhook_with_secret(new), status=201, headers=place)

    @call(f"GET {ONE_WEBHOOK}", Reply(200, {"terminal": examples.WEBHOOK}, "The webhook."), refusals=NOT_FOUND)
    async def show_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        """Show a webhook.

        Shows a webhook, without its secret.
        """
        found = await self._webhooks.one(account_id=caller.account_id, webhook_id=in_path(request, WEBHOOK_ID))
        return answer(bodies.webhook(found))

    @call(
        f"PATCH {ONE_WEBHOOK}",
        Reply(200, {"off": examples.DISABLED}, "The changed webhook."),
        body={"off": examples.DISABLE},
        refusals=(*NOT_FOUND, errors.StoreNearlyFull),
        audit=Phrase("changed {webhook}", "change {webhook}"),
    )
    async def edit_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        """Edit a webhook.

        Omitted fields keep their values. Pending deliveries of a disabled webhook are sent once it is enabled.
        """
        body = await reading.body(request, WebhookEditBody)
        if body.url is not None:
            self._check_url(body.url)
        edited = await self._webhooks.change(
            account_id=caller.account_id, webhook_id=in_path(request, WEBHOOK_ID), change=body.change
        )
        return answer(bodies.webhook(edited))

    @call(
        f"DELETE {ONE_WEBHOOK}",
        Reply(204, text="The webhook is gone."),
        refusals=NOT_FOUND,
        audit=Phrase("deleted {webhook}", "delete {webhook}"),
    )
    async def delete_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        """Delete a webhook.

        Its deliveries, including pending ones, are deleted too.
        """
        await self._webhooks.drop(account_id=caller.account_id, webhook_id=in_path(request, WEBHOOK_ID))
        return web.Response(status=204)

    @call(
        f"POST {ONE_WEBHOOK}rotate-secret/",
        Reply(200, {"new": examples.WITH_SECRET}, "The webhook, with its new secret."),
        refusals=(*NOT_FOUND, errors.StoreNearlyFull),
        audit=Phrase("rotated the secret of {webhook}", "rotate the secret of {webhook}"),
    )
    async def rotate_webhook_secret(self, request: web.Request, caller: Caller) -> web.Response:
        """Rotate a webhook's secret.

        The new secret is shown only in this response. For 24 hours, messages are also signed with the old one.
        Takes no body, or `{}`.
        """
        new = await self._webhooks.rotate(
            account_id=caller.account_id,
            webhook_id=in_path(request, WEBHOOK_ID),
            idempotency=reading.idempotency(request),
        )
        return answer(bodies.webhook_with_secret(new))

    @call(
        f"POST {ONE_WEBHOOK}test/",
        Reply(202, {"waits": examples.TEST_WAITS}, "The delivery that was queued."),
        refusals=(*NOT_FOUND, errors.WebhookNotReady, errors.StoreNearlyFull),
        audit=Phrase("tested {webhook}", "test {webhook}"),
    )
    async def test_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        """Test a webhook.

        Sends a `webhook.test` event, whose data has `webhook_id`. The list of deliveries shows the result. Takes no
        body, or `{}`.
        """
        delivery = await self._webhooks.test(
            account_id=caller.account_id,
            webhook_id=in_path(request, WEBHOOK_ID),
            idempotency=reading.idempotency(request),
        )
        return answer(bodies.delivery(delivery), status=202)

    @call(
        f"GET {ONE_WEBHOOK}deliveries/",
        Reply(200, {"one": examples.DELIVERIES}, "One page of the list."),
        query=PageQuery,
        refusals=NOT_FOUND,
    )
    async def list_deliveries(self, request: web.Request, caller: Caller) -> web.Response:
        """List a webhook's deliveries.

        Lists the deliveries of the last 7 days, including pending ones, newest first, at most 1,000.
        """
        query = reading.query(request, PageQuery)
        page = await self._webhooks.deliveries(
            account_id=caller.account_id,
            webhook_id=in_path(request, WEBHOOK_ID),
            offset=query.offset,
            limit=query.page_size,
        )
        return page_answer(request, query, page, bodies.delivery)

    @call(
        f"POST {ONE_WEBHOOK}deliveries/{{delivery_id}}/redeliver/",
        Reply(202, {"again": examples.REDELIVERED}, "The delivery that was queued."),
        refusals=(
            *NOT_FOUND,
            errors.DeliveryNotFound,
            errors.WebhookDisabled,
            errors.DeliveryNotRedeliverable,
            errors.StoreNearlyFull,
        ),
        audit=Phrase("had {delivery} of {webhook} sent again", "have {delivery} of {webhook} sent again"),
    )
    async def redeliver(self, request: web.Request, caller: Caller) -> web.Response:
        """Send a delivery again.

        Sends a failed delivery immediately, and retries it at the usual intervals if it fails. Its ID and its message
        stay the same. Takes no body, or `{}`.
        """
        delivery = await self._webhooks.redeliver(
            account_id=caller.account_id,
            webhook_id=in_path(request, WEBHOOK_ID),
            delivery_id=in_path(request, DELIVERY_ID),
            idempotency=reading.idempotency(request),
        )
        return answer(bodies.delivery(delivery), status=202)

    @call(
        f"POST {ONE_WEBHOOK}redeliver/",
        Reply(202, {"all": examples.REDELIVERY}, "How many deliveries were queued."),
        refusals=(*NOT_FOUND, errors.WebhookDisabled, errors.RedeliveredRecently, errors.StoreNearlyFull),
        audit=Phrase("had the deliveries of {webhook} sent again", "have the deliveries of {webhook} sent again"),
    )
    async def redeliver_all(self, request: web.Request, caller: Caller) -> web.Response:
        """Send all failed deliveries again.

        Sends the deliveries of the last 7 days again that were given up or wait for another attempt after a failed
        one; at most once a minute. Takes no body, or `{}`.
        """
        sent = await self._webhooks.redeliver_all(
            account_id=caller.account_id,
            webhook_id=in_path(request, WEBHOOK_ID),
            idempotency=reading.idempotency(request),
        )
        return answer(bodies.redelivery(sent), status=202)

    def _check_url(self, url: str) -> None:
        if why := ssrf.url_error(url, self._reach):
            raise invalid(FieldError(field="url", detail=why))
