"""The command `token`: create, list and revoke access tokens."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from getpass import getuser
from socket import gethostname
from typing import Annotated, TypeVar

import typer
from arq.connections import ArqRedis

from api.options import Config, fail, settings_of
from api.settings import ApiSettings
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.tokens import NewToken, Permission, Token, Tokens
from worker.store.errors import StoreUnavailable, TokenLimitReached
from worker.store.model import AccountId
from worker.store.redis_client import connect

Result = TypeVar("Result")

_NAME_MAX = 64  # characters: each log line of a request has its token's name
_PERMISSIONS = ", ".join(Permission)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke access tokens.")


def _label(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > _NAME_MAX:
        raise typer.BadParameter(f"1 to {_NAME_MAX} printable characters")
    return text


def _lifetime(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):  # the parser also gets the default
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("a number with a unit: 45s, 90m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@app.command("create")
def create_token(
    context: typer.Context,
    *,
    name: Annotated[
        str, typer.Option(parser=_label, metavar="NAME", help="Purpose or owner; shown in lists and logs.")
    ],
    permission: Annotated[
        list[Permission], typer.Option(metavar="PERMISSION", help=f"{_PERMISSIONS}; repeat for several.")
    ],
    account: Annotated[int | None, typer.Option(min=1, help="Account that owns the token.")] = None,
    service: Annotated[
        bool, typer.Option("--service", help="It acts for the account that each request names in X-Account-Id.")
    ] = False,
    expires_in: Annotated[
        timedelta | None, typer.Option(parser=_lifetime, metavar="30d", help="Lifetime; default: never expires.")
    ] = None,
    config: Config = None,
) -> None:
    """Create a token. Its secret is printed once, on standard output."""
    if (account is None) is not service:
        raise typer.BadParameter("specify either --account or --service")

    async def create(redis: ArqRedis, audit: Audit) -> NewToken:
        new = await Tokens(redis).create(
            name=name,
            account_id=None if account is None else AccountId(account),
            permissions=frozenset(permission),
            lifetime=expires_in,
        )
        await _record(audit, "token create", new.token.id)
        return new

    new = _with_store(settings_of(context, config), create)
    typer.echo(f"token {new.token.id} created; its secret is shown only once:", err=True)
    typer.echo(new.secret)


@app.command("list")
def list_tokens(context: typer.Context, config: Config = None) -> None:
    """List valid tokens, without their secrets."""
    rows = [["ID", "NAME", "ACCOUNT", "PERMISSIONS", "CREATED", "EXPIRES"]]
    rows += [_row(token) for token in _with_store(settings_of(context, config), lambda redis, _: Tokens(redis).all())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command("revoke")
def revoke_token(
    context: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID")], config: Config = None
) -> None:
    """Revoke a token immediately."""

    async def revoke(redis: ArqRedis, audit: Audit) -> bool:
        revoked = await Tokens(redis).revoke(token_id)
        if revoked:
            await _record(audit, "token revoke", token_id)
        return revoked

    if not _with_store(settings_of(context, config), revoke):
        fail(f"there is no token {token_id}", code=1)
    typer.echo(f"token {token_id} revoked", err=True)


async def _record(audit: Audit, what: str, token_id: str) -> None:
    entry = {"token": token_id, "method": "CLI", "path": what, "address": f"{getuser()}@{gethostname()}"}
    await audit.write(entry)


def _row(token: Token) -> list[str]:
    return [
        token.id,
        token.name,
        "service" if token.account_id is None else str(token.account_id),
        ",".join(sorted(token.permissions)),
        token.created_at.isoformat(),
        token.expires_at.isoformat() if token.expires_at else "never",
    ]


def _with_store(settings: ApiSettings, call: Callable[[ArqRedis, Audit], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        redis = connect(settings.redis)
        try:
            # it removes no entries, for it does not know the time of the cell
            keeper = AuditKeeper(redis, kept=None) if settings.audit_keeper else None
            return await call(redis, Audit(redis, keeper=keeper))
        finally:
            await redis.aclose(close_connection_pool=True)

    try:
        return asyncio.run(run())
    except TokenLimitReached as error:
        fail(error.detail, code=1)
    except StoreUnavailable as error:
        fail(f"{error.detail} ({error.__cause__})", code=1)
