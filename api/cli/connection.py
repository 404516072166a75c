"""From a command to the service, and from what it meets there to the exit code."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import typer

from api.cli.access import Access, access
from api.cli.client import Client
from api.cli.exits import Exit, Trouble
from api.cli.output import printable

PROGRAM = "vps-snapshots"
# what comes of a body that has not what the API's document says: another service's, or another version's
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


def run(context: typer.Context, action: Callable[[Client], Awaitable[Exit | None]]) -> None:
    """Let a command call the service; end with the exit code of what becomes of it."""

    async def call() -> Exit | None:
        async with connected(access(context.find_root().obj)) as client:
            return await action(client)

    try:
        code = asyncio.run(call()) or Exit.OK
    except Trouble as trouble:
        code = _told(str(trouble), trouble.exit_code)
    except BrokenPipeError:
        raise  # `| head`: for typer, which says nothing
    except OSError as error:  # the service's are Unreachable
        code = _told(f"what is printed can't be written: {error.strerror}.", Exit.REFUSED)
    except UNREADABLE as error:
        what = f"{type(error).__name__}: {error}"
        code = _told(f"What answers is not the snapshots API as this program knows it ({what}).", Exit.REFUSED)
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    raise typer.Exit(code)


def _told(text: str, code: Exit) -> Exit:
    typer.echo(f"{PROGRAM}: {printable(text)}", err=True)
    return code


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Client]:
    from api.cli import wire  # noqa: PLC0415 - to import aiohttp takes as long as all of --help

    async with wire.opened(access) as opened:
        yield Client(opened, account=access.account)
