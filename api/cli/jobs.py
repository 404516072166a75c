"""Jobs: list them, look at one, act on one."""

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from api.cli import following, shown
from api.cli.client import Body, Client, segment
from api.cli.connection import run
from api.cli.exits import Exit, Trouble
from api.cli.options import (
    AccountId,
    All,
    Follow,
    JobArgument,
    Json,
    Limit,
    MaxWait,
    NodeFilter,
    Reason,
    ServerFilter,
    Yes,
    confirm,
)
from api.cli.output import Column, Output

app = typer.Typer(no_args_is_help=True, help="One job: show, follow, retry, cancel, resolve.")


class State(StrEnum):
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"


class Kind(StrEnum):
    CREATE = "create"
    RESTORE = "restore"
    DELETE = "delete"
    CHECK_CREATE = "check_create"
    CHECK_RESTORE = "check_restore"
    UNDO = "undo"


COLUMNS = (
    Column(title="JOB", of=lambda job: job["id"]),
    Column(title="STATE", of=shown.job_state),
    Column(title="KIND", of=lambda job: job["kind"]),
    Column(title="SERVER", of=lambda job: job["server"]["id"]),
    Column(title="NAME", of=lambda job: job["server"]["name"], yields=3),
    Column(title="AGE", of=lambda job: shown.ago(job["queued_at"]), yields=2, right=True),
    Column(title="ERROR", of=shown.job_error, yields=1),
    Column(title="NODE", of=lambda job: job.get("node", "-"), yields=4),
    Column(title="SNAPSHOT", of=lambda job: shown.named(job["snapshot"]), yields=5),
    Column(title="ACCOUNT", of=lambda job: job.get("account_id", "-"), yields=6, right=True),
)
STEP_COLUMNS = (
    Column(title="STEP", of=lambda step: step["step"]),
    Column(title="TRY", of=lambda step: step["attempt"], right=True),
    Column(title="STARTED (UTC)", of=lambda step: shown.at(step["started_at"])),
    Column(title="TOOK", of=lambda step: "under way" if step["seconds"] is None else shown.seconds(step["seconds"])),
)


