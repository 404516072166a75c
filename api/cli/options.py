"""The options that many commands have, and the question before a change."""

import re
import select
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api.cli import completion
from api.cli.exits import Exit, Trouble
from api.cli.output import printable

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def period(text: str | timedelta) -> timedelta:
    if isinstance(text, timedelta):  # a default is given to the parser too
        return text
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if match is None:
        raise typer.BadParameter("a number with its unit: 90m, 12h or 30d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def moment(text: str | datetime) -> datetime:
    """A moment itself, or how long ago it was."""
    if isinstance(text, datetime):
        return text
    if re.fullmatch(r"[0-9]+[mhd]", text):
        return datetime.now(UTC) - period(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise typer.BadParameter("how long ago (90m, 12h, 7d), or a moment with its zone: 2025-01-16T16:15:00Z")
    return found.astimezone(UTC)


def rfc3339(when: datetime | None) -> str | None:
    return None if when is None else when.strftime("%Y-%m-%dT%H:%M:%SZ")


Json = Annotated[bool, typer.Option("--json", help="The API's own JSON, for programs.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]
All = Annotated[bool, typer.Option("--all", help="All of them, however many.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for the job's end; the exit code tells it.")]
MaxWait = Annotated[
    float | None, typer.Option(min=0.1, metavar="SECONDS", help="Wait no longer; without it: to the end.")
]
Moment = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="WHEN", help="How long ago (90m, 12h, 7d), or a moment.")
]
AccountId = Annotated[int | None, typer.Option(min=1, metavar="ID", help="Of this account only.")]
ServerFilter = Annotated[int | None, typer.Option("--server-id", min=1, metavar="ID", help="Of this server only.")]
NodeFilter = Annotated[
    str | None, typer.Option("--node", metavar="NAME", help="Of this node only.", autocompletion=completion.nodes)
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", autocompletion=completion.jobs)]
JobArguments = Annotated[list[str] | None, typer.Argument(metavar="JOB...", autocompletion=completion.jobs)]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", autocompletion=completion.nodes)]
ServerArgument = Annotated[int, typer.Argument(metavar="SERVER", min=1, autocompletion=completion.servers)]
SnapshotArgument = Annotated[int, typer.Argument(metavar="SNAPSHOT", min=1, autocompletion=completion.snapshots)]


def confirm(question: str, *, yes: bool) -> None:
    """Go on, or raise Abort for a no and Trouble where nobody can be asked."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Trouble(Exit.USAGE, f"{question} Nobody can be asked here: give --yes.")
    asyncios = signal.signal(signal.SIGINT, signal.default_int_handler)  # which would wait for the answer first
    try:
        while not (answer := _ANSWERS.get(_asked(question))):
            if answer is False:
                raise typer.Abort
            typer.echo("Error: invalid input", err=True)
    except KeyboardInterrupt:
        raise typer.Abort from None
    finally:
        signal.signal(signal.SIGINT, asyncios)


_ANSWERS = {"y": True, "yes": True, "n": False, "no": False, "": False}


def _asked(question: str) -> str:
    typer.echo(f"{printable(question)} [y/N]: ", nl=False, err=True)
    interrupts, interrupted = socket.socketpair()
    with interrupts, interrupted:
        interrupted.setblocking(False)
        before = signal.set_wakeup_fd(interrupted.fileno())
        try:
            # A Ctrl-C right before input() blocks would be seen only after the answer; select() returns for it.
            select.select([sys.stdin, interrupts], [], [])
        finally:
            signal.set_wakeup_fd(before)
    return sys.stdin.readline().strip().lower()
