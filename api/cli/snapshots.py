"""Snapshots, with a token that acts for an account."""

from enum import StrEnum
from typing import Annotated

import typer

from api.cli import following, shown
from api.cli.client import Answer, Body, Client, segment
from api.cli.connection import run
from api.cli.exits import Exit, Refused
from api.cli.options import (
    All,
    Follow,
    JobArgument,
    Json,
    Limit,
    MaxWait,
    ServerArgument,
    ServerFilter,
    SnapshotArgument,
    Yes,
    confirm,
)
from api.cli.output import Column, Output
from api.cli.servers import SNAPSHOT_COLUMNS

app = typer.Typer(
    no_args_is_help=True, help="One snapshot: show, create, restore, delete; undo a restore. For an account's token."
)


class DisksChoice(StrEnum):
    ALL = "all"
    PRESENT = "present"


COLUMNS = (
    *SNAPSHOT_COLUMNS[:3],
    Column(title="SERVER", of=lambda snapshot: shown.named(snapshot["server"])),
    *SNAPSHOT_COLUMNS[3:],
)
Disks = Annotated[
    DisksChoice, typer.Option(help="present: restore the disks that are there, where the server's disks have changed.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only make the checks; change nothing.")]


class Status(StrEnum):
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class Sort(StrEnum):
    CREATED = "created_at"
    CREATED_DOWN = "-created_at"
    NAME = "name"
    NAME_DOWN = "-name"
    SIZE = "size_mb"
    SIZE_DOWN = "-size_mb"


