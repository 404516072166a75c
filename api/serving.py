"""Serves requests until a signal ends it."""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from socket import gethostname

import structlog
import uvloop

from api import processes
from api.app import build
from api.http.server import listening
from api.measures.metrics import Metrics
from api.options import fail
from api.processes import Process
from api.settings import ApiSettings
from worker.program import alive, logs
from worker.program.background import in_background
from worker.program.configuration import ConfigurationError
from worker.program.span_export import exporting
from worker.store.redis_client import connect

log = structlog.get_logger()


def run(settings: ApiSettings) -> None:
    """Return after SIGTERM or SIGINT. Raises OSError if it can't listen. Ends the program if its settings can't be
    used."""
    logs.configure(level=_level(settings))
    processes.run(settings, partial(_run, settings))


def _run(settings: ApiSettings, process: Process) -> None:
    metrics = Metrics()
    logs.configure(level=_level(settings), count=(metrics.log_events,))
    try:
        with exporting(settings.tracing, service="vps-snapshots-api", instance=f"{gethostname()}:{os.getpid()}"):
            uvloop.run(_serve(settings, metrics, process))
    except ConfigurationError as error:
        fail(str(error))


def _level(settings: ApiSettings) -> int:
    return logging.getLevelNamesMapping()[settings.log_level.upper()]


async def _serve(settings: ApiSettings, metrics: Metrics, process: Process) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    if process.shared is not None:
        _on_end_of(process.shared.parent, stop.set)
    async with AsyncExitStack() as stack:
        turns = alive.Turns()
        await stack.enter_async_context(in_background(alive.prove_alive(turns)))
        redis = connect(settings.redis, observer=metrics.redis)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        app = build(redis, settings, metrics=metrics, process=process, turns=turns)
        address = await stack.enter_async_context(listening(app, settings, process.sockets))
        log.info("api.listening", address=_shown(address), **({"process": process.index} if process.shared else {}))
        alive.tell(alive.READY)
        await stop.wait()
        alive.tell(alive.STOPPING)
        log.info("api.stopping")


def _on_end_of(file: int, call: Callable[[], None]) -> None:
    """Call `stop` once the file descriptor reaches end-of-file."""
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(file)  # otherwise it would be called repeatedly
        call()

    loop.add_reader(file, ended)


def _shown(address: tuple[str, int] | str) -> str:
    """The address as in a URL; for a Unix socket, its path."""
    if isinstance(address, str):
        return address
    host, port = address[:2]  # an IPv6 address has more parts
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def configured_address(settings: ApiSettings) -> str:
    return str(settings.unix_socket) if settings.unix_socket is not None else f"{settings.host}:{settings.port}"
