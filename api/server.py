"""Listening: where, for how long, and what is said when what arrives is no HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import IPPROTO_TCP, TCP_USER_TIMEOUT
from typing import cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from api.settings import ApiSettings

LINGERING_SECONDS = 2.0  # for a client that still sends after its answer: closed at once, it might never read it


class _Unquoted(logging.Filter):
    """A request that can't be parsed is its sender's fault, and the parser's error quotes it, tokens and all."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


@asynccontextmanager
async def listening(app: web.Application, settings: ApiSettings) -> AsyncIterator[tuple[str, int] | str]:
    """Serve until the end of the block, then let running requests finish. Yields the address. Raises OSError."""
    logger = logging.getLogger("api.server")
    logger.addFilter(_Unquoted())
    runner = web.AppRunner(
        app,
        logger=logger,
        access_log=None,  # `request.done` is the line of a request
        keepalive_timeout=settings.keepalive_seconds,
        shutdown_timeout=settings.drain_seconds,
        lingering_time=LINGERING_SECONDS,
        auto_decompress=False,  # nothing that is worth packing, and what unpacks to gigabytes, gets in
    )
    await runner.setup()
    try:
        async with await _listen(runner, settings) as server:
            yield server.sockets[0].getsockname()
            server.close()
    finally:
        await runner.cleanup()


class _TurnedAway(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).abort()


async def _listen(runner: web.AppRunner, settings: ApiSettings) -> asyncio.Server:
    # Not by aiohttp's sites: they take as many connections as come, and wait for ever for one that does not read.
    server = cast("web.Server", runner.server)  # set up

    def protocol() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < settings.connections else _TurnedAway()

    loop = asyncio.get_running_loop()
    if settings.unix_socket is not None:
        return await loop.create_unix_server(protocol, settings.unix_socket)
    listening = await loop.create_server(protocol, settings.host, settings.port, start_serving=False)
    for listener in listening.sockets:  # what they accept inherits it
        listener.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, round(settings.stalled_seconds * 1000))
    await listening.start_serving()
    return listening
