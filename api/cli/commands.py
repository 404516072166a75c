"""What most commands do: ask for confirmation, call the API, and print the result as JSON or as text."""

from collections.abc import Awaitable, Callable, Sequence

import typer

from api.cli.client import Body, Client, Query
from api.cli.connection import run
from api.cli.options import confirm
from api.cli.output import Column, Output

Question = str | Callable[[Client], Awaitable[str]]


def perform(
    context: typer.Context,
    call: Callable[[Client], Awaitable[Body]],
    show: Callable[[Output, Body], None],
    *,
    as_json: bool,
    question: Question | None = None,
) -> None:
    """Ask the question, if any; then make the call and print its body as JSON or with `show`."""
    output = Output(as_json=as_json)

    async def action(client: Client) -> None:
        if question is not None:
            confirm(question if isinstance(question, str) else await question(client))
        body = await call(client)
        output.document(body) if as_json else show(output, body)

    run(context, action)


def list_all(
    context: typer.Context,
    path: str,
    query: Query,
    columns: Sequence[Column],
    *,
    limit: int | None,
    as_json: bool,
    none: str,
) -> None:
    """Print an operators' list. `limit` None: all of it. `none`: the text for an empty list."""
    perform(
        context,
        lambda client: client.collect(path, query, limit=limit),
        lambda output, body: output.list(columns, body, none=none),
        as_json=as_json,
    )
