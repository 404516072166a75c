"""Commands for contexts."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer

from api.cli import profiles
from api.cli.access import DEFAULT_URL, checked_token, checked_url
from api.cli.exits import CliError, Exit
from api.cli.options import Json, Yes, confirm
from api.cli.output import Column, Output
from worker.program.command_line import group

app = group()

COLUMNS = (
    Column(title="CONTEXT", of=lambda one: one["name"]),
    Column(title="CURRENT", of=lambda one: "yes" if one["current"] else "", yields=1),
    Column(title="URL", of=lambda one: one["url"]),
    Column(title="ACCOUNT", of=lambda one: one["account"] or "-", yields=2, right=True),
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME")]


@app.command("list")
def list_contexts(*, as_json: Json = False) -> None:
    """List the contexts, without their tokens."""
    output = Output(as_json=as_json)
    with _ending():
        known = profiles.read()
    rows = [
        {"name": name, "current": name == known["current"], "url": one["url"], "account": one["account"]}
        for name, one in sorted(known["contexts"].items())
    ]
    if as_json:
        output.document({"results": rows})
    else:
        output.table(COLUMNS, rows, none="No contexts. To create one: vps-snapshots context create NAME")


@app.command("create")
def create_context(context: typer.Context, name: NameArgument, *, as_json: Json = False) -> None:
    """Create or replace a context, and use it.

    It stores the URL and account of the global options, and the token of VPS_SNAPSHOTS_TOKEN or --token-file, or
    else the token that you type or pipe in.
    """
    given = context.find_root().obj
    with _ending():
        url = checked_url(given.url or DEFAULT_URL)
        token = checked_token(given.token() or _typed())
        known = profiles.read()
        known["contexts"][name] = {"url": url, "account": given.account, "token": token}
        known["current"] = name
        profiles.write(known)
    _say(f"context {name} created and used; its token is in {profiles.file()}", {"name": name}, as_json=as_json)


@app.command("use")
def use_context(name: NameArgument, *, as_json: Json = False) -> None:
    """Use a context from now on."""
    _change(name, lambda known: known.update(current=name))
    _say(f"using context {name}", {"name": name}, as_json=as_json)


@app.command("delete")
def delete_context(name: NameArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Delete a context and its token from this machine. The token stays valid."""

    def delete(known: dict[str, Any]) -> None:
        if not yes:
            confirm(f"Delete context {name} and its token from this machine?")
        del known["contexts"][name]
        known["current"] = None if known["current"] == name else known["current"]

    _change(name, delete)
    _say(f"context {name} deleted; its token is still valid", {"name": name}, as_json=as_json)


def _change(name: str, change: Any) -> None:
    with _ending():
        known = profiles.read()
        if name not in known["contexts"]:
            _refuse(name)
        change(known)
        profiles.write(known)


def _typed() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Token", hide_input=True, err=True))
    return sys.stdin.read()


def _say(text: str, body: dict[str, Any], *, as_json: bool) -> None:
    output = Output(as_json=as_json)
    output.document(body) if as_json else output.say(text)


def _refuse(name: str) -> NoReturn:
    raise CliError(Exit.NOT_FOUND, f"There is no context {name}. See: vps-snapshots context list")


@contextmanager
def _ending() -> Iterator[None]:
    """End the command on a CliError."""
    try:
        yield
    except CliError as error:
        typer.echo(f"vps-snapshots: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
