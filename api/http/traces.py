"""A span around every request, after OpenTelemetry's conventions for HTTP; it goes on from the caller's own."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import hdrs, web
from opentelemetry.trace import SpanKind

from api.http.middleware import PROBES, PROBLEM, route_of
from api.http.reading import REQUEST_ID
from worker.program import tracing


@web.middleware
async def traced(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Outermost, so that all that is logged of a request has its trace."""
    route = route_of(request)
    if route in PROBES:
        return await handler(request)
    is_known = request.match_info.route.resource is not None
    method = request.method if request.method in hdrs.METH_ALL else "_OTHER"  # any text may stand there
    attributes = {"http.request.method": method, "url.scheme": request.scheme}
    if is_known:  # else the path is anyone's text, like every query
        attributes |= {"http.route": route, "url.path": request.rel_url.raw_path}
    name = f"{method} {route}" if is_known else method.replace("_OTHER", "HTTP")
    with tracing.span(name, attributes, kind=SpanKind.SERVER, parent=request.headers) as span:
        response = await handler(request)
        span.set_attribute("http.response.status_code", response.status)
        span.set_attribute("vps_snapshots.request.id", request.get(REQUEST_ID, ""))
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            tracing.failed(request.get(PROBLEM, str(response.status)))
        return response
