"""The commands, put together."""

from pathlib import Path
from typing import Annotated

import typer

from api.cli import bulk, cell, jobs, nodes, servers, snapshots, tokens, top
from api.cli.access import TOKEN_VARIABLE, Options
from api.cli.connection import PROGRAM
from api.cli.exits import MEANING

_LOOK, _ACT, _ADMINISTER = "Look", "Act", "Who may, and who did"
_EXITS = "\n\n".join(["Exit codes:", *(f"{code.value}: {meaning}" for code, meaning in MEANING.items())])

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, epilog=_EXITS)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - nobody else needs it

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    *,
    url: Annotated[
        str, typer.Option(envvar="VPS_SNAPSHOTS_URL", help="Where the service is.")
    ] = "http://127.0.0.1:8080",
    token_file: Annotated[
        Path | None,
        typer.Option(envvar=f"{TOKEN_VARIABLE}_FILE", help=f"A file with the token; goes before {TOKEN_VARIABLE}."),
    ] = None,
    account: Annotated[
        int | None,
        typer.Option(envvar="VPS_SNAPSHOTS_ACCOUNT", min=1, help="The account for which a service's token acts."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For each call to the service.")] = 30.0,
    version: Annotated[  # noqa: ARG001 - its callback has done it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Look after the snapshot service, over its HTTP API.

    The token comes from VPS_SNAPSHOTS_TOKEN or from a file, never from an argument, which others could see. With --json
    a command prints the API's own JSON. What changes something asks first; --yes answers that.
    """
    context.obj = Options(url=url, token_file=token_file, account=account, timeout_seconds=timeout)


for name, command, panel in (
    ("top", top.top, _LOOK),
    ("overview", cell.show_overview, _LOOK),
    ("events", cell.follow_events, _LOOK),
    ("jobs", jobs.list_jobs, _LOOK),
    ("nodes", nodes.list_nodes, _LOOK),
    ("servers", servers.list_servers, _LOOK),
    ("snapshots", snapshots.list_snapshots, _LOOK),
    ("findings", servers.list_findings, _LOOK),
    ("retry", bulk.retry_jobs, _ACT),
    ("cancel", bulk.cancel_jobs, _ACT),
    ("reconcile", nodes.reconcile_nodes, _ACT),
    ("tokens", tokens.list_tokens, _ADMINISTER),
    ("audit", tokens.show_audit, _ADMINISTER),
):
    app.command(name, rich_help_panel=panel)(command)

for name, group, panel in (
    ("job", jobs.app, _ACT),
    ("node", nodes.app, _ACT),
    ("server", servers.app, _LOOK),
    ("snapshot", snapshots.app, _ACT),
    ("token", tokens.app, _ADMINISTER),
):
    app.add_typer(group, name=name, rich_help_panel=panel)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
