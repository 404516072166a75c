"""Listens for connections, limits their number, and answers invalid HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from itertools import chain
from typing import Any, cast
from uuid import uuid4

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from multidict import CIMultiDictProxy

from api.http import listeners, problems
from api.http.marks import FROM_STRANGER
from api.http.middleware import SERVER
from api.settings import ApiSettings

_TOO_MANY = "Too many headers"  # aiohttp's text
HANDOVER_SECONDS = 1.0  # how long a client may use its idle connection once more: closing it at once would reset it
LINGERING_SECONDS = 2.0  # how long to read from a client that is still sending: closing at once could lose the response

log = structlog.get_logger()


class _Connection(web.RequestHandler):
    """Answers invalid HTTP with a problem document that never quotes the request, which may contain a token. Calls
    `gone` when the client disconnects; with aiohttp alone, a handler would notice that only at its next write."""

    gone: Callable[[], None] | None = None
    docs_url = problems.DOCS_URL

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.gone is not None:
            self.gone()

    @property
    def is_idle(self) -> bool:
        """Whether it waits for the rest of a request's headers, or for the next request."""
        return self._waiter is not None and not self._waiter.done() and not self._closes

    @property
    def is_half_sent(self) -> bool:
        """Whether it waits for the rest of an unauthenticated request's body."""
        request = self._current_request
        return isinstance(request, web.Request) and request.get(FROM_STRANGER, False) and not self._closes

    @property
    def _closes(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    @property
    def has_sent_request(self) -> bool:
        return self._request_count > 0

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - the library's signature
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response had already started")
        request_id = uuid4().hex
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("request.failed", request_id=request_id, exc_info=exc)
            problem = problems.internal_error(status)
        else:
            problem = _problem_with(exc, status)
        response = problems.respond(problem, request_id=request_id, docs_url=self.docs_url)
        response.headers["X-Request-Id"] = request_id
        response.headers["Server"] = SERVER
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        response.force_close()
        return response


def _problem_with(error: BaseException | None, status: int) -> problems.Problem:
    """The problem with the request line or the headers."""
    if isinstance(error, LineTooLong):
        if isinstance(error.args[0], bytearray):  # a string is the request line; bytes are a header
            return problems.Problem(414, "uri_too_long", "The path with its query is too long.")
        return problems.Problem(431, "header_too_large", "A header is too long.")
    if isinstance(error, BadHttpMessage) and _TOO_MANY in error.message:
        return problems.Problem(431, "header_too_large", "There are too many headers.")
    return problems.Problem(status, "bad_request", "This is not a valid HTTP request.")


def on_disconnect(request: web.Request, call: Callable[[], None]) -> None:
    """Call `gone` once the client has closed the connection."""
    if isinstance(request.protocol, _Connection):
        request.protocol.gone = call


@asynccontextmanager
async def listening(
    app: web.Application, settings: ApiSettings, sockets: Sequence[socket.socket] = ()
) -> AsyncIterator[tuple[str, int] | str]:
    """Serve until the end of the block, then let running requests finish, and answer those that come on open
    connections within HANDOVER_SECONDS. Yields the address. `sockets`: those of
    listeners.bind, if they are bound already. Raises OSError."""
    sockets = sockets or listeners.bind(settings)[0]
    ending = asyncio.Event()
    app.on_response_prepare.append(partial(_tell_last, ending))
    runner = web.AppRunner(app, shutdown_timeout=settings.drain_seconds)
    await runner.setup()
    try:
        address = sockets[0].getsockname()
        servers = await _listen(runner, settings, sockets)
        try:
            yield address
        finally:
            for server in servers:  # not awaited: since Python 3.12, each ends only with its last stream
                server.close()
            ending.set()
            await _until_used(cast("web.Server", runner.server))
    finally:
        await runner.cleanup()


async def _tell_last(ending: asyncio.Event, _: web.Request, response: web.StreamResponse) -> None:
    if ending.is_set():
        response.force_close()
        response.headers[hdrs.CONNECTION] = "close"


async def _until_used(server: web.Server) -> None:
    """Wait until all connections are closed, at most HANDOVER_SECONDS. Each closes with its next response."""
    with suppress(TimeoutError):
        async with asyncio.timeout(HANDOVER_SECONDS):
            while server.connections:  # noqa: ASYNC110 - aiohttp has no event for it
                await asyncio.sleep(HANDOVER_SECONDS / 50)


def _without_other_expectations(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Ignore each Expect header other than `100-continue`, as HTTP allows: aiohttp would refuse it before the
    response has a request ID, and quote it."""

    def made(message: Any, *others: Any) -> web.BaseRequest:
        if hdrs.EXPECT in message.headers:
            headers = message.headers.copy()
            if [each.lower() for each in headers.popall(hdrs.EXPECT)] != ["100-continue"]:
                message = message._replace(headers=CIMultiDictProxy(headers))
        return make(message, *others)

    return made


class _Rejected(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


def _close_idle(server: web.Server) -> bool:
    """Close an idle connection: the oldest that never sent a request, or else the oldest with an incomplete body
    of an unauthenticated request, or else the oldest. So many silent or slow connections cannot lock out others.
    Returns whether one was closed."""
    ours = [each for each in server.connections if isinstance(each, _Connection)]
    idle = [each for each in ours if each.is_idle]
    silent = (each for each in idle if not each.has_sent_request)
    first = next(chain(silent, (each for each in ours if each.is_half_sent), idle), None)
    if first is not None:
        first.abort()
    return first is not None


async def _listen(
    runner: web.AppRunner, settings: ApiSettings, sockets: Sequence[socket.socket]
) -> list[asyncio.Server]:
    # Not with aiohttp's sites: they accept any number of connections, and wait forever for one that does not read.
    server = cast("web.Server", runner.server)  # set up
    server.request_factory = _without_other_expectations(server.request_factory)

    loop = asyncio.get_running_loop()

    def protocol() -> asyncio.BaseProtocol:
        if len(server.connections) >= settings.connections and not _close_idle(server):
            return _Rejected()
        connection = _Connection(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # a gap in its type; `request.done` is the line of a request
            keepalive_timeout=settings.keepalive_seconds,
            lingering_time=LINGERING_SECONDS,
            auto_decompress=False,  # a small body must not decompress to gigabytes
        )
        connection.docs_url = settings.docs_url
        return connection

    return [
        await (
            loop.create_unix_server(protocol, sock=one)
            if one.family == socket.AF_UNIX
            else loop.create_server(protocol, sock=one)
        )
        for one in sockets
    ]
