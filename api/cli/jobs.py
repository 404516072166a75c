"""Commands for jobs."""

from enum import StrEnum
from typing import Annotated

import typer

from api.cli import following, formats, options, resolve
from api.cli.client import Body, Client, segment
from api.cli.commands import Question, perform
from api.cli.connection import run
from api.cli.exits import CliError, Exit, OperatorsOnly
from api.cli.later import asyncio
from api.cli.output import Column, Output
from worker.program.command_line import group
from worker.store.model import JobKind

app = group()


SHORT_ID = 8  # digits of a job's ID at a terminal: they are enough for every command


class ShownState(StrEnum):
    """A job's state as shown to people: a cancelled job is not shown as failed."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


def _error(job: Body) -> str:
    return f"{formats.job_error(job)}{', retried' if job.get('retried_by') else ''}"


COLUMNS = (
    Column(title="JOB", of=lambda job: job["id"], digits=SHORT_ID),
    Column(title="STATE", of=formats.job_state),
    Column(title="KIND", of=lambda job: job["kind"], yields=3),
    Column(title="SERVER", of=lambda job: job["server"]["id"]),
    Column(title="NAME", of=lambda job: job["server"]["name"], yields=4),
    Column(title="AGE", of=lambda job: formats.age(job["queued_at"]), yields=1, right=True),
    Column(title="ERROR", of=_error),
    Column(title="NODE", of=lambda job: job.get("node", "-"), yields=2),
    Column(title="SNAPSHOT", of=lambda job: formats.named(job["snapshot"]), yields=5),
    Column(title="ACCOUNT", of=lambda job: job.get("account_id", "-"), yields=6, right=True),
)
STEP_COLUMNS = (
    Column(title="STEP", of=lambda step: step["step"]),
    Column(title="ATTEMPT", of=lambda step: step["attempt"], right=True),
    Column(title="STARTED (UTC)", of=lambda step: formats.at(step["started_at"])),
    Column(title="TOOK", of=lambda step: "running" if step["seconds"] is None else formats.seconds(step["seconds"])),
    Column(title="RESULT", of=lambda step: formats.word("failed") if step.get("failed") else "", yields=1),
)


def list_jobs(  # noqa: PLR0913 - an option is a parameter, and the API has so many filters
    context: typer.Context,
    *,
    state: Annotated[ShownState | None, typer.Option(help="Filter by state.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Filter by kind.")] = None,
    node: options.NodeFilter = None,
    account_id: options.AccountId = None,
    server_id: options.ServerFilter = None,
    error_code: Annotated[str | None, typer.Option(metavar="CODE", help="Filter by error code.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Search in the job's ID, names, error detail and request ID.")
    ] = None,
    since: options.Moment = None,
    until: options.Moment = None,
    ended_since: options.Moment = None,
    ended_until: options.Moment = None,
    limit: options.Limit = 50,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    filters = {"state": state, "kind": kind, "node": node, "account_id": account_id, "server_id": server_id}
    filters |= {"error_code": error_code, "text": text}
    filters |= {"since": options.rfc3339(since), "until": options.rfc3339(until)}
    filters |= {"ended_since": options.rfc3339(ended_since), "ended_until": options.rfc3339(ended_until)}
    query = {name: value for name, value in filters.items() if value is not None}
    rows, output = None if everything else limit, Output(as_json=as_json)

    async def of_all(client: Client) -> tuple[Body, Body | None]:
        server = await resolve.server_if_any(client, server_id)
        wanted = query | ({"server_id": server} if server else {})
        listing = client.collect("ops/jobs/", {**wanted, **_without_cancelled(state)}, limit=rows)
        if output.as_json:
            return await listing, None
        listed, overview = await asyncio.gather(listing, client.get("ops/overview/"))
        return listed, overview

    async def of_account(client: Client) -> tuple[Body, None]:
        if denied := query.keys() - {"state", "server_id", "since", "until"}:
            raise OperatorsOnly(f"Only an operator token can filter by {', '.join(sorted(denied))}.")
        if state is ShownState.CANCELLED:
            raise OperatorsOnly("Only an operator token can filter by the state cancelled.")
        server = await resolve.server_if_any(client, server_id)
        return await client.collect_pages("jobs/", query | ({"server_id": server} if server else {}), limit=rows), None

    async def show(client: Client) -> None:
        listed, overview = await client.either(lambda: of_all(client), lambda: of_account(client))
        if output.as_json:
            output.document(listed)
            return
        output.list(COLUMNS, listed, none="No matching jobs.")
        if overview:
            output.note(formats.summary(overview))

    run(context, show)


def _without_cancelled(state: ShownState | None) -> dict[str, str]:
    return {"cancelled": "false"} if state is ShownState.FAILED else {}


@app.command("show")
def show_job(
    context: typer.Context,
    job: options.JobArgument,
    *,
    follow: options.Follow = False,
    max_wait: options.MaxWait = None,
    as_json: options.Json = False,
) -> None:
    """Show a job with its steps, log and error. With --follow, --json prints a line per change."""
    if follow:
        output = Output(as_json=as_json)

        async def follow_job(client: Client) -> Exit:
            return await following.until_end(client, await resolve.job(client, job), output, max_seconds=max_wait)

        run(context, follow_job)
    else:
        perform(context, lambda client: _found(client, job), show_one, as_json=as_json)


async def _found(client: Client, job: str) -> Body:
    return await following.job(client, await resolve.job(client, job))


@app.command("retry")
def retry_job(
    context: typer.Context,
    job: options.JobArgument,
    *,
    follow: options.Follow = False,
    max_wait: options.MaxWait = None,
    force: options.Force = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Retry a failed job, as a new job."""
    output = Output(as_json=as_json)

    async def retry(client: Client) -> Exit:
        job_id = await resolve.job(client, job)
        if not yes:
            options.confirm(await _ask_retry(client, job_id, force=force))
        query = {"force": "true"} if force else None
        new = (await client.start(f"ops/jobs/{segment(job_id)}/retry/", query=query)).body
        if not as_json:
            output.say(f"job {new['id']}: {formats.what(new)}")
        if follow:
            return await following.until_end(client, new["id"], output, max_seconds=max_wait)
        if as_json:
            output.document(new)
        return Exit.OK

    run(context, retry)


