"""Runs a command against the service, and exits with its code."""

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import typer

from api.cli.access import PROGRAM, Access, access
from api.cli.client import Client
from api.cli.exits import CliError, Exit
from api.cli.later import asyncio
from api.cli.output import printable

# raised for a body that differs from the API's document: another service, or another version of this one
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


def run(context: typer.Context, action: Callable[[Client], Awaitable[Exit | None]]) -> None:
    """Run the action and exit with its code, or with that of its error."""

    async def call() -> Exit | None:
        async with connected(access(context.find_root().obj)) as client:
            return await action(client)

    try:
        code = asyncio.run(call()) or Exit.OK
        sys.stdout.flush()
    except CliError as error:
        code = _fail(str(error), error.exit_code)
    except BrokenPipeError:  # `| head` has closed the pipe
        _discard_output()
        code = Exit.OK
    except OSError as error:  # network errors are Unreachable
        code = _fail(f"Cannot write the output: {error.strerror}.", Exit.REFUSED)
    except UNREADABLE as error:
        what = f"{type(error).__name__}: {error}"
        code = _fail(
            f"The response is not from the snapshots API, or from another version of it ({what}).", Exit.REFUSED
        )
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    raise typer.Exit(code)


def _discard_output() -> None:
    """Python would write the buffered output at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _fail(text: str, code: Exit) -> Exit:
    typer.echo(f"{PROGRAM}: {printable(text)}", err=True)
    return code


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Client]:
    from api.cli import wire  # noqa: PLC0415 - importing aiohttp takes as long as all of --help

    async with wire.opened(access) as opened:
        yield Client(opened, account=access.account)
