"""Around every request: its ID, its log line, its audit entry, and the problem document if it is refused."""

import re
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from structlog.contextvars import bind_contextvars, clear_contextvars

from api.http import problems
from api.http.audit_budget import AuditBudget
from api.http.callers import Callers
from api.http.marks import ACCOUNT, ALLOWANCE, EACH, IDEMPOTENCY, MADE, PROBLEM, REASON, REQUEST_ID, SERVER_ID, TOKEN
from api.http.probes import METRICS, PROBES
from api.measures.metrics import Metrics
from worker.store import errors
from worker.store.access.audit import Audit
from worker.store.access.tokens import Permission

SERVER = "vps-snapshots"

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_PATH_MAX = 200  # characters: before it is validated, an ID in it may be any text
_JOB_ID = re.compile(r"[0-9a-f]{32}")
QUIET = frozenset({*(probe.path for probe in PROBES), METRICS})  # polled every few seconds, so not logged at `info`

log = structlog.get_logger()


Refuse = Callable[[web.Request, problems.Problem], web.Response]


def around(callers: Callers, audit: Audit, budget: AuditBudget, metrics: Metrics, refuse: Refuse) -> Middleware:
    """`refuse` makes the response to a refused request. `budget`: of the audit log."""

    @web.middleware
    async def middleware(request: web.Request, handler: Next) -> web.StreamResponse:
        began = time.monotonic()
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
        request[REQUEST_ID] = request_id
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        with metrics.in_flight.track_inprogress():
            response = await _answer(request, handler, refuse)
        if PROBLEM in request:
            metrics.problem(request[PROBLEM])
        if job_id := response.headers.get("X-Job-Id"):
            bind_contextvars(job_id=job_id)
        address = callers.address(request)
        if _is_audited(request, response) and _fits(request, response, budget):
            await _record(audit, _entries(request, response, address))
        route = route_of(request)
        write = log.debug if route in QUIET else log.info
        seconds = time.monotonic() - began
        metrics.request(request, response, route=route, seconds=seconds)
        write(
            "request.done",
            method=request.method,
            route=route,
            status=response.status,
            **({"code": request[PROBLEM]} if PROBLEM in request else {}),
            address=address,
            milliseconds=round(seconds * 1000, 1),
        )
        return response

    return middleware


async def finish_head(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers of every answer, also of a stream, before they are sent."""
    response.headers.update(request.get(ALLOWANCE, {}))
    if (key := request.get(IDEMPOTENCY)) and key.replayed:
        response.headers["Idempotent-Replayed"] = "true"  # as Stripe names it
    response.headers["X-Request-Id"] = request.get(REQUEST_ID, "")
    response.headers["Server"] = SERVER
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")  # of a POST too: it may have a secret


def _is_audited(request: web.Request, response: web.StreamResponse) -> bool:
    """Only calls with a valid token and within its limit: a stranger's calls must not push other entries out. They are
    in the log."""
    limited = response.status == web.HTTPTooManyRequests.status_code
    return request.method in _CHANGING and TOKEN in request and not limited


def _fits(request: web.Request, response: web.StreamResponse, budget: AuditBudget) -> bool:
    """Whether the token may add an entry to the audit log. It always may for a job, which limits itself, and always as
    an operator."""
    token = request[TOKEN]
    is_dry_run = "dry_run" in request.query
    starts_job = "X-Job-Id" in response.headers and not is_dry_run and response.status < web.HTTPBadRequest.status_code
    if starts_job or Permission.OPERATOR in token.permissions:
        return True
    left = budget.left(token.id, str(request.get(ACCOUNT, "")))
    if left == 1:
        request[REASON] = "Further calls of this token within the hour that start no job are only in the program's log."
        log.warning("audit.limit_reached", token=token.id)
    return left > 0


def _entries(request: web.Request, response: web.StreamResponse, address: str) -> list[dict[str, str]]:
    """Who did what, from where, and the result; one entry for each item of a bulk call."""
    token = request[TOKEN]
    entry = {
        "token": token.id,
        "token_name": token.name,
        "account": str(request.get(ACCOUNT, "")),
        "method": request.method,
        "path": request.rel_url.raw_path[:_PATH_MAX],
        "server": str(request.get(SERVER_ID, "")),
        "job": response.headers.get("X-Job-Id") or _job_in_path(request),
        "made": request.get(MADE, ""),
        "address": address,
        "status": str(response.status),
        "code": request.get(PROBLEM, ""),
        "reason": request.get(REASON, ""),
        "request_id": request[REQUEST_ID],
    }
    each = [entry | one for one in request.get(EACH, ())] or [entry]
    return [{field: text for field, text in one.items() if text} for one in each]


def _job_in_path(request: web.Request) -> str:
    """The job that the path names, if that is a valid ID."""
    text = request.match_info.get("job_id", "")
    return text if _JOB_ID.fullmatch(text) else ""


async def _record(audit: Audit, entries: list[dict[str, str]]) -> None:
    # After the call, which has taken effect even if this fails.
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
