"""Access tokens, and who did what with them."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from api.cli import shown
from api.cli.client import Body, Client, segment
from api.cli.connection import run
from api.cli.options import AccountId, All, Json, Limit, Moment, Yes, confirm, period, rfc3339
from api.cli.output import Column, Output

app = typer.Typer(no_args_is_help=True, help="One access token: create, revoke.")


class Permission(StrEnum):
    READ = "snapshots:read"
    WRITE = "snapshots:write"
    OPERATOR = "operator"


class Method(StrEnum):
    POST = "POST"
    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"
    CLI = "CLI"


COLUMNS = (
    Column(title="TOKEN", of=lambda token: token["id"]),
    Column(title="NAME", of=lambda token: token["name"]),
    Column(title="ACCOUNT", of=lambda token: token["account_id"] or "-", right=True),
    Column(title="PERMISSIONS", of=lambda token: ", ".join(token["permissions"])),
    Column(title="CREATED (UTC)", of=lambda token: shown.at(token["created_at"]), yields=2),
    Column(title="EXPIRES (UTC)", of=lambda token: shown.at(token["expires_at"]), yields=1),
)
AUDIT_COLUMNS = (
    Column(title="AT (UTC)", of=lambda entry: shown.at(entry["at"])),
    Column(title="WHO", of=lambda entry: entry["fields"].get("token_name") or entry["fields"].get("token", "-")),
    Column(title="METHOD", of=lambda entry: entry["fields"].get("method", "-"), yields=3),
    Column(title="PATH", of=lambda entry: entry["fields"].get("path", "-")),
    Column(title="STATUS", of=lambda entry: entry["fields"].get("status", "-"), yields=1, right=True),
    Column(title="CODE", of=lambda entry: entry["fields"].get("code", ""), yields=4),
    Column(title="REASON", of=lambda entry: entry["fields"].get("reason", ""), yields=2),
    Column(title="ACCOUNT", of=lambda entry: entry["fields"].get("account", "-"), yields=5, right=True),
    Column(title="FROM", of=lambda entry: entry["fields"].get("address", "-"), yields=6),
    Column(title="REQUEST", of=lambda entry: entry["fields"].get("request_id", "-"), yields=8),
    Column(title="JOB", of=lambda entry: entry["fields"].get("job", ""), yields=7),
    Column(title="NOTED", of=lambda entry: ", ".join(entry.get("notes", ())), yields=3),
    Column(title="MADE", of=lambda entry: entry["fields"].get("made", ""), yields=4),
)


def list_tokens(context: typer.Context, *, account_id: AccountId = None, as_json: Json = False) -> None:
    """List the valid tokens, never their secrets."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        listed = await client.get("ops/tokens/", {"account_id": account_id})
        output.document(listed) if as_json else output.list(COLUMNS, listed, none="No such tokens.")

    run(context, show)


@app.command("create")
def create_token(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Option(help="What it is for; shown in lists and logs.")],
    permission: Annotated[list[Permission], typer.Option(help="May be given several times.")],
    account_id: Annotated[int | None, typer.Option(min=1, metavar="ID", help="The account that it belongs to.")] = None,
    service: Annotated[bool, typer.Option("--service", help="It acts for any account, or is an operator's.")] = False,
    expires_in: Annotated[
        timedelta | None, typer.Option(parser=period, metavar="30d", help="Its lifetime, whole hours; else no end.")
    ] = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make a token. Its secret is printed on standard output, this once."""
    if (account_id is None) is not service:
        raise typer.BadParameter("give either --account-id or --service")
    if expires_in is not None and expires_in % timedelta(hours=1):
        raise typer.BadParameter("whole hours", param_hint="--expires-in")
    output = Output(as_json=as_json)
    body: Body = {"name": name, "permissions": [*permission]}
    body |= {"account_id": account_id} if account_id is not None else {}
    body |= {"lifetime_hours": expires_in // timedelta(hours=1)} if expires_in is not None else {}

    async def create(client: Client) -> None:
        whom = "any account" if account_id is None else f"account {account_id}"
        confirm(f"Make a token with {', '.join(permission)} for {whom}?", yes=yes)
        new = (await client.post("ops/tokens/", body)).body
        if as_json:
            output.document(new)
            return
        output.note(f"token {new['id']}, shown only now:")
        typer.echo(new["secret"])

    run(context, create)


@app.command("revoke")
def revoke_token(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="TOKEN")],
    *,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """End a token at once, by its id."""
    output = Output(as_json=as_json)

    async def revoke(client: Client) -> None:
        confirm(f"Revoke token {token}? Whoever uses it is out at once.", yes=yes)
        await client.delete(f"ops/tokens/{segment(token)}/")
        output.document({"id": token}) if as_json else output.say(f"token {token} is revoked")

    run(context, revoke)


def show_audit(  # noqa: PLR0913 - an option is a parameter, and the API has so many filters
    context: typer.Context,
    *,
    account_id: AccountId = None,
    token_id: Annotated[str | None, typer.Option(metavar="ID", help="With this token only.")] = None,
    job_id: Annotated[str | None, typer.Option(metavar="ID", help="That began this job, or named it.")] = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="This request only.")] = None,
    method: Annotated[Method | None, typer.Option(help="Of this method only.")] = None,
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 50,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """Show who did what, newest first: every call that was to change something."""
    output = Output(as_json=as_json)
    asked = {"account_id": account_id, "token_id": token_id, "job_id": job_id, "request_id": request_id}
    asked |= {"method": method, "since": rfc3339(since), "until": rfc3339(until)}

    async def show(client: Client) -> None:
        listed = await client.parts("ops/audit/", asked, limit=None if everything else limit)
        output.document(listed) if as_json else output.list(AUDIT_COLUMNS, listed, none="No such entries.")

    run(context, show)
