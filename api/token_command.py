"""The command `token`: create, list and revoke access tokens."""

from typing import Annotated

import typer
from redis.asyncio import Redis

from api.options import Config, Lifetime, fail, print_table, record, settings_of, with_redis
from api.settings import ApiSettings
from worker.program.command_line import group
from worker.store.access.audit import Audit, AuditKeeper
from worker.store.access.tokens import NewToken, Permission, Token, Tokens
from worker.store.model import AccountId

_NAME_MAX = 64  # characters: each log line of a request has its token's name
_PERMISSIONS = ", ".join(Permission)

app = group(help="Create, list and revoke access tokens.")


def _label(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > _NAME_MAX:
        raise typer.BadParameter(f"1 to {_NAME_MAX} printable characters")
    return text


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
        bool, typer.Option("--service", help="The token acts for the account that each request names in X-Account-Id.")
    ] = False,
    expires_in: Lifetime = None,
    config: Config = None,
) -> None:
    """Create a token. Its secret is printed once, on standard output."""
    if (account is None) is not service:
        raise typer.BadParameter("specify either --account or --service")

    settings = settings_of(ApiSettings, context, config)

    async def create(redis: Redis) -> NewToken:
        new = await Tokens(redis).create(
            name=name,
            account_id=None if account is None else AccountId(account),
            permissions=frozenset(permission),
            lifetime=expires_in,
        )
        await record(audit_of(redis, settings), "token create", token=new.token.id)
        return new

    new = with_redis(settings.redis, create)
    typer.echo(f"token {new.token.id} created; its secret is shown only once:", err=True)
    typer.echo(new.secret)


@app.command("list")
def list_tokens(context: typer.Context, config: Config = None) -> None:
    """List valid tokens, without their secrets."""
    settings = settings_of(ApiSettings, context, config)
    found = with_redis(settings.redis, lambda redis: Tokens(redis).all())
    print_table(("ID", "NAME", "ACCOUNT", "PERMISSIONS", "CREATED", "EXPIRES"), [*map(_row, found)])


@app.command("revoke")
def revoke_token(
    context: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID")], config: Config = None
) -> None:
    """Revoke a token immediately."""
    settings = settings_of(ApiSettings, context, config)

    async def revoke(redis: Redis) -> bool:
        revoked = await Tokens(redis).revoke(token_id)
        if revoked:
            await record(audit_of(redis, settings), "token revoke", token=token_id)
        return revoked

    if not with_redis(settings.redis, revoke):
        fail(f"there is no token {token_id}", code=1)
    typer.echo(f"token {token_id} revoked", err=True)


def audit_of(redis: Redis, settings: ApiSettings) -> Audit:
    # removes no entries, because it does not know the time of the cell
    return Audit(redis, keeper=AuditKeeper(redis, kept=None) if settings.audit_keeper else None)


def _row(token: Token) -> list[str]:
    return [
        token.id,
        token.name,
        "service" if token.account_id is None else str(token.account_id),
        ",".join(sorted(token.permissions)),
        token.created_at.isoformat(),
        token.expires_at.isoformat() if token.expires_at else "never",
    ]
