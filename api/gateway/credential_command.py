"""The command `credential`: create, rotate, revoke and list the credentials of nodes."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from getpass import getuser
from pathlib import Path
from socket import gethostname
from typing import Annotated, NoReturn, TypeVar

import typer

from api.gateway.settings import GatewaySettings
from worker.program.configuration import ConfigurationError, load
from worker.store.access.audit import Audit
from worker.store.access.credentials import NODE_NAME, OVERLAP, Credential, Credentials, HasCredential
from worker.store.errors import StoreUnavailable
from worker.store.redis_client import connect

Result = TypeVar("Result")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

app = typer.Typer(no_args_is_help=True, help="Create, rotate, revoke and list the credentials of nodes.")


def _node(text: str) -> str:
    if not NODE_NAME.fullmatch(text):
        raise typer.BadParameter("a node's name: letters, digits, `.`, `_` and `-`, 63 at most")
    return text


def _span(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):  # the parser also gets the default
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", text)
    if match is None:
        raise typer.BadParameter("a number with a unit: 45s, 90m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Node = Annotated[str, typer.Argument(parser=_node, metavar="NODE", help="`node` of its worker.toml.")]
Lifetime = Annotated[
    timedelta | None,
    typer.Option("--expires-in", parser=_span, metavar="90d", help="How long it is valid; by default until revoked."),
]
Config = Annotated[Path | None, typer.Option(help="A TOML file with the gateway's settings.")]


@app.command("create")
def create(context: typer.Context, node: Node, expires_in: Lifetime = None, config: Config = None) -> None:
    """Create a node's first credential. It is printed on standard output, and only this once."""
    try:
        secret = _with_store(
            context, config, lambda store: store.create(node, lifetime=expires_in), f"credential create {node}"
        )
    except HasCredential:
        _fail(f"node {node} has a credential; use rotate")
    _show(node, secret)


@app.command("rotate")
def rotate(
    context: typer.Context,
    node: Node,
    expires_in: Lifetime = None,
    overlap: Annotated[
        timedelta, typer.Option(parser=_span, metavar="10m", help="How long the former one stays valid.")
    ] = OVERLAP,
    config: Config = None,
) -> None:
    """Create another credential for a node. The former one ends after the overlap."""
    secret = _with_store(
        context,
        config,
        lambda store: store.rotate(node, lifetime=expires_in, overlap=overlap),
        f"credential rotate {node}",
    )
    _show(node, secret)


@app.command("restore")
def restore(context: typer.Context, node: Node, config: Config = None) -> None:
    """Make the credential that a node has valid again after the store has lost its data. Reads standard input."""
    secret = sys.stdin.read().strip()
    try:
        _with_store(context, config, lambda store: store.restore(node, secret), f"credential restore {node}")
    except ValueError:
        _fail("standard input holds no credential")
    except HasCredential:
        _fail(f"node {node} has a credential; use rotate")
    typer.echo(f"node {node} has its credential again", err=True)


@app.command("revoke")
def revoke(context: typer.Context, node: Node, config: Config = None) -> None:
    """End all credentials of a node. Its connections are cut within a second."""
    if not _with_store(context, config, lambda store: store.revoke(node), f"credential revoke {node}"):
        _fail(f"node {node} has no credential")
    typer.echo(f"the credentials of node {node} are revoked", err=True)


@app.command("list")
def list_credentials(
    context: typer.Context,
    node: Annotated[str | None, typer.Argument(metavar="NODE", help="By default of all nodes.")] = None,
    config: Config = None,
) -> None:
    """List the valid credentials, without their secrets."""
    rows = [["NODE", "ID", "CREATED", "EXPIRES"]]
    rows += [_row(one) for one in _with_store(context, config, lambda store: store.all(node and _node(node)))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(one: Credential) -> list[str]:
    moments = (one.created_at, one.ends_at)
    return [one.node, one.id, *(at.isoformat(timespec="seconds") if at else "never" for at in moments)]


def _show(node: str, secret: str) -> None:
    typer.echo(f"the credential of node {node}, shown only now:", err=True)
    typer.echo(secret)


def _with_store(
    context: typer.Context,
    config: Path | None,
    call: Callable[[Credentials], Awaitable[Result]],
    audited: str = "",
) -> Result:
    """What the call answers. `audited`: the entry of the audit log, "" for none."""
    try:
        settings = load(GatewaySettings, config or context.obj)
        return asyncio.run(_asked(settings, call, audited))
    except ConfigurationError as error:
        _fail(str(error), code=2)
    except StoreUnavailable as error:
        _fail(f"{error.detail} ({error.__cause__})")


async def _asked(settings: GatewaySettings, call: Callable[[Credentials], Awaitable[Result]], audited: str) -> Result:
    redis = connect(settings.redis)
    try:
        answer = await call(Credentials(redis))
        if audited and answer is not False and answer != 0:
            entry = {"method": "CLI", "path": audited, "address": f"{getuser()}@{gethostname()}"}
            await Audit(redis).write(entry)
        return answer
    finally:
        await redis.aclose(close_connection_pool=True)


def _fail(why: str, *, code: int = 1) -> NoReturn:
    typer.echo(f"vps-snapshots-gateway: {why}", err=True)
    sys.exit(code)
