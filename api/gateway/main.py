"""The program of the gateway."""

from worker.program import lean  # noqa: F401, I001 - before all others

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from socket import gethostname

import structlog
import typer
import uvloop

from api.gateway import credential_command
from api.gateway.certificate import ends_at
from api.gateway.chores import CellChores
from api.gateway.metrics import Metrics
from api.gateway.server import Gateway, listening
from api.gateway.settings import GatewaySettings
from api.options import Config, fail, settings_of
from worker.program import alive, logs
from worker.program.background import in_background
from worker.program.command_line import program
from worker.program.configuration import ConfigurationError, help_text
from worker.program.exposition import exposed
from worker.program.span_export import exporting
from worker.store.chores.chores import Chores
from worker.store.nodes.protocol import TAKE_SECONDS
from worker.store.redis_client import connect

log = structlog.stdlib.get_logger()
app = program(add_completion=False)
app.add_typer(credential_command.app, name="credential")


@app.callback()
def start(context: typer.Context, config: Config = None) -> None:
    """The gateway between the nodes and the cell's store, and the credentials of nodes.

    Settings come from the environment and from a TOML file (--config, or VPS_SNAPSHOTS_CONFIG); see serve --help.
    """
    context.obj = config


@app.command(epilog=help_text(GatewaySettings))
def serve(context: typer.Context, config: Config = None) -> None:
    """Answer the nodes, and do the cell's chores, until SIGTERM or SIGINT."""
    metrics = Metrics()
    logs.configure(count=(metrics.log_events,))
    settings = settings_of(GatewaySettings, context, config)
    try:
        with exporting(settings.tracing, service="vps-snapshots-gateway", instance=f"{gethostname()}:{os.getpid()}"):
            uvloop.run(_serve(settings, metrics))
    except ConfigurationError as error:
        fail(str(error))
    except OSError as error:
        fail(f"can't listen on {settings.unix_socket or f'{settings.host}:{settings.port}'}: {error.strerror or error}")


async def _serve(settings: GatewaySettings, metrics: Metrics) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    turns = alive.Turns()
    async with in_background(alive.prove_alive(turns)), running(settings, metrics, turns) as address:
        log.info("gateway.listening", address=address)
        alive.tell(alive.READY)
        await stop.wait()
        alive.tell(alive.STOPPING)
        log.info("gateway.stopping")


@asynccontextmanager
async def running(settings: GatewaySettings, metrics: Metrics, turns: alive.Turns | None = None) -> AsyncIterator[str]:
    """A gateway while the block runs. `turns` watches its loops. Yields the address at which it listens. Raises
    OSError."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            exposed(metrics.registry, host=settings.metrics_host, port=settings.metrics_port)
        )
        redis = connect(settings.redis, observer=metrics.redis)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        one_each = settings.redis.model_copy(update={"max_connections": settings.connections})
        waiting = connect(one_each, command_seconds=2 * TAKE_SECONDS)
        stack.push_async_callback(waiting.aclose, close_connection_pool=True)
        chores = Chores(
            redis,
            node_silent_seconds=settings.node_silent_seconds,
            waiting_seconds=settings.waiting_seconds,
            on_stale_job=metrics.jobs_given_up.inc,
        )
        # Jobs that have waited too long fail before their node's first heartbeat: nobody expects them to run any
        # longer.
        first_lease = chores.fail_stale_jobs
        gateway = Gateway(redis, waiting, settings=settings, metrics=metrics, first_lease=first_lease)
        cell = CellChores(chores=chores, turns=turns or alive.Turns(), unreadable=metrics.schedules_unreadable.inc)
        server = await stack.enter_async_context(listening(gateway, settings))
        await stack.enter_async_context(in_background(cell.keep_doing()))
        if settings.unix_socket is None and settings.tls_cert_file is not None:
            with suppress(ValueError):  # a certificate of an unusual form must not keep the nodes out
                metrics.certificate_end.set(ends_at(settings.tls_cert_file.read_text("latin-1")))
        yield _address(server.sockets[0].getsockname())


def _address(name: tuple[str, int] | str) -> str:
    """The address as in a URL; for a Unix socket, its path."""
    if isinstance(name, str):
        return name
    host, port = name[:2]  # an IPv6 address has more parts
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main() -> None:
    app()


if __name__ == "__main__":
    main()
