"""Wraps every request: its ID, its log line, its audit entry, and the problem document if it is refused."""

import re
import time
from collections.abc import Awaitable, Callable
from os import urandom

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from api.http import auditing, problems
from api.http.audit_budget import AuditBudget
from api.http.callers import Callers
from api.http.marks import ALLOWANCE, AUDITED, IDEMPOTENCY, PROBLEM, REQUEST_ID
from api.http.probes import METRICS, PROBES
from api.measures.metrics import Metrics
from worker.program import log_fields
from worker.store import errors
from worker.store.access.audit import Audit

SERVER = "vps-snapshots"

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
QUIET = frozenset({*(probe.path for probe in PROBES), METRICS})  # polled every few seconds, so not logged at `info`

log = structlog.get_logger()


Refuse = Callable[[web.Request, problems.Problem], web.Response]


def around(callers: Callers, audit: Audit, budget: AuditBudget, metrics: Metrics, refuse: Refuse) -> Middleware:
    """`refuse` makes the response to a refused request. `budget`: of the audit log."""

    @web.middleware
    async def middleware(request: web.Request, handler: Next) -> web.StreamResponse:
        began = time.monotonic()
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _SANE_ID.fullmatch(given) else urandom(16).hex()
        request[REQUEST_ID] = request_id
        log_fields.only(request_id=request_id)
        metrics.in_flight += 1
        try:
            response = await _answer(request, handler, refuse)
        finally:
            metrics.in_flight -= 1
        code = request.get(PROBLEM)
        if code is not None:
            metrics.problem(code)
        if job_id := response.headers.get("X-Job-Id"):
            log_fields.bind(job_id=job_id)
        address = callers.address(request)
        if request.get(AUDITED, False):
            audit.told()
        elif auditing.is_audited(request, response) and auditing.is_within_budget(request, response, budget):
            await _record(audit, auditing.entries(request, response, address))
        route = route_of(request)
        write = log.debug if route in QUIET else log.info
        seconds = time.monotonic() - began
        metrics.request(request, response, route=route, seconds=seconds)
        write(
            "request.done",
            method=request.method,
            route=route,
            status=response.status,
            **({"code": code} if code is not None else {}),
            address=address,
            milliseconds=round(seconds * 1000, 1),
        )
        return response

    return middleware


async def finish_head(request: web.Request, response: web.StreamResponse) -> None:
    """Add the common headers before a response or a stream is sent."""
    headers = response.headers
    headers.update(request.get(ALLOWANCE, {}))
    if (key := request.get(IDEMPOTENCY)) and key.replayed:
        headers["Idempotent-Replayed"] = "true"  # as Stripe names it
    headers["X-Request-Id"] = request.get(REQUEST_ID, "")
    headers["Server"] = SERVER
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Cache-Control", "no-store")  # also on a POST: its response may contain a secret


async def _record(audit: Audit, entries: list[dict[str, str]]) -> None:
    # Written after the call, which has taken effect even if this fails.
    try:
        await audit.write(*entries)
    except errors.StoreUnavailable as error:
        log.error("audit.failed", cause=error.code, entries=entries)  # noqa: TRY400 - no bug: the cause says it


async def _answer(request: web.Request, handler: Next, refuse: Refuse) -> web.StreamResponse:
    try:
        return await handler(request)
    except problems.Problem as problem:
        refused = problem
    except errors.Refused as refusal:
        refused = problems.of_refusal(refusal, method=request.method)
    except web.HTTPException as error:
        refused = problems.of_http(error)
    except Exception as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            refused = problems.Problem(400, "client_gone", "The client has closed the connection.")
        else:
            log.exception("request.failed")
            refused = problems.internal_error()
    request[PROBLEM] = refused.code
    return refuse(request, refused)


def route_of(request: web.Request) -> str:
    """The pattern of the path; `unknown` for every path that does not exist."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
