"""The application: the handlers of each resource, and the routes that are made from its calls."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NoReturn

from aiohttp import hdrs, web
from aiohttp.abc import AbstractResolver
from redis.asyncio import Redis

from api.dashboard import routes
from api.dashboard.assets import Assets
from api.dashboard.context import Context
from api.dashboard.rendering import Rendering
from api.dashboard.session import SessionGuard
from api.document import served
from api.events.places import Places
from api.events.streams import Streams
from api.http import problems
from api.http.audit_budget import AuditBudget
from api.http.caching import conditional
from api.http.callers import Callers
from api.http.calls import Call
from api.http.handling import Handler
from api.http.marks import REQUEST_ID
from api.http.middleware import around, finish_head
from api.http.probes import METRICS, PROBES, Probes, exposing
from api.http.reading import BODY_MAX_BYTES, BODY_SECONDS, CELL_TIME
from api.http.time_limit import TimeLimit
from api.http.traces import traced
from api.measures.cell_view import CellView
from api.measures.exposition import Exposition, SharedExposition
from api.measures.metrics import Metrics
from api.measures.store_watch import StoreWatch
from api.processes import Process
from api.resources import CALLS, RESOURCES, Parts
from api.settings import ApiSettings, Live
from api.webhooks.resolving import Resolver
from api.webhooks.sender import Sender
from api.webhooks.ssrf import Reach
from worker.program.alive import Turns
from worker.program.background import in_background
from worker.program.loop import every
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.sessions import SessionLifetime, Sessions
from worker.store.access.tokens import Limits, Tokens
from worker.store.access.usage import NOTED_SECONDS, TokenUses
from worker.store.access.writes import Writes
from worker.store.chores.cell_clock import COMPARE_SECONDS, CellClock
from worker.store.chores.chores import Chores
from worker.store.customers.customer_store import CustomerStore
from worker.store.customers.events import Events
from worker.store.errors import StoreUnavailable, too_slow
from worker.store.operators.cell import Cell
from worker.store.operators.operator_store import OperatorStore
from worker.store.webhooks.deliveries import Deliveries

TOKEN_CHECK_SECONDS = 30.0  # an event stream ends at most this long after its token was revoked
FIRST_COMPARISON_SECONDS = 1.0  # how long a start waits for Redis
SWEEP_SECONDS = 30.0  # how often jobs that have waited too long are failed
AUDIT_SECONDS = 0.1  # an entry appears in the log at most this much later
AUDIT_AGAIN_SECONDS = 1.0  # after an error
LAST_NOTE_SECONDS = 1.0  # how long a stop waits to record which tokens were used
STORE_CHECK_SECONDS = 5.0  # interval between trial writes to Redis

AnyCall = Call[Any]


def build(
    redis: Redis,
    settings: ApiSettings,
    *,
    metrics: Metrics | None = None,
    resolver: AbstractResolver | None = None,
    process: Process | None = None,
    turns: Turns | None = None,
) -> web.Application:
    """The application. It neither opens nor closes the Redis client. `resolver`: resolves the host names of webhooks,
    in place of the system's resolver. `process`: which of the front end's processes this is. `turns` watches its
    loops."""
    metrics = metrics or Metrics()
    turns = turns or Turns()
    process = process or Process()
    limits = Limits(calls=settings.calls_per_minute, failed_logins=settings.failed_logins_per_minute)
    tokens = Tokens(redis)
    clock = CellClock(redis, compared=metrics.clocks)
    uses = TokenUses(redis, now=clock.now)
    callers = Callers(tokens, limits, trusted_proxies=settings.trusted_proxies, used=uses.note)
    streams = _streams(redis, settings, process, turned=turns.counted("streams"))
    store = CustomerStore(
        redis, node_silent_seconds=settings.node_silent_seconds, live_by_default=settings.live is Live.DEFAULT
    )
    operator_store = OperatorStore(
        redis,
        store,
        node_silent_seconds=settings.node_silent_seconds,
        retry_within_seconds=settings.retry_within_seconds,
        waiting_seconds=settings.waiting_seconds,
    )
    parts = Parts(
        redis=redis,
        settings=settings,
        now=clock.now,
        callers=callers,
        streams=streams,
        store=store,
        operators=operator_store,
        tokens=tokens,
        uses=uses,
        reach=_reach(settings),
    )
    assets = Assets()
    watch = StoreWatch(Writes(redis), check_seconds=STORE_CHECK_SECONDS, on_result=metrics.tried_to_write)
    context = Context(
        operators=operator_store,
        store=store,
        tokens=tokens,
        uses=uses,
        streams=streams,
        rendering=Rendering(assets, links=routes.LINKS, why_read_only=lambda: watch.refused),
        guard=SessionGuard(callers, _sessions(redis, settings, limits)),
        runbook_url=settings.runbook_url,
    )
    keeper = _keeper(redis, settings, clock)  # one for each process: the calls of its own process wake it
    audit = Audit(redis, keeper=keeper, now=clock.now)
    budget = AuditBudget(settings.audit_entries_per_hour)
    app = web.Application(
        middlewares=[traced, around(callers, audit, budget, metrics, _refusing(context, settings.docs_url))],
        client_max_size=BODY_MAX_BYTES,
    )
    app[BODY_SECONDS] = settings.body_seconds
    app[CELL_TIME] = clock.now
    app.on_response_prepare.append(finish_head)
    if keeper is not None:
        app.cleanup_ctx.append(partial(_keeping, keeper, turns.counted("audit")))
    exposition = _exposition(metrics, process)
    if isinstance(exposition, SharedExposition):
        app.cleanup_ctx.append(exposition.running)
    metrics.follow(streams=lambda: streams.open)
    app.on_shutdown.append(streams.end_all)
    app.cleanup_ctx.extend(
        [_comparing(clock), streams.running, watch.running, partial(_noting, uses, turns.counted("token_uses"))]
    )
    if process.does_chores:
        _add_chores(app, redis, settings, clock=clock, metrics=metrics, turns=turns, resolver=resolver)
    handlers = [route for resource in RESOURCES for route in resource.handlers(parts)]
    _serve(app, handlers, TimeLimit(settings.request_seconds))
    probes = Probes(watch.check)
    for probe in PROBES:
        _add(app, "GET", probe.path, partial(probe.handle, probes))
    app.router.add_route("*", METRICS, exposing(exposition.read, settings.metrics_networks))
    routes.add(app, context, assets, request_seconds=settings.request_seconds)
    for path, handler in served.PAGES.items():
        _add(app, "GET", path, handler)
    for path in dict.fromkeys(call.path for call in CALLS):
        app.router.add_route("*", path.removesuffix("/"), _with_slash)
    return app


def _keeper(redis: Redis, settings: ApiSettings, clock: CellClock) -> AuditKeeper | None:
    kept = timedelta(days=settings.audit_days)
    return AuditKeeper(redis, kept=kept, now=clock.now) if settings.audit_keeper else None


async def _keeping(keeper: AuditKeeper, turned: Callable[[], None], _: web.Application) -> AsyncIterator[None]:
    expected: dict[type[Exception], str] = {StoreUnavailable: "audit.store_unavailable"}
    keeping = every(
        AUDIT_SECONDS,
        keeper.keep_news,
        name="audit",
        expected=expected,
        again_seconds=AUDIT_AGAIN_SECONDS,
        turned=turned,
    )
    async with in_background(keeping):
        yield


async def _noting(uses: TokenUses, turned: Callable[[], None], _: web.Application) -> AsyncIterator[None]:
    expected: dict[type[Exception], str] = {StoreUnavailable: "token_uses.store_unavailable"}
    noting = every(NOTED_SECONDS, uses.keep, name="token_uses", expected=expected, turned=turned)
    async with in_background(noting):
        yield
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(LAST_NOTE_SECONDS):
            await uses.keep()


def _reach(settings: ApiSettings) -> Reach:
    return Reach(
        to_private=settings.webhooks_to_private,
        networks=settings.webhook_networks,
        denied=settings.webhook_denied_networks,
        hosts=settings.webhook_hosts,
        proxy=str(settings.webhook_proxy) if settings.webhook_proxy else None,
    )


def _exposition(metrics: Metrics, process: Process) -> Exposition:
    if process.shared is None:
        return Exposition(metrics.registry)
    shared = process.shared
    return SharedExposition(metrics.registry, shared.folder, index=process.index, processes=shared.processes)


def _streams(redis: Redis, settings: ApiSettings, process: Process, *, turned: Callable[[], None]) -> Streams:
    return Streams(
        Events(redis),
        places=Places(
            per_account=settings.streams_per_account,
            of_operators=settings.operators_streams,
            file=process.shared.places if process.shared else None,
        ),
        limit=settings.streams,
        heartbeat_seconds=settings.heartbeat_seconds,
        check_seconds=TOKEN_CHECK_SECONDS,
        turned=turned,
    )


def _sessions(redis: Redis, settings: ApiSettings, limits: Limits) -> Sessions:
    at_most, idle = timedelta(seconds=settings.session_seconds), timedelta(seconds=settings.session_idle_seconds)
    return Sessions(redis, lifetime=SessionLifetime(at_most=at_most, idle=idle), limits=limits)


def _refusing(context: Context, docs_url: str) -> Callable[[web.Request, problems.Problem], web.Response]:
    """The dashboard refuses with a page, the API with a problem document."""

    def refuse(request: web.Request, problem: problems.Problem) -> web.Response:
        if routes.is_ours(request):
            return routes.refuse(context, request, problem)
        return problems.respond(problem, request_id=request[REQUEST_ID], docs_url=docs_url)

    return refuse


def _comparing(clock: CellClock) -> Callable[[web.Application], AsyncIterator[None]]:
    comparing = partial(
        every, COMPARE_SECONDS, clock.compare, name="clock", expected={StoreUnavailable: "clock.store_unavailable"}
    )

    async def timing(_: web.Application) -> AsyncIterator[None]:
        with suppress(StoreUnavailable, TimeoutError):  # before a call that needs the time
            async with asyncio.timeout(FIRST_COMPARISON_SECONDS):
                await clock.compare()
        async with in_background(comparing()):
            yield

    return timing


def _add_chores(
    app: web.Application,
    redis: Redis,
    settings: ApiSettings,
    *,
    clock: CellClock,
    metrics: Metrics,
    turns: Turns,
    resolver: AbstractResolver | None,
) -> None:
    """Add the tasks that one process runs for the whole cell while the application runs."""
    chores = Chores(redis, waiting_seconds=settings.waiting_seconds, on_stale_job=metrics.jobs_given_up.inc)
    view = CellView(
        Cell(redis), read_seconds=settings.metrics_look_seconds, node_silent_seconds=settings.node_silent_seconds
    )

    expected: dict[type[Exception], str] = {StoreUnavailable: "sweeper.store_unavailable"}

    async def sweeping(_: web.Application) -> AsyncIterator[None]:
        # Each front end does it: if all nodes are dead, no worker is left to do it.
        turned = turns.counted("sweeper")
        work = every(SWEEP_SECONDS, chores.fail_stale_jobs, name="sweeper", expected=expected, turned=turned)
        async with in_background(work):
            yield

    async def bounding(_: web.Application) -> AsyncIterator[None]:
        keep = partial(chores.keep_bounds, settings.bounds)
        turned = turns.counted("bounds")
        work = every(SWEEP_SECONDS, keep, name="sweeper", expected=expected, turned=turned)
        async with in_background(work):
            yield

    async def sending(app: web.Application) -> AsyncIterator[None]:
        sender = Sender(
            Deliveries(redis),
            endpoints=settings.webhooks,
            seconds=settings.webhook_seconds,
            reach=_reach(settings),
            resolver=resolver or Resolver(),
            metrics=metrics,
            now=clock.now,
            # while all places are in use, it waits until an attempt ends
            turned=turns.counted("webhooks", more_seconds=settings.webhook_seconds),
        )
        async for _ in sender.running(app):
            yield

    metrics.registry.register(view)
    app.cleanup_ctx.extend([sending, sweeping, bounding, view.running])


def _serve(app: web.Application, calls: list[tuple[AnyCall, Handler]], limit: TimeLimit) -> None:
    for path in dict.fromkeys(call.path for call, _ in calls):
        for call, handler in calls:
            if call.path == path:
                _add(app, call.method, path, _bounded(call, handler, limit), head=not call.is_stream)
        # `jobs/bulk/` also matches `jobs/{job_id}/`; without this it would answer that path's methods too.
        app.router.add_route("*", path, _another_method)


def _bounded(call: AnyCall, handler: Handler, limit: TimeLimit) -> Handler:
    """Add a time limit, and a 304 for a client that already has the answer."""

    changes, is_cacheable, is_stream = call.changes, call.is_cacheable, call.is_stream

    async def bounded(request: web.Request) -> web.StreamResponse:
        try:
            response = await (handler(request) if is_stream else limit.within(handler(request)))
        except TimeoutError as error:  # bodies and dry runs have their own limits, so Redis is slow
            raise too_slow(changing=changes) from error
        return conditional(request, response) if is_cacheable else response

    return bounded


def _add(app: web.Application, method: str, path: str, handler: Handler, *, head: bool = True) -> None:
    """`head`: whether a GET also answers HEAD."""
    if method == "GET":
        app.router.add_get(path, handler, allow_head=head)
    else:
        app.router.add_route(method, path, handler)


async def _another_method(request: web.Request) -> NoReturn:
    known = {route.method for route in request.match_info.route.resource or ()} - {hdrs.METH_ANY}
    raise web.HTTPMethodNotAllowed(request.method, known)


async def _with_slash(request: web.Request) -> web.Response:
    """308 keeps the method and the body, so a POST without the trailing slash arrives."""
    query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
    return web.Response(status=308, headers={"Location": f"{request.rel_url.raw_path}/{query}"})
