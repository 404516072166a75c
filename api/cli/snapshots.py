"""Commands for snapshots, with a token that acts for an account."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from api import words
from api.cli import following, formats, options, resolve
from api.cli.client import Answer, Body, Client, segment
from api.cli.commands import perform
from api.cli.connection import run
from api.cli.exits import CliError, Exit
from api.cli.output import Column, Output
from api.cli.servers import SNAPSHOT_COLUMNS
from worker.program.command_line import group

app = group()


COLUMNS = (
    *SNAPSHOT_COLUMNS[:3],
    Column(title="SERVER", of=lambda snapshot: formats.named(snapshot["server"])),
    *SNAPSHOT_COLUMNS[3:],
)
Disks = Annotated[
    Literal["all", "present"],
    typer.Option(help="present: restore the disks that still exist, even if others have changed."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only run the checks; change nothing.")]
Status = Literal["in_progress", "completed", "failed"]
Sort = Literal["created_at", "-created_at", "name", "-name", "size_mb", "-size_mb"]


def list_snapshots(
    context: typer.Context,
    *,
    server_id: options.ServerFilter = None,
    status: Annotated[Status | None, typer.Option(help="Filter by status.")] = None,
    name: Annotated[str | None, typer.Option(help="Filter by exact name.")] = None,
    sort: Annotated[Sort, typer.Option(help="Sort key; prefix it with - for descending order.")] = "-created_at",
    limit: options.Limit = 100,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    query = {"status": status, "name": name, "sort": sort}
    rows = None if everything else limit

    async def of_server(client: Client) -> Body:
        if server_id is None:
            await client.get("ops/nodes/", {"limit": 1})  # refused unless it is an operator token
            raise CliError(Exit.NOT_ALLOWED, "With an operator token, name a server with --server-id.")
        found = (await client.get(f"ops/servers/{await resolve.server(client, server_id)}/"))["snapshot_list"]
        return {"count": len(found), "results": found[:rows]}

    async def of_account(client: Client) -> Body:
        server = await resolve.server_if_any(client, server_id)
        return await client.collect_pages("snapshots/", query | {"server_id": server}, limit=rows)

    async def collect(client: Client) -> Body:
        return await client.either(lambda: of_server(client), lambda: of_account(client))

    def show(output: Output, listed: Body) -> None:
        output.list(COLUMNS, listed, none="No matching snapshots.")

    perform(context, collect, show, as_json=as_json)


@app.command("show")
def show_snapshot(context: typer.Context, snapshot: options.SnapshotArgument, *, as_json: options.Json = False) -> None:
    """Show a snapshot with its contents, labels and expiry. With an operator token, also show its history."""

    async def get(client: Client) -> Body:
        path = f"snapshots/{await resolve.snapshot(client, snapshot)}/"
        return await client.either(lambda: client.get(f"ops/{path}"), lambda: client.get(path))

    perform(context, get, show_known, as_json=as_json)


HISTORY_COLUMNS = (
    Column(title="TIME (UTC)", of=lambda entry: formats.at(entry["at"])),
    Column(title="WHAT", of=lambda entry: words.plain(entry["what"])),
    Column(title="BY", of=lambda entry: entry["token_name"] or (entry["schedule_id"] and "its schedule") or "-"),
    Column(title="TOKEN", of=lambda entry: entry["token"] or "-", yields=2),
    Column(title="JOB", of=lambda entry: (entry["job_id"] or "-")[:8], yields=1),
    Column(title="REQUEST", of=lambda entry: entry["request_id"] or "-", yields=3),
)


def show_known(output: Output, snapshot: Body) -> None:
    """The account's view of a snapshot, or the operators' view, which includes deleted snapshots."""
    if "history" not in snapshot:
        _show_one(output, snapshot)
        return
    if snapshot["snapshot"]:
        _show_one(output, snapshot["snapshot"])
    else:
        output.facts(
            (
                ("snapshot", formats.named(snapshot)),
                ("status", formats.word(snapshot["status"])),
                ("server", snapshot["server"] and str(snapshot["server"]["id"])),
                ("created", f"{formats.at(snapshot['created_at'])} UTC"),
            )
        )
    output.facts((("account", str(snapshot["account_id"] or "-")),))
    output.heading("History")
    output.table(HISTORY_COLUMNS, snapshot["history"], none="Earlier versions of the service kept none.")


def _show_one(output: Output, snapshot: Body) -> None:
    output.facts(
        (
            ("snapshot", formats.named(snapshot)),
            ("server", formats.named(snapshot["server"])),
            ("status", formats.word(snapshot["status"])),
            ("size", formats.mebibytes(snapshot["size_mb"])),
            ("created", f"{formats.at(snapshot['created_at'])} UTC"),
            ("expires", snapshot["expires_at"] and f"{formats.at(snapshot['expires_at'])} UTC"),
            ("protected", "yes" if snapshot["protected"] else None),
            ("schedule", snapshot["schedule_id"]),
            *formats.contents_facts(snapshot.get("contents")),
            ("labels", formats.labels(snapshot["labels"])),
            ("description", snapshot["description"]),
        )
    )


@app.command("create")
def create_snapshot(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    server: options.ServerArgument,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    description: Annotated[str, typer.Option(help="Description of the snapshot.")] = "",
    live: Annotated[bool, typer.Option("--live", help="Do not stop the server, if the provider allows that.")] = False,
    dry_run: DryRun = False,
    follow: options.Follow = False,
    max_wait: options.MaxWait = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Create a snapshot of a server. The server is stopped and started again, except with --live."""

    async def question(client: Client) -> str:
        found = await client.get(f"servers/{await resolve.server(client, server)}/")
        return f"Stop {formats.named(found)} and create snapshot {name}?"

    async def create(client: Client) -> Answer:
        body: Body = {"server_id": await resolve.server(client, server), "name": name, "description": description}
        if live:
            body["consistency"] = "live"
        return await client.start("snapshots/", body, {"dry_run": "true" if dry_run else None})

    asks = None if yes or dry_run or live else question
    _start(context, create, asks, follow=follow, max_wait=max_wait, as_json=as_json)


