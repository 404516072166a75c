"""Listening: where, for how long, and what is said when what arrives is no HTTP."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
        await _site(runner, settings).start()
        yield runner.addresses[0]
    finally:
        await runner.cleanup()


def _site(runner: web.AppRunner, settings: ApiSettings) -> web.BaseSite:
    if settings.unix_socket is not None:
        return web.UnixSite(runner, settings.unix_socket)
    return web.TCPSite(runner, settings.host, settings.port)
