"""Commands for the credentials of nodes."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from api.cli import formats
from api.cli.client import Body, Client, segment
from api.cli.commands import perform
from api.cli.files import private
from api.cli.options import Json, Lifetime, NodeArgument, Yes, lifetime_hours, period
from api.cli.output import Column, Output
from worker.program.command_line import group

app = group(help="Create, rotate, revoke or list a node's credentials.")

COLUMNS = (
    Column(title="CREDENTIAL", of=lambda credential: credential["id"]),
    Column(title="NODE", of=lambda credential: credential["node"]),
    Column(title="CREATED (UTC)", of=lambda credential: formats.at(credential["created_at"])),
    Column(title="EXPIRES (UTC)", of=lambda credential: formats.at(credential["expires_at"])),
)

Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the secret to this file, which only you can read; default: print it."),
]


@app.command("create")
def create_credential(
    context: typer.Context,
    node: NodeArgument,
    *,
    expires_in: Lifetime = None,
    out: Out = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create a node's first credential. Its secret is shown only once."""
    body: Body = lifetime_hours(expires_in)
    question = None if yes else f"Create a credential for node {node}?"
    _make(context, f"{_path(node)}", body, out=out, as_json=as_json, question=question)


@app.command("rotate")
def rotate_credential(
    context: typer.Context,
    node: NodeArgument,
    *,
    expires_in: Lifetime = None,
    overlap: Annotated[
        timedelta, typer.Option(parser=period, metavar="10m", help="How long the former credential stays valid.")
    ] = timedelta(minutes=10),
    out: Out = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create another credential for a node. The former one ends after the overlap.

    The new one never expires without --expires-in, even if the former one did.
    """
    body: Body = lifetime_hours(expires_in) | {"overlap_minutes": overlap // timedelta(minutes=1)}
    question = None if yes else f"Rotate the credential of node {node}? The former one ends after the overlap."
    _make(context, f"{_path(node)}rotate/", body, out=out, as_json=as_json, question=question)


@app.command("revoke")
def revoke_credentials(context: typer.Context, node: NodeArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Revoke all credentials of a node. Its connections end within a second."""

    async def revoke(client: Client) -> Body:
        await client.delete(_path(node))
        return {"node": node}

    perform(
        context,
        revoke,
        lambda output, _: output.say(f"the credentials of node {node} are revoked"),
        as_json=as_json,
        question=None if yes else f"Revoke the credentials of node {node}? It gets no more jobs.",
    )


@app.command("list")
def list_credentials(context: typer.Context, node: NodeArgument, *, as_json: Json = False) -> None:
    """List a node's valid credentials, without their secrets."""
    perform(
        context,
        lambda client: client.get(_path(node)),
        lambda output, listed: output.list(COLUMNS, listed, none=f"Node {node} has no valid credential."),
        as_json=as_json,
    )


def _path(node: str) -> str:
    return f"ops/nodes/{segment(node)}/credentials/"


def _make(
    context: typer.Context, path: str, body: Body, *, out: Path | None, as_json: bool, question: str | None
) -> None:
    def made(new: Body) -> str:
        return f"credential {new['id']} of node {new['node']}"

    make_secret(context, path, body, made, out=out, as_json=as_json, question=question)


def make_secret(
    context: typer.Context,
    path: str | Callable[[Client], Awaitable[str]],
    body: Body | None,
    made: Callable[[Body], str],
    *,
    out: Path | None,
    as_json: bool,
    question: str | None,
) -> None:
    """Create something with a secret, which is written to `out` or printed. `made`: describes it, from the response's
    body."""

    async def make(client: Client) -> Body:
        to = path if isinstance(path, str) else await path(client)
        if out is None:
            return await client.post(to, body)
        with private(out) as file:  # opened before the call: the secret cannot be read again
            new = await client.post(to, body)
            file.write_text(f"{new.pop('secret')}\n")
        return new

    def show(output: Output, new: Body) -> None:
        where = "its secret is shown only once:" if out is None else f"its secret is in {out}"
        output.note(f"{made(new)} created; {where}")
        if out is None:
            typer.echo(new["secret"])

    perform(context, make, show, as_json=as_json, question=question)
