"""The program `vps-snapshots`: global options and all commands."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.access import DEFAULT_URL, PROGRAM, TOKEN_VARIABLE, Options, Profile
from api.cli.exits import Exit
from api.cli.later import Later
from worker.program.command_line import Sections, program

_VIEW, _ACT, _ADMINISTER = "View", "Act", "Access and audit"
# \b: the lines are printed as they are
_EXITS = "\n".join(["\b", "Exit codes:", *(f"  {code.value}: {code.meaning}" for code in Exit)])

COMMANDS = (
    Later(
        "top",
        "api.cli.top:top",
        _VIEW,
        "Monitor the cell: stranded servers, nodes, and jobs with their steps. Press q or Ctrl-C to quit.",
    ),
    Later("overview", "api.cli.cell:show_overview", _VIEW, "Show an overview of the cell."),
    Later(
        "find",
        "api.cli.find:find",
        _VIEW,
        """Find a server, snapshot, job, account, node, token or request by its ID or name.

        Jobs are found by 8 digits or more, deleted snapshots by their ID for 30 days, requests by their whole ID. If
        one thing is meant, its details are shown; of a token or a request, what it did.
        """,
    ),
    Later(
        "events",
        "api.cli.cell:follow_events",
        _VIEW,
        "Follow job events until Ctrl-C. --json prints a line per event.",
    ),
    Later(
        "jobs",
        "api.cli.jobs:list_jobs",
        _VIEW,
        "List jobs, newest first. An account token lists its own jobs, by state, server and time.",
    ),
    Later("nodes", "api.cli.nodes:list_nodes", _VIEW, "List nodes with their load and free storage."),
    Later("servers", "api.cli.servers:list_servers", _VIEW, "List servers."),
    Later(
        "snapshots",
        "api.cli.snapshots:list_snapshots",
        _VIEW,
        "List an account's snapshots. An operator token lists those of one server.",
    ),
    Later(
        "schedules",
        "api.cli.schedules:list_schedules",
        _VIEW,
        """List an account's schedules, newest first: those by label, then those of one server.

        An operator token lists the enabled schedules of all accounts by their next run.
        """,
    ),
    Later("webhooks", "api.cli.webhooks:list_webhooks", _VIEW, "List an account's webhooks, newest first."),
    Later(
        "findings",
        "api.cli.servers:list_findings",
        _VIEW,
        "List findings, newest first, refused claims of nodes, and unreadable records.",
    ),
    Later("retry", "api.cli.bulk:retry_jobs", _ACT, "Retry failed jobs, by ID or by --match."),
    Later("cancel", "api.cli.bulk:cancel_jobs", _ACT, "Cancel queued jobs, by ID or by --match."),
    Later(
        "reconcile",
        "api.cli.nodes:reconcile_nodes",
        _ACT,
        "Compare nodes' disks and snapshots with the service's records now. `findings` lists the differences.",
    ),
    Later("tokens", "api.cli.tokens:list_tokens", _ADMINISTER, "List valid tokens, without their secrets."),
    Later(
        "audit",
        "api.cli.tokens:show_audit",
        _ADMINISTER,
        "Show the audit log, newest first: every request that changes something.",
    ),
    Later("job", "api.cli.jobs:app", _ACT, "Show, follow, retry, cancel or resolve a job."),
    Later(
        "node",
        "api.cli.nodes:app",
        _ACT,
        "Show, drain, resume or reconcile a node, and manage its credentials.",
    ),
    Later("server", "api.cli.servers:app", _VIEW, "Show a server, or set its node or its account."),
    Later(
        "snapshot",
        "api.cli.snapshots:app",
        _ACT,
        "Show, create, change, restore or delete a snapshot, or undo a restore (account token).",
    ),
    Later("account", "api.cli.accounts:app", _ADMINISTER, "Show or set the limits of an account."),
    Later(
        "schedule",
        "api.cli.schedules:app",
        _ACT,
        "Create, change or delete a schedule, which makes snapshots of servers (account token).",
    ),
    Later(
        "webhook",
        "api.cli.webhooks:app",
        _ACT,
        "Create, test, change or delete a webhook, and send its deliveries again (account token).",
    ),
    Later("token", "api.cli.tokens:app", _ADMINISTER, "Create or revoke an API token."),
    Later(
        "context",
        "api.cli.contexts:app",
        _ADMINISTER,
        "Create, use, list or delete a context: a service's URL and token under a name.",
    ),
)


class Commands(Sections):
    """All commands of the program."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for command in COMMANDS:
            self.add_command(command)


app = program(cls=Commands, epilog=_EXITS)


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
        profile=lambda: _profile(name),
    )


def _profile(name: str | None) -> Profile | None:
    from api.cli.profiles import profile  # noqa: PLC0415 - not needed by --help

    return profile(name)


def main() -> None:
    if sys.stdout is None:  # closed, as by `>&-`: nobody wants the output
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the exit
    app()


if __name__ == "__main__":
    main()
