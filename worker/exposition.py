"""Lets Prometheus in: `/metrics` on an address of its own, in a thread of its own."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, start_http_server

CLIENT_SECONDS = 10.0  # for a client to send its request and to take the answer

log = structlog.stdlib.get_logger()


@asynccontextmanager
async def exposed(registry: CollectorRegistry, *, host: str, port: int | None) -> AsyncIterator[int | None]:
    """While the block runs; yields the port, None where nothing is served: none was given, or it can't be had. That is
    said in the log and keeps no VM waiting: who scrapes it notices."""
    if port is None:
        yield None
        return
    try:
        # in a thread: it asks the resolver for its own name
        server, thread = await asyncio.to_thread(start_http_server, port, host, registry)
    except OSError as error:
        log.error("metrics.not_served", host=host, port=port, reason=str(error))  # noqa: TRY400 - the reason is all
        yield None
        return
    server.RequestHandlerClass = _bounded(server.RequestHandlerClass)
    server.handle_error = _told  # type: ignore[assignment] # the server's class is the library's choice
    log.info("metrics.served", host=host, port=server.server_port)
    try:
        yield server.server_port
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


def _told(_request: object, address: object) -> None:
    """The library's prints a traceback for each client that hangs up or says nothing."""
    error = sys.exception()
    if isinstance(error, OSError):
        log.debug("metrics.client_gone", address=address, reason=repr(error))
    else:
        log.error("metrics.broke", address=address, exc_info=error)


def _bounded(handler: Any) -> Any:
    """The library's handler waits for ever for a client that says nothing."""
    return type("Bounded", (handler,), {"timeout": CLIENT_SECONDS})
