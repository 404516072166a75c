"""Many jobs at once: those that are named, or those that match."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api.cli import shown
from api.cli.client import PART_MAX, Body, Client
from api.cli.connection import run
from api.cli.exits import Exit
from api.cli.options import JobArguments, Json, Yes, confirm, period
from api.cli.output import Column, Output

BULK_MAX = 100  # jobs of one call
MATCHES = ("kind", "node", "account_id", "server_id", "error_code", "text")
STATE = {"cancel": "queued", "retry": "failed"}
SHOWN = 10  # of those that match, before the question

COLUMNS = (
    Column(title="JOB", of=lambda one: one["id"]),
    Column(title="DONE", of=lambda one: "yes" if one["done"] else "no"),
    Column(title="NEW JOB", of=lambda one: one["job_id"] or "-", yields=2),
    Column(title="WHY NOT", of=lambda one: one["code"] or "-"),
    Column(title="DETAIL", of=lambda one: one["detail"] or "", yields=1),
)

Match = Annotated[
    list[str] | None,
    typer.Option(metavar="FILTER=VALUE", help=f"All that match; several filters: each. By {', '.join(MATCHES)}."),
]
Since = Annotated[
    timedelta, typer.Option(parser=period, metavar="24h", help="With --match: not older than this.", show_default="24h")
]
_DAY = timedelta(hours=24)


def cancel_jobs(
    context: typer.Context,
    jobs: JobArguments = None,
    *,
    match: Match = None,
    since: Since = _DAY,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Cancel jobs that wait, by id or by --match."""
    _do(context, "cancel", jobs or [], match or [], since=since, yes=yes, output=Output(as_json=as_json))


def retry_jobs(
    context: typer.Context,
    jobs: JobArguments = None,
    *,
    match: Match = None,
    since: Since = _DAY,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Try failed jobs again, by id or by --match."""
    _do(context, "retry", jobs or [], match or [], since=since, yes=yes, output=Output(as_json=as_json))


def _do(
    context: typer.Context,
    action: str,
    jobs: list[str],
    match: list[str],
    *,
    since: timedelta,
    yes: bool,
    output: Output,
) -> None:
    if bool(jobs) is bool(match):
        raise typer.BadParameter("give the ids of jobs, or --match")
    filters = _filters(match)

    async def act(client: Client) -> Exit:
        found = await _matching(client, filters | {"state": STATE[action]}, since) if match else []
        ids = jobs or [job["id"] for job in found]
        if ids:
            for job in found[:SHOWN]:
                output.note(f"{job['id']}  {shown.what(job)}, {shown.ago(job['queued_at'])} old")
            if len(found) > SHOWN:
                output.note(f"... and {len(found) - SHOWN} more")
            confirm(f"{action.capitalize()} {len(ids)} {'job' if len(ids) == 1 else 'jobs'}?", yes=yes)
        results: list[Body] = []
        for n in range(0, len(ids), BULK_MAX):
            asked = {"action": action, "ids": ids[n : n + BULK_MAX]}
            results += (await client.post("ops/jobs/bulk/", asked)).body["results"]
        return _told(output, results)

    run(context, act)


def _filters(match: list[str]) -> dict[str, str]:
    filters: dict[str, str] = {}
    for one in match:
        name, _, value = one.partition("=")
        if name not in MATCHES or not value or name in filters:
            raise typer.BadParameter(f"--match {one}: once each, FILTER=VALUE by {', '.join(MATCHES)}")
        filters[name] = value
    return filters


async def _matching(client: Client, query: dict[str, str], since: timedelta) -> list[Body]:
    """Newest first, so that the first one that is too old ends it."""
    found: list[Body] = []
    oldest, after = datetime.now(UTC) - since, None
    while True:
        part = await client.get("ops/jobs/", {**query, "limit": PART_MAX, "after": after})
        young = [job for job in part["results"] if shown.moment(job["queued_at"]) >= oldest]
        found += young
        after = part["after"]
        if after is None or len(young) < len(part["results"]):
            return found


def _told(output: Output, results: list[Body]) -> Exit:
    refused = [one for one in results if not one["done"]]
    if output.as_json:
        output.document({"results": results})
    else:
        output.table(COLUMNS, results, none="No such jobs.")
        output.note(f"{len(results) - len(refused)} done, {len(refused)} refused")
    return Exit.REFUSED if refused else Exit.OK
