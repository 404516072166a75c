"""Shared by the commands of the front end and the gateway: options, access to Redis, and errors."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from getpass import getuser
from pathlib import Path
from socket import gethostname
from typing import Annotated, NoReturn, TypeVar

import typer
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from worker.program import logs
from worker.program.configuration import ConfigurationError, FileSettings, load
from worker.store.access.audit import Audit
from worker.store.errors import Refused, StoreUnavailable
from worker.store.redis_client import RedisSettings, connect

Result = TypeVar("Result")
Settings = TypeVar("Settings", bound=FileSettings)

_KEEPER = " If vps-snapshots-audit keeps the audit log, set `audit_keeper = false` in api.toml."
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def span(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):  # the parser also gets the default
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("a number with a unit: 45s, 90m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Config = Annotated[Path | None, typer.Option(help="A TOML file with the settings; environment variables override it.")]
Lifetime = Annotated[
    timedelta | None,
    typer.Option("--expires-in", parser=span, metavar="30d", help="Lifetime; default: never expires."),
]


def settings_of(model: type[Settings], context: typer.Context, config: Path | None) -> Settings:
    try:
        return load(model, config or context.obj)
    except ConfigurationError as error:
        fail(str(error))


def with_redis(settings: RedisSettings, call: Callable[[Redis], Awaitable[Result]]) -> Result:
    """Run the call and return its result. A refusal ends the program."""

    logs.configure()  # to standard error: standard output may hold a secret that a script reads

    async def run() -> Result:
        redis = connect(settings)
        try:
            return await call(redis)
        finally:
            await redis.aclose(close_connection_pool=True)

    try:
        return asyncio.run(run())
    except StoreUnavailable as error:
        if isinstance(error.__cause__, NoPermissionError):
            fail(
                f"the Redis account {settings.username or 'default'} may not do this ({error.__cause__}).{_KEEPER}",
                code=1,
            )
        fail(f"{error.detail} ({error.__cause__})", code=1)
    except Refused as refused:
        fail(refused.detail, code=1)


async def record(audit: Audit, what: str, **fields: str) -> None:
    """Add a command to the audit log. It has taken effect even if this fails: then only a warning is printed."""
    try:
        await audit.write({**fields, "method": "CLI", "path": what, "address": f"{getuser()}@{gethostname()}"})
    except StoreUnavailable as error:
        why = f"{error.detail.rstrip('.')}{f' ({error.__cause__})' if error.__cause__ else ''}"
        may_not = _KEEPER if isinstance(error.__cause__, NoPermissionError) else ""
        typer.echo(f"warning: `{what}` was done, and may not be in the audit log: {why}.{may_not}", err=True)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fail(why: str, *, code: int = 2) -> NoReturn:
    typer.echo(f"{Path(sys.argv[0]).name}: {why}", err=True)
    sys.exit(code)
