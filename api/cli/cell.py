"""The cell as a whole: at a glance, and as it goes."""

from typing import Annotated

import typer

from api.cli import shown
from api.cli.client import MISSED, Body, Client, Event
from api.cli.connection import run
from api.cli.options import Json
from api.cli.output import Column, Output

CHART_COLUMNS = (
    Column(title="KIND", of=lambda chart: chart["kind"]),
    Column(title="COMPLETED", of=lambda chart: _ended(chart, "completed"), right=True),
    Column(title="FAILED", of=lambda chart: _ended(chart, "failed"), right=True),
    Column(title="HALF TOOK", of=lambda chart: _latest(chart, "seconds", "p50"), yields=3, right=True),
    Column(title="95% TOOK", of=lambda chart: _latest(chart, "seconds", "p95"), yields=2, right=True),
    Column(title="95% GUEST OFF", of=lambda chart: _latest(chart, "downtime_seconds", "p95"), yields=1, right=True),
)


def show_overview(context: typer.Context, *, as_json: Json = False) -> None:
    """Show the cell at a glance."""
    output = Output(as_json=as_json)

    async def show(client: Client) -> None:
        now = await client.get("ops/overview/")
        output.document(now) if as_json else _show(output, now)

    run(context, show)


def follow_events(
    context: typer.Context,
    *,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.")] = None,
    as_json: Json = False,
) -> None:
    """Follow the changes of jobs, until Ctrl-C. With --json, each is a line."""
    output = Output(as_json=as_json)

    async def follow(client: Client) -> None:
        told = 0
        async for event in client.events(
            listening=lambda: output.note("Listening."), lost=lambda away: output.note(f"{away} Trying again.")
        ):
            _tell(output, event)
            told += event.kind != MISSED
            if told == count:
                return

    run(context, follow)


def _show(output: Output, now: Body) -> None:
    oldest, nodes, stranded = now["oldest_queued"], now["nodes"], now["stranded_servers"]
    output.facts(
        (
            ("stranded servers", shown.alarming(stranded)),
            ("queued", f"{now['queued']:,}"),
            ("oldest", f"{oldest['id']}, waits since {shown.ago(oldest['queued_at'])}" if oldest else None),
            ("in progress", f"{now['in_progress']:,}"),
            (
                "completed",
                f"{now['completed']['hour']:,} in the last hour, {now['completed']['day']:,} in the last day",
            ),
            ("failed", f"{now['failed']['hour']:,} in the last hour, {now['failed']['day']:,} in the last day"),
            ("nodes", f"{nodes['alive']:,} alive, {nodes['paused']:,} of all paused"),
            ("silent nodes", shown.alarming(nodes["silent"])),
            ("findings on", f"{now['servers_with_findings']:,} servers"),
        )
    )
    if now["charts"]:
        output.heading("The last 24 hours; times of the latest quarter of an hour")
        output.table(CHART_COLUMNS, now["charts"], none="")


def _ended(chart: Body, how: str) -> int:
    return sum(point[how] for point in chart["points"])


def _latest(chart: Body, what: str, percentile: str) -> str:
    return shown.seconds(chart["points"][-1][what][percentile]) if chart["points"] else "-"


def _tell(output: Output, event: Event) -> None:
    if output.as_json:
        output.line({"id": event.id, "event": event.kind, **event.data})
    elif event.kind == MISSED:
        output.note("Some were missed: the connection was lost for too long.")
    else:
        output.say(f"{shown.clock(event.id)}  {event.data['job_id']}  {_words(event.data)}")


def _words(data: Body) -> str:
    state = f"{data['state']} {data['step']}" if data["state"] == "in_progress" and data["step"] else data["state"]
    snapshot = f", snapshot {data['snapshot_id']}" if data["snapshot_id"] else ""
    account = f", account {data['account_id']}" if "account_id" in data else ""
    return f"{data['kind']} {state}, server {data['server_id']}{snapshot}{account}"
