"""The routes, made from the table of calls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import NoReturn

from aiohttp import HttpVersion11, ThreadedResolver, hdrs, web
from aiohttp.abc import AbstractResolver
from arq.connections import ArqRedis

from api import docs_page, openapi, problems, requests
from api.caching import Document, conditional
from api.callers import Callers
from api.cell_view import CellView
from api.dashboard import routes
from api.dashboard.assets import Assets
from api.dashboard.context import Context
from api.dashboard.rendering import Rendering
from api.dashboard.session import SessionGuard
from api.handlers import Handlers
from api.metrics import PATH as METRICS
from api.metrics import Metrics, exposition
from api.middleware import around, finish_head
from api.operations import OPERATIONS, PROBES, Operation, Probing
from api.ops_handlers import OpsHandlers
from api.ops_operations import OPS_OPERATIONS, OpsOperation
from api.requests import BODY_MAX_BYTES, REQUEST_ID
from api.sender import Sender
from api.settings import ApiSettings
from api.streams import Streams
from api.sweeper import Sweeper
from api.traces import traced
from worker.store.access.audit import Audit
from worker.store.access.sessions import SessionLifetime, Sessions
from worker.store.access.tokens import Limits, Tokens
from worker.store.chores.stale_jobs import StaleJobReaper
from worker.store.customers.customer_store import CustomerStore
from worker.store.customers.events import Events
from worker.store.errors import StoreUnavailable
from worker.store.operators.cell import Cell
from worker.store.operators.operator_store import OperatorStore
from worker.store.schedules.schedules import Schedules
from worker.store.webhooks.deliveries import Deliveries
from worker.store.webhooks.webhooks import Webhooks

TOKEN_CHECK_SECONDS = 30.0  # a stream of events ends so soon after its token

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(
    redis: ArqRedis, settings: ApiSettings, *, metrics: Metrics | None = None, resolver: AbstractResolver | None = None
) -> web.Application:
    """The application. It opens nothing and closes nothing: the client is its owner's. `resolver`: finds the receivers
    of webhooks, in the place of the system's own."""
    metrics = metrics or Metrics()
    limits = Limits(calls=settings.calls_per_minute, failed_logins=settings.failed_logins_per_minute)
    tokens = Tokens(redis)
    callers = Callers(tokens, limits, trusted_proxies=settings.trusted_proxies)
    streams = _streams(redis, settings)
    store = CustomerStore(redis, node_silent_seconds=settings.node_silent_seconds)
    operators = OperatorStore(redis, store, node_silent_seconds=settings.node_silent_seconds)
    body_seconds, runbook_url = settings.body_seconds, settings.runbook_url
    handlers = Handlers(
        store,
        Schedules(redis),
        Webhooks(redis),
        streams,
        callers,
        body_seconds=body_seconds,
        to_private=settings.webhooks_to_private,
    )
    ops_handlers = OpsHandlers(
        operators, store, tokens, streams, callers, body_seconds=body_seconds, runbook_url=runbook_url
    )
    assets = Assets()
    context = Context(
        operators=operators,
        store=store,
        tokens=tokens,
        streams=streams,
        rendering=Rendering(assets),
        guard=SessionGuard(callers, _sessions(redis, settings, limits), body_seconds=body_seconds),
        runbook_url=runbook_url,
    )
    audit = Audit(redis, kept=timedelta(days=settings.audit_days))
    app = web.Application(
        middlewares=[traced, around(callers, audit, metrics, _refusing(context))], client_max_size=BODY_MAX_BYTES
    )
    app.on_response_prepare.append(finish_head)
    _beside(app, redis, settings, streams=streams, metrics=metrics, resolver=resolver)
    _serve_calls(
        app,
        [
            *((call, _called(call, handlers, callers, body_seconds=body_seconds)) for call in OPERATIONS),
            *((call, _operated(call, ops_handlers, callers, body_seconds=body_seconds)) for call in OPS_OPERATIONS),
        ],
        seconds=settings.request_seconds,
    )
    for probe in PROBES:
        _add(app, "GET", probe.path, _probed(probe, handlers))
    app.router.add_route("*", METRICS, exposition(metrics, settings.metrics_networks))
    routes.add(app, context, assets, request_seconds=settings.request_seconds)
    for path, handler in _documents().items():
        _add(app, "GET", path, handler)
    for path in dict.fromkeys(call.path for call in openapi.CALLS):
        app.router.add_route("*", path.removesuffix("/"), _with_slash)
    return app


def _streams(redis: ArqRedis, settings: ApiSettings) -> Streams:
    return Streams(
        Events(redis),
        per_account=settings.streams_per_account,
        of_operators=settings.operators_streams,
        most=settings.streams,
        heartbeat_seconds=settings.heartbeat_seconds,
        check_seconds=TOKEN_CHECK_SECONDS,
    )


def _sessions(redis: ArqRedis, settings: ApiSettings, limits: Limits) -> Sessions:
    at_most, idle = timedelta(seconds=settings.session_seconds), timedelta(seconds=settings.session_idle_seconds)
    return Sessions(redis, lasting=SessionLifetime(at_most=at_most, idle=idle), limits=limits)


