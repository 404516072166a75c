"""Commands for servers and findings."""

from typing import Annotated, Literal

import typer

from api.cli import completion, formats, jobs, resolve
from api.cli.client import Body, Client
from api.cli.commands import list_all, perform
from api.cli.options import (
    AccountId,
    All,
    Json,
    LabelChanges,
    Limit,
    Moment,
    NodeFilter,
    ServerArgument,
    Yes,
    label_pairs,
    rfc3339,
)
from api.cli.output import Column, Output
from worker.program.command_line import group

TheNode = Annotated[str, typer.Option("--node", metavar="NAME", help="The node.", autocompletion=completion.nodes)]
TheAccount = Annotated[int, typer.Option("--account-id", metavar="ID", min=1, help="The account.")]

app = group()

COLUMNS = (
    Column(title="SERVER", of=lambda server: server["id"]),
    Column(title="NAME", of=lambda server: server["name"]),
    Column(title="STATUS", of=formats.server_state),
    Column(title="OFF FOR", of=lambda server: formats.off_for(server) or "", yields=1, right=True),
    Column(title="POWER", of=lambda server: server["power"], yields=6),
    Column(title="SNAPSHOTS", of=lambda server: f"{server['snapshots']}/{server['snapshots_max']}", yields=5),
    Column(title="NODE", of=lambda server: server["node"], yields=2),
    Column(title="ACCOUNT", of=lambda server: server["account_id"], yields=4, right=True),
    Column(title="FINDINGS", of=lambda server: ", ".join({one["kind"]: 1 for one in server["findings"]}), yields=7),
    Column(title="TAKEN BY", of=lambda server: (server.get("taken") or {}).get("by", ""), yields=1),
    Column(
        title="JOB",
        of=lambda server: server["stranded_by"] or (server["job"] or {}).get("id", ""),
        yields=3,
        digits=jobs.SHORT_ID,
    ),
)
SNAPSHOT_COLUMNS = (
    Column(title="SNAPSHOT", of=lambda snapshot: snapshot["id"]),
    Column(title="NAME", of=lambda snapshot: snapshot["name"]),
    Column(title="STATUS", of=lambda snapshot: formats.word(snapshot["status"])),
    Column(title="SIZE", of=lambda snapshot: formats.mebibytes(snapshot["size_mb"]), yields=2, right=True),
    Column(title="CREATED (UTC)", of=lambda snapshot: formats.at(snapshot["created_at"]), yields=1),
    Column(title="DESCRIPTION", of=lambda snapshot: snapshot["description"], yields=3),
)
CONTENTS_COLUMN = Column(
    title="CONTENTS",
    of=lambda snapshot: formats.contents(snapshot["contents"]) if snapshot.get("contents") else "-",
    yields=4,
)
FINDING_COLUMNS = (
    Column(title="SERVER", of=lambda found: formats.named(found["server"])),
    Column(title="FINDING", of=lambda found: found["kind"]),
    Column(title="TAG", of=lambda found: found["tag"], yields=1),
    Column(title="FOUND (UTC)", of=lambda found: formats.at(found["at"]), yields=2),
    Column(title="NODE", of=lambda found: found["node"], yields=3),
    Column(title="ACCOUNT", of=lambda found: found["account_id"], yields=4, right=True),
)
UNREADABLE_COLUMNS = (
    Column(title="KEY IN REDIS", of=lambda record: record["key"]),
    Column(title="REASON", of=lambda record: record["reason"], yields=1),
    Column(title="LAST MET (UTC)", of=lambda record: formats.at(record["at"]), yields=2),
)
REFUSED_COLUMNS = (
    Column(title="NODE", of=lambda claim: claim["node"]),
    Column(title="CLAIM", of=lambda claim: claim["call"]),
    Column(title="REFUSED", of=lambda claim: claim["reason"]),
    Column(title="ABOUT", of=lambda claim: claim["about"], yields=1),
    Column(title="TIMES", of=lambda claim: claim["count"], yields=3, right=True),
    Column(title="LATEST (UTC)", of=lambda claim: formats.at(claim["at"]), yields=2),
)


