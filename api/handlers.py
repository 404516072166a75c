"""One method per call of the API: parse, one call of the store, render."""

import asyncio

from aiohttp import web

from api import bodies, requests, ssrf, webhooks
from api.callers import MADE, Caller, Callers
from api.problems import FieldError, invalid
from api.requests import (
    CreateBody,
    DryRunQuery,
    EditBody,
    JobsQuery,
    ListQuery,
    PageQuery,
    RestoreQuery,
    ScheduleBody,
    ScheduleEditBody,
    SchedulesQuery,
    UndoQuery,
)
from api.streams import Streams, opened
from api.webhooks import WebhookBody, WebhookEditBody
from worker.store.access.tokens import Permission
from worker.store.customers.customer_store import CustomerStore
from worker.store.model import Job, JobState
from worker.store.schedules.schedules import BadCron, Schedules
from worker.store.webhooks.webhooks import Webhooks

CHECK_LOOKS, CHECK_LOOK_SECONDS = 100, 0.05  # a node's checks take 0.02 s for two disks; it may have to wait for a job


class Handlers:
    """The calls of the API. `body_seconds`: how long a client may take to send a body. `to_private`: webhooks may go
    to http and to private networks."""

    def __init__(
        self,
        store: CustomerStore,
        schedules: Schedules,
        hooks: Webhooks,
        streams: Streams,
        callers: Callers,
        *,
        body_seconds: float,
        to_private: bool,
    ) -> None:
        self._store = store
        self._schedules = schedules
        self._hooks = hooks
        self._streams = streams
        self._callers = callers
        self._body_seconds = body_seconds
        self._to_private = to_private

    async def list_snapshots(self, request: web.Request, caller: Caller) -> web.Response:
        query = requests.query(request, ListQuery)
        page = await self._store.snapshots(
            account_id=caller.account_id, wanted=query.wanted, offset=query.offset, limit=query.page_size
        )
        return bodies.answer(bodies.snapshots(page), headers={"Link": bodies.link(request.rel_url, query, page.count)})

    async def create_snapshot(self, request: web.Request, caller: Caller) -> web.Response:
        body = await requests.body(request, CreateBody, timeout_seconds=self._body_seconds)
        request[requests.SERVER_ID] = body.server_id
        if requests.query(request, DryRunQuery).dry_run:
            check = await self._store.check_create(
                account_id=caller.account_id,
                server_id=body.server_id,
                name=body.name,
                request_id=request[requests.REQUEST_ID],
                idempotency=requests.idempotency(request, body),
            )
            return await self._checked(caller, check)
        admitted = await self._store.create(
            account_id=caller.account_id,
            server_id=body.server_id,
            name=body.name,
            description=body.description,
            request_id=request[requests.REQUEST_ID],
            idempotency=requests.idempotency(request, body),
        )
        return bodies.answer(bodies.created(admitted), status=201, headers=bodies.places(admitted))

    async def show_snapshot(self, request: web.Request, caller: Caller) -> web.Response:
        snapshot_id = requests.snapshot_id(request)
        found = await self._store.snapshot(account_id=caller.account_id, snapshot_id=snapshot_id)
        return bodies.answer(bodies.details(found))

    async def edit_snapshot(self, request: web.Request, caller: Caller) -> web.Response:
        body = await requests.body(request, EditBody, timeout_seconds=self._body_seconds)
        edited = await self._store.edit(
            account_id=caller.account_id,
            snapshot_id=requests.snapshot_id(request),
            edit=body.edit,
        )
        return bodies.answer(bodies.details(edited))

    async def restore_snapshot(self, request: web.Request, caller: Caller) -> web.Response:
        query = requests.query(request, RestoreQuery)
        if query.dry_run:
            check = await self._store.check_restore(
                account_id=caller.account_id,
                snapshot_id=requests.snapshot_id(request),
                request_id=request[requests.REQUEST_ID],
                present_only=query.present_only,
                idempotency=requests.idempotency(request),
            )
            return await self._checked(caller, check)
        admitted = await self._store.restore(
            account_id=caller.account_id,
            snapshot_id=requests.snapshot_id(request),
            request_id=request[requests.REQUEST_ID],
            present_only=query.present_only,
            idempotency=requests.idempotency(request),
        )
        return bodies.answer(bodies.restoring(admitted), headers=bodies.places(admitted))

    async def delete_snapshot(self, request: web.Request, caller: Caller) -> web.Response:
        job = await self._store.delete(
            account_id=caller.account_id,
            snapshot_id=requests.snapshot_id(request),
            request_id=request[requests.REQUEST_ID],
        )
        return web.Response(status=204, headers=bodies.place(job) if job else {})

    async def undo_restore(self, request: web.Request, caller: Caller) -> web.Response:
        job = await self._store.undo(
            account_id=caller.account_id,
            job_id=requests.job_id(request),
            request_id=request[requests.REQUEST_ID],
            present_only=requests.query(request, UndoQuery).present_only,
            idempotency=requests.idempotency(request),
        )
        return bodies.answer(bodies.job(job), status=202, headers=bodies.place(job))

    async def list_jobs(self, request: web.Request, caller: Caller) -> web.Response:
        query = requests.query(request, JobsQuery)
        page = await self._store.jobs(
            account_id=caller.account_id,
            server_id=query.server_id,
            state=query.state and JobState(query.state),
            offset=query.offset,
            limit=query.page_size,
        )
        return bodies.answer(bodies.jobs(page), headers={"Link": bodies.link(request.rel_url, query, page.count)})

    async def show_job(self, request: web.Request, caller: Caller) -> web.Response:
        found = await self._store.job(account_id=caller.account_id, job_id=requests.job_id(request))
        return bodies.answer(bodies.job(found))

    async def cancel_job(self, request: web.Request, caller: Caller) -> web.Response:
        cancelled = await self._store.cancel(
            account_id=caller.account_id,
            job_id=requests.job_id(request),
            idempotency=requests.idempotency(request),
        )
        return bodies.answer(bodies.job(cancelled))

    async def show_server(self, request: web.Request, caller: Caller) -> web.Response:
        found = await self._store.server(account_id=caller.account_id, server_id=requests.server_id(request))
        return bodies.answer(bodies.server(found))

    async def follow_events(self, request: web.Request, caller: Caller) -> web.StreamResponse:
        return await self._streams.send(
            request,
            opened(),
            caller.account_id,
            last_event_id=requests.last_event_id(request),
            still_allowed=lambda: self._callers.still(request, Permission.SNAPSHOTS_READ),
        )

    async def list_schedules(self, request: web.Request, caller: Caller) -> web.Response:
        query = requests.query(request, SchedulesQuery)
        page = await self._schedules.page(
            account_id=caller.account_id, server_id=query.server_id, offset=query.offset, limit=query.page_size
        )
        return bodies.answer(bodies.schedules(page), headers={"Link": bodies.link(request.rel_url, query, page.count)})

    async def create_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        body = await requests.body(request, ScheduleBody, timeout_seconds=self._body_seconds)
        request[requests.SERVER_ID] = body.server_id
        made = await self._schedules.create(
            account_id=caller.account_id,
            server_id=body.server_id,
            spec=body.spec,
            idempotency=requests.idempotency(request, body),
        )
        request[MADE] = f"schedule {made.id}"
        return bodies.answer(bodies.schedule(made), status=201, headers={"Location": f"/api/v1/schedules/{made.id}/"})

    async def show_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        schedule_id = requests.schedule_id(request)
        found = await self._schedules.one(account_id=caller.account_id, schedule_id=schedule_id)
        return bodies.answer(bodies.schedule(found))

    async def edit_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        body = await requests.body(request, ScheduleEditBody, timeout_seconds=self._body_seconds)
        schedule_id = requests.schedule_id(request)
        before = await self._schedules.one(account_id=caller.account_id, schedule_id=schedule_id)
        try:
            changed = await self._schedules.change(before, body.applied(before.spec))
        except BadCron as error:
            text = (
                f"What the schedule has now, {before.spec.when}, is unknown to this version. Give another. ({error}.)"
            )
            raise invalid(FieldError(field="when", detail=text)) from error
        return bodies.answer(bodies.schedule(changed))

    async def delete_schedule(self, request: web.Request, caller: Caller) -> web.Response:
        await self._schedules.drop(account_id=caller.account_id, schedule_id=requests.schedule_id(request))
        return web.Response(status=204)

    async def list_webhooks(self, _: web.Request, caller: Caller) -> web.Response:
        return bodies.answer(webhooks.webhooks(await self._hooks.all(account_id=caller.account_id)))

    async def create_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        body = await requests.body(request, WebhookBody, timeout_seconds=self._body_seconds)
        self._check_url(body.url)
        new = await self._hooks.create(
            account_id=caller.account_id, wish=body.wish, idempotency=requests.idempotency(request, body)
        )
        request[MADE] = f"webhook {new.webhook.id}"
        place = {"Location": f"/api/v1/webhooks/{new.webhook.id}/"}
        return bodies.answer(webhooks.with_secret(new), status=201, headers=place)

    async def show_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        found = await self._hooks.one(account_id=caller.account_id, webhook_id=webhooks.webhook_id(request))
        return bodies.answer(webhooks.webhook(found))

    async def edit_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        body = await requests.body(request, WebhookEditBody, timeout_seconds=self._body_seconds)
        if body.url is not None:
            self._check_url(body.url)
        edited = await self._hooks.change(
            account_id=caller.account_id, webhook_id=webhooks.webhook_id(request), wish=body.wish
        )
        return bodies.answer(webhooks.webhook(edited))

    async def delete_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        await self._hooks.drop(account_id=caller.account_id, webhook_id=webhooks.webhook_id(request))
        return web.Response(status=204)

    async def rotate_webhook_secret(self, request: web.Request, caller: Caller) -> web.Response:
        new = await self._hooks.rotate(
            account_id=caller.account_id,
            webhook_id=webhooks.webhook_id(request),
            idempotency=requests.idempotency(request),
        )
        return bodies.answer(webhooks.with_secret(new))

    async def test_webhook(self, request: web.Request, caller: Caller) -> web.Response:
        delivery = await self._hooks.test(
            account_id=caller.account_id,
            webhook_id=webhooks.webhook_id(request),
            idempotency=requests.idempotency(request),
        )
        return bodies.answer(webhooks.delivery(delivery), status=202)

    async def list_deliveries(self, request: web.Request, caller: Caller) -> web.Response:
        query = requests.query(request, PageQuery)
        page = await self._hooks.deliveries(
            account_id=caller.account_id,
            webhook_id=webhooks.webhook_id(request),
            offset=query.offset,
            limit=query.page_size,
        )
        link = bodies.link(request.rel_url, query, page.count)
        return bodies.answer(webhooks.deliveries(page), headers={"Link": link})

    def _check_url(self, url: str) -> None:
        if why := ssrf.why_not(url, to_private=self._to_private):
            raise invalid(FieldError(field="url", detail=f"{why}."))

    async def _checked(self, caller: Caller, check: Job) -> web.Response:
        """200 with the check once it is over; 202 where the node is slow to look, to be followed like any job."""
        for _ in range(CHECK_LOOKS):
            if check.state.is_final:
                return bodies.answer(bodies.job(check), headers=bodies.place(check))
            await asyncio.sleep(CHECK_LOOK_SECONDS)
            check = await self._store.job(account_id=caller.account_id, job_id=check.id)
        return bodies.answer(bodies.job(check), status=202, headers=bodies.place(check))

    async def alive(self, _: web.Request) -> web.Response:
        """The process answers. Says nothing about Redis: a restart of this process would not mend that."""
        return bodies.answer(bodies.Health(status="ok"))

    async def ready(self, _: web.Request) -> web.Response:
        """Requests can be served: Redis answers."""
        await self._store.ping()
        return bodies.answer(bodies.Health(status="ok"))