def list_jobs(  # noqa: PLR0913 - an option is a parameter, and the API has so many filters
    context: typer.Context,
    *,
    state: Annotated[State | None, typer.Option(help="In this state only.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="Of this kind only.")] = None,
    node: NodeFilter = None,
    account_id: AccountId = None,
    server_id: ServerFilter = None,
    error_code: Annotated[str | None, typer.Option(metavar="CODE", help="That failed with this code only.")] = None,
    text: Annotated[
        str | None, typer.Option(help="With this in the id, a name, the error's detail or the request's id.")
    ] = None,
    limit: Limit = 50,
    everything: All = False,
    as_json: Json = False,
) -> None:
    """List jobs, newest first. An account's token sees the account's own, by state and server."""
    wanted = {"state": state, "kind": kind, "node": node, "account_id": account_id, "server_id": server_id}
    wanted |= {"error_code": error_code, "text": text}
    asked = {name: value for name, value in wanted.items() if value is not None}
    most, output = None if everything else limit, Output(as_json=as_json)

    async def of_all(client: Client) -> tuple[Body, Body | None]:
        if output.as_json:
            return await client.parts("ops/jobs/", asked, limit=most), None
        listed, now = await asyncio.gather(client.parts("ops/jobs/", asked, limit=most), client.get("ops/overview/"))
        return listed, now

    async def of_account(client: Client) -> tuple[Body, None]:
        if beyond := asked.keys() - {"state", "server_id"}:
            raise Trouble(Exit.NOT_ALLOWED, f"Only an operator's token lists by {', '.join(sorted(beyond))}.")
        return await client.pages("jobs/", asked, limit=most), None

    async def show(client: Client) -> None:
        listed, now = await client.either(lambda: of_all(client), lambda: of_account(client))
        if output.as_json:
            output.document(listed)
            return
        output.list(COLUMNS, listed, none="No such jobs.")
        if now:
            output.note(shown.glance(now))

    run(context, show)


@app.command("show")
def show_job(
    context: typer.Context, job: JobArgument, *, follow: Follow = False, max_wait: MaxWait = None, as_json: Json = False
) -> None:
    """Show a job with its steps, its log and its error. With --follow, --json prints a line for each change."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> Exit:
        if follow:
            return await following.to_the_end(client, job, output, most_seconds=max_wait)
        found = await following.job(client, job)
        output.document(found) if as_json else show_one(output, found)
        return Exit.OK

    run(context, show)


@app.command("retry")
def retry_job(
    context: typer.Context,
    job: JobArgument,
    *,
    follow: Follow = False,
    max_wait: MaxWait = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Try a failed job again, as a new job."""
    output = Output(as_json=as_json)

    async def retry(client: Client) -> Exit:
        await _ask(client, "Try again: {}?", job, yes=yes)
        new = (await client.post(f"ops/jobs/{segment(job)}/retry/")).body
        if not as_json:
            output.say(f"job {new['id']}: {shown.what(new)}")
        if follow:
            return await following.to_the_end(client, new["id"], output, most_seconds=max_wait)
        if as_json:
            output.document(new)
        return Exit.OK

    run(context, retry)


@app.command("cancel")
def cancel_job(context: typer.Context, job: JobArgument, *, yes: Yes = False, as_json: Json = False) -> None:
    """Cancel a job that its node has not begun."""
    output = Output(as_json=as_json)

    async def cancel(client: Client) -> None:
        await _ask(client, "Cancel: {}?", job, yes=yes)
        path = f"jobs/{segment(job)}/cancel/"
        ended = (await client.either(lambda: client.post(f"ops/{path}"), lambda: client.post(path))).body
        output.document(ended) if as_json else output.say(f"cancelled: {shown.what(ended)}")

    run(context, cancel)


@app.command("resolve")
def resolve_job(
    context: typer.Context, job: JobArgument, *, reason: Reason, yes: Yes = False, as_json: Json = False
) -> None:
    """Say that a person has put the server right which the job had stranded."""
    output = Output(as_json=as_json)

    async def resolve(client: Client) -> None:
        await _ask(client, "Is the server right again after this? {}", job, yes=yes)
        resolved = (await client.post(f"ops/jobs/{segment(job)}/resolve/", {"reason": reason})).body
        output.document(resolved) if as_json else output.say(f"resolved: {shown.what(resolved)}")

    run(context, resolve)


async def _ask(client: Client, question: str, job_id: str, *, yes: bool) -> None:
    """With the job in words: an id tells nobody what it is."""
    if not yes:
        found = await following.job(client, job_id)
        confirm(question.format(f"{shown.what(found)}, {found['state']}"), yes=False)


def show_one(output: Output, job: Body) -> None:
    error, resolution = job["error"], job.get("resolution")
    output.facts(
        (
            ("job", job["id"]),
            ("what", shown.what(job)),
            ("state", shown.job_state(job)),
            ("error", f"{error['code']}: {error['detail']}" if error else None),
            ("runbook", job.get("runbook")),
            ("resolved", resolution and f"{shown.at(resolution['at'])} by {resolution['by']}: {resolution['reason']}"),
            ("queued", f"{shown.at(job['queued_at'])} UTC"),
            ("waited", shown.between(job["queued_at"], job["started_at"])),
            ("took", shown.between(job["started_at"], job["finished_at"])),
            ("guest off", shown.seconds(job["downtime_seconds"]) if job["downtime_seconds"] is not None else None),
            *shown.job_facts(job),
            ("attempts", str(job["attempts"]) if job["attempts"] > 1 else None),
            ("power", f"{job['power_found']} when begun, now {job['power_now']}" if job.get("power_found") else None),
            ("node", job.get("node")),
            ("account", str(job["account_id"]) if "account_id" in job else None),
            ("request", job.get("request_id")),
        )
    )
    if job.get("steps"):
        output.heading("Steps")
        output.table(STEP_COLUMNS, job["steps"], none="")
    if job.get("log"):
        output.heading("Log")
        for line in job["log"]:
            output.say(shown.log_line(line))
    if advice := _advice(job):
        output.note("")
        output.note(advice)


def _advice(job: Body) -> str | None:
    """What an operator may do next."""
    if "steps" not in job:  # a customer's view
        return None
    if shown.is_stranded(job):
        return f"Put the server right, then: vps-snapshots job resolve {job['id']} --reason ..."
    if job["state"] == "failed":
        return f"To try it again: vps-snapshots job retry {job['id']}"
    return f"To cancel it: vps-snapshots job cancel {job['id']}" if job["state"] == "queued" else None