def list_servers(  # noqa: PLR0913 - an option is a parameter, and the API has so many filters
    context: typer.Context,
    *,
    node: NodeFilter = None,
    account_id: AccountId = None,
    stranded: Annotated[bool, typer.Option("--stranded", help="Only stranded servers.")] = False,
    no_snapshot_days: Annotated[
        int | None,
        typer.Option(
            min=1, max=366, metavar="DAYS", help="Only servers without a completed snapshot in this many days."
        ),
    ] = None,
    off: Annotated[
        bool, typer.Option("--off", help="Only servers whose guests are off for a job, longest first.")
    ] = False,
    limit: Limit = 100,
    everything: All = False,
    as_json: Json = False,
) -> None:
    query = {"node": node, "account_id": account_id, "no_snapshot_days": no_snapshot_days}
    query |= {name: "true" for name, wanted in (("stranded", stranded), ("off", off)) if wanted}
    rows = None if everything else limit
    list_all(context, "ops/servers/", query, COLUMNS, limit=rows, as_json=as_json, none="No matching servers.")


@app.command("show")
def show_server(context: typer.Context, server: ServerArgument, *, as_json: Json = False) -> None:
    """Show a server. An operator token also shows its snapshots, latest jobs and findings."""

    async def get(client: Client) -> Body:
        path = f"servers/{await resolve.server(client, server)}/"
        return await client.either(lambda: client.get(f"ops/{path}"), lambda: client.get(path))

    perform(context, get, show_one, as_json=as_json)


