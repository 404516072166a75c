"""The program of the front end."""

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack
from socket import gethostname

import structlog
import typer
import uvloop

from api import audit_command, token_command
from api.app import build
from api.http.server import listening
from api.measures.metrics import Metrics
from api.options import Config, fail, settings_of
from api.settings import ApiSettings
from worker.program import logs
from worker.program.configuration import ConfigurationError, help_text
from worker.program.span_export import exporting
from worker.store.redis_client import connect

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.add_typer(token_command.app, name="token")
app.add_typer(audit_command.app, name="audit")


@app.callback(invoke_without_command=True)
def start(context: typer.Context, config: Config = None) -> None:
    """The HTTP front end of the snapshot service, and its access tokens. Without a command: serve.

    Settings come from the environment and from a TOML file (--config, or VPS_SNAPSHOTS_CONFIG); see serve --help.
    """
    context.obj = config
    if context.invoked_subcommand is None:
        serve(context, config)


@app.command(epilog=help_text(ApiSettings))
def serve(context: typer.Context, config: Config = None) -> None:
    """Answer requests until SIGTERM or SIGINT."""
    settings = settings_of(context, config)
    metrics = Metrics()
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logs.configure(level=level, count=(metrics.log_events,))
    try:
        with exporting(settings.tracing, service="vps-snapshots-api", instance=f"{gethostname()}:{os.getpid()}"):
            uvloop.run(_serve(settings, metrics))
    except ConfigurationError as error:
        fail(str(error))
    except OSError as error:
        fail(f"can't listen on {_address(settings)}: {error.strerror or error}")


async def _serve(settings: ApiSettings, metrics: Metrics) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with AsyncExitStack() as stack:
        redis = connect(settings.redis, observer=metrics.redis)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        address = await stack.enter_async_context(listening(build(redis, settings, metrics=metrics), settings))
        log.info("api.listening", address=_shown(address))
        await stop.wait()
        log.info("api.stopping")


def _shown(address: tuple[str, int] | str) -> str:
    """As in a URL; a Unix socket by its path."""
    if isinstance(address, str):
        return address
    host, port = address[:2]  # an IPv6 address has more parts
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(settings: ApiSettings) -> str:
    return str(settings.unix_socket) if settings.unix_socket is not None else f"{settings.host}:{settings.port}"


def main() -> None:
    app()
