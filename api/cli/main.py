"""The program `vps-snapshots`: global options and all commands."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from api.cli import (
    accounts,
    bulk,
    cell,
    contexts,
    find,
    jobs,
    nodes,
    profiles,
    schedules,
    servers,
    snapshots,
    tokens,
    top,
    webhooks,
)
from api.cli.access import DEFAULT_URL, TOKEN_VARIABLE, Options
from api.cli.connection import PROGRAM
from api.cli.exits import Exit
from api.cli.help import Sections

_VIEW, _ACT, _ADMINISTER = "View", "Act", "Access and audit"
# \b: the lines are printed as they are
_EXITS = "\n".join(["\b", "Exit codes:", *(f"  {code.value}: {code.meaning}" for code in Exit)])

app = typer.Typer(
    cls=Sections, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, epilog=_EXITS
)


def _version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version  # noqa: PLC0415 - only needed here

        typer.echo(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    *,
    url: Annotated[
        str | None, typer.Option(envvar="VPS_SNAPSHOTS_URL", help=f"URL of the service; default {DEFAULT_URL}.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--context",
            envvar="VPS_SNAPSHOTS_CONTEXT",
            help="Context to use; default: the one selected with `context use`.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar=f"{TOKEN_VARIABLE}_FILE", help=f"File with the token; takes precedence over {TOKEN_VARIABLE}."
        ),
    ] = None,
    account: Annotated[
        int | None, typer.Option(envvar="VPS_SNAPSHOTS_ACCOUNT", min=1, help="Account that a service token acts for.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Limit for each call to the service.")
    ] = 30.0,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Operate the snapshot service through its HTTP API.

    The token is read from VPS_SNAPSHOTS_TOKEN, a file or a context. It cannot be an argument, which other users could
    see.

    Commands that change something ask for confirmation; --yes skips it. --json prints the API's own JSON.
    """
    context.obj = Options(
        url=url,
        token_file=token_file,
        account=account,
        timeout_seconds=timeout,
        profile=lambda: profiles.profile(name),
    )


for name, command, panel in (
    ("top", top.top, _VIEW),
    ("overview", cell.show_overview, _VIEW),
    ("find", find.find, _VIEW),
    ("events", cell.follow_events, _VIEW),
    ("jobs", jobs.list_jobs, _VIEW),
    ("nodes", nodes.list_nodes, _VIEW),
    ("servers", servers.list_servers, _VIEW),
    ("snapshots", snapshots.list_snapshots, _VIEW),
    ("schedules", schedules.list_schedules, _VIEW),
    ("webhooks", webhooks.list_webhooks, _VIEW),
    ("findings", servers.list_findings, _VIEW),
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
    ("server", servers.app, _VIEW),
    ("snapshot", snapshots.app, _ACT),
    ("account", accounts.app, _ADMINISTER),
    ("schedule", schedules.app, _ACT),
    ("webhook", webhooks.app, _ACT),
    ("token", tokens.app, _ADMINISTER),
    ("context", contexts.app, _ADMINISTER),
):
    app.add_typer(group, name=name, rich_help_panel=panel)


def main() -> None:
    if sys.stdout is None:  # closed, as by `>&-`: nobody wants the output
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the exit
    app()


if __name__ == "__main__":
    main()