@app.command("cancel")
def cancel_job(
    context: typer.Context, job: options.JobArgument, *, yes: options.Yes = False, as_json: options.Json = False
) -> None:
    """Cancel a job that has not started."""

    async def cancel(client: Client) -> Body:
        found = await _found(client, job)  # finds out the kind of token; a refused change would add an audit entry
        path = f"jobs/{segment(found['id'])}/cancel/"
        return await client.either(lambda: client.post(f"ops/{path}"), lambda: client.post(path))

    perform(
        context,
        cancel,
        lambda output, ended: output.say(f"cancelled: {formats.what(ended)}"),
        as_json=as_json,
        question=None if yes else _question("Cancel: {}?", job),
    )


@app.command("resolve")
def resolve_job(
    context: typer.Context,
    job: options.JobArgument,
    *,
    reason: options.Reason,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Mark a stranded server as repaired."""

    async def mark(client: Client) -> Body:
        return await client.post(f"ops/jobs/{segment(await resolve.job(client, job))}/resolve/", {"reason": reason})

    perform(
        context,
        mark,
        lambda output, resolved: output.say(f"resolved: {formats.what(resolved)}"),
        as_json=as_json,
        question=None if yes else _question("Mark the server as repaired: {}?", job),
    )


async def _describe(client: Client, question: str, job: str) -> str:
    found = await _found(client, job)
    return question.format(f"{formats.what(found)}, {found['state']}")


async def _ask_retry(client: Client, job_id: str, *, force: bool) -> str:
    """Raises CliError if the retry would be refused."""
    options.ensure_terminal("Retry?")
    found = await following.job(client, job_id)
    retry = found.get("retry")
    if retry and (not retry["possible"] or (retry["needs_force"] and not force)):
        raise CliError(Exit.REFUSED, f"{retry['detail']}{' Use --force.' if retry['needs_force'] else ''}")
    why = f"{retry['detail']} " if retry and retry["detail"] else ""
    over = ", overwriting all data of the server" if JobKind(found["kind"]).overwrites else ""
    return f"{why}Retry: {formats.what(found)}, {found['state']}{over}?"


def _question(text: str, job_id: str) -> Question:
    return lambda client: _describe(client, text, job_id)


def show_one(output: Output, job: Body) -> None:
    error, resolution = job["error"], job.get("resolution")
    output.facts(
        (
            ("job", job["id"]),
            ("what", formats.what(job)),
            ("state", formats.job_state(job)),
            ("error", f"{error['code']}: {error['detail']}" if error else None),
            ("cause", job.get("cause")),
            ("runbook", job.get("runbook")),
            (
                "resolved",
                resolution and f"{formats.at(resolution['at'])} UTC by {resolution['by']}: {resolution['reason']}",
            ),
            ("queued", f"{formats.at(job['queued_at'])} UTC"),
            ("waited", formats.between(job["queued_at"], job["started_at"])),
            *formats.waiting_facts(job),
            *formats.run_facts(job),
            *formats.job_facts(job),
            ("attempts", str(job["attempts"]) if job["attempts"] > 1 else None),
            ("power", f"{job['power_found']} before, {job['power_now']} now" if job.get("power_found") else None),
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
            output.say(formats.log_line(line))
    if advice := _advice(job):
        output.note("")
        output.note(advice)


def _advice(job: Body) -> str | None:
    """What an operator may do next."""
    if "steps" not in job:  # a customer's view
        return None
    if formats.is_stranded(job):
        return f"After you have repaired the server: vps-snapshots job resolve {job['id']} --reason ..."
    retry = job.get("retry")
    if retry and job["state"] == "failed":
        force = " --force" if retry["needs_force"] else ""
        command = f"To retry it: vps-snapshots job retry {job['id']}{force}" if retry["possible"] else None
        return " ".join(filter(None, (retry["detail"], command)))
    return f"To cancel it: vps-snapshots job cancel {job['id']}" if job["state"] == "queued" else None
