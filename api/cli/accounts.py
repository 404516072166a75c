"""Commands for an account's limits."""

from typing import Annotated

import typer

from api.cli.client import Body, Client
from api.cli.commands import perform
from api.cli.options import Json, Yes
from api.cli.output import Output
from worker.program.command_line import group
from worker.store.model import SNAPSHOTS_PER_SERVER, SNAPSHOTS_PER_SERVER_MOST

app = group()

AccountArgument = Annotated[int, typer.Argument(metavar="ACCOUNT", min=1)]
Snapshots = Annotated[
    int | None,
    typer.Option(
        "--snapshots",
        min=1,
        max=SNAPSHOTS_PER_SERVER_MOST,
        help=f"Snapshots that each server may have; without the option: the default, {SNAPSHOTS_PER_SERVER}.",
    ),
]


@app.command("show")
def show_account(context: typer.Context, account: AccountArgument, *, as_json: Json = False) -> None:
    """Show the limits of an account."""

    async def get(client: Client) -> Body:
        return await client.get(f"ops/accounts/{account}/")

    perform(context, get, _show, as_json=as_json)


@app.command("limit")
def limit_account(
    context: typer.Context,
    account: AccountArgument,
    *,
    snapshots: Snapshots = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Set how many snapshots each server of an account may have."""

    async def put(client: Client) -> Body:
        return (await client.put(f"ops/accounts/{account}/", {"snapshots_max": snapshots})).body

    most = snapshots or f"{SNAPSHOTS_PER_SERVER}, the default,"
    question = None if yes else f"Allow {most} snapshots to each server of account {account}?"
    perform(context, put, _show, as_json=as_json, question=question)


def _show(output: Output, account: Body) -> None:
    most = f"{account['snapshots_max']}{' (the default)' if account['is_default'] else ''}"
    output.facts(
        (
            ("account", str(account["account_id"])),
            ("snapshots for each server", most),
            ("servers", str(account["servers"])),
        )
    )
