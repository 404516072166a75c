"""Commands for API tokens and the audit log."""

from enum import StrEnum
from typing import Annotated, Literal

import typer

from api.cli import formats, resolve
from api.cli.client import Body, Client, segment
from api.cli.commands import perform
from api.cli.credentials import Out, make_secret
from api.cli.exits import Exit
from api.cli.options import (
    AccountId,
    All,
    Json,
    Lifetime,
    Limit,
    Moment,
    NodeFilter,
    ServerFilter,
    Yes,
    lifetime_hours,
    rfc3339,
)
from api.cli.output import Column, Output
from worker.program.command_line import group

app = group()


What = Literal["changes", "logins", "all"]
Method = Literal["POST", "PUT", "PATCH", "DELETE", "CLI", "SERVICE"]


class Permission(StrEnum):  # typer does not support lists of a Literal
    READ = "snapshots:read"
    WRITE = "snapshots:write"
    CREATE = "snapshots:create"
    RESTORE = "snapshots:restore"
    DELETE = "snapshots:delete"
    OPERATOR = "operator"
    OPERATOR_READ = "operator:read"


COLUMNS = (
    Column(title="TOKEN", of=lambda token: token["id"]),
    Column(title="NAME", of=lambda token: token["name"]),
    Column(title="ACCOUNT", of=lambda token: token["account_id"] or "-", right=True),
    Column(title="PERMISSIONS", of=lambda token: ", ".join(token["permissions"])),
    Column(title="LAST USED", of=lambda token: formats.age(token.get("last_used_at")), yields=1, right=True),
    Column(title="CREATED (UTC)", of=lambda token: formats.at(token["created_at"]), yields=3),
    Column(title="EXPIRES (UTC)", of=lambda token: formats.at(token["expires_at"]), yields=2),
)
AUDIT_COLUMNS = (
    Column(title="TIME (UTC)", of=lambda entry: formats.at(entry["at"])),
    Column(title="WHAT", of=lambda entry: entry["text"]),
    Column(title="ACCOUNT", of=lambda entry: entry["fields"].get("account", "-"), yields=3, right=True),
    Column(title="SERVER", of=lambda entry: entry["fields"].get("server", "-"), yields=4, right=True),
    Column(title="JOB", of=lambda entry: entry["fields"].get("job", "")[:8], yields=2),
    Column(title="NOTES", of=lambda entry: ", ".join(entry.get("notes", ())), yields=1),
    Column(title="ADDRESS", of=lambda entry: entry["fields"].get("address", "-"), yields=5),
    Column(title="REQUEST", of=lambda entry: entry["fields"].get("request_id", "-"), yields=6),
)


def list_tokens(context: typer.Context, *, account_id: AccountId = None, as_json: Json = False) -> None:
    perform(
        context,
        lambda client: client.get("ops/tokens/", {"account_id": account_id}),
        lambda output, listed: output.list(COLUMNS, listed, none="No matching tokens."),
        as_json=as_json,
    )


@app.command("create")
def create_token(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    *,
    name: Annotated[str, typer.Option(help="Purpose or owner; shown in lists and logs.")],
    permission: Annotated[list[Permission], typer.Option(help="Permission of the token; repeat for several.")],
    account_id: Annotated[int | None, typer.Option(min=1, metavar="ID", help="Account that owns the token.")] = None,
    service: Annotated[
        bool, typer.Option("--service", help="Create a service or operator token, which belongs to no account.")
    ] = False,
    expires_in: Lifetime = None,
    out: Out = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Create a token. Its secret is shown only once."""
    if (account_id is None) is not service:
        raise typer.BadParameter("specify either --account-id or --service")
    body: Body = {"name": name, "permissions": [*permission]}
    body |= {"account_id": account_id} if account_id is not None else {}
    body |= lifetime_hours(expires_in)

    whose = "any account" if account_id is None else f"account {account_id}"
    make_secret(
        context,
        "ops/tokens/",
        body,
        lambda new: f"token {new['id']}",
        out=out,
        as_json=as_json,
        question=None if yes else f"Create a token with {', '.join(permission)} for {whose}?",
    )


@app.command("revoke")
def revoke_token(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="ID or name.")],
    *,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Revoke a token immediately."""

    async def question(client: Client) -> str:
        token_id = await resolve.token(client, token)
        named = token if token == token_id else f"{token} ({token_id})"
        return f"Revoke token {named}? Calls with it will fail from now on."

    async def revoke(client: Client) -> Body:
        token_id = await resolve.token(client, token)
        await client.delete(f"ops/tokens/{segment(token_id)}/")
        return {"id": token_id}

    perform(
        context,
        revoke,
        lambda output, _: output.say(f"token {token} revoked"),
        as_json=as_json,
        question=None if yes else question,
    )


def show_audit(  # noqa: PLR0913 - an option is a parameter, and the API has so many filters
    context: typer.Context,
    *,
    account_id: AccountId = None,
    token_id: Annotated[str | None, typer.Option(metavar="ID", help="Filter by token.")] = None,
    token_name: Annotated[str | None, typer.Option(metavar="NAME", help="Filter by the token's name.")] = None,
    server_id: ServerFilter = None,
    snapshot_id: Annotated[str | None, typer.Option(metavar="SNAPSHOT", help="Filter by snapshot.")] = None,
    node: NodeFilter = None,
    job_id: Annotated[str | None, typer.Option(metavar="ID", help="Filter by job.")] = None,
    request_id: Annotated[str | None, typer.Option(metavar="ID", help="Filter by request.")] = None,
    method: Annotated[Method | None, typer.Option(help="Filter by method.")] = None,
    what: Annotated[What, typer.Option(help="Changes, logins to the dashboard, or all.")] = "changes",
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 50,
    everything: All = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no entry is missing, changed or forged.")
    ] = False,
    as_json: Json = False,
) -> None:
    if verify:
        perform(context, _checked, _show_check, as_json=as_json)
        return
    query: dict[str, str | int | None] = {"account_id": account_id, "token_id": token_id, "request_id": request_id}
    query |= {"token_name": token_name, "node": node}
    query |= {"what": None if what == "all" else what}
    query |= {"method": method, "since": rfc3339(since), "until": rfc3339(until)}
    rows = None if everything else limit

    async def collect(client: Client) -> Body:
        about = {
            "server_id": await resolve.server_if_any(client, server_id),
            "snapshot_id": await resolve.snapshot_if_any(client, snapshot_id),
            "job_id": None if job_id is None else await resolve.job(client, job_id),
        }
        return await client.collect("ops/audit/", query | about, limit=rows)

    def show(output: Output, listed: Body) -> None:
        output.list(AUDIT_COLUMNS, listed, none="No matching entries.")

    perform(context, collect, show, as_json=as_json)


async def _checked(client: Client) -> Body:
    """The combined result of all calls of the check."""
    whole: Body = {"checked": 0, "unchained": 0, "faults": []}
    after: str | None = None
    while True:
        part = await client.get("ops/audit/check/", {"after": after})
        whole = {name: whole[name] + part[name] for name in whole}
        after = part["after"]
        if after is None:
            return whole


def _show_check(output: Output, body: Body) -> None:
    for fault in body["faults"]:
        output.say(f"{fault['kind']} at {fault['entry']}: {fault['detail']}")
    old = f", {body['unchained']} of them of an earlier version" if body["unchained"] else ""
    output.say(f"{body['checked']} entries checked{old}; {len(body['faults']) or 'no'} faults")
    if body["faults"]:
        raise typer.Exit(Exit.REFUSED)
