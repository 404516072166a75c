"""Retry or cancel several jobs: those named, or all that match filters."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from api import words
from api.cli import following, formats, resolve
from api.cli.client import Body, Client
from api.cli.connection import run
from api.cli.exits import Exit
from api.cli.jobs import SHORT_ID
from api.cli.options import Force, JobArguments, Json, Yes, confirm, ensure_terminal, period, rfc3339
from api.cli.output import Column, Output
from worker.store.model import JobKind

BULK_MAX = 100  # jobs of one call
FILTERS = ("kind", "node", "account_id", "server_id", "error_code", "text")
OVERWRITING = {kind for kind in JobKind if kind.overwrites}
PREVIEW = 10  # jobs listed in each part of the confirmation

COLUMNS = (
    Column(title="JOB", of=lambda one: one["id"], digits=SHORT_ID),
    Column(title="DONE", of=lambda one: "yes" if one["done"] else "no"),
    Column(title="NEW JOB", of=lambda one: one["job_id"] or "-", yields=2, digits=SHORT_ID),
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


def cancel_jobs(
    context: typer.Context,
    jobs: JobArguments = None,
    *,
    match: Match = None,
    since: Since = _DAY,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    filters, output = _filters(jobs, match), Output(as_json=as_json)

    async def cancel(client: Client) -> Exit:
        found = await _matching(client, filters | {"state": "queued"}, since) if match else []
        ids = await resolve.jobs(client, jobs or []) or [job["id"] for job in found]
        if ids:
            named = found if found or yes else [await following.job(client, job_id) for job_id in ids[:PREVIEW]]
            _list(output, [(job["id"], _queued(job)) for job in named], count=len(ids) if named else 0)
            if not yes:
                confirm(f"Cancel {words.plural(len(ids), 'job')}?")
        return _show(output, "cancelled", await _post(client, {"action": "cancel"}, ids))

    run(context, cancel)


def retry_jobs(
    context: typer.Context,
    jobs: JobArguments = None,
    *,
    match: Match = None,
    since: Since = _DAY,
    force: Force = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    filters, output = _filters(jobs, match), Output(as_json=as_json)

    async def retry(client: Client) -> Exit:
        if not yes:
            ensure_terminal("Retry?")
        wanted = filters | {"state": "failed", "cancelled": "false"}
        ids = await resolve.jobs(client, jobs or []) or [job["id"] for job in await _matching(client, wanted, since)]
        order = {"action": "retry", "force": force}
        told = await _post(client, order | {"dry_run": True}, ids)
        retried = [one["job"] for one in told if one["done"]]
        if retried:
            _print_preview(output, told, retried)
            if not yes:
                confirm(_question(retried, force=force))
        left_out = [one | {"job": None} for one in told if not one["done"]]
        return _show(output, "retried", await _post(client, order, [job["id"] for job in retried]) + left_out)

    run(context, retry)


def _question(retried: list[Body], *, force: bool) -> str:
    over = sum(job["kind"] in OVERWRITING for job in retried)
    overwriting = f", {over} of them overwriting all data of the server" if over else ""
    return f"{'Force the retry of' if force else 'Retry'} {words.plural(len(retried), 'job')}{overwriting}?"


def _print_preview(output: Output, told: list[Body], retried: list[Body]) -> None:
    """List what a retry will do, restores separately, and what it leaves out."""
    described = [
        (job, f"{formats.what(job)}, failed {_ago(job['finished_at'] or job['queued_at'])}") for job in retried
    ]
    _list(output, [(job["id"], text) for job, text in described if job["kind"] not in OVERWRITING])
    if over := [(job["id"], text) for job, text in described if job["kind"] in OVERWRITING]:
        output.note("Overwriting all data of the server:")
        _list(output, over)
    if left_out := [(one["id"], one["detail"]) for one in told if not one["done"]]:
        output.note("Left out:")
        _list(output, left_out)


def _list(output: Output, jobs: list[tuple[str, str]], *, count: int | None = None) -> None:
    """`count`: of all jobs, if `jobs` has only the first ones."""
    for job_id, text in jobs[:PREVIEW]:
        output.note(f"{job_id}  {text}")
    more = (len(jobs) if count is None else count) - PREVIEW
    if more > 0:
        output.note(f"... and {more} more")


def _queued(job: Body) -> str:
    state = "" if job["state"] == "queued" else f", {words.plain(job['state'])}"
    return f"{formats.what(job)}{state}, {_ago(job['queued_at'])}"


def _ago(text: str) -> str:
    return words.ago(formats.moment(text))


async def _post(client: Client, order: Body, ids: list[str]) -> list[Body]:
    results: list[Body] = []
    for n in range(0, len(ids), BULK_MAX):
        results += (await client.post("ops/jobs/bulk/", order | {"ids": ids[n : n + BULK_MAX]}))["results"]
    return results


def _filters(jobs: list[str] | None, match: list[str] | None) -> dict[str, str]:
    """The filters of --match, which is required if no jobs are given."""
    if bool(jobs) is bool(match):
        raise typer.BadParameter("specify either job IDs or --match")
    filters: dict[str, str] = {}
    for one in match or []:
        name, _, value = one.partition("=")
        if name not in FILTERS or not value or name in filters:
            raise typer.BadParameter(f"--match {one}: use FILTER=VALUE, each of {', '.join(FILTERS)} at most once")
        filters[name] = value
    return filters


async def _matching(client: Client, query: dict[str, str], since: timedelta) -> list[Body]:
    wanted: dict[str, str | int | None] = {**query, "since": rfc3339(datetime.now(UTC) - since)}
    wanted |= {"server_id": await resolve.server_if_any(client, query.get("server_id"))}
    return list((await client.collect("ops/jobs/", wanted, limit=None))["results"])


def _show(output: Output, done: str, results: list[Body]) -> Exit:
    refused = [one for one in results if not one["done"]]
    if output.as_json:
        output.document({"results": results})
    else:
        output.table(COLUMNS, results, none="No matching jobs.")
        output.note(f"{len(results) - len(refused)} {done}, {len(refused)} refused")
    return Exit.REFUSED if refused else Exit.OK
