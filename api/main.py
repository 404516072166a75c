"""The front end's program: the only place of `api` that knows how it is all wired."""

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from getpass import getuser
from pathlib import Path
from socket import gethostname
from typing import Annotated, NoReturn, TypeVar

import structlog
import typer
import uvloop
from arq.connections import ArqRedis

from api.app import build
from api.http.server import listening
from api.measures.metrics import Metrics
from api.settings import ApiSettings
from worker.program import logs
from worker.program.configuration import ConfigurationError, help_text, load
from worker.program.span_export import exporting
from worker.store.access.audit import Audit
from worker.store.access.tokens import NewToken, Permission, Token, Tokens
from worker.store.errors import StoreUnavailable
from worker.store.model import AccountId
from worker.store.redis_client import connect

Result = TypeVar("Result")

_NAME_MAX = 64  # characters of a token's name: it stands in every log line of its requests
_PERMISSIONS = ", ".join(Permission)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
token_app = typer.Typer(no_args_is_help=True, help="Create, list and revoke access tokens.")
app.add_typer(token_app, name="token")


def _label(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > _NAME_MAX:
        raise typer.BadParameter(f"1 to {_NAME_MAX} printable characters")
    return text


def _lifetime(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):  # a default is given to the parser too
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("a number with its unit: 45s, 90m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Config = Annotated[Path | None, typer.Option(help="A TOML file with the settings; the environment goes before it.")]


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
    settings = _settings(context, config)
    metrics = Metrics()
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logs.configure(level=level, count=(metrics.log_events,))
    try:
        with exporting(settings.tracing, service="vps-snapshots-api", instance=f"{gethostname()}:{os.getpid()}"):
            uvloop.run(_serve(settings, metrics))
    except ConfigurationError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"can't listen on {_address(settings)}: {error.strerror or error}")


@token_app.command("create")
def create_token(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Option(parser=_label, metavar="NAME", help="What it is for; shown in lists and logs.")],
    permission: Annotated[
        list[Permission], typer.Option(metavar="PERMISSION", help=f"{_PERMISSIONS}; may be given several times.")
    ],
    account: Annotated[int | None, typer.Option(min=1, help="The account that it belongs to.")] = None,
    service: Annotated[
        bool, typer.Option("--service", help="Acts for the account that each request names in X-Account-Id.")
    ] = False,
    expires_in: Annotated[
        timedelta | None, typer.Option(parser=_lifetime, metavar="30d", help="Its lifetime; without it, no end.")
    ] = None,
    config: Config = None,
) -> None:
    """Make a token. It is printed on standard output, this once, and nowhere kept."""
    if (account is None) is not service:
        raise typer.BadParameter("give either --account or --service")

    async def create(redis: ArqRedis, audit: Audit) -> NewToken:
        new = await Tokens(redis).create(
            name=name,
            account_id=None if account is None else AccountId(account),
            permissions=frozenset(permission),
            lifetime=expires_in,
        )
        await _write_down(audit, "token create", new.token.id)
        return new

    new = _with_store(_settings(context, config), create)
    typer.echo(f"token {new.token.id}, shown only now:", err=True)
    typer.echo(new.secret)


@token_app.command("list")
def list_tokens(context: typer.Context, config: Config = None) -> None:
    """Show the valid tokens, never their secrets."""
    rows = [["ID", "NAME", "ACCOUNT", "PERMISSIONS", "CREATED", "EXPIRES"]]
    rows += [_row(token) for token in _with_store(_settings(context, config), lambda redis, _: Tokens(redis).all())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@token_app.command("revoke")
def revoke_token(
    context: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID")], config: Config = None
) -> None:
    """End a token at once."""

    async def revoke(redis: ArqRedis, audit: Audit) -> bool:
        revoked = await Tokens(redis).revoke(token_id)
        if revoked:
            await _write_down(audit, "token revoke", token_id)
        return revoked

    if not _with_store(_settings(context, config), revoke):
        _refuse(f"there is no token {token_id}", code=1)
    typer.echo(f"token {token_id} revoked", err=True)


async def _write_down(audit: Audit, what: str, token_id: str) -> None:
    entry = {"token": token_id, "method": "CLI", "path": what, "address": f"{getuser()}@{gethostname()}"}
    await audit.write(entry, now=datetime.now(UTC))


def _row(token: Token) -> list[str]:
    return [
        token.id,
        token.name,
        "service" if token.account_id is None else str(token.account_id),
        ",".join(sorted(token.permissions)),
        token.created_at.isoformat(),
        token.expires_at.isoformat() if token.expires_at else "never",
    ]


def _settings(context: typer.Context, config: Path | None) -> ApiSettings:
    try:
        return load(ApiSettings, config or context.obj)
    except ConfigurationError as error:
        _refuse(str(error))


def _refuse(why: str, *, code: int = 2) -> NoReturn:
    typer.echo(f"vps-snapshots-api: {why}", err=True)
    sys.exit(code)


def _with_store(settings: ApiSettings, call: Callable[[ArqRedis, Audit], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        redis = connect(settings.redis)
        try:
            return await call(redis, Audit(redis, kept=timedelta(days=settings.audit_days)))
        finally:
            await redis.aclose(close_connection_pool=True)

    try:
        return asyncio.run(run())
    except StoreUnavailable as error:
        _refuse(f"{error.detail} ({error.__cause__})", code=1)


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
    """As it is written in a URL; a socket's is its path."""
    if isinstance(address, str):
        return address
    host, port = address[:2]  # of IPv6 there is more
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _address(settings: ApiSettings) -> str:
    return str(settings.unix_socket) if settings.unix_socket is not None else f"{settings.host}:{settings.port}"


def main() -> None:
    app()
