"""The routes, made from the table of calls."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from aiohttp import web
from arq.connections import ArqRedis

from api import docs_page, openapi
from api.caching import spared
from api.callers import Callers
from api.handlers import Handlers
from api.middleware import around
from api.operations import OPERATIONS, PROBES, Operation, Probing
from api.ops_handlers import OpsHandlers
from api.ops_operations import OPS_OPERATIONS, OpsOperation
from api.requests import BODY_MAX_BYTES
from api.settings import ApiSettings
from api.streams import Streams
from worker.jobs.audit import Audit
from worker.jobs.events import Events
from worker.jobs.ops import Operators
from worker.jobs.schedules import Schedules
from worker.jobs.store import Store
from worker.jobs.tokens import Limits, Tokens

TOKEN_CHECK_SECONDS = 30.0  # a stream of events ends so soon after its token

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build(redis: ArqRedis, settings: ApiSettings) -> web.Application:
    """The application. It opens nothing and closes nothing: the client is its owner's."""
    limits = Limits(calls=settings.calls_per_minute, failed_logins=settings.failed_logins_per_minute)
    tokens = Tokens(redis)
    callers = Callers(tokens, limits, trusted_proxies=settings.trusted_proxies)
    streams = Streams(
        Events(redis),
        per_account=settings.streams_per_account,
        most=settings.streams,
        heartbeat_seconds=settings.heartbeat_seconds,
        check_seconds=TOKEN_CHECK_SECONDS,
    )
    store = Store(redis, node_silent_seconds=settings.node_silent_seconds)
    handlers = Handlers(store, Schedules(redis), streams, callers, body_seconds=settings.body_seconds)
    ops_handlers = OpsHandlers(
        Operators(redis, store, node_silent_seconds=settings.node_silent_seconds),
        store,
        tokens,
        streams,
        callers,
        body_seconds=settings.body_seconds,
        runbook_url=settings.runbook_url,
    )

    audit = Audit(redis, kept=timedelta(days=settings.audit_days))
    app = web.Application(middlewares=[around(callers, audit)], client_max_size=BODY_MAX_BYTES)
    app.cleanup_ctx.append(streams.running)
    app.on_shutdown.append(streams.end_all)
    for operation in OPERATIONS:
        _add(app, operation.method, operation.path, _called(operation, handlers, callers))
    for ops in OPS_OPERATIONS:
        _add(app, ops.method, ops.path, _operated(ops, ops_handlers, callers))
    for probe in PROBES:
        _add(app, "GET", probe.path, _probed(probe, handlers))
    for path, handler in _documents().items():
        _add(app, "GET", path, handler)
    for path in dict.fromkeys(call.path for call in openapi.CALLS):
        app.router.add_route("*", path.removesuffix("/"), _with_slash)
    return app


def _called(operation: Operation, handlers: Handlers, callers: Callers) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        caller = await callers.identify(request, operation.permission)
        response = await operation.handle(handlers, request, caller)
        return spared(request, response) if operation.is_spared else response

    return handler


def _operated(operation: OpsOperation, handlers: OpsHandlers, callers: Callers) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await operation.handle(handlers, request, await callers.operator(request))
        return spared(request, response) if operation.is_spared else response

    return handler


def _probed(probe: Probing, handlers: Handlers) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await probe.handle(handlers, request)

    return handler


def _add(app: web.Application, method: str, path: str, handler: Handler) -> None:
    # web.get answers a HEAD too
    app.add_routes([web.get(path, handler) if method == "GET" else web.route(method, path, handler)])


def _documents() -> dict[str, Handler]:
    """What is said about the API, made once: it is the same for everyone."""
    document = openapi.document()
    page = docs_page.page(document, document_path=openapi.PATH)
    html = {"Content-Security-Policy": docs_page.POLICY, "X-Content-Type-Options": "nosniff"}
    return {
        openapi.PATH: _constant(openapi.text().encode(), kind="application/json", headers={}),
        docs_page.PATH: _constant(page.encode(), kind="text/html", headers=html),
    }


def _constant(raw: bytes, *, kind: str, headers: dict[str, str]) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=raw, headers=headers, content_type=kind, charset="utf-8")

    return handler


async def _with_slash(request: web.Request) -> web.Response:
    """308 keeps method and body: a POST that forgot the slash arrives."""
    query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
    return web.Response(status=308, headers={"Location": f"{request.rel_url.raw_path}/{query}"})