@app.command("take")
def take_server(context: typer.Context, server: ServerArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Tell the other operators that you are repairing a stranded server."""
    _hands(context, server, "take", "is taken by you until it is resolved", yes=yes, as_json=as_json)


@app.command("release")
def release_server(context: typer.Context, server: ServerArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Tell the other operators that you are no longer repairing a stranded server."""
    _hands(context, server, "release", "is released", yes=yes, as_json=as_json)


def _hands(context: typer.Context, server: str, what: str, said: str, *, yes: bool, as_json: bool) -> None:
    async def question(client: Client) -> str:
        found = await client.get(f"ops/servers/{await resolve.server(client, server)}/")
        return f"{what.capitalize()} {formats.named(found)}, taken by {formats.taken(found)}?"

    async def post(client: Client) -> Body:
        return await client.post(f"ops/servers/{await resolve.server(client, server)}/{what}/")

    perform(
        context,
        post,
        lambda output, found: output.say(f"server {formats.named(found)} {said}"),
        as_json=as_json,
        question=None if yes else question,
    )


@app.command("set")
def set_server(
    context: typer.Context,
    server: ServerArgument,
    *,
    consistency: Annotated[
        Literal["stop", "live", "default"],
        typer.Option(
            "--consistency",
            help="How snapshots of this server are taken unless a request says otherwise: stop or live; default: the"
            " provider's setting.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Set whether creates stop a server by default."""
    body: Body = {"consistency": None if consistency == "default" else consistency}

    async def patch(client: Client) -> Body:
        return await client.patch(f"servers/{await resolve.server(client, server)}/", body)

    def show(output: Output, _: Body) -> None:
        output.say(f"server {server}: {consistency}")

    perform(context, patch, show, as_json=as_json)


@app.command("label")
def label_server(
    context: typer.Context, server: ServerArgument, labels: LabelChanges, *, as_json: Json = False
) -> None:
    """Set or remove labels of a server, by which schedules can select it. Other labels stay (account token)."""
    changes = label_pairs(labels)

    async def patch(client: Client) -> Body:
        path = f"servers/{await resolve.server(client, server)}/"
        before = (await client.get(path))["labels"]
        after = {key: value for key, value in {**before, **changes}.items() if value}
        return await client.patch(path, {"labels": after})

    perform(context, patch, show_one, as_json=as_json)


@app.command("declare")
def declare_server(
    context: typer.Context,
    server: Annotated[int, typer.Argument(metavar="SERVER", min=1)],
    *,
    node: TheNode,
    account_id: TheAccount,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Declare a server, its node and the account that owns it."""
    body = {"node": node, "account_id": account_id}
    _put(context, str(server), "", body, f"is on {node}, of account {account_id}", yes=yes, as_json=as_json)


@app.command("place")
def place_server(
    context: typer.Context, server: ServerArgument, *, node: TheNode, yes: Yes = False, as_json: Json = False
) -> None:
    """Assign a server to another node, because its own has failed."""
    _put(context, server, "node/", {"node": node}, f"is on {node}", yes=yes, as_json=as_json)


@app.command("give")
def give_server(
    context: typer.Context, server: ServerArgument, *, account_id: TheAccount, yes: Yes = False, as_json: Json = False
) -> None:
    """Give a server and its snapshots to another account."""
    body = {"account_id": account_id}
    _put(context, server, "account/", body, f"is of account {account_id}", yes=yes, as_json=as_json)


def _put(context: typer.Context, server: str, part: str, body: Body, said: str, *, yes: bool, as_json: bool) -> None:
    async def put(client: Client) -> Body:
        return (await client.put(f"ops/servers/{await resolve.server(client, server)}/{part}", body)).body

    def show(output: Output, _: Body) -> None:
        output.say(f"server {server} {said}")

    question = None if yes else f"Record that server {server} {said}?"
    perform(context, put, show, as_json=as_json, question=question)


def list_findings(
    context: typer.Context,
    *,
    since: Moment = None,
    until: Moment = None,
    limit: Limit = 100,
    everything: All = False,
    as_json: Json = False,
) -> None:

    def show(output: Output, listed: Body) -> None:
        findings = [{**server, **finding} for server in listed["results"] for finding in server["findings"]]
        output.list(FINDING_COLUMNS, {**listed, "results": findings}, none="No findings.")
        if listed["refused_claims"]:
            output.heading("Refused claims")
            output.table(REFUSED_COLUMNS, listed["refused_claims"], none="")
        if unreadable := listed.get("unreadable_records"):
            output.heading("Unreadable records")
            output.table(UNREADABLE_COLUMNS, unreadable, none="")

    rows = None if everything else limit
    query = {"since": rfc3339(since), "until": rfc3339(until)}
    perform(context, lambda client: client.collect("ops/findings/", query, limit=rows), show, as_json=as_json)


def show_one(output: Output, server: Body) -> None:
    job, stranded_by = server["job"], server.get("stranded_by")
    output.facts(
        (
            ("server", formats.named(server)),
            ("status", formats.server_state(server)),
            ("off for", formats.off_for(server)),
            ("stranded by", stranded_by),
            ("taken by", formats.taken(server) if stranded_by else None),
            (
                "job",
                f"{job['id']} ({job['kind']}{', queued' if job.get('state') == 'queued' else ''})" if job else None,
            ),
            ("snapshots", f"{server['snapshots']} of {server['snapshots_max']}"),
            ("labels", formats.labels(server.get("labels"))),
            ("reachable", "yes" if server["reachable"] else "no: its node is not responding or no longer has it"),
            ("power", server.get("power")),
            ("node", server.get("node")),
            ("account", str(server["account_id"]) if "account_id" in server else None),
        )
    )
    if server.get("findings"):
        output.heading("Findings")
        found = [{**server, "server": server, **finding} for finding in server["findings"]]
        output.table(FINDING_COLUMNS[1:4], found, none="")
    if server.get("snapshot_list"):
        output.heading("Snapshots")
        output.table((*SNAPSHOT_COLUMNS, CONTENTS_COLUMN), server["snapshot_list"], none="")
    if server.get("jobs"):
        output.heading("Jobs")
        output.table(jobs.COLUMNS, server["jobs"], none="")
