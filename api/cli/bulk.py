"""Retry or cancel several jobs: those named, or all that match filters."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api import words
from api.cli import formats
from api.cli.client import PAGE_MAX, Body, Client
from api.cli.connection import run
from api.cli.exits import Exit
from api.cli.options import JobArguments, Json, Yes, confirm, period
from api.cli.output import Column, Output

BULK_MAX = 100  # jobs of one call
FILTERS = ("kind", "node", "account_id", "server_id", "error_code", "text")
STATE = {"cancel": "queued", "retry": "failed"}
DONE = {"cancel": "cancelled", "retry": "retried"}
PREVIEW = 10  # matching jobs that are listed before the confirmation

COLUMNS = (
    Column(title="JOB", of=lambda one: one["id"]),
    Column(title="DONE", of=lambda one: "yes" if one["done"] else "no"),
    Column(title="NEW JOB", of=lambda one: one["job_id"] or "-", yields=2),
    Column(title="ERROR", of=lambda one: one["code"] or "-"),
    Column(title="DETAIL", of=lambda one: one["detail"] or "", yields=1),
)

Match = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILTER=VALUE",
        help=f"Select all jobs that match; repeat to combine filters. Filters: {', '.join(FILTERS)}.",
    ),
]
Since = Annotated[
    timedelta, typer.Option(parser=period, metavar="24h", help="With --match: maximum job age.", show_default="24h")
]
_DAY = timedelta(hours=24)


def _command(action: str, text: str) -> Callable[..., None]:
    def command(
        context: typer.Context,
        jobs: JobArguments = None,
        *,
        match: Match = None,
        since: Since = _DAY,
        yes: Yes = False,
        as_json: Json = False,
    ) -> None:
        if bool(jobs) is bool(match):
            raise typer.BadParameter("specify either job IDs or --match")
        filters, output = _filters(match or []), Output(as_json=as_json)

        async def act(client: Client) -> Exit:
            found = await _matching(client, filters | {"state": STATE[action]}, since) if match else []
            ids = jobs or [job["id"] for job in found]
            if ids:
                _preview(output, found)
                if not yes:
                    confirm(f"{action.capitalize()} {words.plural(len(ids), 'job')}?")
            return _show(output, DONE[action], await _post(client, action, ids))

        run(context, act)

    command.__doc__ = text
    return command


cancel_jobs = _command("cancel", "Cancel queued jobs, by ID or by --match.")
retry_jobs = _command("retry", "Retry failed jobs, by ID or by --match.")


def _preview(output: Output, found: list[Body]) -> None:
    for job in found[:PREVIEW]:
        output.note(f"{job['id']}  {formats.what(job)}, {words.ago(formats.moment(job['queued_at']))}")
    if len(found) > PREVIEW:
        output.note(f"... and {len(found) - PREVIEW} more")


async def _post(client: Client, action: str, ids: list[str]) -> list[Body]:
    results: list[Body] = []
    for n in range(0, len(ids), BULK_MAX):
        body = {"action": action, "ids": ids[n : n + BULK_MAX]}
        results += (await client.post("ops/jobs/bulk/", body))["results"]
    return results


def _filters(match: list[str]) -> dict[str, str]:
    filters: dict[str, str] = {}
    for one in match:
        name, _, value = one.partition("=")
        if name not in FILTERS or not value or name in filters:
            raise typer.BadParameter(f"--match {one}: use FILTER=VALUE, each of {', '.join(FILTERS)} at most once")
        filters[name] = value
    return filters


async def _matching(client: Client, query: dict[str, str], since: timedelta) -> list[Body]:
    found: list[Body] = []
    oldest, after = datetime.now(UTC) - since, None
    while True:  # newest first: the first job that is too old is the last one read
        page = await client.get("ops/jobs/", {**query, "limit": PAGE_MAX, "after": after})
        recent = [job for job in page["results"] if formats.moment(job["queued_at"]) >= oldest]
        found += recent
        after = page["after"]
        if after is None or len(recent) < len(page["results"]):
            return found


def _show(output: Output, done: str, results: list[Body]) -> Exit:
    refused = [one for one in results if not one["done"]]
    if output.as_json:
        output.document({"results": results})
    else:
        output.table(COLUMNS, results, none="No matching jobs.")
        output.note(f"{len(results) - len(refused)} {done}, {len(refused)} refused")
    return Exit.REFUSED if refused else Exit.OK