@app.command("restore")
def restore_snapshot(
    context: typer.Context,
    snapshot: options.SnapshotArgument,
    *,
    disks: Disks = "all",
    dry_run: DryRun = False,
    follow: options.Follow = False,
    max_wait: options.MaxWait = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Restore a server to a snapshot. The server is stopped and started again."""

    async def question(client: Client) -> str:
        found = await client.get(f"snapshots/{await resolve.snapshot(client, snapshot)}/")
        age = formats.age(found["created_at"])
        return f"Stop {formats.named(found['server'])} and overwrite its disks with {formats.named(found)}, {age} old?"

    async def restore(client: Client) -> Answer:
        query = {"dry_run": "true" if dry_run else None, "disks": None if disks == "all" else disks}
        return await client.start(f"snapshots/{await resolve.snapshot(client, snapshot)}/restore/", query=query)

    asks = None if yes or dry_run else question
    _start(context, restore, asks, follow=follow, max_wait=max_wait, as_json=as_json)


@app.command("undo")
def undo_restore(
    context: typer.Context,
    job: options.JobArgument,
    *,
    disks: Disks = "all",
    follow: options.Follow = False,
    max_wait: options.MaxWait = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Undo a restore, given the restore's job. The server is stopped and started again."""

    async def question(client: Client) -> str:
        found = await following.job(client, await resolve.job(client, job))
        return f"Stop the server and undo this: {formats.what(found)}?"

    async def undo(client: Client) -> Answer:
        query = {"disks": None if disks == "all" else disks}
        return await client.start(f"restores/{segment(await resolve.job(client, job))}/undo/", query=query)

    _start(context, undo, None if yes else question, follow=follow, max_wait=max_wait, as_json=as_json)


@app.command("protect")
def protect_snapshot(
    context: typer.Context,
    snapshot: options.SnapshotArgument,
    *,
    off: Annotated[bool, typer.Option("--off", help="Allow deletion again.")] = False,
    as_json: options.Json = False,
) -> None:
    """Protect a snapshot from deletion."""
    _edit(context, snapshot, {"protected": not off}, as_json=as_json)


@app.command("label")
def label_snapshot(
    context: typer.Context,
    snapshot: options.SnapshotArgument,
    labels: options.LabelChanges,
    *,
    as_json: options.Json = False,
) -> None:
    """Set or remove labels of a snapshot. The others stay."""
    changes = options.label_pairs(labels)

    async def edit(client: Client) -> Body:
        path = f"snapshots/{await resolve.snapshot(client, snapshot)}/"
        before = (await client.get(path))["labels"]
        after = {key: value for key, value in {**before, **changes}.items() if value}
        return await client.patch(path, {"labels": after})

    perform(context, edit, _show_one, as_json=as_json)


@app.command("edit")
def edit_snapshot(
    context: typer.Context,
    snapshot: options.SnapshotArgument,
    *,
    description: Annotated[str | None, typer.Option(help="New description.")] = None,
    expires_in: Annotated[
        timedelta | None,
        typer.Option("--expires-in", parser=options.period, metavar="30d", help="Delete the snapshot after this time."),
    ] = None,
    never_expire: Annotated[bool, typer.Option("--never-expire", help="Remove the expiry.")] = False,
    as_json: options.Json = False,
) -> None:
    """Change a snapshot's description, or when it expires."""
    body: Body = {} if description is None else {"description": description}
    if expires_in is not None:
        body["expires_at"] = options.rfc3339(datetime.now(UTC) + expires_in)
    if never_expire:
        body["expires_at"] = None
    if not body:
        raise typer.BadParameter("specify what to change")
    _edit(context, snapshot, body, as_json=as_json)


def _edit(context: typer.Context, snapshot: str, body: Body, *, as_json: bool) -> None:
    async def edit(client: Client) -> Body:
        return await client.patch(f"snapshots/{await resolve.snapshot(client, snapshot)}/", body)

    perform(context, edit, _show_one, as_json=as_json)


@app.command("delete")
def delete_snapshot(
    context: typer.Context,
    snapshot: options.SnapshotArgument,
    *,
    follow: options.Follow = False,
    max_wait: options.MaxWait = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete a snapshot permanently. It leaves the list at once; a job frees its space."""

    async def question(client: Client) -> str:
        found = await client.get(f"snapshots/{await resolve.snapshot(client, snapshot)}/")
        return f"Permanently delete {formats.named(found)} of {formats.named(found['server'])}?"

    async def delete(client: Client) -> Answer:
        snapshot_id = await resolve.snapshot(client, snapshot)
        answer = await client.delete(f"snapshots/{snapshot_id}/")
        body = {"id": snapshot_id, "message": f"snapshot {snapshot} deleted"}
        return Answer(body=body, job_id=answer.job_id)

    _start(context, delete, None if yes else question, follow=follow, max_wait=max_wait, as_json=as_json)


def _start(
    context: typer.Context,
    call: Callable[[Client], Awaitable[Answer]],
    question: Callable[[Client], Awaitable[str]] | None,
    *,
    follow: bool,
    max_wait: float | None,
    as_json: bool,
) -> None:
    """Ask, make the call, and print or follow the job that it created."""
    output = Output(as_json=as_json)

    async def start(client: Client) -> Exit:
        if question is not None:
            options.confirm(await question(client))
        answer = await call(client)
        _show_started(output, answer, follow=follow)
        if answer.job_id and (follow or answer.body.get("state") == "failed"):
            return await following.until_end(client, answer.job_id, output, max_seconds=max_wait)
        return Exit.OK

    run(context, start)


def _show_started(output: Output, answer: Answer, *, follow: bool) -> None:
    body: Body = {**answer.body, "job_id": answer.job_id}  # only a header of the API has the job's ID
    if output.as_json:
        output.line(body) if follow else output.document(body)
    elif not (follow and answer.job_id):
        job = f"job {answer.job_id}: " if answer.job_id else ""
        output.say(f"{job}{answer.body.get('message') or answer.body['state']}")
        if answer.body.get("state") == "completed":  # a dry run; the result of a failed one is followed
            output.facts(formats.job_facts(answer.body))
