"""Options of several commands, and the confirmation of changes."""

import re
import select
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from api.cli import completion
from api.cli.exits import CliError, Exit
from api.cli.output import printable

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def period(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):  # typer passes the default through the parser
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if match is None:
        raise typer.BadParameter("a number with a unit, such as 90m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def whole_hours(text: str | timedelta) -> timedelta:
    found = period(text)
    if found % timedelta(hours=1):
        raise typer.BadParameter("must be whole hours")
    return found


LabelChanges = Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="KEY= removes a label.")]


def label_pairs(labels: list[str]) -> dict[str, str]:
    """KEY=VALUE, as the API has labels."""
    pairs = [label.partition("=") for label in labels]
    if not all(key and equals for key, equals, _ in pairs):
        raise typer.BadParameter("labels look like KEY=VALUE")
    return {key: value for key, _, value in pairs}


def lifetime_hours(lifetime: timedelta | None) -> dict[str, Any]:
    """The body's field; if it is left out, the credential never expires."""
    return {} if lifetime is None else {"lifetime_hours": lifetime // timedelta(hours=1)}


def moment(text: str | datetime) -> datetime:
    """A timestamp, or an age."""
    if isinstance(text, datetime):
        return text
    if re.fullmatch(r"[0-9]+[mhd]", text):
        return datetime.now(UTC) - period(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise typer.BadParameter("an age (90m, 12h, 7d) or a timestamp with a time zone (2025-01-16T16:15:00Z)")
    return found.astimezone(UTC)


def _future(text: str | datetime) -> datetime:
    """A timestamp, or the time from now."""
    if isinstance(text, datetime):
        return text
    if re.fullmatch(r"[0-9]+[mhd]", text):
        return datetime.now(UTC) + period(text)
    return moment(text)


def rfc3339(when: datetime | None) -> str | None:
    return None if when is None else when.strftime("%Y-%m-%dT%H:%M:%SZ")


Json = Annotated[bool, typer.Option("--json", help="Print the API's JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Retry even if that overrides something newer, such as a later job of the server."),
]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of rows.")]
All = Annotated[bool, typer.Option("--all", help="Print all rows.")]
Reason = Annotated[str, typer.Option(help="Reason; it is recorded in the audit log.")]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Wait until the job ends; the exit code shows the result.")
]
MaxWait = Annotated[
    float | None, typer.Option(min=0.1, metavar="SECONDS", help="Stop waiting after this time; default: no limit.")
]
Lifetime = Annotated[
    timedelta | None,
    typer.Option(
        "--expires-in", parser=whole_hours, metavar="30d", help="Lifetime in whole hours; default: never expires."
    ),
]
Moment = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="WHEN", help="Age (90m, 12h, 7d) or timestamp.")
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=_future, metavar="WHEN", help="Resume after this time (90m, 12h, 7d) or at this timestamp."),
]
NextRun = Annotated[
    datetime | None,
    typer.Option(parser=_future, metavar="WHEN", help="Filter by next run: time from now (90m, 12h, 7d) or timestamp."),
]
AccountId = Annotated[int | None, typer.Option(min=1, metavar="ID", help="Filter by account.")]
ServerFilter = Annotated[
    str | None,
    typer.Option("--server-id", metavar="SERVER", help="Filter by server.", autocompletion=completion.servers),
]
NodeFilter = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="Filter by node.", autocompletion=completion.nodes)
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="ID, or at least its first 8 digits.", autocompletion=completion.jobs)
]
JobArguments = Annotated[list[str] | None, typer.Argument(metavar="JOB...", autocompletion=completion.jobs)]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", autocompletion=completion.nodes)]
NodeArguments = Annotated[list[str], typer.Argument(metavar="NODE...", autocompletion=completion.nodes)]
ServerArgument = Annotated[str, typer.Argument(metavar="SERVER", help="ID or name.", autocompletion=completion.servers)]
SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="ID or name.", autocompletion=completion.snapshots)
]


def confirm(question: str) -> None:
    """Raises Abort if the answer is no, CliError if it is Ctrl-C or there is no terminal."""
    ensure_terminal(question)
    # asyncio's handler would act only after the answer
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while not (answer := _ANSWERS.get(_asked(question))):
            if answer is False:
                raise typer.Abort
            typer.echo("Answer y or n.", err=True)
    except KeyboardInterrupt:
        typer.echo(err=True)
        raise CliError(Exit.INTERRUPTED, "Interrupted; nothing was changed.") from None
    finally:
        signal.signal(signal.SIGINT, handler)


def ensure_terminal(question: str) -> None:
    """Raises CliError if there is nobody to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CliError(Exit.USAGE, f"{question} No terminal to ask on; use --yes.")


_ANSWERS = {"y": True, "yes": True, "n": False, "no": False, "": False}


def _asked(question: str) -> str:
    typer.echo(f"{printable(question)} [y/N]: ", nl=False, err=True)
    interrupts, interrupted = socket.socketpair()
    with interrupts, interrupted:
        interrupted.setblocking(False)
        before = signal.set_wakeup_fd(interrupted.fileno())
        try:
            # input() would notice a Ctrl-C that comes just before it only after the answer; select() is interrupted by
            # it.
            select.select([sys.stdin, interrupts], [], [])
        finally:
            signal.set_wakeup_fd(before)
    return sys.stdin.readline().strip().lower()