def _refusing(context: Context) -> Callable[[web.Request, problems.Problem], web.Response]:
    """A person at the dashboard reads a page, a program a problem document."""

    def refuse(request: web.Request, problem: problems.Problem) -> web.Response:
        if routes.is_ours(request):
            return routes.refuse(context, request, problem)
        return problems.respond(problem, request_id=request[REQUEST_ID])

    return refuse


def _beside(
    app: web.Application,
    redis: ArqRedis,
    settings: ApiSettings,
    *,
    streams: Streams,
    metrics: Metrics,
    resolver: AbstractResolver | None,
) -> None:
    """What runs as long as the application does, and answers no request."""
    waiting = StaleJobReaper(redis, seconds=settings.waiting_seconds, gave_up=metrics.jobs_given_up.inc)
    view = CellView(
        Cell(redis), look_seconds=settings.metrics_look_seconds, node_silent_seconds=settings.node_silent_seconds
    )
    metrics.follow(streams=lambda: streams.open, cell=view)
    app.on_shutdown.append(streams.end_all)
    app.cleanup_ctx.extend(
        [streams.running, _sender(redis, settings, metrics, resolver), Sweeper(waiting).running, view.running]
    )


def _serve_calls(
    app: web.Application, calls: list[tuple[Operation | OpsOperation, Handler]], *, seconds: float
) -> None:
    for path in dict.fromkeys(call.path for call, _ in calls):
        for call, handler in calls:
            if call.path == path:
                _add(app, call.method, path, _bounded(call, handler, seconds=seconds), head=call.has_an_end)
        # a path may look like another's id, as `jobs/bulk/` does: its own methods are all that it knows
        app.router.add_route("*", path, _another_method)


def _called(operation: Operation, handlers: Handlers, callers: Callers, *, body_seconds: float) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        caller = await callers.identify(request, operation.permission)
        await _ensure_takes(operation, request, body_seconds=body_seconds)
        return await operation.handle(handlers, request, caller)

    return handler


def _operated(operation: OpsOperation, handlers: OpsHandlers, callers: Callers, *, body_seconds: float) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        operator = await callers.operator(request)
        await _ensure_takes(operation, request, body_seconds=body_seconds)
        return await operation.handle(handlers, request, operator)

    return handler


async def _ensure_takes(call: Operation | OpsOperation, request: web.Request, *, body_seconds: float) -> None:
    """Raises Problem for a query parameter, or a body, that the call does not take: before it does anything."""
    requests.only_known(request, call.query)
    if call.changes and call.body is None:
        await requests.ensure_no_body(request, call.query, timeout_seconds=body_seconds)


def _bounded(call: Operation | OpsOperation, handler: Handler, *, seconds: float) -> Handler:
    """Within its time, and without the body that its client has already."""

    async def bounded(request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(seconds if call.has_an_end else None):
                response = await handler(request)
        except TimeoutError as error:  # bodies and checks have limits of their own: it is the store that is slow
            raise StoreUnavailable("The store of the service is too slow.") from error
        return conditional(request, response) if call.is_cacheable else response

    return bounded


def _probed(probe: Probing, handlers: Handlers) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await probe.handle(handlers, request)

    return handler


def _sender(
    redis: ArqRedis, settings: ApiSettings, metrics: Metrics, resolver: AbstractResolver | None
) -> Callable[[web.Application], AsyncIterator[None]]:
    async def running(app: web.Application) -> AsyncIterator[None]:
        sender = Sender(
            Deliveries(redis),
            endpoints=settings.webhooks,
            seconds=settings.webhook_seconds,
            to_private=settings.webhooks_to_private,
            resolver=resolver or ThreadedResolver(),
            metrics=metrics,
        )
        async for _ in sender.running(app):
            yield

    return running


def _add(app: web.Application, method: str, path: str, handler: Handler, *, head: bool = True) -> None:
    """`head`: a GET answers a HEAD too."""
    if method == "GET":
        app.router.add_get(path, handler, allow_head=head, expect_handler=_expected)
    else:
        app.router.add_route(method, path, handler, expect_handler=_expected)


async def _expected(request: web.Request) -> None:
    # Any other expectation is left alone, as it may be: aiohttp would refuse it before an answer has its request id.
    if request.headers["Expect"].lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


@cache
def _documents() -> Mapping[str, Handler]:
    """What is said about the API, made once: it is the same for everyone."""
    document = openapi.document()
    page = docs_page.page(document, document_path=openapi.PATH)
    html = {"Content-Security-Policy": docs_page.POLICY, "X-Content-Type-Options": "nosniff"}
    return {
        openapi.PATH: Document.of(openapi.text(document).encode(), kind="application/json", headers={}).show,
        docs_page.PATH: Document.of(page.encode(), kind="text/html", headers=html).show,
    }


async def _another_method(request: web.Request) -> NoReturn:
    known = {route.method for route in request.match_info.route.resource or ()} - {hdrs.METH_ANY}
    raise web.HTTPMethodNotAllowed(request.method, known)


async def _with_slash(request: web.Request) -> web.Response:
    """308 keeps method and body: a POST that forgot the slash arrives."""
    query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
    return web.Response(status=308, headers={"Location": f"{request.rel_url.raw_path}/{query}"})
