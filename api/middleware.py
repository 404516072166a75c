"""Around every request: its id, its one log line, and a problem document for whatever was not done."""

import re
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import structlog
from aiohttp import web
from structlog.contextvars import bind_contextvars, clear_contextvars

from api import problems
from api.requests import REQUEST_ID
from worker.jobs import errors

Next = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROBES = frozenset({"/healthz", "/readyz"})

log = structlog.get_logger()


@web.middleware
async def around(request: web.Request, handler: Next) -> web.StreamResponse:
    began = time.monotonic()
    given = request.headers.get("X-Request-Id", "")
    request_id = given if _SANE_ID.fullmatch(given) else uuid4().hex
    request[REQUEST_ID] = request_id
    clear_contextvars()
    bind_contextvars(request_id=request_id)
    response = await _answer(request, handler, request_id)
    response.headers["X-Request-Id"] = request_id
    response.headers["Server"] = "vps-snapshots"
    route = _route(request)
    # probes come every few seconds: on demand only
    write = log.debug if route in _PROBES else log.info
    milliseconds = round((time.monotonic() - began) * 1000, 1)
    write("request.done", method=request.method, route=route, status=response.status, milliseconds=milliseconds)
    return response


async def _answer(request: web.Request, handler: Next, request_id: str) -> web.StreamResponse:
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
            raise  # the client went away while it was sending: no one is there to be answered
        log.exception("request.failed")
        refused = problems.Problem(500, "internal_error", "Something went wrong on our side. It was written down.")
    return problems.respond(refused, request_id=request_id)


def _route(request: web.Request) -> str:
    """The path with its ids left out; paths that we don't know are one."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"