def list_snapshots(
    context: typer.Context,
    *,
    server_id: ServerFilter = None,
    status: Annotated[Status | None, typer.Option(help="In this status only.")] = None,
    name: Annotated[str | None, typer.Option(help="Of exactly this name only.")] = None,
    sort: Annotated[Sort, typer.Option(help="By this; with - from the greatest.")] = Sort.CREATED_DOWN,
    limit: Limit = 100,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List an account's snapshots; an operator's token lists those of one server."""
    output = Output(as_json=as_json)
    asked = {"server_id": server_id, "status": status, "name": name, "sort": sort}

    async def show(client: Client) -> None:
        try:
            listed = await client.pages("snapshots/", asked, limit=None if everything else limit)
        except Refused as refused:
            if refused.code != "permission_denied":
                raise
            if server_id is None:
                text = f"{refused} With an operator's token, name a server with --server-id."
                raise Refused(refused.exit_code, text, code=refused.code) from refused
            found = (await client.get(f"ops/servers/{server_id}/"))["snapshot_list"]
            listed = {"count": len(found), "results": found[: None if everything else limit]}
        output.document(listed) if as_json else output.list(COLUMNS, listed, none="No such snapshots.")

    run(context, show)


@app.command("show")
def show_snapshot(context: typer.Context, snapshot: SnapshotArgument, *, as_json: Json = False) -> None:
    """Show a snapshot with its labels and when it expires."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        found = await client.get(f"snapshots/{snapshot}/")
        if as_json:
            output.document(found)
            return
        output.facts(
            (
                ("snapshot", shown.named(found)),
                ("server", shown.named(found["server"])),
                ("status", shown.word(found["status"])),
                ("size", shown.mebibytes(found["size_mb"])),
                ("created", f"{shown.at(found['created_at'])} UTC"),
                ("expires", found["expires_at"] and f"{shown.at(found['expires_at'])} UTC"),
                ("protected", "yes" if found["protected"] else None),
                ("schedule", found["schedule_id"]),
                *shown.contents_facts(found.get("contents")),
                ("labels", ", ".join(f"{key}={value}" for key, value in found["labels"].items())),
                ("description", found["description"]),
            )
        )

    run(context, show)


@app.command("create")
def create_snapshot(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    server: ServerArgument,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    description: Annotated[str, typer.Option(help="Shown with it.")] = "",
    dry_run: DryRun = False,
    follow: Follow = False,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Snapshot a server; it is stopped for that, and started again."""
    output = Output(as_json=as_json)

    async def create(client: Client) -> Exit:
        if not (yes or dry_run):
            found = await client.get(f"servers/{server}/")
            confirm(f"Stop {shown.named(found)} and snapshot it as {name}?", yes=False)
        body = {"server_id": server, "name": name, "description": description}
        begun = await client.post("snapshots/", body, {"dry_run": "true" if dry_run else None})
        return await _begun(client, begun, output, follow=follow, max_wait=max_wait)

    run(context, create)


@app.command("restore")
def restore_snapshot(
    context: typer.Context,
    snapshot: SnapshotArgument,
    *,
    disks: Disks = DisksChoice.ALL,
    dry_run: DryRun = False,
    follow: Follow = False,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Bring a server back to a snapshot; it is stopped for that, and started again."""
    output = Output(as_json=as_json)

    async def restore(client: Client) -> Exit:
        if not (yes or dry_run):
            found = await client.get(f"snapshots/{snapshot}/")
            age = shown.ago(found["created_at"])
            confirm(
                f"Stop {shown.named(found['server'])} and overwrite its disks with {shown.named(found)}, {age} old?",
                yes=False,
            )
        path = f"snapshots/{snapshot}/restore/"
        begun = await client.post(path, query={"dry_run": "true" if dry_run else None, "disks": _asked(disks)})
        return await _begun(client, begun, output, follow=follow, max_wait=max_wait)

    run(context, restore)


@app.command("undo")
def undo_restore(
    context: typer.Context,
    job: JobArgument,
    *,
    disks: Disks = DisksChoice.ALL,
    follow: Follow = False,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Bring back what a restore has overwritten, by the restore's job."""
    output = Output(as_json=as_json)

    async def undo(client: Client) -> Exit:
        if not yes:
            found = await following.job(client, job)
            confirm(f"Stop the server and take this back: {shown.what(found)}?", yes=False)
        begun = await client.post(f"restores/{segment(job)}/undo/", query={"disks": _asked(disks)})
        return await _begun(client, begun, output, follow=follow, max_wait=max_wait)

    run(context, undo)


@app.command("delete")
def delete_snapshot(
    context: typer.Context,
    snapshot: SnapshotArgument,
    *,
    follow: Follow = False,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete a snapshot, for good; it leaves the list at once, and the disks with its job."""
    output = Output(as_json=as_json)

    async def delete(client: Client) -> Exit:
        if not yes:
            found = await client.get(f"snapshots/{snapshot}/")
            confirm(f"Delete {shown.named(found)} of {shown.named(found['server'])} for good?", yes=False)
        gone = await client.delete(f"snapshots/{snapshot}/")
        begun = Answer(body={"id": snapshot, "message": f"snapshot {snapshot} is deleted"}, job_id=gone.job_id)
        return await _begun(client, begun, output, follow=follow, max_wait=max_wait)

    run(context, delete)


def _asked(disks: DisksChoice) -> str | None:
    return None if disks is DisksChoice.ALL else disks


async def _begun(client: Client, begun: Answer, output: Output, *, follow: bool, max_wait: float | None) -> Exit:
    """Tell what was accepted; JSON has the job's id in it, which no body of the contract has."""
    body: Body = {**begun.body, "job_id": begun.job_id}
    if output.as_json:
        output.line(body) if follow else output.document(body)
    elif not (follow and begun.job_id):
        job = f"job {begun.job_id}: " if begun.job_id else ""
        output.say(f"{job}{begun.body.get('message') or begun.body['state']}")
        if begun.body.get("state") == "completed":  # of a dry run; one that failed is told below
            output.facts(shown.job_facts(begun.body))
    if begun.job_id and (follow or begun.body.get("state") == "failed"):
        return await following.to_the_end(client, begun.job_id, output, most_seconds=max_wait)
    return Exit.OK
