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


def run(context: typer.Context, action: Callable[[Client], Awaitable[Exit | None]]) -> None:
    """Let a command call the service; end with the exit code of what becomes of it."""

    async def call() -> Exit | None:
        async with connected(access(context.find_root().obj)) as client:
            return await action(client)

    try:
        code = asyncio.run(call()) or Exit.OK
    except Trouble as trouble:
        typer.echo(f"{PROGRAM}: {printable(str(trouble))}", err=True)
        code = trouble.exit_code
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
    raise typer.Exit(code)


@asynccontextmanager
async def connected(access: Access) -> AsyncIterator[Client]:
    from api.cli import wire  # noqa: PLC0415 - to import aiohttp takes as long as all of --help

    async with wire.opened(access) as opened:
        yield Client(opened, account=access.account)
