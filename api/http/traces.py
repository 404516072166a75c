"""A span for every request, according to OpenTelemetry's conventions for HTTP; the caller's span is its parent."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import hdrs, web
from opentelemetry.trace import SpanKind

from api.http.marks import PROBLEM, REQUEST_ID
from api.http.middleware import QUIET, route_of
from worker.program import tracing


@web.middleware
async def traced(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """The outermost middleware, so that every log line of a request has its trace ID."""
    route = route_of(request)
    if route in QUIET or tracing.is_without(request.headers):
        return await handler(request)
    is_known = request.match_info.route.resource is not None
    method = request.method if request.method in hdrs.METH_ALL else "_OTHER"  # the client may send any text
    attributes = {"http.request.method": method, "url.scheme": request.scheme}
    if is_known:  # otherwise the path may be any text; a query always may
        attributes |= {"http.route": route, "url.path": request.rel_url.raw_path}
    name = f"{method} {route}" if is_known else method.replace("_OTHER", "HTTP")
    with tracing.span(name, attributes, kind=SpanKind.SERVER, parent=request.headers) as span:
        response = await handler(request)
        span.set_attribute("http.response.status_code", response.status)
        span.set_attribute("vps_snapshots.request.id", request.get(REQUEST_ID, ""))
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            tracing.failed(request.get(PROBLEM, str(response.status)))
        return response
