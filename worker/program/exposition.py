"""Serves `/metrics` to Prometheus on its own address, from its own thread."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, start_http_server

CLIENT_SECONDS = 10.0  # limit for a client to send its request and read the response

log = structlog.stdlib.get_logger()


@asynccontextmanager
async def exposed(registry: CollectorRegistry, *, host: str, port: int | None) -> AsyncIterator[int | None]:
    """Serve the registry while the block runs. Yields the port, or None if nothing is served.

    `port`: 0 picks a free one; None serves nothing. A port that cannot be bound is logged and does not stop the
    worker: jobs matter more, and Prometheus reports the missing target.
    """
    if port is None:
        yield None
        return
    try:
        # in a thread: the server resolves its own host name when it starts
        server, thread = await asyncio.to_thread(start_http_server, port, host, registry)
    except OSError as error:
        log.error("metrics.not_served", host=host, port=port, reason=str(error))  # noqa: TRY400 - the reason is enough
        yield None
        return
    server.RequestHandlerClass = _bounded(server.RequestHandlerClass)
    server.handle_error = _log_error  # type: ignore[assignment] # the library chooses the server's class
    log.info("metrics.served", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


def _log_error(_request: object, address: object) -> None:
    """Replaces the library's handler, which prints a traceback for every client that disconnects or times out."""
    error = sys.exception()
    if isinstance(error, OSError):
        log.debug("metrics.client_gone", address=address, reason=repr(error))
    else:
        log.error("metrics.broke", address=address, exc_info=error)


def _bounded(handler: Any) -> Any:
    """Set a timeout, because the library's handler waits forever for a client that sends nothing."""
    return type("Bounded", (handler,), {"timeout": CLIENT_SECONDS})
