"""The command `credential`: create, rotate, revoke and list the credentials of nodes. It needs only Redis."""

import sys
from datetime import timedelta
from typing import Annotated

import typer
from redis.asyncio import Redis

from api.gateway.settings import GatewaySettings
from api.options import Config, Lifetime, fail, print_table, record, settings_of, span, with_redis
from worker.program.command_line import group
from worker.store.access.audit import Audit
from worker.store.access.credentials import NODE_NAME, OVERLAP, Credential, Credentials, NewCredential

app = group(help="Create, rotate, revoke and list the credentials of nodes.")


def _node(text: str) -> str:
    if not NODE_NAME.fullmatch(text):
        raise typer.BadParameter("a node's name: letters, digits, `.`, `_` and `-`, 63 at most")
    return text


Node = Annotated[str, typer.Argument(parser=_node, metavar="NODE", help="`node` of its worker.toml.")]


@app.command("create")
def create(context: typer.Context, node: Node, expires_in: Lifetime = None, config: Config = None) -> None:
    """Create a node's first credential. It is printed once, on standard output."""

    async def call(redis: Redis) -> NewCredential:
        new = await Credentials(redis).create(node, lifetime=expires_in)
        await record(Audit(redis), f"credential create {node}", made=f"node {node}")
        return new

    _show(with_redis(settings_of(GatewaySettings, context, config).redis, call))


@app.command("rotate")
def rotate(
    context: typer.Context,
    node: Node,
    expires_in: Lifetime = None,
    overlap: Annotated[
        timedelta, typer.Option(parser=span, metavar="10m", help="How long the former credential stays valid.")
    ] = OVERLAP,
    config: Config = None,
) -> None:
    """Create another credential for a node. The former one ends after the overlap.

    The new one never expires without --expires-in, even if the former one did.
    """

    async def call(redis: Redis) -> NewCredential:
        new = await Credentials(redis).rotate(node, lifetime=expires_in, overlap=overlap)
        await record(Audit(redis), f"credential rotate {node}", made=f"node {node}")
        return new

    _show(with_redis(settings_of(GatewaySettings, context, config).redis, call))


@app.command("restore")
def restore(context: typer.Context, node: Node, config: Config = None) -> None:
    """Make a node's credential valid again after Redis has lost data. Reads the credential from standard input.

    Others of the node, such as one from before a rotation, end after ten minutes.
    """
    secret = sys.stdin.read().strip()

    async def call(redis: Redis) -> None:
        await Credentials(redis).restore(node, secret)
        await record(Audit(redis), f"credential restore {node}", made=f"node {node}")

    try:
        with_redis(settings_of(GatewaySettings, context, config).redis, call)
    except ValueError as error:
        fail(f"standard input: {error}", code=1)
    typer.echo(f"the credential of node {node} is valid again", err=True)


@app.command("revoke")
def revoke(context: typer.Context, node: Node, config: Config = None) -> None:
    """Revoke all credentials of a node. Its connections are closed within a second."""

    async def call(redis: Redis) -> int:
        ended = await Credentials(redis).revoke(node)
        if ended:
            await record(Audit(redis), f"credential revoke {node}", made=f"node {node}")
        return ended

    if not with_redis(settings_of(GatewaySettings, context, config).redis, call):
        fail(f"node {node} has no credential", code=1)
    typer.echo(f"the credentials of node {node} are revoked", err=True)


@app.command("list")
def list_credentials(
    context: typer.Context,
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="Default: all nodes.")] = None,
    config: Config = None,
) -> None:
    """List the valid credentials, without their secrets."""
    settings = settings_of(GatewaySettings, context, config)
    found = with_redis(settings.redis, lambda redis: Credentials(redis).all(node and _node(node)))
    print_table(("NODE", "ID", "CREATED", "EXPIRES"), [*map(_row, found)])


def _row(one: Credential) -> list[str]:
    moments = (one.created_at, one.ends_at)
    return [one.node, one.id, *(at.isoformat(timespec="seconds") if at else "never" for at in moments)]


def _show(new: NewCredential) -> None:
    typer.echo(f"the credential of node {new.credential.node}, shown only now:", err=True)
    typer.echo(new.secret)
