"""Commands for the cell as a whole: its overview and its events."""

from typing import Annotated

import typer

from api import words
from api.cli import formats
from api.cli.client import MISSED, Body, Client, Event
from api.cli.commands import perform
from api.cli.connection import run
from api.cli.options import Json
from api.cli.output import Column, Output

CHART_COLUMNS = (
    Column(title="KIND", of=lambda chart: chart["kind"]),
    Column(title="COMPLETED", of=lambda chart: _total(chart, "completed"), right=True),
    Column(title="FAILED", of=lambda chart: _total(chart, "failed"), right=True),
    Column(title="P50", of=lambda chart: _latest(chart, "seconds", "p50"), yields=3, right=True),
    Column(title="P95", of=lambda chart: _latest(chart, "seconds", "p95"), yields=2, right=True),
    Column(title="DOWNTIME P95", of=lambda chart: _latest(chart, "downtime_seconds", "p95"), yields=1, right=True),
)


def show_overview(context: typer.Context, *, as_json: Json = False) -> None:
    perform(context, lambda client: client.get("ops/overview/"), _show_overview, as_json=as_json)


def follow_events(
    context: typer.Context,
    *,
    count: Annotated[int | None, typer.Option(min=1, help="Exit after this many events.")] = None,
    as_json: Json = False,
) -> None:
    output = Output(as_json=as_json)

    async def follow(client: Client) -> None:
        seen = 0
        async for event in client.events(
            listening=lambda: output.note("Listening."), lost=lambda error: output.note(f"{error} Retrying.")
        ):
            _show_event(output, event)
            seen += event.kind != MISSED
            if seen == count:
                return

    run(context, follow)


def _show_overview(output: Output, overview: Body) -> None:
    oldest, nodes, stranded = overview["oldest_queued"], overview["nodes"], overview["stranded_servers"]
    unreadable = overview.get("unreadable_records", 0)
    output.facts(
        (
            ("stranded servers", formats.alarming(stranded)),
            ("guests off", words.number(off) if (off := overview.get("servers_off")) else None),
            ("queued", words.number(overview["queued"])),
            ("oldest", f"{oldest['id']}, waiting for {formats.age(oldest['queued_at'])}" if oldest else None),
            ("in progress", words.number(overview["in_progress"])),
            ("completed", _recent(overview["completed"])),
            ("failed", _recent(overview["failed"])),
            ("nodes", f"{nodes['alive']:,} alive, {nodes['paused']:,} paused"),
            ("silent nodes", formats.alarming(nodes["silent"])),
            ("findings", f"{words.plural(overview['servers_with_findings'], 'server')} with findings"),
            ("unreadable records", formats.alarming(unreadable) if unreadable else None),
        )
    )
    if overview["charts"]:
        output.heading("Last 24 hours (durations: last 15 minutes)")
        output.table(CHART_COLUMNS, overview["charts"], none="")


def _recent(counts: Body) -> str:
    return f"{counts['hour']:,} in the last hour, {counts['day']:,} in the last 24 hours"


def _total(chart: Body, state: str) -> int:
    return sum(point[state] for point in chart["points"])


def _latest(chart: Body, what: str, percentile: str) -> str:
    return formats.seconds(chart["points"][-1][what][percentile]) if chart["points"] else "-"


def _show_event(output: Output, event: Event) -> None:
    if output.as_json:
        output.line({"id": event.id, "event": event.kind, **event.data})
    elif event.kind == MISSED:
        output.note("Some events were missed: the connection was lost for too long.")
    else:
        output.say(f"{formats.clock(event.id)}  {event.data['job_id']}  {_describe(event.data)}")


def _describe(data: Body) -> str:
    state = f"{data['state']} {data['step']}" if data["state"] == "in_progress" and data["step"] else data["state"]
    snapshot = f", snapshot {data['snapshot_id']}" if data["snapshot_id"] else ""
    account = f", account {data['account_id']}" if "account_id" in data else ""
    return f"{data['kind']} {state}, server {data['server_id']}{snapshot}{account}"
